"""Timeouts by route and by header: Envoy's rules for "x-envoy-upstream-rq-timeout-ms" and its siblings."""

from __future__ import annotations

import pytest

from meshproxy.codec.headers import Field, HeaderMap
from meshproxy.http.timeouts import RequestTimeouts, request_timeouts
from meshproxy.route.grpc_limit import GrpcLimit
from meshproxy.route.retry_policy import RetryPolicy
from meshproxy.route.route import ROUTE_CLUSTER, Route, VirtualHost
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.config import ClusterConfig
from tests.http.harness import Harness


def route(timeout_ms: int = 15_000, per_try_ms: int = 0, per_try_idle_ms: int = 0) -> Route:
    made = Route("r", VirtualHost("v"), ROUTE_CLUSTER)
    made.timeout_ms = timeout_ms
    if per_try_ms or per_try_idle_ms:
        made.retry = RetryPolicy()
        made.retry.per_try_timeout_ms = per_try_ms
        made.retry.per_try_idle_timeout_ms = per_try_idle_ms
    return made


def a_cluster() -> Cluster:
    """A cluster that limits nothing."""
    harness = Harness()
    settings = ClusterConfig("c")
    return Cluster(settings, harness.dispatcher, harness.registry, harness.runtime, lambda bits: 0, None)


def timeouts(on: Route, *, respect_expected: bool = False, **fields: str) -> tuple[RequestTimeouts, HeaderMap]:
    """The timeouts of a request with `x-envoy-<field>` headers, and what of the headers is left."""
    headers = HeaderMap(
        [(f"x-envoy-{name.replace('_', '-')}".encode(), value.encode()) for name, value in fields.items()]
    )
    config = Harness().config()
    config.respect_expected_rq_timeout = respect_expected
    return request_timeouts(config, on, a_cluster(), headers), headers


def test_the_route_says() -> None:
    made, _ = timeouts(route(3_000, 1_000, 500))
    assert (made.response_ms, made.per_try_ms, made.per_try_idle_ms) == (3_000.0, 1_000.0, 500.0)
    assert made.expected_ms == 1_000
    assert not made.alternative_response


def test_without_a_per_try_timeout_the_upstream_is_told_the_whole_time() -> None:
    assert timeouts(route(3_000))[0].expected_ms == 3_000
    assert timeouts(route(0))[0].expected_ms == 0


@pytest.mark.parametrize(
    ("whole", "per_try", "expected"), [(100, 100, 0.0), (100, 200, 0.0), (100, 99, 99.0), (0, 200, 200.0)]
)
def test_a_try_cannot_take_longer_than_the_whole(whole: int, per_try: int, expected: float) -> None:
    assert timeouts(route(whole, per_try))[0].per_try_ms == expected


def test_headers_override_and_are_taken_out() -> None:
    made, left = timeouts(
        route(3_000, 1_000),
        upstream_rq_timeout_ms="900",
        upstream_rq_per_try_timeout_ms="300",
        upstream_rq_timeout_alt_response="x",
    )
    assert (made.response_ms, made.per_try_ms, made.expected_ms) == (900.0, 300.0, 300)
    assert made.alternative_response
    assert left.fields == []


def test_a_header_may_lift_the_timeout() -> None:
    assert timeouts(route(3_000), upstream_rq_timeout_ms="0")[0].response_ms == 0.0


@pytest.mark.parametrize("value", ["", "x", "-1", "1.5", "9" * 30])
def test_what_is_no_number_changes_nothing(value: str) -> None:
    made, left = timeouts(route(3_000), upstream_rq_timeout_ms=value)
    assert made.response_ms == 3_000.0
    assert left.fields == []


def test_what_another_proxy_expects_counts_only_where_it_is_respected() -> None:
    assert timeouts(route(3_000), expected_rq_timeout_ms="700")[0].response_ms == 3_000.0
    assert timeouts(route(3_000), respect_expected=True, expected_rq_timeout_ms="700")[0].response_ms == 700.0


def test_requests_without_headers_share_one_object() -> None:
    on = route()
    assert timeouts(on)[0] is timeouts(on)[0]


GRPC = (b"content-type", b"application/grpc")


def call(on: Route, *fields: Field) -> RequestTimeouts:
    """The timeouts of a request of gRPC."""
    return request_timeouts(Harness().config(), on, a_cluster(), HeaderMap([GRPC, *fields]))


@pytest.mark.parametrize(
    ("max_ms", "offset_ms", "asked", "expected_ms"),
    [
        (9_000.0, 0.0, b"2S", 2_000.0),
        (9_000.0, 0.0, b"20S", 9_000.0),
        (9_000.0, 0.0, None, 9_000.0),
        (0.0, 0.0, b"20S", 20_000.0),
        (0.0, 0.0, None, 0.0),
        (9_000.0, 500.0, b"2S", 1_500.0),
        (9_000.0, 5_000.0, b"2S", 2_000.0),
    ],
)
def test_grpc_timeout(max_ms: float, offset_ms: float, asked: bytes | None, expected_ms: float) -> None:
    on = route()
    on.grpc_request_limit = GrpcLimit(max_ms, offset_ms)
    made = call(on) if asked is None else call(on, (b"grpc-timeout", asked))
    assert made.response_ms == expected_ms
    assert made.tells_grpc


def test_grpc_timeout_is_nothing_to_other_requests_and_routes() -> None:
    on = route()
    assert call(on, (b"grpc-timeout", b"2S")).response_ms == 15_000.0
    on.grpc_request_limit = GrpcLimit(9_000.0, 0.0)
    made, _ = timeouts(on)
    assert (made.response_ms, made.tells_grpc) == (15_000.0, False)


@pytest.mark.parametrize(
    ("max_ms", "offset_ms", "asked_ms", "granted_ms"),
    [(9_000.0, 0.0, 2_000.0, 2_000.0), (1_000.0, 100.0, 2_000.0, 900.0), (0.0, 0.0, 1e9, 1e9), (0.0, 5.0, 2.0, 0.0)],
)
def test_how_long_a_stream_may_live(max_ms: float, offset_ms: float, asked_ms: float, granted_ms: float) -> None:
    assert GrpcLimit(max_ms, offset_ms).stream_ms(asked_ms) == granted_ms
