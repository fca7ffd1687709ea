"""Spans as OTLP has them (opentelemetry-proto, `collector/trace/v1`), in protobuf's wire format.

Written by hand: the few fields that there are need no message objects, and no generated module of a certain version.
"""

from __future__ import annotations

from typing import Final

KIND_SERVER: Final = 2
KIND_CLIENT: Final = 3
STATUS_UNSET: Final = 0
STATUS_ERROR: Final = 2

# Flags of a span: those of the trace context, and whether its parent is in another process.
FLAG_SAMPLED: Final = 0x1
FLAG_HAS_IS_REMOTE: Final = 0x100
FLAG_IS_REMOTE: Final = 0x200

_ERROR_STATUS: Final = b"\x18\x02"  # Status.code (field 3) = STATUS_ERROR


def field(number: int, value: bytes) -> bytes:
    """A field of bytes, text or a message."""
    return b"".join((varint(number << 3 | 2), varint(len(value)), value))


def varint(number: int) -> bytes:
    if number < 0x80:
        return _SMALL[number]
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


_SMALL: Final = [bytes((number,)) for number in range(0x80)]


def fixed64(number: int, value: int) -> bytes:
    return varint(number << 3 | 1) + value.to_bytes(8, "little")


def utf8(text: bytes) -> bytes:
    """Strings of protobuf are UTF-8; a header's value may be anything."""
    if text.isascii():
        return text
    return text.decode("utf-8", "replace").encode()


def attribute(number: int, name: bytes, value: bytes) -> bytes:
    """A KeyValue of text, as field `number`."""
    return field(number, field(1, name) + field(2, field(1, utf8(value))))


class SpanData:
    """What a finished span tells. Ids are in hexadecimal, times in ns since 1970."""

    def __init__(self, trace_id: bytes, span_id: bytes, parent_id: bytes, state: bytes) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.parent_id = parent_id
        self.state = state
        self.remote_parent: bool = False
        self.name: bytes = b""
        self.kind: int = KIND_SERVER
        self.start_ns: int = 0
        self.end_ns: int = 0
        self.attributes: dict[bytes, bytes] = {}
        self.events: list[tuple[bytes, int]] = []
        self.failed: bool = False

    def encode(self) -> bytes:
        """The message Span."""
        parts = [field(1, bytes.fromhex(self.trace_id.decode())), field(2, bytes.fromhex(self.span_id.decode()))]
        if self.state:
            parts.append(field(3, utf8(self.state)))
        if self.parent_id:
            parts.append(field(4, bytes.fromhex(self.parent_id.decode())))
        parts.append(field(5, utf8(self.name)))
        parts.append(varint(6 << 3) + varint(self.kind))
        parts.append(fixed64(7, self.start_ns))
        parts.append(fixed64(8, self.end_ns))
        for name, value in self.attributes.items():
            parts.append(attribute(9, name, value))
        for name, at_ns in self.events:
            parts.append(field(11, fixed64(1, at_ns) + field(2, name)))
        if self.failed:
            parts.append(field(15, _ERROR_STATUS))
        flags = FLAG_SAMPLED | FLAG_HAS_IS_REMOTE | (FLAG_IS_REMOTE if self.remote_parent else 0)
        parts.append(varint(16 << 3 | 5) + flags.to_bytes(4, "little"))
        return b"".join(parts)


def encode_resource(attributes: dict[str, str]) -> bytes:
    """The message Resource."""
    return b"".join([attribute(1, name.encode(), value.encode()) for name, value in attributes.items()])


def encode_scope(name: str, version: str) -> bytes:
    """The message InstrumentationScope."""
    return field(1, name.encode()) + field(2, version.encode())


def encode_request(resource: bytes, scope: bytes, spans: list[bytes]) -> bytes:
    """The message ExportTraceServiceRequest, with one resource and one scope."""
    of_scope = field(1, scope) + b"".join([field(2, span) for span in spans])
    return field(1, field(1, resource) + field(2, of_scope))
