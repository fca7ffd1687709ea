"""Protobuf's JSON mapping, with every error at once, each at the path of its field.

`json_format.ParseDict` stops at the first error; an operator wants all of them. The mapping is the one of
https://protobuf.dev/programming-guides/json/, with the liberties that Envoy's own parser takes: names of enum values in
any case, booleans and whole numbers as strings, one element where a list is expected, and the plain fields of wrappers
and durations.
"""

from __future__ import annotations

import base64
import binascii
import functools
import math
import re
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from meshproxy.config.errors import ConfigErrors, child
from meshproxy.config.messages import enum_of, find_message, is_map, map_entry, type_name

# Deeper nesting is refused by every protobuf parser.
MAX_DEPTH: Final = 100
# "0.25s": seconds with at most nine digits after the point
_DURATION: Final = re.compile(r"(-?)([0-9]{1,12})(?:\.([0-9]{1,9}))?s", re.ASCII)
MAX_DURATION_S: Final = 315_576_000_000

_TRUTH: Final = {
    word: truth for truth, words in ((True, "true t yes y 1"), (False, "false f no n 0")) for word in words.split()
}
_INTEGER: Final = re.compile(r"-?[0-9]{1,20}", re.ASCII)
_INTEGER_RANGES: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_NUMBER: Final = re.compile(r"NaN|-?Infinity|[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?", re.ASCII)
_FLOATS: Final = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)
_MAX_FLOAT: Final = 3.4028234663852886e38
_WRAPPERS: Final = frozenset(
    f"google.protobuf.{kind}Value"
    for kind in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)
_DYNAMIC: Final = frozenset({"google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue"})
# Types whose JSON form is not an object of their fields; inside an Any it stands under "value".
_SPECIAL: Final = (
    _WRAPPERS | _DYNAMIC | {"google.protobuf." + name for name in ("Any", "Duration", "Timestamp", "FieldMask")}
)
UNKNOWN_FIELD: Final = "unknown field"


class _WrongValue(Exception):
    """A value that its field cannot hold, and why."""


