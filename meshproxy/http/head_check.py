"""What a user's filter made of a head: whether it can be sent. Only what is new in it is looked at."""

from __future__ import annotations

from typing import Any, Final

from meshproxy.codec.headers import HeaderMap

# RFC 9110 section 5.6.2
_TOKEN: Final = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NOT_IN_VALUE: Final = b"\r\n\0"  # section 5.5
_NOT_IN_TARGET: Final = bytes(range(0x21)) + b"\x7f"
_PSEUDO: Final = (b":method", b":path", b":authority", b":scheme", b":status", b":protocol")


def check_head(before: list[Any], headers: HeaderMap, names: tuple[bytes, ...]) -> None:
    """Look at the fields that are not those of `before`, and for the pseudo-headers called `names`.

    Raises TypeError for what is not bytes, ValueError for what cannot stand in a head.
    """
    fields: list[Any] = headers.fields
    size = len(before)
    moved = len(fields) < size
    for index in range(len(fields)):
        field = fields[index]
        if index < size:
            if field is before[index]:
                continue
            moved = True
        _check_field(field)
    if moved:
        _check_pseudo(headers, names)


def _check_field(field: Any) -> None:
    name, value = field
    if not isinstance(name, bytes) or not isinstance(value, bytes):
        raise TypeError(f"a field of a head is made of bytes, not {name!r}: {value!r}")
    if name[:1] == b":":
        _check_pseudo_field(name, value)
    elif not name or name.translate(None, _TOKEN):
        raise ValueError(f"{name!r} cannot be the name of a field")
    elif len(value.translate(None, _NOT_IN_VALUE)) != len(value):
        raise ValueError(f"the value of {name!r} has a line break or NUL in it: {value!r}")


def _check_pseudo_field(name: bytes, value: bytes) -> None:
    if name not in _PSEUDO:
        raise ValueError(f"there is no pseudo-header {name!r}")
    if name == b":status":
        if len(value) != 3 or not value.isdigit() or not (value >= b"200" or value == b"101"):
            raise ValueError(f":status must be that of a final response, not {value!r}")
    elif not value or len(value.translate(None, _NOT_IN_TARGET)) != len(value):
        raise ValueError(f"{name.decode()} cannot be {value!r}")


def _check_pseudo(headers: HeaderMap, names: tuple[bytes, ...]) -> None:
    for name in names:
        if headers.get(name) is None and not (name == b":path" and headers.get(b":method") == b"CONNECT"):
            raise ValueError(f"the head has no {name.decode()} any more")
