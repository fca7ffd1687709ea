"""From protobuf messages to JSON, as Envoy's transcoder prints them: fields in the order of their numbers."""

from __future__ import annotations

import base64
import json
import math
from typing import Any, Final

from google.protobuf.message import DecodeError

from meshproxy.errors import MeshProxyError
from meshproxy.http.transcoding import schema as s
from meshproxy.http.transcoding.numbers import text_of_double, text_of_float
from meshproxy.http.transcoding.schema import FieldType, MessageType, Schema, SchemaError

# Characters that are escaped in strings, as a text in a page or a script might be misread with them.
_ESCAPED: Final = {
    code: f"\\u{code:04x}"
    for code in (0x3C, 0x3E, *range(0x7F, 0xA0), 0xAD, 0x6DD, 0x70F, 0x2028, 0x2029, 0xFEFF, *range(0x200B, 0x2010))
}
_QUOTED_INTEGERS: Final = frozenset((s.INT64, s.UINT64, s.SINT64, s.FIXED64, s.SFIXED64))


class ResponseError(MeshProxyError):
    """A message that cannot be transcoded; `status` is Envoy's word for the kind of error."""

    def __init__(self, text: str, status: str = "INVALID_ARGUMENT") -> None:
        super().__init__(text)
        self.status = status


class PrintOptions:
    """GrpcJsonTranscoder.PrintOptions, as far as they concern single messages."""

    def __init__(self, whitespace: bool, defaults: bool, enum_numbers: bool, proto_names: bool) -> None:
        self.whitespace = whitespace
        self.defaults = defaults  # fields without presence are printed also when they have no value
        self.enum_numbers = enum_numbers
        self.proto_names = proto_names


