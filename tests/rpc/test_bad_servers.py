"""Servers that do not do as gRPC asks, or as HTTP/2 does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from meshproxy.codec import grpc
from meshproxy.http.grpc.client import RpcError, RpcResponse
from meshproxy.http.grpc.messages import frame
from tests.rpc.harness import client_of, service
from tests.support.http2_upstream import OPENING, SILENT, Http2Answer, Http2Upstream
from tests.support.http2_wire import data, goaway, headers, ping, reset
from tests.upstream.harness import until

HEAD = [(":status", "200"), ("content-type", "application/grpc")]
OK_TRAILERS = [("grpc-status", "0")]
ANSWER = frame(b"answer")
METHOD = b"/test.Test/any"
HTTP = "the server answered with HTTP status "
CUT = "the answer was cut short: "
BEFORE = "upstream connect error or disconnect/reset before headers. reset reason: "


@pytest.fixture
def server() -> Iterator[Http2Upstream]:
    upstream = Http2Upstream({"a": OPENING})
    yield upstream
    upstream.close()
    assert upstream.errors == []


def frames(*parts: Callable[[int], bytes], early: bool = False, then: str = "keep") -> Http2Answer:
    return Http2Answer(lambda stream: b"".join(part(stream) for part in parts), early=early, then=then)


def head(*fields: tuple[str, str], end: bool = False) -> Callable[[int], bytes]:
    return lambda stream: headers(stream, fields, end=end)


def body(content: bytes, *, end: bool = False) -> Callable[[int], bytes]:
    return lambda stream: data(stream, content, end=end)


def trailers(*fields: tuple[str, str]) -> Callable[[int], bytes]:
    return lambda stream: headers(stream, fields, end=True)


START = head(*HEAD)
END = trailers(*OK_TRAILERS)
GOOD = frames(START, body(ANSWER), END)
REFUSED = frames(lambda stream: reset(stream, 7))


async def outcome_of(server: Http2Upstream, *answers: Http2Answer, **options: Any) -> RpcResponse | RpcError:
    """Of a unary call, in both ways of making one."""
    outcomes: list[RpcResponse | RpcError] = []
    async with client_of(server.ports["a"], service(**options)) as (client, _):
        server.play(answers)
        client.start_unary(METHOD, b"question", outcomes.append)
        await until(lambda: outcomes)
    return outcomes[0]


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        (frames(START, body(ANSWER, end=True)), grpc.UNKNOWN, "the answer ended without a grpc-status"),
        (frames(head(*HEAD, end=True)), grpc.UNKNOWN, "the answer ended without a grpc-status"),
        (frames(START, body(ANSWER), trailers(("x", "1"))), grpc.UNKNOWN, "the answer ended without a grpc-status"),
        (frames(START, trailers(("grpc-status", "two"))), grpc.UNKNOWN, "the answer ended without a grpc-status"),
        (frames(START, trailers(("grpc-status", "99"))), 99, ""),
        (frames(START, END), grpc.INTERNAL, "the answer has no message"),
        (frames(START, body(ANSWER * 2), END), grpc.INTERNAL, "the answer has several messages"),
        (frames(START, body(ANSWER[:-1]), END), grpc.INTERNAL, "the answer ended within a message"),
        (frames(START, body(ANSWER[:3]), END), grpc.INTERNAL, "the answer ended within a message"),
        (
            frames(START, body(frame(b"answer", 1)), END),
            grpc.INTERNAL,
            "a message is compressed, though no coding was offered",
        ),
        (
            frames(head((":status", "200"), ("content-type", "text/html")), body(b"<html>"), body(b"", end=True)),
            grpc.UNKNOWN,
            "the server answered with content-type 'text/html'",
        ),
        (
            frames(head((":status", "200")), body(ANSWER), END),
            grpc.UNKNOWN,
            "the server answered with content-type ''",
        ),
        (frames(head((":status", "503")), body(b"no", end=True)), grpc.UNAVAILABLE, HTTP + "503"),
        (frames(head((":status", "404"), end=True)), grpc.UNIMPLEMENTED, HTTP + "404"),
        (frames(head((":status", "500"), end=True)), grpc.UNKNOWN, HTTP + "500"),
        (
            frames(head((":status", "400"), ("grpc-status", "5"), ("grpc-message", "gone%21"), end=True)),
            grpc.NOT_FOUND,
            "gone!",
        ),
        (frames(lambda stream: reset(stream, 2)), grpc.UNAVAILABLE, BEFORE + "remote reset"),
        (frames(START, body(ANSWER[:8]), lambda stream: reset(stream, 2)), grpc.INTERNAL, CUT + "remote reset"),
        (frames(START, body(ANSWER[:8]), then="close"), grpc.INTERNAL, CUT + "connection termination"),
        (frames(then="close"), grpc.UNAVAILABLE, BEFORE + "connection termination"),
        (frames(lambda stream: data(0, b"x")), grpc.UNAVAILABLE, BEFORE + "protocol error"),
        (frames(START, lambda stream: data(0, b"x")), grpc.INTERNAL, CUT + "protocol error"),
        (frames(head(("x", "no status"))), grpc.UNAVAILABLE, BEFORE + "protocol error"),
    ],
)  # fmt: skip
async def test_an_answer_that_is_none(server: Http2Upstream, answer: Http2Answer, code: int, message: str) -> None:
    outcome = await outcome_of(server, answer)
    assert isinstance(outcome, RpcError)
    assert (outcome.code, outcome.status.message) == (code, message)


@pytest.mark.parametrize("trailing", [OK_TRAILERS, [("grpc-status", "5")]])
async def test_what_is_left_of_the_request_is_not_sent(server: Http2Upstream, trailing: list[tuple[str, str]]) -> None:
    """The server ends the call before the client does."""
    async with client_of(server.ports["a"]) as (client, _), client.call(METHOD) as call:
        script = server.play([frames(head(*HEAD), body(ANSWER), trailers(*trailing), early=True)])
        await call.send(b"first")
        assert await call.receive() == b"answer"
        if trailing == OK_TRAILERS:
            assert await call.receive() is None
        else:
            with pytest.raises(RpcError):
                await call.receive()
        assert not await call.send(b"second")
        await until(lambda: script.seen[0].stream.reset is not None)
        assert script.seen[0].stream.parts[0].body == frame(b"first")


async def test_the_longest_message(server: Http2Upstream) -> None:
    limit = {"envoy_grpc": {"cluster_name": "c", "max_receive_message_length": 6}}
    outcome = await outcome_of(server, GOOD, **limit)
    assert isinstance(outcome, RpcResponse)
    outcome = await outcome_of(server, frames(START, body(frame(b"answers")), END), **limit)
    assert isinstance(outcome, RpcError)
    assert outcome.code == grpc.RESOURCE_EXHAUSTED
    # the rest of it is not waited for
    outcome = await outcome_of(server, frames(START, body(b"\0\xff\xff\xff\xff")), **limit)
    assert isinstance(outcome, RpcError)
    assert outcome.code == grpc.RESOURCE_EXHAUSTED
    assert server.script.seen[0].stream.over


async def test_what_was_not_looked_at_is_asked_once_more(server: Http2Upstream) -> None:
    outcome = await outcome_of(server, REFUSED, GOOD)
    assert isinstance(outcome, RpcResponse)
    assert [seen.stream.parts[0].body for seen in server.script.seen] == [frame(b"question")] * 2
    outcome = await outcome_of(server, REFUSED)
    assert isinstance(outcome, RpcError)
    assert outcome.code == grpc.UNAVAILABLE
    assert len(server.script.seen) == 2


async def test_a_server_that_goes_away(server: Http2Upstream) -> None:
    """It has not looked at the call; that is made on another connection."""
    outcome = await outcome_of(server, frames(lambda stream: goaway(0)), GOOD)
    assert isinstance(outcome, RpcResponse)
    assert [seen.connection for seen in server.script.seen] == [1, 2]


async def test_a_server_that_goes_away_when_it_is_done(server: Http2Upstream) -> None:
    async with client_of(server.ports["a"]) as (client, _), client.call(METHOD) as call:
        server.play([frames(START, body(ANSWER), goaway), GOOD])
        await call.send(b"question")
        call.end()
        assert await call.receive() == b"answer"
        (seen,) = server.script.seen
        assert (await client.unary(METHOD, b"question")).message == b"answer"
        assert [each.connection for each in server.script.seen] == [1, 2]
        seen.wire.send(body(ANSWER)(seen.stream_id) + END(seen.stream_id))
        assert await call.receive() == b"answer"
        assert await call.receive() is None


async def test_an_answer_in_small_pieces(server: Http2Upstream) -> None:
    content = frame(b"one") + frame(b"") + frame(b"three")
    async with client_of(server.ports["a"]) as (client, _), client.call(METHOD) as call:
        pieces = [body(content[at : at + 1]) for at in range(len(content))]
        server.play([frames(START, *[part for piece in pieces for part in (piece, lambda _: ping())], END)])
        call.end()
        assert [message async for message in call] == [b"one", b"", b"three"]


async def test_a_cancelled_call_is_reset(server: Http2Upstream) -> None:
    outcomes: list[RpcResponse | RpcError] = []
    async with client_of(server.ports["a"]) as (client, w):
        script = server.play([frames(START, early=True)])
        cancel = client.start_unary(METHOD, b"question", outcomes.append)
        await until(lambda: script.seen)
        cancel()
        cancel()
        await until(lambda: script.seen[0].stream.reset is not None)
        cancel = client.start_unary(METHOD, b"question", outcomes.append)
        cancel()
        server.play([GOOD])
        assert (await client.unary(METHOD, b"question")).message == b"answer"
        assert w.counters()["upstream_cx_total"] == 1
    assert outcomes == []


@pytest.mark.parametrize("begun", [False, True])
async def test_a_server_that_does_not_keep_the_deadline(server: Http2Upstream, begun: bool) -> None:
    async with client_of(server.ports["a"]) as (client, w):
        script = server.play([frames(START, body(ANSWER), early=True) if begun else SILENT])
        async with client.call(METHOD, timeout_ms=100.0) as call:
            if begun:
                assert await call.receive() == b"answer"
            with pytest.raises(RpcError) as error:
                await call.receive()
            assert error.value.code == grpc.DEADLINE_EXCEEDED
            assert not await call.send(b"late")
        await until(lambda: script.seen and script.seen[0].stream.reset is not None)
        counters = w.counters()
        assert counters["upstream_rq_timeout"] == 1
        assert counters.get("upstream_rq_504", 0) == (0 if begun else 1)


async def test_the_head_of_a_call(server: Http2Upstream) -> None:
    config = service(
        envoy_grpc={"cluster_name": "c", "authority": "some.host", "skip_envoy_headers": True},
        initial_metadata=[{"key": "x-own-bin", "value": "\N{SNOWMAN}"}],
    )
    async with client_of(server.ports["a"], config) as (client, _):
        script = server.play([GOOD])
        await client.unary(METHOD, b"question", timeout_ms=1500.0, metadata=[(b"user-agent", b"test")])
        (seen,) = script.seen
        assert seen.stream.parts[0].fields == [
            (":method", "POST"),
            (":path", "/test.Test/any"),
            (":authority", "some.host"),
            (":scheme", "http"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("grpc-timeout", "1500m"),
            ("x-own-bin", "4piD"),
            ("user-agent", "test"),
        ]
