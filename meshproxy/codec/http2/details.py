"""Envoy's response-code details of what an HTTP/2 codec refuses or is told (`%RESPONSE_CODE_DETAILS%`)."""

from __future__ import annotations

from typing import Final

REMOTE_RESET: Final = "http2.remote_reset"
REMOTE_REFUSE: Final = "http2.remote_refuse"
GOAWAY: Final = "http2.goaway"
CODEC_ERROR: Final = "codec_error"  # of the streams of a connection that breaks the protocol elsewhere
MESSAGING: Final = "http2.violation.of.messaging.rule"
INVALID_HEADER_FIELD: Final = "http2.invalid.header.field"
TOO_MANY_HEADERS: Final = "http2.too_many_headers"
HEADERS_TOO_LARGE: Final = "http2.header_list_size_too_large"
OUTBOUND_FRAMES_FLOOD: Final = "http2.outbound_frames_flood"
OUTBOUND_CONTROL_FLOOD: Final = "http2.outbound_control_frames_flood"
EMPTY_FRAMES_FLOOD: Final = "http2.inbound_empty_frames_flood"
PRIORITY_FLOOD: Final = "codec_error:Too_many_PRIORITY_frames"
WINDOW_UPDATE_FLOOD: Final = "codec_error:Too_many_WINDOW_UPDATE_frames"
CONTINUATION_FLOOD: Final = "codec_error:Too_many_CONTINUATION_frames_following_a_HEADER_frame"
