"""From Http2ProtocolOptions to what a codec is set to, and to the pings that keep a connection under watch.

The ranges are checked before (`config/validate.py`); what stands here are the rules that Envoy checks when it loads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from meshproxy.codec.http2.settings import Http2Settings
from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.values import bool_or, float_or, int_or, milliseconds_or

# SETTINGS identifiers (RFC 9113 section 6.5.2, RFC 8441 section 3).
_ENABLE_PUSH: Final = 2
_MAX_FRAME_SIZE: Final = 5
_ENABLE_CONNECT_PROTOCOL: Final = 8
# Envoy takes them when the field is not set, and sends the field's default all the same.
_NAMED: Final = {1: "hpack_table_size", 3: "max_concurrent_streams", 4: "initial_stream_window_size"}
_LEAST_FRAME_BYTES: Final = 16 * 1024
_MOST_FRAME_BYTES: Final = 2**24 - 1
_DEFAULT_JITTER_PERCENT: Final = 15.0


@dataclass(frozen=True, slots=True)
class KeepaliveSettings:
    """When PINGs are sent, and how long their answers may take. Times are in ms."""

    interval_ms: float  # between two of them; 0.0: there are none but for `idle_interval_ms`
    timeout_ms: float  # within which a PING is to be answered, else the connection is closed
    jitter_percent: float  # of the interval, which is added at random
    idle_interval_ms: float  # upstream: idle for so long, a connection is asked before the next stream; 0.0: never


def build_http2_settings(
    message: Any,
    path: str,
    errors: ConfigErrors,
    *,
    max_headers_count: int,
    max_headers_bytes: int,
    buffer_limit_bytes: int,
    stream_error: bool | None = None,
) -> Http2Settings:
    """Of an Http2ProtocolOptions, which may be empty. The errors have their paths; the settings come in any case.

    `stream_error` is the connection manager's `stream_error_on_invalid_http_message`, None where it is not set.
    """
    default = Http2Settings()
    max_frame_bytes, extra = _custom_settings(message, path, errors)
    return Http2Settings(
        hpack_table_bytes=int_or(message, "hpack_table_size", default.hpack_table_bytes),
        max_concurrent_streams=int_or(message, "max_concurrent_streams", default.max_concurrent_streams),
        stream_window_bytes=int_or(message, "initial_stream_window_size", default.stream_window_bytes),
        connection_window_bytes=int_or(message, "initial_connection_window_size", default.connection_window_bytes),
        max_frame_bytes=max_frame_bytes,
        allow_connect=message.allow_connect,
        stream_error_on_invalid_message=_stream_error(message, stream_error),
        max_outbound_frames=int_or(message, "max_outbound_frames", default.max_outbound_frames),
        max_outbound_control_frames=int_or(message, "max_outbound_control_frames", default.max_outbound_control_frames),
        max_empty_frames=int_or(message, "max_consecutive_inbound_frames_with_empty_payload", default.max_empty_frames),
        max_priority_frames_per_stream=int_or(
            message, "max_inbound_priority_frames_per_stream", default.max_priority_frames_per_stream
        ),
        max_window_updates_per_data_frame=int_or(
            message, "max_inbound_window_update_frames_per_data_frame_sent", default.max_window_updates_per_data_frame
        ),
        max_headers_count=max_headers_count,
        max_headers_bytes=max_headers_bytes,
        buffer_limit_bytes=buffer_limit_bytes,
        extra_settings=extra,
    )


def build_keepalive(message: Any) -> KeepaliveSettings | None:
    """The `connection_keepalive` of an Http2ProtocolOptions; None where no PINGs are asked for."""
    if not message.HasField("connection_keepalive"):
        return None
    keepalive = message.connection_keepalive
    interval_ms = float(milliseconds_or(keepalive, "interval", 0))
    idle_interval_ms = float(milliseconds_or(keepalive, "connection_idle_interval", 0))
    if not interval_ms and not idle_interval_ms:
        return None
    jitter = float_or(keepalive, "interval_jitter", _DEFAULT_JITTER_PERCENT)
    return KeepaliveSettings(interval_ms, float(milliseconds_or(keepalive, "timeout", 0)), jitter, idle_interval_ms)


def _stream_error(message: Any, of_manager: bool | None) -> bool:
    """Whether a malformed message costs its stream only: the field here, the manager's, the deprecated one here."""
    older: bool = message.stream_error_on_invalid_http_messaging if of_manager is None else of_manager
    return bool_or(message, "override_stream_error_on_invalid_http_message", older)


def _custom_settings(message: Any, path: str, errors: ConfigErrors) -> tuple[int, tuple[tuple[int, int], ...]]:
    """The size of frames, and the parameters that are only told to the peer, each once."""
    given: dict[int, int] = {}
    for index, parameter in enumerate(message.custom_settings_parameters):
        where = item(path, "custom_settings_parameters", index)
        identifier, value = int(parameter.identifier.value), int(parameter.value.value)
        wrong = _custom_setting_error(identifier, value)
        if wrong:
            errors.add(child(where, "value" if identifier in (_ENABLE_PUSH, _MAX_FRAME_SIZE) else "identifier"), wrong)
        elif given.setdefault(identifier, value) != value:
            errors.add(where, f"inconsistent HTTP/2 custom SETTINGS parameter: {identifier:#x} has another value above")
    max_frame_bytes = given.pop(_MAX_FRAME_SIZE, _LEAST_FRAME_BYTES)
    given.pop(_ENABLE_PUSH, None)  # 0: a client says so anyway, and a server's means nothing
    return max_frame_bytes, tuple(given.items())


def _custom_setting_error(identifier: int, value: int) -> str:
    """What is wrong with a parameter; empty if nothing is."""
    if identifier in _NAMED:
        return f"is for the field {_NAMED[identifier]}, which takes its place in any case"
    if identifier == _ENABLE_CONNECT_PROTOCOL:
        return 'the "allow_connect" SETTINGS parameter must only be configured through the named field'
    if identifier == _ENABLE_PUSH and value:
        return "server push is not supported, and can not be enabled via a SETTINGS parameter"
    if identifier == _MAX_FRAME_SIZE and not _LEAST_FRAME_BYTES <= value <= _MOST_FRAME_BYTES:
        return f"a peer refuses it: frames have {_LEAST_FRAME_BYTES} to {_MOST_FRAME_BYTES} bytes (RFC 9113, 6.5.2)"
    return ""
