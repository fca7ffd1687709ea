"""The end of a stream: what waited for it is told, and it is counted and logged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshproxy.clock import monotonic
from meshproxy.http.filter_errors import tell_done
from meshproxy.http.stream_log import write_logs
from meshproxy.http.stream_timeouts import end_timeouts

if TYPE_CHECKING:
    from meshproxy.http.stream import Stream


def end_stream(stream: Stream) -> None:
    """Exactly once, at the end of every stream: timers, the upstream request, filters, stats, the log."""
    stream.done = True
    end_timeouts(stream)
    _end_other_timers(stream)
    if stream.request_path is not None:
        stream.request_path.finish()
    if stream.response_path is not None:
        stream.response_path.finish()
    if stream.router is not None:
        stream.router.on_stream_done()
    if stream.entered_chain:
        for http_filter in stream.chain.done:
            tell_done(stream, http_filter)
    stream.info.end = monotonic()
    _count(stream)
    if stream.trace is not None:
        stream.trace.finish(stream)
    if stream.config.access_logs:
        write_logs(stream, "DownstreamEnd")
    # Paths and router know their stream: without these cycles it goes at once, not at the next collection.
    stream.request_path = stream.response_path = stream.router = None


def _end_other_timers(stream: Stream) -> None:
    """Those of the log and of filters; they know their stream too."""
    if stream.log_timer is not None:
        stream.log_timer.disarm()
        stream.log_timer = None
    if stream.filter_timers is not None:
        for timer in stream.filter_timers:
            timer.disarm()
        stream.filter_timers = None


def _count(stream: Stream) -> None:
    info, config = stream.info, stream.config
    stats = config.stats
    stats.downstream_rq_active -= 1
    if stream.tunnel:
        stats.downstream_cx_upgrades_active -= 1
    if stream.response_started and not info.health_check:
        stats.count_response(info.response_code)
        config.listener_stats.count_response(info.response_code)
    stats.downstream_rq_time.record(int((info.end - info.start) * 1000.0))
