"""The types of a descriptor set, in the form in which messages are read and written quickly."""

from __future__ import annotations

import json
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor

from meshproxy.errors import MeshProxyError

URL_PREFIX: Final = "type.googleapis.com/"
HTTP_BODY: Final = "google.api.HttpBody"

# The types of fields, as descriptors number them.
DOUBLE: Final = 1
FLOAT: Final = 2
INT64: Final = 3
UINT64: Final = 4
INT32: Final = 5
FIXED64: Final = 6
FIXED32: Final = 7
BOOL: Final = 8
STRING: Final = 9
GROUP: Final = 10
MESSAGE: Final = 11
BYTES: Final = 12
UINT32: Final = 13
ENUM: Final = 14
SFIXED32: Final = 15
SFIXED64: Final = 16
SINT32: Final = 17
SINT64: Final = 18

_TYPE_NAMES: Final[dict[int, str]] = {number: name for name, number in descriptor_pb2.FieldDescriptorProto.Type.items()}

# The messages that have a JSON of their own.
ORDINARY: Final = 0
WRAPPER: Final = 1
TIMESTAMP: Final = 2
DURATION: Final = 3
FIELD_MASK: Final = 4
STRUCT: Final = 5
VALUE: Final = 6
LIST_VALUE: Final = 7
ANY: Final = 8

_SPECIAL: Final[dict[str, int]] = {
    **{f"google.protobuf.{kind}Value": WRAPPER for kind in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32")},
    **{f"google.protobuf.{kind}Value": WRAPPER for kind in ("Bool", "String", "Bytes")},
    "google.protobuf.Timestamp": TIMESTAMP,
    "google.protobuf.Duration": DURATION,
    "google.protobuf.FieldMask": FIELD_MASK,
    "google.protobuf.Struct": STRUCT,
    "google.protobuf.Value": VALUE,
    "google.protobuf.ListValue": LIST_VALUE,
    "google.protobuf.Any": ANY,
}


class SchemaError(MeshProxyError):
    """A descriptor set that cannot be used, or a name that is not in it."""


class EnumType:
    def __init__(self, descriptor: Any) -> None:
        self.url: str = URL_PREFIX + descriptor.full_name
        self.is_null: bool = descriptor.full_name == "google.protobuf.NullValue"
        self.numbers: dict[str, int] = {value.name: value.number for value in descriptor.values}
        self.names: dict[int, str] = {}  # of those that share a number, the first
        for value in descriptor.values:
            self.names.setdefault(value.number, value.name)


class FieldType:
    """A field of a message. `oneof` is empty outside of one; `message` and `enum` are those of its type."""

    def __init__(self, descriptor: Any) -> None:
        self.number: int = descriptor.number
        self.name: str = descriptor.name
        self.json_name: str = descriptor.json_name
        self.quoted_name: str = json.dumps(descriptor.name)
        self.quoted_json_name: str = json.dumps(descriptor.json_name)
        self.kind: int = descriptor.type
        self.repeated: bool = descriptor.is_repeated
        self.has_presence: bool = descriptor.has_presence
        self.oneof: str = "" if descriptor.containing_oneof is None else descriptor.containing_oneof.name
        self.is_map: bool = False
        self.message: MessageType | None = None
        self.enum: EnumType | None = None
        self.type_name: str = _TYPE_NAMES[self.kind]  # in errors


class MessageType:
    """A type of message. `fields` has them by both their names, `ordered` in the order of their numbers."""

    def __init__(self, full_name: str) -> None:
        self.full_name = full_name
        self.special: int = _SPECIAL.get(full_name, ORDINARY)
        self.fields: dict[str, FieldType] = {}
        self.by_number: dict[int, FieldType] = {}
        self.ordered: list[FieldType] = []

    def field_path(self, names: list[str]) -> list[FieldType]:
        """The fields that a path of names leads along. Raises SchemaError."""
        fields: list[FieldType] = []
        message = self
        for i in range(len(names)):
            field = message.fields.get(names[i])
            if field is None:
                raise SchemaError(f'Could not find field "{names[i]}" in the type "{message.full_name}".')
            fields.append(field)
            if i == len(names) - 1:
                break
            if field.message is None:
                raise SchemaError(
                    f'Encountered a non-leaf field "{field.name}" that is not a message while parsing a field path'
                )
            message = field.message
        return fields


class Schema:
    """What a FileDescriptorSet describes: the types that methods use, and those that an Any may hold."""

    def __init__(self, files: Any) -> None:
        """Raises SchemaError."""
        self._pool: Any = descriptor_pool.DescriptorPool()
        self._types: dict[str, MessageType] = {}
        self._enums: dict[str, EnumType] = {}
        self._classes: dict[str, Any] = {}
        try:
            for file in files.file:
                self._pool.Add(file)
        except TypeError as error:
            raise SchemaError(f"Unable to build proto descriptor pool: {error}") from error

    def message_type(self, full_name: str) -> MessageType:
        """Raises SchemaError for what is not in the set."""
        known = self._types.get(full_name)
        return self.type_of(self._find(full_name)) if known is None else known

    def message_class(self, full_name: str) -> Any:
        """What reads such messages from bytes. Raises SchemaError for what is not in the set."""
        known = self._classes.get(full_name)
        if known is None:
            known = self._classes[full_name] = message_factory.GetMessageClass(self._find(full_name))
        return known

    def type_of(self, descriptor: Any) -> MessageType:
        """The type that a descriptor describes, with all that it leads to."""
        known = self._types.get(descriptor.full_name)
        if known is not None:
            return known
        pending: list[Any] = []
        made = self._declare(descriptor, pending)
        while pending:
            self._fill(pending.pop(), pending)
        return made

    def _find(self, full_name: str) -> Any:
        try:
            return self._pool.FindMessageTypeByName(full_name)
        except KeyError:
            raise SchemaError(f"Could not find the type {full_name}") from None

    def _declare(self, descriptor: Any, pending: list[Any]) -> MessageType:
        message = self._types.get(descriptor.full_name)
        if message is None:
            message = self._types[descriptor.full_name] = MessageType(descriptor.full_name)
            pending.append(descriptor)
        return message

    def _fill(self, descriptor: Any, pending: list[Any]) -> None:
        message = self._types[descriptor.full_name]
        for described in sorted(descriptor.fields, key=_number):
            field = FieldType(described)
            if described.type in (FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_GROUP):
                field.message = self._declare(described.message_type, pending)
                field.is_map = field.repeated and bool(described.message_type.GetOptions().map_entry)
                field.type_name = URL_PREFIX + described.message_type.full_name
            elif described.type == FieldDescriptor.TYPE_ENUM:
                field.enum = self._enum(described.enum_type)
                field.type_name = field.enum.url
            message.ordered.append(field)
            message.by_number[field.number] = field
            message.fields[field.json_name] = field
        for field in message.ordered:  # its own name comes before what is another's in JSON
            message.fields[field.name] = field

    def _enum(self, descriptor: Any) -> EnumType:
        known = self._enums.get(descriptor.full_name)
        if known is None:
            known = self._enums[descriptor.full_name] = EnumType(descriptor)
        return known


def _number(descriptor: Any) -> int:
    number: int = descriptor.number
    return number