class MessageParser:
    """Fills messages from the Python values of JSON or YAML.

    With `allow_unknown_fields` a field that does not exist is a warning, not an error.
    """

    def __init__(self, errors: ConfigErrors, *, allow_unknown_fields: bool = False) -> None:
        self._errors = errors
        self._allow_unknown_fields = allow_unknown_fields
        self._depth = 0

    def fill(self, message: Message, value: object, path: str) -> None:
        """Set in `message` what `value` says; what it cannot hold goes to the errors, below `path`."""
        if self._depth >= MAX_DEPTH:
            self._errors.add(path, f"nested more than {MAX_DEPTH} levels deep")
            return
        self._depth += 1
        if message.DESCRIPTOR.full_name in _SPECIAL:
            self._fill_special(message, value, path)
        elif isinstance(value, dict):
            self._fill_fields(message, value, path)
        else:
            self._errors.add(path, f"expected an object ({message.DESCRIPTOR.name}), got {_describe(value)}")
        self._depth -= 1

    def _fill_fields(self, message: Message, value: dict[str, object], path: str) -> None:
        fields = _fields_by_json_name(message.DESCRIPTOR)
        seen: set[str] = set()
        oneofs: dict[str, str] = {}
        for name, field_value in value.items():
            field = fields.get(name)
            if field is None:
                self._unknown_field(message, name, path)
                continue
            at = child(path, field.name)
            if field.name in seen:
                self._errors.add(at, "the field is given twice, under both of its names")
                continue
            seen.add(field.name)
            if field_value is None and not _takes_null(field):
                continue
            if field.containing_oneof is not None:
                other = oneofs.setdefault(field.containing_oneof.name, field.name)
                if other != field.name:
                    self._errors.add(at, f"only one field of {field.containing_oneof.name} may be set, and {other} is")
                    continue
            self._fill_field(message, field, field_value, at)

    def _unknown_field(self, message: Message, name: str, path: str) -> None:
        at = child(path, name)
        if self._allow_unknown_fields:
            self._errors.warn(at, UNKNOWN_FIELD)
        else:
            self._errors.add(at, f"{UNKNOWN_FIELD} of {message.DESCRIPTOR.full_name}")

    def _fill_field(self, message: Message, field: FieldDescriptor, value: object, path: str) -> None:
        if is_map(field):
            self._fill_map(message, field, value, path)
        elif field.is_repeated:
            self._fill_list(message, field, value, path)
        elif field.message_type is not None:
            part = getattr(message, field.name)
            part.SetInParent()
            self.fill(part, value, path)
        else:
            try:
                setattr(message, field.name, _scalar(field, value))
            except _WrongValue as wrong:
                self._errors.add(path, str(wrong))

    def _fill_list(self, message: Message, field: FieldDescriptor, value: object, path: str) -> None:
        container = getattr(message, field.name)
        for index, element in enumerate(value if isinstance(value, list) else [value]):
            at = f"{path}[{index}]"
            if element is None and not _takes_null(field):
                self._errors.add(at, "null is no element of a list")
            elif field.message_type is not None:
                self.fill(container.add(), element, at)
            else:
                try:
                    container.append(_scalar(field, element))
                except _WrongValue as wrong:
                    self._errors.add(at, str(wrong))

    def _fill_map(self, message: Message, field: FieldDescriptor, value: object, path: str) -> None:
        if not isinstance(value, dict):
            self._errors.add(path, f"expected an object, got {_describe(value)}")
            return
        container = getattr(message, field.name)
        key_field, value_field = map_entry(field)
        for key, element in value.items():
            at = f"{path}[{key}]"
            try:
                proto_key = _map_key(key_field, key)
                if value_field.message_type is None:
                    container[proto_key] = _scalar(value_field, element)
                elif element is None and not _takes_null(value_field):
                    container[proto_key].SetInParent()
                else:
                    self.fill(container[proto_key], element, at)
            except _WrongValue as wrong:
                self._errors.add(at, str(wrong))

    def _fill_special(self, message: Any, value: object, path: str) -> None:
        name = message.DESCRIPTOR.full_name
        if name == "google.protobuf.Any":
            self._fill_any(message, value, path)
            return
        if isinstance(value, dict) and (name in _WRAPPERS or name == "google.protobuf.Duration"):
            self._fill_fields(message, value, path)
            return
        try:
            if name in _WRAPPERS:
                message.value = _scalar(message.DESCRIPTOR.fields_by_name["value"], value)
            elif name in _DYNAMIC:
                self._fill_dynamic(message, value, path)
            elif name == "google.protobuf.Duration":
                message.seconds, message.nanos = _duration(value)
            else:
                message.FromJsonString(_text(value))
        except _WrongValue as wrong:
            self._errors.add(path, str(wrong))
        except ValueError:
            self._errors.add(path, f"{value!r} is not a {name}")

    def _fill_dynamic(self, message: Any, value: object, path: str) -> None:
        """Struct, Value and ListValue hold any JSON."""
        kind = message.DESCRIPTOR.name
        if kind == "Struct" and not isinstance(value, dict):
            raise _WrongValue(f"expected an object, got {_describe(value)}")
        if kind == "ListValue" and not isinstance(value, list):
            raise _WrongValue(f"expected a list, got {_describe(value)}")
        if isinstance(value, dict):
            struct = message.struct_value if kind == "Value" else message
            struct.SetInParent()
            for key, element in value.items():
                self.fill(struct.fields[_text(key)], element, child(path, key))
        elif isinstance(value, list):
            values = message.list_value if kind == "Value" else message
            values.SetInParent()
            for index, element in enumerate(value):
                self.fill(values.values.add(), element, f"{path}[{index}]")
        elif value is None:
            message.null_value = 0
        elif isinstance(value, bool):
            message.bool_value = value
        elif isinstance(value, (int, float)):
            message.number_value = _float(value, math.inf)
        else:
            message.string_value = _text(value)

    def _fill_any(self, message: Any, value: object, path: str) -> None:
        if not isinstance(value, dict):
            self._errors.add(path, f"expected an object with an @type, got {_describe(value)}")
            return
        if not value:
            return
        type_url = value.get("@type")
        if not isinstance(type_url, str) or not type_url:
            self._errors.add(path, "the @type is missing")
            return
        kind = find_message(type_name(type_url)) if "/" in type_url else None
        if kind is None:
            self._errors.add(child(path, "@type"), f"unknown type {type_url!r}")
            return
        inner = kind()
        rest: object = {key: each for key, each in value.items() if key != "@type"}
        if inner.DESCRIPTOR.full_name in _SPECIAL:
            assert isinstance(rest, dict)
            rest = rest.get("value")
        self.fill(inner, rest, path)
        message.type_url = type_url
        message.value = inner.SerializeToString(deterministic=True)