class MessagePrinter:
    """Prints messages of a schema's types."""

    def __init__(self, schema: Schema, options: PrintOptions) -> None:
        self._schema = schema
        self._options = options
        self._newline = "\n" if options.whitespace else ""
        self._colon = ": " if options.whitespace else ":"

    def print_bytes(self, message_class: Any, data: bytes) -> bytes:
        """The JSON of an encoded message. Raises ResponseError."""
        try:
            message = message_class.FromString(data)
        except DecodeError as error:
            raise ResponseError(str(error)) from None
        return self.print(message)

    def print(self, message: Any) -> bytes:
        """Raises ResponseError."""
        text = self._message(message, 0) + self._newline
        try:
            return text.encode()
        except UnicodeEncodeError:
            raise ResponseError("strings must be UTF-8") from None

    def _message(self, message: Any, depth: int) -> str:
        kind = self._schema.type_of(message.DESCRIPTOR)
        if kind.special != s.ORDINARY:
            return self._special(kind, message, depth)
        return self._object(self._members(kind, message, depth), depth)

    def _members(self, kind: MessageType, message: Any, depth: int) -> list[str]:
        """`"name":value` of every field that is to be seen."""
        members: list[str] = []
        if not self._options.defaults:
            for descriptor, value in message.ListFields():
                field = kind.by_number.get(descriptor.number)
                if field is not None:  # no extension
                    members.append(self._member(field, value, depth))
            return members
        values: dict[int, Any] = {descriptor.number: value for descriptor, value in message.ListFields()}
        for field in kind.ordered:
            if field.number in values:
                members.append(self._member(field, values[field.number], depth))
            elif not field.has_presence:
                members.append(self._member(field, getattr(message, field.name), depth))
        return members

    def _member(self, field: FieldType, value: Any, depth: int) -> str:
        name = field.quoted_name if self._options.proto_names else field.quoted_json_name
        return f"{name}{self._colon}{self._field(field, value, depth + 1)}"

    def _field(self, field: FieldType, value: Any, depth: int) -> str:
        if field.is_map:
            return self._map(field, value, depth)
        if field.repeated:
            return self._list([self._one(field, item, depth + 1) for item in value], depth)
        return self._one(field, value, depth)

    def _map(self, field: FieldType, values: Any, depth: int) -> str:
        assert field.message is not None
        key_field = field.message.fields["key"]
        value_field = field.message.fields["value"]
        members: list[str] = []
        for key in sorted(values):
            name = self._one(key_field, key, depth).strip('"') if key_field.kind != s.STRING else ""
            shown = f'"{name}"' if key_field.kind != s.STRING else _quoted(key)
            members.append(f"{shown}{self._colon}{self._one(value_field, values[key], depth + 1)}")
        return self._object(members, depth)

    def _one(self, field: FieldType, value: Any, depth: int) -> str:
        kind = field.kind
        if kind == s.STRING:
            return _quoted(value)
        if kind in (s.MESSAGE, s.GROUP):
            return self._message(value, depth)
        if kind == s.BOOL:
            return "true" if value else "false"
        if kind == s.ENUM:
            return self._enum(field, value)
        if kind == s.BYTES:
            return f'"{base64.b64encode(value).decode()}"'
        if kind in (s.DOUBLE, s.FLOAT):
            return _real(kind, value)
        return f'"{value}"' if kind in _QUOTED_INTEGERS else str(value)

    def _enum(self, field: FieldType, number: int) -> str:
        enum = field.enum
        assert enum is not None
        if enum.is_null:
            return "null"
        name = None if self._options.enum_numbers else enum.names.get(number)
        return str(number) if name is None else f'"{name}"'

    def _object(self, members: list[str], depth: int) -> str:
        return "{" + self._inside(members, depth) + "}"

    def _list(self, items: list[str], depth: int) -> str:
        return "[" + self._inside(items, depth) + "]"

    def _inside(self, items: list[str], depth: int) -> str:
        if not self._newline or not items:
            return ",".join(items)
        break_ = "\n" + " " * (depth + 1)
        return break_ + ("," + break_).join(items) + "\n" + " " * depth

    # -- messages that have a JSON of their own

    def _special(self, kind: MessageType, message: Any, depth: int) -> str:
        special = kind.special
        if special == s.WRAPPER:
            return self._one(kind.fields["value"], message.value, depth)
        if special == s.STRUCT:
            members = [
                f"{_quoted(name)}{self._colon}{self._value(message.fields[name], depth + 1)}"
                for name in sorted(message.fields)
            ]
            return self._object(members, depth)
        if special == s.LIST_VALUE:
            return self._list([self._value(item, depth + 1) for item in message.values], depth)
        if special == s.VALUE:
            return self._value(message, depth)
        if special == s.ANY:
            return self._any(message, depth)
        try:
            text: str = message.ToJsonString()
        except (ValueError, OverflowError) as error:
            raise ResponseError(str(error)) from None
        return _quoted(text)

    def _value(self, value: Any, depth: int) -> str:
        """Of a google.protobuf.Value."""
        which = value.WhichOneof("kind")
        if which == "string_value":
            return _quoted(value.string_value)
        if which == "number_value":
            return _real(s.DOUBLE, value.number_value)
        if which == "bool_value":
            return "true" if value.bool_value else "false"
        if which == "struct_value":
            return self._message(value.struct_value, depth)
        return self._message(value.list_value, depth) if which == "list_value" else "null"

    def _any(self, value: Any, depth: int) -> str:
        url: str = value.type_url
        if not url:
            return "{}"
        try:
            message = self._schema.message_class(url.rpartition("/")[2]).FromString(value.value)
        except (SchemaError, DecodeError) as error:
            raise ResponseError(f"Invalid type URL, or what is no such message: {url}: {error}") from None
        kind = self._schema.type_of(message.DESCRIPTOR)
        first = f'"@type"{self._colon}{_quoted(url)}'
        if kind.special != s.ORDINARY:
            return self._object([first, f'"value"{self._colon}{self._message(message, depth + 1)}'], depth)
        return self._object([first, *self._members(kind, message, depth)], depth)


def _quoted(text: str) -> str:
    quoted = json.dumps(text, ensure_ascii=False)
    return quoted if text.isalnum() else quoted.translate(_ESCAPED)


def _real(kind: int, value: float) -> str:
    if math.isfinite(value):
        return text_of_double(value) if kind == s.DOUBLE else text_of_float(value)
    return '"NaN"' if math.isnan(value) else '"Infinity"' if value > 0 else '"-Infinity"'
