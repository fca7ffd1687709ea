"""The values of operators in words: as they stand in text, and as JSON."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from json.encoder import encode_basestring
from typing import Any, Final

Value = Any  # bytes | str | int | float | bool | dict | list | None


def to_bytes(value: Value) -> bytes:
    """A value as it stands in text: numbers in decimals, structures in JSON."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    return to_json(value).encode()


def to_json(value: Value) -> str:
    """Compact JSON; bytes are text, and floats (all that a protobuf Struct has) are written as `number_text`."""
    if value is None:
        return "null"
    if isinstance(value, bytes):
        return _bytes_to_json(value)
    if isinstance(value, str):
        return encode_basestring(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return number_text(value)
    if isinstance(value, dict):
        return "{" + ",".join([f"{encode_basestring(str(key))}:{to_json(item)}" for key, item in value.items()]) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join([to_json(item) for item in value]) + "]"
    return json.dumps(value, default=str)


def number_text(value: float) -> str:
    """As C++'s `to_chars`, by which Envoy writes numbers: digits enough to read the same number back, with an exponent
    where that is shorter (`100`, `1e+05`). Infinity is `inf`, and what is no number `null`."""
    if not math.isfinite(value):
        return "null" if math.isnan(value) else "inf" if value > 0 else "-inf"
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)
    plain = f"{value:.0f}" if value.is_integer() else f"{Decimal(repr(value)):f}"
    mantissa = ("-" if sign else "") + str(digits[0]) + ("." if digits[1:] else "") + "".join(map(str, digits[1:]))
    scientific = f"{mantissa}e{exponent + len(digits) - 1:+03d}"
    return plain if len(plain) <= len(scientific) else scientific


def _bytes_to_json(value: bytes) -> str:
    """Bytes that are no UTF-8 stand for the characters of their numbers, all escaped (Envoy)."""
    try:
        return encode_basestring(value.decode("utf-8"))
    except UnicodeDecodeError:
        return '"' + "".join([_ESCAPED[byte] for byte in value]) + '"'


_ESCAPED: Final = [
    chr(byte) if 0x20 <= byte < 0x7F and byte not in b'"\\' else f"\\u{byte:04x}" for byte in range(256)
]  # fmt: skip
