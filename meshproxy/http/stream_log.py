"""The access log's records of a stream: at its beginning, under way and at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshproxy.net.timers import Timer

if TYPE_CHECKING:
    from meshproxy.http.stream import Stream


class LogTimer(Timer):
    """For records of a stream that goes on."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream

    def on_timer(self) -> None:
        stream = self._stream
        if stream.config.measures and stream.router is not None:
            stream.router.measure()
        write_logs(stream, "DownstreamPeriodic")
        stream.manager.timers.arm(self, stream.config.access_log_interval_ms)


def write_logs(stream: Stream, log_type: str) -> None:
    """One record in each access log; `log_type`: Envoy's name of the occasion."""
    info, config = stream.info, stream.config
    if config.measures:
        stream.manager.measure(stream)
    info.log_type = log_type
    for access_log in config.access_logs:
        access_log.log(info)
    info.log_type = "NotSet"
