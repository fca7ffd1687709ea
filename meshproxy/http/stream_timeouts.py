"""The timeouts of a stream: its silence, its request's arrival, its whole life, and what follows when one is over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshproxy.clock import monotonic
from meshproxy.codec.grpc import DEADLINE_EXCEEDED, encode_timeout, is_grpc
from meshproxy.codec.grpc import timeout_ms as grpc_timeout_ms
from meshproxy.codec.headers import GRPC_TIMEOUT, HeaderMap
from meshproxy.http.timeouts import SPARE_TIMERS
from meshproxy.net.timers import Timer
from meshproxy.observe import response_flags as flags
from meshproxy.route.route import Route

if TYPE_CHECKING:
    from meshproxy.http.stream import Stream

_AT_ONCE_MS: Final = 0.001


def begin_timeouts(stream: Stream) -> None:
    """Those that count from the stream's beginning."""
    config = stream.config
    if config.request_timeout_ms > 0.0:
        stream.request_timer = RequestTimer(stream)
        stream.manager.timers.arm(stream.request_timer, config.request_timeout_ms)
    if config.stream_idle_timeout_ms > 0.0:
        _arm_idle_timer(stream, config.stream_idle_timeout_ms)


def end_timeouts(stream: Stream) -> None:
    """All of them. A timer and its stream know each other: that cycle would keep the stream until the collector
    comes."""
    _leave_idle_timer(stream)
    if stream.request_timer is not None:
        stream.request_timer.disarm()
        stream.request_timer = None
    if stream.duration_timer is not None:
        stream.duration_timer.disarm()
        stream.duration_timer = None


# -- its silence


class StreamIdleTimer(Timer):
    """Nearly every stream has one, which the streams of a connection hand on, armed as it is.

    What moves only writes down when (`Stream.last_active`): the timer looks at that when it fires.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stream: Stream | None = None
        self.timeout_ms: float = 0.0

    def on_timer(self) -> None:
        stream = self.stream
        if stream is None:
            return
        left_ms = self.timeout_ms - (monotonic() - stream.last_active) * 1000.0
        if left_ms > 0.0:
            stream.manager.timers.arm(self, left_ms)
            return
        stream.config.stats.downstream_rq_idle_timeout += 1
        _time_out(stream, _late_status(stream), b"stream timeout", "stream_idle_timeout", flags.STREAM_IDLE_TIMEOUT)


def set_idle_timeout(stream: Stream, timeout_ms: float) -> None:
    """In place of the one so far; 0 is none."""
    _leave_idle_timer(stream)
    if timeout_ms > 0.0:
        _arm_idle_timer(stream, timeout_ms)


def _arm_idle_timer(stream: Stream, timeout_ms: float) -> None:
    """Give the stream, which has none, its timer."""
    manager = stream.manager
    spare = manager.spare_idle_timers
    timer = spare.pop() if spare else StreamIdleTimer()
    timer.stream = stream
    timer.timeout_ms = timeout_ms
    stream.idle_timer = timer
    manager.timers.arm_by(timer, timeout_ms)


def _leave_idle_timer(stream: Stream) -> None:
    """The stream needs its timer no more: another of the connection may have it."""
    timer = stream.idle_timer
    if timer is not None:
        timer.stream = stream.idle_timer = None
        spare = stream.manager.spare_idle_timers
        if len(spare) < SPARE_TIMERS:
            spare.append(timer)
        else:
            timer.disarm()


def flush_timeout_ms(stream: Stream) -> float:
    """How long an HTTP/2 downstream may take nothing of what is left of the answer; 0: for ever."""
    config, route = stream.config, stream.route
    if route is not None and route.flush_timeout_ms is not None:
        return float(route.flush_timeout_ms)
    if config.stream_flush_timeout_ms >= 0.0:
        return config.stream_flush_timeout_ms
    if route is not None and route.idle_timeout_ms is not None:
        return float(route.idle_timeout_ms)
    return config.stream_idle_timeout_ms


# -- its request's arrival


class RequestTimer(Timer):
    """From the stream's beginning to the end of its request."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream

    def on_timer(self) -> None:
        stream = self._stream
        stream.config.stats.downstream_rq_timeout += 1
        _time_out(stream, 408, b"request timeout", "request_overall_timeout", 0)


# -- its whole life


class DurationTimer(Timer):
    """Until the stream has lived as long as it may."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream

    def on_timer(self) -> None:
        stream = self._stream
        stream.config.stats.downstream_rq_max_duration_reached += 1
        body = b"downstream duration timeout"
        _time_out(stream, _late_status(stream), body, "max_duration_timeout", 0, DEADLINE_EXCEEDED)


def arm_max_duration(stream: Stream, timeout_ms: float) -> None:
    """The stream may live for `timeout_ms` from now; 0 lifts the limit."""
    if stream.duration_timer is not None:
        stream.duration_timer.disarm()
    if timeout_ms > 0.0:
        stream.duration_timer = DurationTimer(stream)
        stream.manager.timers.arm(stream.duration_timer, timeout_ms)


def limit_duration(stream: Stream, route: Route, headers: HeaderMap) -> None:
    """By the route, or by what a grpc-timeout asks for, where the route heeds that. An upstream of gRPC is told."""
    limit = route.grpc_stream_limit
    asked_ms = grpc_timeout_ms(headers) if limit is not None and headers.known & GRPC_TIMEOUT else None
    timeout_ms = stream.config.max_stream_duration_ms
    if limit is not None and asked_ms is not None:
        timeout_ms = limit.stream_ms(asked_ms)
        used_ms = (monotonic() - stream.info.start) * 1000.0
        arm_max_duration(stream, max(timeout_ms - used_ms, _AT_ONCE_MS))
    elif route.max_stream_duration_ms is not None:
        timeout_ms = float(route.max_stream_duration_ms)
        arm_max_duration(stream, timeout_ms)
    if is_grpc(headers):
        if timeout_ms > 0.0 or asked_ms is not None:
            headers.set(b"grpc-timeout", encode_timeout(timeout_ms))
        elif stream.duration_timer is not None:
            headers.remove(b"grpc-timeout")


# -- what follows


def _late_status(stream: Stream) -> int:
    """Gateway Timeout, or Request Timeout while the downstream owes the rest of its request."""
    return 504 if stream.request_complete else 408


def _time_out(stream: Stream, status: int, body: bytes, details: str, flag: int, grpc_status: int = -1) -> None:
    stream.info.response_flags |= flag
    if stream.response_started:
        if stream.router is not None:
            stream.router.cancel()
        stream.reset(details)
    else:
        stream.send_local_reply(status, body, details, 0, None, grpc_status)
