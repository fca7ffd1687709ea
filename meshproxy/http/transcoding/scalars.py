"""Values of scalar fields in the encoding of protobuf. What puts one returns False when it is none of its type's."""

from __future__ import annotations

import base64
import math
import re
import struct
from typing import Any, Final

from meshproxy.http.transcoding import schema as s

INTEGER: Final = re.compile(r"[+-]?[0-9]+\Z")
_DECIMAL: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\Z")
_NOT_FINITE: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_TRUE: Final = frozenset(("true", "t", "yes", "y", "1"))
_FALSE: Final = frozenset(("false", "f", "no", "n", "0"))
_BASE64_OF_URLS: Final = str.maketrans("-_", "+/")

LOWEST: Final = {
    s.INT32: -(1 << 31), s.SINT32: -(1 << 31), s.SFIXED32: -(1 << 31), s.UINT32: 0, s.FIXED32: 0,
    s.INT64: -(1 << 63), s.SINT64: -(1 << 63), s.SFIXED64: -(1 << 63), s.UINT64: 0, s.FIXED64: 0,
}  # fmt: skip
HIGHEST: Final = {
    s.INT32: (1 << 31) - 1, s.SINT32: (1 << 31) - 1, s.SFIXED32: (1 << 31) - 1, s.UINT32: (1 << 32) - 1,
    s.FIXED32: (1 << 32) - 1, s.INT64: (1 << 63) - 1, s.SINT64: (1 << 63) - 1, s.SFIXED64: (1 << 63) - 1,
    s.UINT64: (1 << 64) - 1, s.FIXED64: (1 << 64) - 1,
}  # fmt: skip
# How bytes are laid out behind a tag (the wire types of protobuf's encoding).
VARINT: Final = 0
_EIGHT_BYTES: Final = 1
_COUNTED: Final = 2
_FOUR_BYTES: Final = 5
WIRE_TYPES: Final = {
    s.DOUBLE: _EIGHT_BYTES, s.FIXED64: _EIGHT_BYTES, s.SFIXED64: _EIGHT_BYTES, s.FLOAT: _FOUR_BYTES,
    s.FIXED32: _FOUR_BYTES, s.SFIXED32: _FOUR_BYTES, s.STRING: _COUNTED, s.BYTES: _COUNTED, s.MESSAGE: _COUNTED,
}  # fmt: skip
_DOUBLE: Final = struct.Struct("<d")
_FLOAT: Final = struct.Struct("<f")


def put_varint(out: bytearray, number: int) -> None:
    if number < 0:
        number += 1 << 64
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)


def put_counted(out: bytearray, number: int, data: bytes | bytearray) -> None:
    """A field that is a message or a text."""
    put_varint(out, number << 3 | _COUNTED)
    put_varint(out, len(data))
    out += data


def put_group(out: bytearray, number: int, data: bytes | bytearray) -> None:
    """A field that is a message between tags of its own."""
    put_varint(out, number << 3 | 3)
    out += data
    put_varint(out, number << 3 | 4)


def put_bytes(out: bytearray, data: bytes) -> bool:
    put_varint(out, len(data))
    out += data
    return True


def put_base64(out: bytearray, text: str) -> bool:
    text = text.translate(_BASE64_OF_URLS)
    if not text.endswith("="):
        text += "=" * (-len(text) % 4)
    try:
        return put_bytes(out, base64.b64decode(text, validate=True))
    except ValueError:
        return False


def put_bool(out: bytearray, value: Any) -> bool:
    if isinstance(value, str):
        word = value.lower()
        if word not in _TRUE and word not in _FALSE:
            return False
        out.append(word in _TRUE)
        return True
    if not isinstance(value, bool):
        return False
    out.append(value)
    return True


def put_real(out: bytearray, kind: int, value: Any) -> bool:
    if isinstance(value, str):
        known = _NOT_FINITE.get(value)
        if known is None:
            if not _DECIMAL.match(value) or math.isinf(float(value)):
                return False
            known = float(value)
        value = known
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    elif isinstance(value, float) and math.isinf(value):
        return False  # more than JSON's number can be here
    try:
        out += _DOUBLE.pack(value) if kind == s.DOUBLE else _FLOAT.pack(value)
    except OverflowError:
        return False
    return True


def integer(value: Any) -> int | None:
    """The whole number that a JSON value is."""
    if isinstance(value, str):
        return int(value) if len(value) < 24 and INTEGER.match(value) else None
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) else None


def put_integer(out: bytearray, kind: int, value: Any) -> bool:
    number = integer(value)
    if number is None or not LOWEST[kind] <= number <= HIGHEST[kind]:
        return False
    wire_type = WIRE_TYPES.get(kind, VARINT)
    if wire_type == _FOUR_BYTES:
        out += (number & 0xFFFF_FFFF).to_bytes(4, "little")
    elif wire_type == _EIGHT_BYTES:
        out += (number & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little")
    elif kind in (s.SINT32, s.SINT64):
        put_varint(out, number * 2 if number >= 0 else -number * 2 - 1)
    else:
        put_varint(out, number)
    return True
