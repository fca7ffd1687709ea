"""From JSON, and from the values of path and query, to the bytes of a protobuf message.

It follows protobuf's mapping of JSON (fields in either of their names, unknown ones left out, numbers in strings), with
the errors of Envoy's transcoder. What path and query say of a field comes after what the body says; where both give
one value, the body's counts.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from meshproxy.errors import MeshProxyError
from meshproxy.http.transcoding import schema as s
from meshproxy.http.transcoding.numbers import text_of_double
from meshproxy.http.transcoding.scalars import (
    HIGHEST,
    LOWEST,
    VARINT,
    WIRE_TYPES,
    integer,
    put_base64,
    put_bool,
    put_bytes,
    put_counted,
    put_group,
    put_integer,
    put_real,
    put_varint,
)
from meshproxy.http.transcoding.schema import FieldType, MessageType, Schema, SchemaError

_DEPTH: Final = 100  # of objects in objects, as deep as protobuf itself reads them
_SHOWN: Final = 200  # characters of a value in an error
_CAPITAL: Final = re.compile("[A-Z]")


class RequestError(MeshProxyError):
    """A request that cannot be transcoded; the text is for whoever sent it."""


class Bound:
    """What path and query bind in one message: its own fields, and its messages' ones."""

    def __init__(self) -> None:
        self.values: list[tuple[FieldType, str]] = []
        self.messages: list[tuple[FieldType, Bound]] = []

    def bind(self, path: list[FieldType], value: str) -> None:
        bound = self
        for field in path[:-1]:
            inner = bound.message(field.name)
            if inner is None:
                inner = Bound()
                bound.messages.append((field, inner))
            bound = inner
        bound.values.append((path[-1], value))

    def message(self, name: str) -> Bound | None:
        for field, inner in self.messages:
            if field.name == name:
                return inner
        return None


def parse_json(text: bytes) -> Any:
    """Raises RequestError for what is no JSON (RFC 8259)."""
    try:
        return json.loads(text.decode(), parse_constant=_refuse_constant, strict=False)
    except UnicodeDecodeError:
        raise RequestError("Encountered non UTF-8 code points.") from None
    except RecursionError:
        raise RequestError("Message too deep.") from None
    except ValueError as error:
        raise RequestError(f"The request is not JSON: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is none of its values")


