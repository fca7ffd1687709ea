"""Which octets the names and values of HTTP/2 fields consist of (RFC 9113 section 8.2.1)."""

from __future__ import annotations

from typing import Final

_COLON: Final = 0x3A
_SPACE: Final = 0x20
_TOKEN: Final = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"  # RFC 9110 section 5.6.2, in lower case
# Tables for translate(), which leaves a name, and a value, as it is when it may be one.
_NAME_OCTETS: Final = bytes([octet if octet in _TOKEN else octet ^ 1 for octet in range(256)])
_VALUE_OCTETS: Final = bytes([_SPACE if octet in {*range(0x20), 0x7F} - {0x09} else octet for octet in range(256)])


def is_field_name(name: bytes) -> bool:
    """Whether HTTP/2 may carry a field, or pseudo-header, of this name: a token without upper case, behind one colon at
    most. RFC 9113 names fewer octets that must be refused; all of RFC 9110 section 5.1, as Envoy has it, keep a request
    to an HTTP/1 upstream from being read in two ways."""
    token = name[1:] if len(name) > 0 and name[0] == _COLON else name
    return len(token) > 0 and token.translate(_NAME_OCTETS) == token


def is_field_value(value: bytes) -> bool:
    """Whether HTTP/2 may carry this value: without controls, but for tabs inside, and without white space around it."""
    if len(value) == 0:
        return True
    first, last = value[0], value[-1]
    if first <= _SPACE or last <= _SPACE:  # white space or another control
        return False
    return value.translate(_VALUE_OCTETS) == value


def without_controls(value: bytes) -> bytes:
    """`value` with a space for each control, but for tabs; `value` itself when it has none."""
    return value.translate(_VALUE_OCTETS)
