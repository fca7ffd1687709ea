"""What a downstream may not do to an HTTP/2 connection: not take its answers, or ask and take it back all the time."""

from __future__ import annotations

from typing import Final

from meshproxy.codec.http2.states import CLOSED
from meshproxy.codec.http2.stats import Http2Stats
from meshproxy.codec.http2.stream import Http2Stream
from meshproxy.config.runtime import RuntimeInt
from meshproxy.errors import RESET_LOCAL
from meshproxy.net.timers import Timer, TimerWheel


class FlushTimer(Timer):
    """Of a stream that is done with, but for what its peer has not taken: it is reset after `timeout_ms`, even if the
    peer takes some of it (Envoy's stream_flush_timeout)."""

    def __init__(self, stream: Http2Stream, timers: TimerWheel, timeout_ms: float, stats: Http2Stats) -> None:
        super().__init__()
        self._stream: Final = stream
        self._stats: Final = stats
        timers.arm(self, timeout_ms)

    def on_timer(self) -> None:
        if self._stream.state < CLOSED:
            self._stats.tx_flush_timeout += 1
            self._stream.reset(RESET_LOCAL)


class ResetLimits:
    """When a connection is given up for its premature resets: those of streams that had no response, and did not live
    long (Envoy's runtime keys, and its answer to CVE-2023-44487)."""

    def __init__(self, least_streams: RuntimeInt, least_lifetime_s: RuntimeInt) -> None:
        self.least_streams = least_streams
        self.least_lifetime_s = least_lifetime_s


class PrematureResets:
    """The count of one connection."""

    def __init__(self, limits: ResetLimits) -> None:
        self._limits: Final = limits
        self._ended: int = 0
        self._premature: int = 0

    def on_stream_end(self, reset_unanswered: bool, lifetime_s: float) -> bool:
        """Count a stream; True: there are too many resets. Even before so many streams have ended, when half of them
        would be too many already."""
        self._ended += 1
        if not reset_unanswered or int(lifetime_s) > self._limits.least_lifetime_s.value:  # whole seconds, as Envoy
            return False
        self._premature += 1
        return self._premature * 2 >= max(self._ended, self._limits.least_streams.value)
