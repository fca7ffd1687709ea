"""The settings of HTTP/2, of the connection manager and of clusters."""

from __future__ import annotations

from typing import Final

from meshproxy.config.fields.table import MessageTable, Tables

TABLES: Final[Tables] = {
    "envoy.config.core.v3.Http2ProtocolOptions": MessageTable(
        "hpack_table_size max_concurrent_streams initial_stream_window_size initial_connection_window_size "
        "allow_connect max_outbound_frames max_outbound_control_frames "
        "max_consecutive_inbound_frames_with_empty_payload max_inbound_priority_frames_per_stream "
        "max_inbound_window_update_frames_per_data_frame_sent stream_error_on_invalid_http_messaging "
        "override_stream_error_on_invalid_http_message custom_settings_parameters connection_keepalive",
        only={"allow_metadata": "false"},
        ignored={
            "use_oghttp2_codec": "there is one codec",
            "max_metadata_size": "there are no METADATA frames: allow_metadata is refused",
        },
    ),
    "envoy.config.core.v3.Http2ProtocolOptions.SettingsParameter": MessageTable("identifier value"),
    "envoy.config.core.v3.KeepaliveSettings": MessageTable("interval timeout interval_jitter connection_idle_interval"),
}
