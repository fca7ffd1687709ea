"""Unary calls that are made again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from meshproxy.codec import grpc
from meshproxy.http.grpc.client import RpcClient, RpcError, RpcResponse
from tests.rpc.harness import client_of, parse_service, service
from tests.rpc.test_bad_servers import END, GOOD, HEAD, METHOD, START, frames, head, trailers
from tests.support.http2_upstream import OPENING, SILENT, Http2Answer, Http2Upstream
from tests.support.http2_wire import goaway, reset
from tests.upstream.harness import World, until

SHORT = {"base_interval": "0.001s", "max_interval": "0.001s"}


@pytest.fixture
def server() -> Iterator[Http2Upstream]:
    upstream = Http2Upstream({"a": OPENING})
    yield upstream
    upstream.close()
    assert upstream.errors == []


def of_code(code: int) -> Http2Answer:
    return frames(head(*HEAD, ("grpc-status", str(code)), end=True))


def of_status(status: int) -> Http2Answer:
    return frames(head((":status", str(status)), end=True))


def with_retries(retry_on: str, number: int = 1) -> Any:
    return service(retry_policy={"retry_on": retry_on, "num_retries": number, "retry_back_off": SHORT})


def retry_counters(w: World) -> dict[str, int]:
    return {name[12:]: count for name, count in w.counters().items() if name.startswith("upstream_rq_retry")}


UNAVAILABLE = of_code(grpc.UNAVAILABLE)
RESET = frames(lambda stream: reset(stream, 2))


@pytest.mark.parametrize(
    ("retry_on", "failed"),
    [
        ("cancelled", of_code(grpc.CANCELLED)),
        ("deadline-exceeded", of_code(grpc.DEADLINE_EXCEEDED)),
        ("internal", of_code(grpc.INTERNAL)),
        ("resource-exhausted", of_code(grpc.RESOURCE_EXHAUSTED)),
        ("internal,unavailable", UNAVAILABLE),
        ("5xx", of_status(500)),
        ("5xx", RESET),
        ("gateway-error", of_status(503)),
        ("gateway-error", RESET),
        ("retriable-4xx", of_status(409)),
        ("reset", RESET),
        ("reset", frames(then="close")),
        ("unavailable", frames(head(*HEAD, ("grpc-status", "14")))),  # it does not end there
        (
            "envoy-ratelimited",
            frames(head(*HEAD, ("grpc-status", "14"), ("x-envoy-ratelimited", "true"), end=True)),
        ),
    ],
)  # fmt: skip
async def test_a_failure_that_is_made_good(server: Http2Upstream, retry_on: str, failed: Http2Answer) -> None:
    async with client_of(server.ports["a"], with_retries(retry_on)) as (client, w):
        script = server.play([failed, GOOD])
        assert (await client.unary(METHOD, b"question")).message == b"answer"
        assert len({seen.stream.parts[0].body for seen in script.seen}) == 1
        assert len(script.seen) == 2
        assert retry_counters(w) == {"retry": 1, "retry_backoff_exponential": 1, "retry_success": 1}


@pytest.mark.parametrize(
    ("retry_on", "failed"),
    [
        ("unavailable", of_code(grpc.INTERNAL)),
        ("unavailable", of_status(503)),  # it has no grpc-status
        ("unavailable", frames(START, trailers(("grpc-status", "14")))),  # not in the head
        ("unavailable", RESET),
        ("connect-failure", RESET),
        ("reset-before-request", RESET),
        ("gateway-error", of_status(500)),
        ("5xx", UNAVAILABLE),
        ("5xx", frames(head(*HEAD, ("grpc-status", "14"), ("x-envoy-ratelimited", "true"), end=True))),
        ("reset", frames(START, lambda stream: reset(stream, 2))),
        ("5xx,unavailable", frames(START, END)),
        ("", UNAVAILABLE),
    ],
)  # fmt: skip
async def test_a_failure_that_is_not_among_the_conditions(
    server: Http2Upstream, retry_on: str, failed: Http2Answer
) -> None:
    async with client_of(server.ports["a"], with_retries(retry_on)) as (client, w):
        script = server.play([failed, GOOD])
        with pytest.raises(RpcError):
            await client.unary(METHOD, b"question")
        assert len(script.seen) == 1
        assert retry_counters(w) == {}


async def test_as_often_as_the_policy_says(server: Http2Upstream) -> None:
    async with client_of(server.ports["a"], with_retries("unavailable", 3)) as (client, w):
        script = server.play([UNAVAILABLE])
        with pytest.raises(RpcError):
            await client.unary(METHOD, b"question")
        assert len(script.seen) == 4
        assert retry_counters(w) == {"retry": 3, "retry_backoff_exponential": 3, "retry_limit_exceeded": 1}


async def test_the_breaker_for_retries(server: Http2Upstream) -> None:
    breakers = {"thresholds": [{"max_retries": 0}]}
    config = with_retries("unavailable")
    async with client_of(server.ports["a"], config, circuit_breakers=breakers) as (client, w):
        script = server.play([UNAVAILABLE])
        with pytest.raises(RpcError):
            await client.unary(METHOD, b"question")
        assert len(script.seen) == 1
        assert retry_counters(w) == {"retry_overflow": 1}


async def test_a_refused_stream_goes_on_another_connection_without_any_policy(server: Http2Upstream) -> None:
    async with client_of(server.ports["a"], service()) as (client, w):
        script = server.play([frames(lambda stream: goaway(0)), GOOD])
        assert (await client.unary(METHOD, b"question")).message == b"answer"
        assert [seen.connection for seen in script.seen] == [1, 2]
        assert retry_counters(w) == {}


async def test_no_attempt_begins_behind_the_deadline(server: Http2Upstream) -> None:
    slow = {"base_interval": "60s", "max_interval": "60s"}
    config = service(retry_policy={"retry_on": "unavailable", "retry_back_off": slow})
    async with client_of(server.ports["a"], config) as (client, _):
        script = server.play([UNAVAILABLE])
        with pytest.raises(RpcError) as error:
            await client.unary(METHOD, b"question", timeout_ms=1.0)
        assert error.value.code in (grpc.UNAVAILABLE, grpc.DEADLINE_EXCEEDED)
        assert len(script.seen) <= 1


async def waiting_for_another(server: Http2Upstream, client: RpcClient, outcomes: list[Any]) -> Any:
    """What gives a call up that has failed once, and waits to be made again."""
    script = server.play([UNAVAILABLE, SILENT])
    give_up = client.start_unary(METHOD, b"question", outcomes.append)
    await until(lambda: script.seen and script.seen[0].stream.ended)
    return give_up


async def test_a_call_is_given_up_between_attempts(server: Http2Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.randrange", lambda limit: limit - 1)
    slow = {"base_interval": "60s", "max_interval": "60s"}
    config = service(retry_policy={"retry_on": "unavailable", "retry_back_off": slow})
    outcomes: list[RpcResponse | RpcError] = []
    async with client_of(server.ports["a"], config) as (client, w):
        give_up = await waiting_for_another(server, client, outcomes)
        await until(lambda: w.counters().get("upstream_rq_retry"))
        give_up()
        assert w.manager.clusters()[0].breakers(0).retries.can_acquire()
    assert outcomes == []


def test_what_cannot_be() -> None:
    slow = {"base_interval": "2s", "max_interval": "1s"}
    fields = {"envoy_grpc": {"cluster_name": "c"}, "retry_policy": {"retry_back_off": slow}}
    config, errors = parse_service(fields)
    assert config is None
    assert [error.path for error in errors.items] == ["s.retry_policy.retry_back_off.max_interval"]
    target = {"target_uri": "127.0.0.1:1", "stat_prefix": "g"}
    config, errors = parse_service({"google_grpc": target, "retry_policy": {}})
    assert [error.path for error in errors.items] == ["s.retry_policy"]
