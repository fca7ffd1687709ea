"""What HTTP/2 connections count, under Envoy's names: `http2.*`, and `cluster.<name>.http2.*`."""

from __future__ import annotations

from typing import ClassVar

from meshproxy.codec.http2.stats import Http2Stats
from meshproxy.observe.stats import StatsScope


class Http2Scope(StatsScope):
    """Codecs count in `counts`, which is below stats; whoever looks gets what came since from there."""

    COUNTERS: ClassVar[tuple[str, ...]] = (
        "dropped_headers_with_underscores",
        "goaway_sent",
        "header_list_size_too_large",
        "header_overflow",
        "headers_cb_no_stream",
        "inbound_empty_frames_flood",
        "inbound_priority_frames_flood",
        "inbound_window_update_frames_flood",
        "keepalive_timeout",
        "outbound_control_flood",
        "outbound_flood",
        "requests_rejected_with_underscores_in_headers",
        "rx_messaging_error",
        "rx_reset",
        "stream_refused_errors",
        "trailers",
        "tx_flush_timeout",
        "tx_reset",
    )
    GAUGES: ClassVar[tuple[str, ...]] = (
        "outbound_control_frames_active",
        "outbound_frames_active",
        "pending_send_bytes",
        "streams_active",
    )

    def __init__(self) -> None:
        super().__init__()
        self.counts = Http2Stats()
        self.dropped_headers_with_underscores: int = 0
        self.goaway_sent: int = 0
        self.header_list_size_too_large: int = 0
        self.header_overflow: int = 0
        self.headers_cb_no_stream: int = 0
        self.inbound_empty_frames_flood: int = 0
        self.inbound_priority_frames_flood: int = 0
        self.inbound_window_update_frames_flood: int = 0
        self.keepalive_timeout: int = 0
        self.outbound_control_flood: int = 0
        self.outbound_flood: int = 0
        self.requests_rejected_with_underscores_in_headers: int = 0
        self.rx_messaging_error: int = 0
        self.rx_reset: int = 0
        self.stream_refused_errors: int = 0
        self.trailers: int = 0
        self.tx_flush_timeout: int = 0
        self.tx_reset: int = 0
        self.outbound_control_frames_active: int = 0
        self.outbound_frames_active: int = 0
        self.pending_send_bytes: int = 0
        self.streams_active: int = 0

    def refresh(self) -> None:
        counts = self.counts
        for name in self.COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(counts, name))
            setattr(counts, name, 0)
        for name in self.GAUGES:
            setattr(self, name, getattr(counts, name))
