"""Protobuf messages as JSON, piece by piece, so that a message of any size never holds the event loop.

The form is that of Envoy's admin: proto field names, one space of indentation a level, unset fields left out, an `Any`
with its message unpacked, and what the API marks as sensitive redacted.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from meshproxy.config.large_message import merge_in_steps
from meshproxy.config.messages import enum_name, find_message, type_name

_REDACTED: Final = "[redacted]"
_ANY: Final = "google.protobuf.Any"
# Their JSON is not that of their fields.
_SPECIAL: Final = frozenset(
    f"google.protobuf.{name}"
    for name in (
        *("Duration", "Timestamp", "FieldMask", "Struct", "Value", "ListValue"),
        *("BoolValue", "BytesValue", "DoubleValue", "FloatValue", "Int32Value", "Int64Value", "StringValue"),
        *("UInt32Value", "UInt64Value"),
    )
)
_TYPED_STRUCTS: Final = frozenset({"udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"})
_LONG: Final = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
_SINGLE: Final = struct.Struct("f")

Member = tuple[str, Iterable[str]]  # a name, and the pieces of its value


def write_object(members: Iterable[Member], depth: int) -> Iterator[str]:
    """`{` name: value … `}`; what stands in it is indented by `depth` + 1."""
    separator = "{\n"
    indent = " " * (depth + 1)
    for name, pieces in members:
        yield f"{separator}{indent}{_text(name)}: "
        yield from pieces
        separator = ",\n"
    yield "{}" if separator[0] == "{" else "\n" + " " * depth + "}"


def write_array(items: Iterable[Iterable[str]], depth: int) -> Iterator[str]:
    """`[` items … `]`."""
    separator = "[\n" + " " * (depth + 1)
    for pieces in items:
        yield separator
        yield from pieces
        separator = ",\n" + " " * (depth + 1)
    yield "[]" if separator[0] == "[" else "\n" + " " * depth + "]"


def write_message(message: Message, depth: int, *, sensitive: bool = False, type_url: str = "") -> Iterator[str]:
    """A message's JSON; with `type_url` as in an `Any`."""
    name = message.DESCRIPTOR.full_name
    if type_url and (name == _ANY or name in _SPECIAL):
        value = write_message(message, depth + 1, sensitive=sensitive)
        return write_object([("@type", (_text(type_url),)), ("value", value)], depth)
    if name == _ANY:
        return _write_any(message, depth, sensitive)
    if name in _SPECIAL:
        return iter((_special(message, depth, sensitive),))
    if name in _TYPED_STRUCTS:
        message = _redacted_struct(message)
    return write_object(_members(message, depth + 1, sensitive, type_url), depth)


def members_of(message: Message, depth: int) -> Iterator[tuple[FieldDescriptor, Iterable[str]]]:
    """The fields of a message that are set, by their numbers, with the pieces of their values."""
    for field, value in message.ListFields():
        yield field, _write_field(field, value, depth, _is_sensitive(field))


def _members(message: Message, depth: int, sensitive: bool, type_url: str) -> Iterator[Member]:
    if type_url:
        yield "@type", (_text(type_url),)
    for field, value in message.ListFields():
        if sensitive and field.message_type is None and not _is_text(field):
            continue  # redacted numbers are cleared
        yield field.name, _write_field(field, value, depth, sensitive or _is_sensitive(field))


def _write_field(field: FieldDescriptor, value: Any, depth: int, sensitive: bool) -> Iterable[str]:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        return _write_map(kind, value, depth, sensitive)
    if not field.is_repeated:
        return _write_value(field, value, depth, sensitive)
    return write_array((_write_value(field, one, depth + 1, sensitive) for one in value), depth)


def _write_map(entry: Descriptor, values: Any, depth: int, sensitive: bool) -> Iterator[str]:
    field = entry.fields_by_name["value"]
    names = [(key if isinstance(key, str) else json.dumps(key), key) for key in values]
    return write_object(
        ((name, _write_value(field, values[key], depth + 1, sensitive)) for name, key in sorted(names)), depth
    )


