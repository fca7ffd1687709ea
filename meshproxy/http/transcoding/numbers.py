"""Numbers as protobuf writes them in JSON: with as few digits as read back the same."""

from __future__ import annotations

import struct
from typing import Final

_FLOAT: Final = struct.Struct("<f")


def text_of_double(value: float) -> str:
    """Of a finite number."""
    text = f"{value:.15g}"
    return text if float(text) == value else f"{value:.17g}"


def text_of_float(value: float) -> str:
    """Of a finite number of single precision."""
    text = f"{value:.6g}"
    read: float = _FLOAT.unpack(_FLOAT.pack(float(text)))[0]
    return text if read == value else f"{value:.9g}"
