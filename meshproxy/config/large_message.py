"""Reading a message of the API in steps, where reading it at once would hold the event loop.

Protobuf reads a message by merging one field after another into it, so any cut between two fields gives the same
message: https://protobuf.dev/programming-guides/encoding/#last-one-wins
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError

from meshproxy.config.messages import is_map

_PIECE_BYTES: Final = 64 * 1024  # less than a millisecond's work
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def merge_in_steps(message: Any, data: bytes | memoryview) -> Iterator[None]:
    """Merge serialised fields into `message`. Raises DecodeError for what is none; then the message is half done."""
    if len(data) <= _PIECE_BYTES:
        message.MergeFromString(bytes(data))
        return
    view = memoryview(data)
    start = at = 0
    while at < len(view):
        number, content, following = _next_field(view, at)
        field = message.DESCRIPTOR.fields_by_number.get(number)
        if following - content > _PIECE_BYTES and field is not None and _is_message(field):
            message.MergeFromString(bytes(view[start:at]))
            yield
            yield from merge_in_steps(_member(message, field), view[content:following])
            start = following
        elif following - start > _PIECE_BYTES:
            message.MergeFromString(bytes(view[start:following]))
            start = following
            yield
        at = following
    message.MergeFromString(bytes(view[start:]))
    yield


def _is_message(field: FieldDescriptor) -> bool:
    return field.message_type is not None and not is_map(field)


def _member(message: Any, field: FieldDescriptor) -> Any:
    """The message that a field's bytes are to be merged into."""
    member = getattr(message, field.name)
    if field.is_repeated:
        return member.add()
    member.SetInParent()
    return member


def _next_field(view: memoryview, at: int) -> tuple[int, int, int]:
    """Of the field that begins at `at`: its number, where its content begins, and where the next field does."""
    tag, content = _varint(view, at)
    kind = tag & 7
    if kind == _LENGTH:
        length, content = _varint(view, content)
        following = content + length
    elif kind == _VARINT:
        following = _varint(view, content)[1]
    elif kind in (_FIXED64, _FIXED32):
        following = content + (8 if kind == _FIXED64 else 4)
    else:
        raise DecodeError("groups are not part of the API")
    if following > len(view):
        raise DecodeError("a field is cut short")
    return tag >> 3, content, following


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = shift = 0
    while at < len(view) and shift < 64:
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise DecodeError("a number is cut short, or too long")
