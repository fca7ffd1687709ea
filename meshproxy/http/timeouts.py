"""How long a request may take: the route's timeouts, and the x-envoy-… headers that change them."""

from __future__ import annotations

from typing import Final

from meshproxy.codec import headers as h
from meshproxy.codec.headers import HeaderMap
from meshproxy.http.manager_config import ConnectionManagerConfig
from meshproxy.route.route import Route


class RequestTimeouts:
    """In ms; 0 is none. `expected_ms` is told to the upstream in x-envoy-expected-rq-timeout-ms."""

    def __init__(
        self, response_ms: float, per_try_ms: float, per_try_idle_ms: float, expected_ms: int, alternative_response: bool
    ) -> None:
        self.response_ms = response_ms
        self.per_try_ms = per_try_ms
        self.per_try_idle_ms = per_try_idle_ms
        self.expected_ms = expected_ms
        self.alternative_response = alternative_response


_HEADERS: Final = (
    b"x-envoy-upstream-rq-timeout-ms",
    b"x-envoy-upstream-rq-per-try-timeout-ms",
    b"x-envoy-upstream-rq-timeout-alt-response",
)


def request_timeouts(config: ConnectionManagerConfig, route: Route, headers: HeaderMap) -> RequestTimeouts:
    """The timeouts of one request. The route's own are made once; headers cost a new object, and are taken out."""
    if not headers.known & h.ENVOY_TIMEOUT:
        shared = route.shared_timeouts
        if shared is None:
            shared = route.shared_timeouts = _build(float(route.timeout_ms), _per_try(route), _per_try_idle(route), False)
        assert isinstance(shared, RequestTimeouts)
        return shared
    response_ms = float(route.timeout_ms)
    per_try_ms = _per_try(route)
    if config.respect_expected_rq_timeout:
        response_ms = _number(headers.get(b"x-envoy-expected-rq-timeout-ms"), response_ms)
    response_ms = _number(headers.get(_HEADERS[0]), response_ms)
    per_try_ms = _number(headers.get(_HEADERS[1]), per_try_ms)
    alternative = headers.get(_HEADERS[2]) is not None
    for name in _HEADERS:
        headers.remove(name)
    return _build(response_ms, per_try_ms, _per_try_idle(route), alternative)


def _build(response_ms: float, per_try_ms: float, per_try_idle_ms: float, alternative: bool) -> RequestTimeouts:
    if per_try_ms >= response_ms > 0.0:
        per_try_ms = 0.0
    expected = per_try_ms if per_try_ms > 0.0 else response_ms
    return RequestTimeouts(response_ms, per_try_ms, per_try_idle_ms, int(expected), alternative)


def _per_try(route: Route) -> float:
    return 0.0 if route.retry is None else float(route.retry.per_try_timeout_ms)


def _per_try_idle(route: Route) -> float:
    return 0.0 if route.retry is None else float(route.retry.per_try_idle_timeout_ms)


def _number(value: bytes | None, default: float) -> float:
    if value is None or not value.isdigit() or len(value) > 18:
        return default
    return float(int(value))
