"""What the router tells in headers: the upstream of each attempt, the downstream of how its answer came about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshproxy.clock import monotonic
from meshproxy.codec import headers as h
from meshproxy.codec.grpc import encode_timeout
from meshproxy.codec.headers import HeaderMap
from meshproxy.http.timeouts import RequestTimeouts
from meshproxy.observe import response_flags as flags
from meshproxy.route.route import Route

if TYPE_CHECKING:
    from meshproxy.http.router import Router

_REASON_HEADERS: Final = {
    flags.UPSTREAM_OVERFLOW: b"x-envoy-overloaded",
    flags.DROP_OVERLOAD: b"x-envoy-drop-overload",
    flags.UNCONDITIONAL_DROP_OVERLOAD: b"x-envoy-unconditional-drop-overload",
}
_SERVICE_TIME: Final = b"x-envoy-upstream-service-time"
_SERVICE_TIMES: Final[list[Any]] = [(_SERVICE_TIME, b"%d" % ms) for ms in range(256)]


def tell_timeouts(headers: HeaderMap, timeouts: RequestTimeouts, suppress_envoy_headers: bool) -> None:
    """The time that the first attempt has."""
    if not timeouts.expected_ms:
        return
    if not suppress_envoy_headers:
        if headers.known & h.ENVOY:
            headers.set(b"x-envoy-expected-rq-timeout-ms", b"%d" % timeouts.expected_ms)
        else:
            headers.append(timeouts.expected_field, h.ENVOY | h.ENVOY_TIMEOUT)
    if timeouts.tells_grpc:
        headers.set(b"grpc-timeout", encode_timeout(float(timeouts.expected_ms)))


def mark_retry(router: Router, route: Route, headers: HeaderMap) -> None:
    """What the upstream is told of an attempt that is not the first: its number, and the time that is left."""
    timeouts = router.timeouts
    if timeouts.expected_ms and (timeouts.tells_grpc or not router.config.suppress_envoy_headers):
        expected_ms = timeouts.expected_ms
        request_end = router.stream.info.request_end
        if timeouts.response_ms > 0.0 and request_end > 0.0:
            left_ms = int(timeouts.response_ms - (monotonic() - request_end) * 1000.0)
            expected_ms = max(1, min(expected_ms, left_ms))  # 0 would be no timeout
        if not router.config.suppress_envoy_headers:
            headers.set(b"x-envoy-expected-rq-timeout-ms", b"%d" % expected_ms)
        if timeouts.tells_grpc:
            headers.set(b"grpc-timeout", encode_timeout(float(expected_ms)))
    if route.virtual_host.include_request_attempt_count:
        headers.set(b"x-envoy-attempt-count", b"%d" % router.attempts)
    if route.virtual_host.include_is_timeout_retry_header:
        headers.set(b"x-envoy-is-timeout-retry", b"true" if router.try_timed_out else b"false")


def complete_response_headers(router: Router, route: Route, headers: HeaderMap) -> None:
    """What the downstream is told beside the upstream's own answer."""
    info = router.stream.info
    if not router.config.suppress_envoy_headers and info.request_end > 0.0:
        _set_service_time(headers, int((monotonic() - info.request_end) * 1000.0))
    if route.virtual_host.include_attempt_count_in_response:
        headers.set(b"x-envoy-attempt-count", b"%d" % router.attempts)
    for cookie in router.set_cookies or ():
        headers.add(b"set-cookie", cookie)
    if route.has_response_mutations:
        route.finalize_response(headers, info)


def reply_headers(router: Router, route: Route, flag: int) -> HeaderMap:
    """What a reply of the router's own says beside its text; `flag`: the response flag that tells why."""
    headers = HeaderMap()
    if not router.config.suppress_envoy_headers:
        name = _REASON_HEADERS.get(flag)
        if name is not None:
            headers.add(name, b"true")
    if router.attempts and route.virtual_host.include_attempt_count_in_response:
        headers.add(b"x-envoy-attempt-count", b"%d" % router.attempts)
    if route.has_response_mutations:
        route.finalize_response(headers, router.stream.info)
    return headers


def _set_service_time(headers: HeaderMap, ms: int) -> None:
    if headers.known & h.ENVOY:
        headers.set(_SERVICE_TIME, b"%d" % ms)
    else:
        headers.append(_SERVICE_TIMES[ms] if ms < 256 else (_SERVICE_TIME, b"%d" % ms), h.ENVOY)
