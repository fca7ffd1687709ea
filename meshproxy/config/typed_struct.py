"""What an `Any` holds: the message of its type URL, also when that is wrapped in a TypedStruct."""

from __future__ import annotations

from typing import Any as AnyValue
from typing import Final

from google.protobuf import json_format
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError, Message

from meshproxy.config.errors import ConfigErrors, child
from meshproxy.config.json_message import MessageParser
from meshproxy.config.messages import find_message, type_name

# udpa's is the one that Istio sends; xds' is its successor.
TYPED_STRUCTS: Final = frozenset({"udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"})


def unpack_any(
    any_message: Any, path: str, errors: ConfigErrors, *, allow_unknown_fields: bool = False
) -> Message | None:
    """The message in `any_message`; None, with an error at `path`, for an unknown type or bytes that are not of it.

    A TypedStruct (udpa or xds) is read as protobuf JSON into the message that it names.
    """
    if not any_message.type_url:
        errors.add(path, "an extension's configuration needs its @type")
        return None
    name = type_name(any_message.type_url)
    kind = find_message(name)
    if kind is None:
        errors.add(path, f"unknown type {any_message.type_url!r}")
        return None
    message = kind()
    try:
        message.ParseFromString(any_message.value)
    except DecodeError:
        errors.add(path, f"the value is not a {name}")
        return None
    if name in TYPED_STRUCTS:
        return resolve_typed_struct(message, path, errors, allow_unknown_fields=allow_unknown_fields)
    return message


def resolve_typed_struct(
    typed_struct: AnyValue, path: str, errors: ConfigErrors, *, allow_unknown_fields: bool = False
) -> Message | None:
    """The message that a TypedStruct stands for; None, with errors under `path`, when it cannot be made."""
    if not typed_struct.type_url:
        errors.add(child(path, "type_url"), "a TypedStruct needs the type that it stands for")
        return None
    kind = find_message(type_name(typed_struct.type_url))
    if kind is None:
        errors.add(child(path, "type_url"), f"unknown type {typed_struct.type_url!r}")
        return None
    message = kind()
    parser = MessageParser(errors, allow_unknown_fields=allow_unknown_fields)
    before = len(errors)
    parser.fill(message, json_format.MessageToDict(typed_struct.value), child(path, "value"))
    return message if len(errors) == before else None
