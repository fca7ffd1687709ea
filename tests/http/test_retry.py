"""Which outcomes are tried again, how often and after how long: Envoy's retry semantics."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster as ClusterMessage
from envoy.config.route.v3.route_components_pb2 import RetryPolicy as RetryPolicyMessage

from meshproxy import errors
from meshproxy.codec.headers import HeaderMap
from meshproxy.http.retry import NO, NO_OVERFLOW, RETRY, RETRY_LIMIT, RetryState, retry_state_for
from meshproxy.route.retry_policy import build_retry_policy
from meshproxy.route.route import ROUTE_CLUSTER, Route, VirtualHost
from meshproxy.upstream.build import build_cluster
from meshproxy.upstream.cluster import Cluster
from tests.http.harness import Harness, ScriptedUpstream, get, parse

MANY = {"circuit_breakers": {"thresholds": [{"max_retries": 100}]}}


class Retries:
    """A route with this retry policy to a cluster, and a request."""

    def __init__(self, policy: dict[str, Any] | None, cluster: dict[str, Any] | None = None) -> None:
        self.harness = Harness(upstream=ScriptedUpstream(None))
        self.harness.connect().send(get("/"))
        message = {"name": "c", "type": "STATIC", **(MANY if cluster is None else cluster)}
        config = build_cluster(parse(message, ClusterMessage()), "c", self.harness.context)
        assert config is not None, str(self.harness.errors)
        harness = self.harness
        self.cluster = Cluster(config, harness.dispatcher, harness.registry, harness.runtime, lambda bits: 0, None)
        self.route = Route("r", VirtualHost("v"), ROUTE_CLUSTER)
        if policy is not None:
            self.route.retry = build_retry_policy(parse(policy, RetryPolicyMessage()), "p", self.harness.errors)
        assert not self.harness.errors, str(self.harness.errors)

    def request(self, **fields: str) -> RetryState | None:
        headers = self.headers(**fields)
        state = retry_state_for(self.route, self.cluster, headers, self.harness.upstream.streams[0])
        assert headers.fields == []
        return state

    def headers(self, **fields: str) -> HeaderMap:
        return HeaderMap(
            [(f"x-envoy-{name.replace('_', '-')}".encode(), value.encode()) for name, value in fields.items()]
        )


def state(retry_on: str, **policy: Any) -> RetryState:
    made = Retries({"retry_on": retry_on, **policy}).request()
    assert made is not None
    return made


def response(status: int, *fields: tuple[bytes, bytes]) -> HeaderMap:
    return HeaderMap([(b":status", b"%d" % status), *fields])


RESPONSES = [200, 404, 409, 429, 500, 501, 502, 503, 504, 599]


@pytest.mark.parametrize(
    ("retry_on", "retried"),
    [
        ("5xx", {500, 501, 502, 503, 504, 599}),
        ("gateway-error", {502, 503, 504}),
        ("retriable-4xx", {409}),
        ("retriable-status-codes", {404, 429}),
        ("5xx,retriable-4xx", {409, 500, 501, 502, 503, 504, 599}),
        ("reset,connect-failure,refused-stream,reset-before-request", set()),
        ("retriable-headers", set()),
        ("nonsense, gateway-error", {502, 503, 504}),
    ],
)
def test_responses(retry_on: str, retried: set[int]) -> None:
    outcomes = {
        status
        for status in RESPONSES
        if state(retry_on, retriable_status_codes=[404, 429]).on_response(response(status), status) == RETRY
    }
    assert outcomes == retried


RESETS = {
    "connect": (errors.RESET_CONNECT_FAILURE, False),
    "timeout": (errors.RESET_CONNECT_TIMEOUT, False),
    "overflow": (errors.RESET_OVERFLOW, False),
    "refused": (errors.RESET_REMOTE_REFUSED, True),
    "closed": (errors.RESET_TERMINATION, True),
    "closed-before": (errors.RESET_TERMINATION, False),
    "protocol": (errors.RESET_PROTOCOL_ERROR, True),
    "given-up": (errors.RESET_LOCAL, True),
}
ALL_RESETS = set(RESETS) - {"overflow"}


@pytest.mark.parametrize(
    ("retry_on", "retried"),
    [
        ("5xx", ALL_RESETS),
        ("gateway-error", ALL_RESETS),
        ("reset", ALL_RESETS),
        ("reset-before-request", {"connect", "timeout", "closed-before"}),
        ("connect-failure", {"connect", "timeout"}),
        ("refused-stream", {"refused"}),
        ("retriable-4xx,retriable-status-codes", set()),
    ],
)
def test_resets(retry_on: str, retried: set[str]) -> None:
    outcomes = {name for name, reset in RESETS.items() if state(retry_on).on_reset(*reset) == RETRY}
    assert outcomes == retried


@pytest.mark.parametrize(
    ("word", "grpc_status"),
    [("cancelled", 1), ("deadline-exceeded", 4), ("resource-exhausted", 8), ("internal", 13), ("unavailable", 14)],
)
def test_grpc_statuses(word: str, grpc_status: int) -> None:
    for code in range(17):
        made = Retries(None).request(retry_grpc_on=word)
        assert made is not None
        answer = response(200, (b"content-type", b"application/grpc"), (b"grpc-status", b"%d" % code))
        assert made.on_response(answer, 200) == (RETRY if code == grpc_status else NO)


def test_response_headers() -> None:
    policy = {"retriable_headers": [{"name": "x-again"}]}
    assert state("retriable-headers", **policy).on_response(response(200, (b"x-again", b"1")), 200) == RETRY
    assert state("retriable-headers", **policy).on_response(response(200, (b"x-other", b"1")), 200) == NO
    by_request = Retries({"retry_on": "retriable-headers"}).request(retriable_header_names="x-a, X-B")
    assert by_request is not None
    assert by_request.on_response(response(200, (b"x-b", b"")), 200) == RETRY


def test_a_rate_limited_response_is_retried_only_where_that_is_asked_for() -> None:
    limited = response(503, (b"x-envoy-ratelimited", b"true"))
    assert state("5xx").on_response(limited, 503) == NO
    assert state("5xx,envoy-ratelimited").on_response(limited, 503) == RETRY


def test_request_headers_that_must_hold() -> None:
    policy = {"retry_on": "5xx", "retriable_request_headers": [{"name": "x-safe"}]}
    made = Retries(policy)
    stream = made.harness.upstream.streams[0]
    assert retry_state_for(made.route, made.cluster, HeaderMap(), stream) is None
    assert retry_state_for(made.route, made.cluster, HeaderMap([(b"x-safe", b"")]), stream) is not None


def test_headers_of_the_request() -> None:
    assert Retries(None).request() is None
    made = Retries(None).request(
        retry_on="retriable-status-codes", retriable_status_codes="418, x,425", max_retries="2"
    )
    assert made is not None
    assert [made.on_response(response(418), 418), made.on_response(response(425), 425)] == [RETRY, RETRY]
    assert made.on_response(response(418), 418) == RETRY_LIMIT
    none = Retries({"retry_on": "5xx"}).request(max_retries="0")
    assert none is not None
    assert none.on_response(response(500), 500) == RETRY_LIMIT


def test_headers_add_to_the_policy() -> None:
    made = Retries({"retry_on": "retriable-4xx", "num_retries": 5}).request(retry_on="gateway-error")
    assert made is not None
    assert made.on_response(response(409), 409) == RETRY
    assert made.on_response(response(502), 502) == RETRY


@pytest.mark.parametrize(("number", "retries"), [(None, 1), (0, 0), (3, 3)])
def test_so_many_retries_and_no_more(number: int | None, retries: int) -> None:
    made = state("5xx") if number is None else state("5xx", num_retries=number)
    assert [made.on_response(response(500), 500) for _ in range(retries)] == [RETRY] * retries
    assert made.on_response(response(500), 500) == RETRY_LIMIT


def test_a_body_that_is_not_kept_ends_the_retries() -> None:
    made = state("5xx")
    made.give_up()
    assert made.on_response(response(500), 500) == NO
    assert made.on_reset(errors.RESET_CONNECT_FAILURE, False) == NO


def test_no_more_retries_at_a_time_than_the_breaker_allows() -> None:
    retries = Retries({"retry_on": "5xx"}, {"circuit_breakers": {"thresholds": [{"max_retries": 1}]}})
    first, second = retries.request(), retries.request()
    assert first is not None
    assert second is not None
    assert first.on_response(response(500), 500) == RETRY
    assert second.on_response(response(500), 500) == NO_OVERFLOW
    first.on_done(True)
    third = retries.request()
    assert third is not None
    assert third.on_response(response(500), 500) == RETRY
    stats = retries.cluster.stats
    assert stats.upstream_rq_retry_overflow == 1


def test_the_breaker_is_free_again_whatever_the_outcome() -> None:
    retries = Retries({"retry_on": "5xx", "num_retries": 1}, {"circuit_breakers": {"thresholds": [{"max_retries": 1}]}})
    breaker = retries.cluster.breakers(0).retries
    for outcome in (200, 500):
        made = retries.request()
        assert made is not None
        assert made.on_response(response(500), 500) == RETRY
        assert breaker.in_use == 1
        made.on_response(response(outcome), outcome)
        assert breaker.in_use == 0
    stats = retries.cluster.stats
    assert (stats.upstream_rq_retry_success, stats.upstream_rq_retry_limit_exceeded) == (1, 1)


@pytest.mark.parametrize(
    ("back_off", "limits"),
    [
        ({}, [25, 50, 100, 200, 250, 250]),
        ({"base_interval": "0.01s", "max_interval": "0.035s"}, [10, 20, 35, 35, 35, 35]),
    ],
)
def test_the_back_off_grows_and_is_jittered_in_full(back_off: dict[str, str], limits: list[int]) -> None:
    policy = {"retry_on": "5xx", "num_retries": 6, **({"retry_back_off": back_off} if back_off else {})}
    retries = Retries(policy)
    most = [0.0] * len(limits)
    for _ in range(300):
        made = retries.request()
        assert made is not None
        for step in range(len(limits)):
            assert made.on_response(response(500), 500) == RETRY
            assert 0.0 <= made.backoff_ms < limits[step]
            most[step] = max(most[step], made.backoff_ms)
        made.on_done(False)
    assert all(highest > limit * 0.8 for highest, limit in zip(most, limits, strict=True))


@pytest.mark.parametrize(("value", "at_least", "below"), [("2", 2_000, 3_000), ("x", 0, 25), ("500", 0, 25)])
def test_an_upstream_may_say_when_to_come_back(value: str, at_least: int, below: int) -> None:
    """Up to half as much again is added; beyond the limit the ordinary back-off holds."""
    reset = {"reset_headers": [{"name": "Retry-After", "format": "SECONDS"}], "max_interval": "300s"}
    made = state("5xx", rate_limited_retry_back_off=reset)
    assert made.on_response(response(503, (b"retry-after", value.encode())), 503) == RETRY
    assert at_least <= made.backoff_ms < below


def test_hosts_that_were_tried_are_avoided_where_the_policy_says_so() -> None:
    kind = "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
    from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2  # noqa: F401

    predicate = [{"name": "p", "typed_config": {"@type": kind}}]
    made = state("5xx", retry_host_predicate=predicate, host_selection_retry_max_attempts=4)
    assert made.lb_context is not None
    assert made.lb_context.max_attempts == 4
    assert state("5xx").lb_context is None