class MessageWriter:
    """Writes messages of a schema's types."""

    def __init__(self, schema: Schema, fold_enums: bool, reject_collisions: bool) -> None:
        """With `fold_enums` the names of enum values may come in any case, and with `-`; with `reject_collisions` a
        body may not contradict path and query."""
        self._schema = schema
        self._fold_enums = fold_enums
        self._reject_collisions = reject_collisions

    def write(self, message: MessageType, tree: object, bound: Bound | None) -> bytes:
        """The message that a JSON value and bound values make up. Raises RequestError."""
        if not isinstance(tree, dict):
            raise RequestError(": Root element must be a message.")
        out = bytearray()
        self._write_object(message, tree, bound, "", 0, out)
        return bytes(out)

    def _write_object(
        self, message: MessageType, tree: dict[str, Any], bound: Bound | None, path: str, depth: int, out: bytearray
    ) -> None:
        _check_depth(depth, path)
        oneofs: set[str] = set()
        written: list[str] = []  # names whose bound message was merged into the body's
        for name, value in tree.items():
            field = message.fields.get(name)
            if field is None or (value is None and not _takes_null(field)):
                continue
            inner: Bound | None = None
            if bound is not None and name == field.name:
                if isinstance(value, dict):
                    inner = bound.message(name)
                    written.append(name)
                elif not isinstance(value, list):
                    self._meet(field, value, bound, path, out)
            _choose(oneofs, field, path)
            self._write_field(field, value, inner, path, depth, out)
        if bound is not None:
            self._write_bound(bound, written, oneofs, path, depth, out)

    def _write_bound(
        self, bound: Bound, written: list[str], oneofs: set[str], path: str, depth: int, out: bytearray
    ) -> None:
        """What the body left to path and query."""
        for field, text in bound.values:
            _choose(oneofs, field, path)
            self._write_field(field, text, None, path, depth, out)
        for field, inner in bound.messages:
            if field.name in written:
                continue
            if field.is_map:
                entries = {entry.name: text for entry, text in inner.values}
                self._write_map(field, entries, path, depth, out)
                continue
            assert field.message is not None
            _choose(oneofs, field, path)
            data = bytearray()
            self._write_object(field.message, {}, inner, _below(path, field), depth + 1, data)
            put_counted(out, field.number, data)

    def _meet(self, field: FieldType, value: Any, bound: Bound, path: str, out: bytearray) -> None:
        """The body gives a value that path or query give too: that is the one, unless it is one of several."""
        kept: list[tuple[FieldType, str]] = []
        for entry in bound.values:
            if entry[0] is not field:
                kept.append(entry)
            elif field.repeated:
                self._write_field(field, entry[1], None, path, 0, out)
            elif self._reject_collisions:
                self._compare(field, value, entry[1], path)
        bound.values = kept

    def _compare(self, field: FieldType, value: Any, text: str, path: str) -> None:
        of_body = bytearray()
        of_binding = bytearray()
        self._write_field(field, value, None, path, 0, of_body)
        self._write_field(field, text, None, path, 0, of_binding)
        if of_body != of_binding:
            raise RequestError(
                f'The binding value "{text}" of the field {field.name} is conflicting with the value {_shown(value)} '
                "in the body."
            )

    def _write_field(
        self, field: FieldType, value: Any, bound: Bound | None, path: str, depth: int, out: bytearray
    ) -> None:
        where = _below(path, field)
        if field.is_map:
            self._write_map(field, value, path, depth, out)
        elif isinstance(value, dict) and field.message is None:
            raise RequestError(f"{path}: invalid value Starting an object on a scalar field for type {field.name}")
        elif not isinstance(value, list) or _is_list(field):
            self._write_one(field, value, bound, where, depth, out)
        elif not field.repeated:
            raise RequestError(f"{path}: Proto field is not repeating, cannot start list.")
        else:
            for i in range(len(value)):
                if value[i] is not None or _takes_null(field):
                    self._write_one(field, value[i], None, f"{where}[{i}]", depth, out)

    def _write_map(self, field: FieldType, value: Any, path: str, depth: int, out: bytearray) -> None:
        if isinstance(value, list):
            raise RequestError(
                f"{path}: invalid value Cannot bind a list to map for field '{field.name}'. for type Map"
            )
        where = _below(path, field)
        if not isinstance(value, dict):
            raise _invalid(where, value, field.type_name)
        assert field.message is not None
        key_field = field.message.fields["key"]
        value_field = field.message.fields["value"]
        for at, (key, item) in enumerate(value.items()):
            entry = bytearray()
            self._write_one(key_field, key, None, f"{where}[{at}].key", depth + 1, entry)
            if item is not None or _takes_null(value_field):
                self._write_one(value_field, item, None, f"{where}[{at}].value", depth + 1, entry)
            put_counted(out, field.number, entry)

    def _write_one(
        self, field: FieldType, value: Any, bound: Bound | None, where: str, depth: int, out: bytearray
    ) -> None:
        """A single value with its tag."""
        message = field.message
        if message is not None:
            data = bytearray()
            if message.special != s.ORDINARY and bound is None:
                self._write_special(message, value, where, depth + 1, data)
            elif isinstance(value, dict):
                self._write_object(message, value, bound, where, depth + 1, data)
            else:
                raise _invalid(where, value, field.type_name)
            if field.kind == s.GROUP:
                put_group(out, field.number, data)
            else:
                put_counted(out, field.number, data)
            return
        start = len(out)
        put_varint(out, field.number << 3 | WIRE_TYPES.get(field.kind, VARINT))
        if not self._put_scalar(field, value, out):
            del out[start:]
            raise _invalid(where, value, field.type_name)

    # -- scalars: False for a value that is none of the field's type

    def _put_scalar(self, field: FieldType, value: Any, out: bytearray) -> bool:
        kind = field.kind
        if kind == s.STRING:
            return isinstance(value, str) and put_bytes(out, _encode(value))
        if kind == s.BYTES:
            return isinstance(value, str) and put_base64(out, value)
        if kind == s.BOOL:
            return put_bool(out, value)
        if kind == s.ENUM:
            return self._put_enum(field, value, out)
        if kind in (s.DOUBLE, s.FLOAT):
            return put_real(out, kind, value)
        return put_integer(out, kind, value)

    def _put_enum(self, field: FieldType, value: Any, out: bytearray) -> bool:
        enum = field.enum
        assert enum is not None
        number: int | None = None
        if isinstance(value, str):
            number = enum.numbers.get(value)
            if number is None and self._fold_enums:
                number = enum.numbers.get(value.upper().replace("-", "_"))
            if number is None:
                number = integer(value)
                if number not in enum.names:
                    return False
        elif value is None:
            number = 0
        else:
            number = integer(value)
        if number is None or not LOWEST[s.INT32] <= number <= HIGHEST[s.INT32]:
            return False
        put_varint(out, number)
        return True

    # -- messages that have a JSON of their own

    def _write_special(self, message: MessageType, value: Any, where: str, depth: int, out: bytearray) -> None:
        _check_depth(depth, where)
        special = message.special
        if special == s.WRAPPER:
            if isinstance(value, dict):
                self._write_object(message, value, None, where, depth, out)
            else:
                self._write_one(message.fields["value"], value, None, f"{where}.value", depth, out)
        elif special in (s.TIMESTAMP, s.DURATION):
            _write_time(message, value, where, out)
        elif special == s.FIELD_MASK and isinstance(value, str):
            for path in value.split(",") if value else []:
                put_counted(out, 1, _CAPITAL.sub(_lowered, path.strip()).encode("utf-8", "surrogateescape"))
        elif special == s.VALUE:
            _write_value(value, where, depth, out)
        elif special == s.STRUCT and isinstance(value, dict):
            _write_struct(value, where, depth, out)
        elif special == s.LIST_VALUE and isinstance(value, list):
            _write_list(value, where, depth, out)
        elif special == s.ANY and isinstance(value, dict):
            self._write_any(value, where, depth, out)
        else:
            raise _invalid(where, value, s.URL_PREFIX + message.full_name)

    def _write_any(self, value: dict[str, Any], where: str, depth: int, out: bytearray) -> None:
        if not value:
            return
        url = value.get("@type")
        if not isinstance(url, str):
            raise RequestError(f"{where}: invalid value Missing @type for any field for type Any")
        try:
            message = self._schema.message_type(url.rpartition("/")[2])
        except SchemaError:
            name = url.rpartition("/")[2]
            raise RequestError(f"{where}: invalid value Invalid type URL, unknown type: {name} for type Any") from None
        data = bytearray()
        if message.special != s.ORDINARY:
            self._write_special(message, value.get("value"), where, depth + 1, data)
        else:
            fields = {name: item for name, item in value.items() if name != "@type"}
            self._write_object(message, fields, None, where, depth + 1, data)
        put_counted(out, 1, _encode(url))
        put_counted(out, 2, data)


