"""What a message's Content-Length says."""

from __future__ import annotations

from typing import Final

from meshproxy.codec.headers import HeaderMap

NO_LENGTH: Final = -2  # no field says how long the body is
INVALID: Final = -3
_ZERO: Final = 0x30
_NINE: Final = 0x39
_MAX_DIGITS: Final = 18  # below 2 ** 63: no recipient overflows


def content_length_to_send(headers: HeaderMap) -> int:
    """The value of the one Content-Length; `NO_LENGTH` where there is none, `INVALID` when there are several or it is
    no number."""
    length = NO_LENGTH
    for name, value in headers.fields:
        if name == b"content-length":
            if length != NO_LENGTH:
                return INVALID
            length = _number(value)
    return length


def _number(digits: bytes) -> int:
    """`int` on bytes makes a str first."""
    if not 0 < len(digits) <= _MAX_DIGITS:
        return INVALID
    number = 0
    for digit in digits:
        if not _ZERO <= digit <= _NINE:
            return INVALID
        number = number * 10 + digit - _ZERO
    return number
