"""What HTTP/2 connections count (`http2.` of Envoy, and `cluster.<name>.http2.`)."""

from __future__ import annotations


class Http2Stats:
    """One object per connection manager's scope, or cluster; counters but for the gauges at the end."""

    def __init__(self) -> None:
        self.dropped_headers_with_underscores: int = 0
        self.goaway_sent: int = 0
        self.header_list_size_too_large: int = 0
        self.header_overflow: int = 0
        self.headers_cb_no_stream: int = 0  # a name of Envoy's, for an error of Envoy's
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
        self.streams_active: int = 0
        self.pending_send_bytes: int = 0
        self.outbound_frames_active: int = 0
        self.outbound_control_frames_active: int = 0
