"""How long a request may take: the route's timeouts, and the x-envoy-… headers that change them."""

from __future__ import annotations

from typing import Any, Final

from meshproxy.codec import headers as h
from meshproxy.codec.grpc import is_grpc, timeout_ms
from meshproxy.codec.headers import HeaderMap
from meshproxy.http.manager_config import ConnectionManagerConfig
from meshproxy.route.route import Route
from meshproxy.upstream.cluster import Cluster

SPARE_TIMERS: Final = 64  # of each kind that a connection keeps, armed as they are, for its next streams


class RequestTimeouts:
    """In ms; 0 is none. `expected_ms` is told to the upstream in x-envoy-expected-rq-timeout-ms."""

    def __init__(
        self,
        response_ms: float,
        per_try_ms: float,
        per_try_idle_ms: float,
        max_duration_ms: float,
        hedges: bool,
        alternative_response: bool,
    ) -> None:
        self.response_ms = response_ms
        self.per_try_ms = per_try_ms
        self.per_try_idle_ms = per_try_idle_ms
        self.max_duration_ms = max_duration_ms  # of one attempt, from its connection on
        self.hedges = hedges  # a try outlives its timeout, and another begins beside it
        # A try may take the whole time where it outlives its own.
        self.expected_ms: int = int(per_try_ms if per_try_ms > 0.0 and not hedges else response_ms)
        self.expected_field: Any = (b"x-envoy-expected-rq-timeout-ms", b"%d" % self.expected_ms)
        self.alternative_response = alternative_response
        self.tells_grpc: bool = False  # `expected_ms` stands in grpc-timeout too


_RESPONSE: Final = b"x-envoy-upstream-rq-timeout-ms"
_PER_TRY: Final = b"x-envoy-upstream-rq-per-try-timeout-ms"
_ALTERNATIVE: Final = b"x-envoy-upstream-rq-timeout-alt-response"
_DURATION: Final = b"x-envoy-upstream-stream-duration-ms"
_HEDGE: Final = b"x-envoy-hedge-on-per-try-timeout"
_HEADERS: Final = frozenset((_RESPONSE, _PER_TRY, _ALTERNATIVE, _DURATION, _HEDGE))


def request_timeouts(
    config: ConnectionManagerConfig, route: Route, cluster: Cluster, headers: HeaderMap
) -> RequestTimeouts:
    """The timeouts of one request. The route's own are made once; headers cost a new object, and are taken out."""
    max_duration_ms = cluster.config.max_stream_duration_ms
    grpc_limit = route.grpc_request_limit
    if grpc_limit is not None and not is_grpc(headers):
        grpc_limit = None
    if grpc_limit is None and not headers.known & h.ENVOY_TIMEOUT:
        shared = route.shared_timeouts
        if isinstance(shared, RequestTimeouts) and shared.max_duration_ms == max_duration_ms:
            return shared
        made = _build(
            float(route.timeout_ms), _per_try(route), _per_try_idle(route), max_duration_ms, route.hedges, False
        )
        route.shared_timeouts = made
        return made
    response_ms = float(route.timeout_ms)
    if grpc_limit is not None:
        response_ms = grpc_limit.request_ms(timeout_ms(headers) or 0.0)
    if config.respect_expected_rq_timeout:
        response_ms = _number(headers.get(b"x-envoy-expected-rq-timeout-ms"), response_ms)
    response_ms = _number(headers.get(_RESPONSE), response_ms)
    per_try_ms = _number(headers.get(_PER_TRY), _per_try(route))
    max_duration_ms = _number(headers.get(_DURATION), max_duration_ms)
    alternative = headers.get(_ALTERNATIVE) is not None
    asked = headers.get(_HEDGE)
    hedges = asked == b"true" or (route.hedges and asked != b"false")
    headers.remove_names(_HEADERS)
    made = _build(response_ms, per_try_ms, _per_try_idle(route), max_duration_ms, hedges, alternative)
    made.tells_grpc = grpc_limit is not None
    return made


def _build(
    response_ms: float,
    per_try_ms: float,
    per_try_idle_ms: float,
    max_duration_ms: float,
    hedges: bool,
    alternative: bool,
) -> RequestTimeouts:
    if per_try_ms >= response_ms > 0.0:
        per_try_ms = 0.0
    return RequestTimeouts(response_ms, per_try_ms, per_try_idle_ms, max_duration_ms, hedges, alternative)


def _per_try(route: Route) -> float:
    return 0.0 if route.retry is None else float(route.retry.per_try_timeout_ms)


def _per_try_idle(route: Route) -> float:
    return 0.0 if route.retry is None else float(route.retry.per_try_idle_timeout_ms)


def _number(value: bytes | None, default: float) -> float:
    if value is None or not value.isdigit() or len(value) > 18:
        return default
    return float(int(value))