def _write_value(field: FieldDescriptor, value: Any, depth: int, sensitive: bool) -> Iterable[str]:
    if field.message_type is not None:
        return write_message(value, depth, sensitive=sensitive)
    return (_scalar(field, value, sensitive),)


def _scalar(field: FieldDescriptor, value: Any, sensitive: bool) -> str:
    if field.enum_type is not None:
        return _text(enum_name(field.enum_type, value)) if value in field.enum_type.values_by_number else str(value)
    if isinstance(value, bytes):
        return _text(base64.b64encode(_REDACTED.encode() if sensitive else value).decode())
    if isinstance(value, str):
        return _text(_REDACTED if sensitive else value)
    if isinstance(value, float):
        return _float(value, is_single=field.cpp_type == FieldDescriptor.CPPTYPE_FLOAT)
    return f'"{value}"' if field.cpp_type in _LONG else json.dumps(value)


def _float(value: float, *, is_single: bool) -> str:
    if not math.isfinite(value):
        return '"NaN"' if math.isnan(value) else '"Infinity"' if value > 0 else '"-Infinity"'
    if value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return _shortest_single(value) if is_single else repr(value)


def _shortest_single(value: float) -> str:
    """The fewest digits that stand for this 32-bit number."""
    for digits in range(6, 9):
        text = f"{value:.{digits}g}"
        if _SINGLE.unpack(_SINGLE.pack(float(text)))[0] == value:
            return text
    return f"{value:.9g}"


def _write_any(message: Any, depth: int, sensitive: bool) -> Iterator[str]:
    """The message within; its bytes where its type is not known here. A large one is read bit by bit."""
    url = str(message.type_url)
    if not url:
        yield from write_object((), depth)
        return
    kind = find_message(type_name(url))
    inner = None if kind is None else kind()
    try:
        if inner is not None:
            for _ in merge_in_steps(inner, message.value):
                yield ""
    except DecodeError:
        inner = None
    if inner is not None:
        yield from write_message(inner, depth, sensitive=sensitive, type_url=url)
        return
    value = _text(base64.b64encode(_REDACTED.encode() if sensitive else message.value).decode())
    yield from write_object([("@type", (_text(url),)), ("value", (value,))], depth)


def _special(message: Message, depth: int, sensitive: bool) -> str:
    value: Any = json_format.MessageToDict(message, preserving_proto_field_name=True)
    if sensitive:
        value = _REDACTED if isinstance(value, str) else None
    text = json.dumps(value, indent=1, ensure_ascii=False)
    return text.replace("\n", "\n" + " " * depth)


def _redacted_struct(message: Any) -> Message:
    """A TypedStruct may hold a message with secrets in another form: it is redacted as that message."""
    kind = find_message(type_name(message.type_url))
    if kind is None:
        return message  # type: ignore[no-any-return]
    inner = kind()
    try:
        json_format.ParseDict(json_format.MessageToDict(message.value), inner, ignore_unknown_fields=True)
    except json_format.ParseError:
        return message  # type: ignore[no-any-return]
    if not _holds_secret(inner):
        return message  # type: ignore[no-any-return]
    copy = type(message)(type_url=message.type_url)
    json_format.ParseDict(json.loads("".join(write_message(inner, 0))), copy.value)
    return copy  # type: ignore[no-any-return]


def _holds_secret(message: Message) -> bool:
    for field, value in message.ListFields():
        if _is_sensitive(field):
            return True
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        if any(_holds_secret(one) for one in (value if field.is_repeated else (value,))):
            return True
    return False


@cache
def _is_sensitive(field: FieldDescriptor) -> bool:
    """Whether the API marks the field with udpa.annotations.sensitive."""
    from udpa.annotations import sensitive_pb2

    return bool(field.GetOptions().Extensions[sensitive_pb2.sensitive])


def _is_text(field: FieldDescriptor) -> bool:
    return field.cpp_type == FieldDescriptor.CPPTYPE_STRING


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
