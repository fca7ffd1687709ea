"""Sends finished spans to a collector, by OTLP, in the background and in batches.

Spans wait in a buffer of bounded length, and one request at a time takes them away: a collector that is slow or gone
costs spans, which are counted, and never a request.
"""

from __future__ import annotations

from typing import ClassVar, Final

from meshproxy.config.context import Services
from meshproxy.config.runtime import RuntimeInt
from meshproxy.http.tracing.otlp import encode_request
from meshproxy.http.tracing.sender import SpanSender
from meshproxy.net.timers import CallTimer
from meshproxy.observe.log import log_once_per
from meshproxy.observe.stats import StatsScope

_log: Final = log_once_per(10.0, "tracing")
_MOST_AT_ONCE: Final = 512  # spans in a request


class TracerStats(StatsScope):
    """`tracing.opentelemetry.`. `spans_dropped` are those that found no room and those that the collector did not
    take."""

    COUNTERS: ClassVar[tuple[str, ...]] = ("spans_sent", "spans_dropped", "timer_flushed")

    def __init__(self) -> None:
        super().__init__()
        self.spans_sent: int = 0
        self.spans_dropped: int = 0
        self.timer_flushed: int = 0


class ExportSettings:
    """Whose spans they are, and when they go: with `min_flush_spans` of them, or `flush_interval_ms` after the
    first."""

    def __init__(self, resource: bytes, scope: bytes) -> None:
        self.resource = resource
        self.scope = scope
        self.max_spans: int = 1024
        self.flush_interval_ms = RuntimeInt("", 5000)
        self.min_flush_spans = RuntimeInt("", 5)


class SpanExporter:
    """One provider's."""

    def __init__(
        self, settings: ExportSettings, sender: SpanSender, stats: TracerStats, services: Services | None
    ) -> None:
        self._settings = settings
        self._sender = sender
        self._stats = stats
        self._services = services  # None: nothing will ever be sent, the configuration is only checked
        self._closed: bool = False
        self._spans: list[bytes] = []
        self._sending: int = 0  # spans that are on their way
        self._timer: CallTimer | None = None
        self._flush_posted: bool = False

    def add(self, span: bytes) -> None:
        """Take a finished span."""
        services, settings = self._services, self._settings
        if len(self._spans) >= settings.max_spans or services is None:
            self._stats.spans_dropped += 1
            return
        self._spans.append(span)
        if len(self._spans) >= settings.min_flush_spans.value:
            if not self._flush_posted and self._sending == 0:
                self._flush_posted = True
                services.dispatcher.post(self.flush)
        elif self._timer is None:
            self._timer = CallTimer(self.on_timer)
            services.dispatcher.timers.arm(self._timer, float(settings.flush_interval_ms.value))

    def on_timer(self) -> None:
        self._timer = None
        self._stats.timer_flushed += 1
        self.flush()

    def flush(self) -> None:
        """Send what there is, unless a request is on its way: the next one goes when that is done."""
        self._flush_posted = False
        services, settings = self._services, self._settings
        if self._sending or not self._spans or services is None:
            return
        if self._timer is not None:
            self._timer.disarm()
            self._timer = None
        batch, self._spans = self._spans[:_MOST_AT_ONCE], self._spans[_MOST_AT_ONCE:]
        self._sending = len(batch)
        request = encode_request(settings.resource, settings.scope, batch)
        self._sender.send(services, request, self.on_done)

    def on_done(self, failure: str) -> None:
        """The collector has taken the batch; or not, and that is why."""
        sent, self._sending = self._sending, 0
        if failure:
            self._stats.spans_dropped += sent
            _log.warning(f"{sent} spans are lost on their way to {self._sender.name}: {failure}")
        else:
            self._stats.spans_sent += sent
        services = self._services
        if self._spans and services is not None and not self._flush_posted:
            self._flush_posted = True
            services.dispatcher.post(self.flush)
        elif self._closed and not self._spans:
            self._sender.release()

    def close(self) -> None:
        """The configuration is no longer in force. Streams that it still has may bring more spans."""
        self._closed = True
        self.flush()
        if self._sending == 0:
            self._sender.release()