@functools.cache
def _fields_by_json_name(descriptor: Descriptor) -> dict[str, FieldDescriptor]:
    """The fields by both of their names, lowerCamelCase and as in the .proto file."""
    by_name = {field.json_name: field for field in descriptor.fields}
    by_name.update({field.name: field for field in descriptor.fields})
    return by_name


def _takes_null(field: FieldDescriptor) -> bool:
    """null leaves a field unset, except where it is a value."""
    if field.message_type is not None:
        return bool(field.message_type.full_name == "google.protobuf.Value")
    return bool(field.enum_type is not None and field.enum_type.full_name == "google.protobuf.NullValue")


def _scalar(field: FieldDescriptor, value: object) -> object:
    kind = field.cpp_type
    if kind in _INTEGER_RANGES:
        return _integer(value, *_INTEGER_RANGES[kind])
    if kind in _FLOATS:
        return _float(value, _MAX_FLOAT if kind == FieldDescriptor.CPPTYPE_FLOAT else math.inf)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return _boolean(value)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return _enum(enum_of(field), value)
    return _base64(value) if field.type == FieldDescriptor.TYPE_BYTES else _text(value)


def _boolean(value: object) -> bool:
    truth = _TRUTH.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(truth, bool):
        raise _WrongValue(f"expected true or false, got {_describe(value)}")
    return truth


def _integer(value: object, low: int, high: int) -> int:
    number: int | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str) and _INTEGER.fullmatch(value):
        number = int(value)
    elif isinstance(value, float) or (isinstance(value, str) and _NUMBER.fullmatch(value)):
        number = int(float(value)) if float(value).is_integer() else None
    if number is None:
        raise _WrongValue(f"expected an integer, got {_describe(value)}")
    if not low <= number <= high:
        raise _WrongValue(f"{number} is out of range, {low} to {high}")
    return number


def _float(value: object, largest: float) -> float:
    number: float | None = None
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value) if not isinstance(value, str) or _NUMBER.fullmatch(value) else None
        except OverflowError:
            number = None
    if number is None:
        raise _WrongValue(f"expected a number, got {_describe(value)}")
    if math.isfinite(number) and abs(number) > largest:
        raise _WrongValue(f"{number} is out of range")
    return number


def _enum(enum: EnumDescriptor, value: object) -> int:
    if value is None:
        return 0  # the only NullValue
    if isinstance(value, str):
        found = enum.values_by_name.get(value) or enum.values_by_name.get(value.upper())
        if found is not None:
            return int(found.number)
        if _INTEGER.fullmatch(value):
            return _integer(value, -(2**31), 2**31 - 1)
        names = ", ".join(each.name for each in enum.values)
        raise _WrongValue(f"unknown value {value!r} of {enum.name} (one of {names})")
    if not isinstance(value, int) or isinstance(value, bool):
        raise _WrongValue(f"expected a value of {enum.name}, got {_describe(value)}")
    return _integer(value, -(2**31), 2**31 - 1)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _WrongValue(f"expected a string, got {_describe(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _WrongValue("the string is not valid Unicode") from None
    return value


def _base64(value: object) -> bytes:
    """Standard and URL-safe alphabets, padded or not."""
    text = _text(value).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _WrongValue("expected bytes in base64") from None


def _duration(value: object) -> tuple[int, int]:
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise _WrongValue(f"expected a duration such as 0.25s, got {_describe(value)}")
    sign = -1 if match[1] else 1
    seconds, nanos = int(match[2]), int((match[3] or "").ljust(9, "0"))
    if seconds > MAX_DURATION_S:
        raise _WrongValue(f"the duration is out of range, at most {MAX_DURATION_S}s")
    return sign * seconds, sign * nanos


def _map_key(field: FieldDescriptor, key: object) -> object:
    """Keys are strings in JSON, whatever their type is."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if key not in ("true", "false"):
            raise _WrongValue("expected true or false as key")
        return key == "true"
    return _scalar(field, key)


def _describe(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return f"the string {shown}" if isinstance(value, str) else f"the number {shown}"
