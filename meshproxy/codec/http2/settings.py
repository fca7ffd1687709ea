"""What configuration decides about an HTTP/2 codec."""

from __future__ import annotations

from typing import Final

_NO_LIMIT: Final = 1 << 60


class Http2Settings:
    """One object per connection manager or cluster, shared by its connections; read only.

    Names and defaults are those of Envoy's `Http2ProtocolOptions` (1.40), but for `max_headers_bytes` and
    `max_headers_count`, which come from the message around it, and `buffer_limit_bytes`.
    """

    def __init__(
        self,
        *,
        hpack_table_bytes: int = 4096,
        max_concurrent_streams: int = 1024,
        stream_window_bytes: int = 16 * 1024 * 1024,
        connection_window_bytes: int = 24 * 1024 * 1024,
        max_frame_bytes: int = 16 * 1024,
        allow_connect: bool = False,
        stream_error_on_invalid_message: bool = False,
        max_outbound_frames: int = 10_000,
        max_outbound_control_frames: int = 1_000,
        max_empty_frames: int = 1,
        max_priority_frames_per_stream: int = 100,
        max_window_updates_per_data_frame: int = 10,
        max_headers_count: int = 100,
        max_headers_bytes: int = 60 * 1024,
        buffer_limit_bytes: int = 1024 * 1024,
        extra_settings: tuple[tuple[int, int], ...] = (),
    ) -> None:
        self.hpack_table_bytes: Final = hpack_table_bytes  # of the decoder, and the most of the encoder
        self.max_concurrent_streams: Final = max_concurrent_streams  # of the peer's; of a client, of its own
        self.stream_window_bytes: Final = stream_window_bytes  # that the peer may send unasked
        self.connection_window_bytes: Final = connection_window_bytes
        self.max_frame_bytes: Final = max_frame_bytes  # of a frame's payload, in either direction
        self.allow_connect: Final = allow_connect  # extended CONNECT (RFC 8441)
        # `override_stream_error_on_invalid_http_message`: a malformed message costs its stream, not the connection
        self.stream_error_on_invalid_message: Final = stream_error_on_invalid_message
        self.max_outbound_frames: Final = max_outbound_frames  # that wait to be written to the socket
        self.max_outbound_control_frames: Final = max_outbound_control_frames
        self.max_empty_frames: Final = max_empty_frames  # `max_consecutive_inbound_frames_with_empty_payload`
        self.max_priority_frames_per_stream: Final = max_priority_frames_per_stream
        self.max_window_updates_per_data_frame: Final = max_window_updates_per_data_frame
        self.max_headers_count: Final = max_headers_count
        self.max_headers_bytes: Final = max_headers_bytes
        # of a stream's data that may wait for the peer's window; 0 is no limit
        self.buffer_limit_bytes: Final = buffer_limit_bytes or _NO_LIMIT
        self.extra_settings: Final = extra_settings  # `custom_settings_parameters`: (identifier, value)
