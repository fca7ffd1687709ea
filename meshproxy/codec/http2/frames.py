"""Frames as they stand on the wire (RFC 9113 sections 4 and 6), to be sent."""

from __future__ import annotations

from struct import Struct
from typing import Final

from meshproxy.codec.http2.constants import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)

_HEADER: Final = Struct(">BHBBL").pack  # length in two parts, type, flags, stream
_WITH_LONG: Final = Struct(">BHBBLL").pack
_SETTING: Final = Struct(">HL").pack
_TWO_LONGS: Final = Struct(">LL").pack


def frame_header(length: int, frame_type: int, flags: int, stream_id: int) -> bytes:
    """The nine bytes in front of a payload of `length` bytes."""
    header: bytes = _HEADER(length >> 16, length & 0xFFFF, frame_type, flags, stream_id)
    return header


def data_header(length: int, end: bool, stream_id: int) -> bytes:
    """In front of `length` bytes of DATA."""
    header: bytes = _HEADER(length >> 16, length & 0xFFFF, DATA, END_STREAM if end else 0, stream_id)
    return header


def headers_frames(block: bytes, end: bool, stream_id: int, max_frame_bytes: int) -> bytes:
    """A field block as HEADERS, with CONTINUATION where it is longer than a frame may be."""
    flags = END_STREAM if end else 0
    size = len(block)
    if size <= max_frame_bytes:
        return frame_header(size, HEADERS, flags | END_HEADERS, stream_id) + block
    parts = [frame_header(max_frame_bytes, HEADERS, flags, stream_id), block[:max_frame_bytes]]
    for at in range(max_frame_bytes, size, max_frame_bytes):
        piece = block[at : at + max_frame_bytes]
        last = at + max_frame_bytes >= size
        parts.append(frame_header(len(piece), CONTINUATION, END_HEADERS if last else 0, stream_id))
        parts.append(piece)
    return b"".join(parts)


def rst_stream_frame(stream_id: int, error_code: int) -> bytes:
    frame: bytes = _WITH_LONG(0, 4, RST_STREAM, 0, stream_id, error_code)
    return frame


def window_update_frame(stream_id: int, increment: int) -> bytes:
    frame: bytes = _WITH_LONG(0, 4, WINDOW_UPDATE, 0, stream_id, increment)
    return frame


def settings_frame(settings: list[tuple[int, int]]) -> bytes:
    """Settings as (identifier, value), in their order."""
    payload = b"".join([_SETTING(identifier, value) for identifier, value in settings])
    return frame_header(len(payload), SETTINGS, 0, 0) + payload


SETTINGS_ACK: Final = frame_header(0, SETTINGS, ACK, 0)


def ping_frame(opaque: bytes, ack: bool) -> bytes:
    """`opaque`: eight bytes, which come back."""
    return frame_header(8, PING, ACK if ack else 0, 0) + opaque


def goaway_frame(last_stream_id: int, error_code: int) -> bytes:
    payload: bytes = _TWO_LONGS(last_stream_id, error_code)
    return frame_header(8, GOAWAY, 0, 0) + payload