def _check_depth(depth: int, path: str) -> None:
    if depth > _DEPTH:
        raise RequestError(f"Message too deep. Max recursion depth reached for key '{path.rpartition('.')[2]}'")


def _choose(oneofs: set[str], field: FieldType, path: str) -> None:
    """A field of a oneof is set, of which there may be one."""
    if field.oneof:
        if field.oneof in oneofs:
            raise RequestError(
                f"{path}: invalid value oneof field '{field.oneof}' is already set. Cannot set '{field.name}' for type "
                "oneof"
            )
        oneofs.add(field.oneof)


def _takes_null(field: FieldType) -> bool:
    """Whether null is a value of the field's, not its absence."""
    if field.message is not None:
        return field.message.special == s.VALUE
    return field.enum is not None and field.enum.is_null


def _is_list(field: FieldType) -> bool:
    return not field.repeated and field.message is not None and field.message.special in (s.VALUE, s.LIST_VALUE)


def _below(path: str, field: FieldType) -> str:
    return f"{path}.{field.name}" if path else field.name


def _invalid(where: str, value: Any, type_name: str) -> RequestError:
    return RequestError(f"{where}: invalid value {_shown(value)} for type {type_name}")


def _shown(value: Any) -> str:
    """A value in an error: not much of a long one."""
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= _SHOWN else f'"{value[:_SHOWN]}…"'
    shown = text_of_double(value) if isinstance(value, float) else json.dumps(value)
    return shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "…"


def _lowered(match: re.Match[str]) -> str:
    return "_" + match.group().lower()


def _encode(text: str) -> bytes:
    """Half a surrogate pair is no text; bytes of the path that are no UTF-8 pass, as in Envoy."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise RequestError("Missing low surrogate.") from None


# -- times, and google.protobuf.Struct


def _write_time(message: MessageType, value: Any, where: str, out: bytearray) -> None:
    if isinstance(value, dict):
        raise _invalid(where, value, s.URL_PREFIX + message.full_name)
    time: Any = Timestamp() if message.special == s.TIMESTAMP else Duration()
    try:
        if not isinstance(value, str):
            raise ValueError("it is not a string")
        time.FromJsonString(value)
    except (ValueError, OverflowError) as error:
        name = where.rpartition(".")[2]
        raise RequestError(
            f"{where}: invalid value Field '{name}', {error} for type {s.URL_PREFIX}{message.full_name}"
        ) from None
    out.append(0x08)
    put_varint(out, time.seconds)
    out.append(0x10)
    put_varint(out, time.nanos)


def _write_struct(tree: dict[str, Any], where: str, depth: int, out: bytearray) -> None:
    for name, value in tree.items():
        entry = bytearray()
        put_counted(entry, 1, _encode(name))
        data = bytearray()
        _write_value(value, f"{where}.{name}", depth + 1, data)
        put_counted(entry, 2, data)
        put_counted(out, 1, entry)


def _write_list(values: list[Any], where: str, depth: int, out: bytearray) -> None:
    for value in values:
        data = bytearray()
        _write_value(value, where, depth + 1, data)
        put_counted(out, 1, data)


def _write_value(value: Any, where: str, depth: int, out: bytearray) -> None:
    """A google.protobuf.Value."""
    _check_depth(depth, where)
    if value is None:
        out += b"\x08\x00"
    elif isinstance(value, bool):
        out += b"\x20\x01" if value else b"\x20\x00"
    elif isinstance(value, str):
        put_counted(out, 3, _encode(value))
    elif isinstance(value, (dict, list)):
        data = bytearray()
        if isinstance(value, dict):
            _write_struct(value, where, depth, data)
        else:
            _write_list(value, where, depth, data)
        put_counted(out, 5 if isinstance(value, dict) else 6, data)
    else:
        out.append(0x11)
        if not put_real(out, s.DOUBLE, value):
            raise _invalid(where, value, "google.protobuf.Value")
