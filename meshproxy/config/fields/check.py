"""Walks the fields that are set in a message and tells those that we cannot honour."""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from meshproxy.config.errors import ConfigErrors, child
from meshproxy.config.fields import (
    access_log,
    bootstrap,
    cluster,
    common,
    filters,
    grpc_service,
    http2,
    http_connection_manager,
    listener,
    route,
    tls,
    tracing,
)
from meshproxy.config.fields.table import NOT_SUPPORTED, FieldEntry, MessageTable, Tables, Verdict
from meshproxy.config.messages import enum_name, is_map, map_entry
from meshproxy.config.typed_struct import unpack_any

# (path, note) of a field that is accepted, though what it asks for is not done yet.
NotYet = tuple[str, str]

TABLES: Final[Tables] = {
    **bootstrap.TABLES,
    **common.TABLES,
    **tls.TABLES,
    **listener.TABLES,
    **http_connection_manager.TABLES,
    **http2.TABLES,
    **access_log.TABLES,
    **filters.TABLES,
    **route.TABLES,
    **cluster.TABLES,
    **tracing.TABLES,
    **grpc_service.TABLES,
}


def register_table(full_name: str, table: MessageTable) -> None:
    """For extensions that bring a message of their own."""
    TABLES[full_name] = table


def check_fields(message: Message, path: str, errors: ConfigErrors) -> list[NotYet]:
    """Add an error for every field that is set and refused, in `message` and all in it, through Any's.

    Returns what is accepted but not done yet, to be told at the start.
    """
    not_yet: list[NotYet] = []
    _walk(message, path, errors, not_yet)
    return not_yet


def _walk(message: Message, path: str, errors: ConfigErrors, not_yet: list[NotYet]) -> None:
    if isinstance(message, AnyMessage):
        _walk_any(message, path, errors, not_yet)
        return
    name = message.DESCRIPTOR.full_name
    if name.startswith("google.protobuf."):
        return
    table = TABLES.get(name)
    if table is None:
        errors.add(path, f"{name} {NOT_SUPPORTED}")
        return
    if table.refused_whole:
        errors.add(path, f"{name}: {table.refused_whole}")
        return
    for required in table.required:
        if not message.HasField(required):
            errors.add(child(path, required), "value is required")
    for field, value in message.ListFields():
        _check_field(table.entry(field.name), field, value, child(path, field.name), errors, not_yet)


def _walk_any(message: AnyMessage, path: str, errors: ConfigErrors, not_yet: list[NotYet]) -> None:
    if message.type_url:
        inner = unpack_any(message, path, errors)
        if inner is not None:
            _walk(inner, path, errors, not_yet)


def _check_field(
    entry: FieldEntry, field: FieldDescriptor, value: Any, path: str, errors: ConfigErrors, not_yet: list[NotYet]
) -> None:
    if entry.verdict is Verdict.REFUSED:
        errors.add(path, entry.note)
    elif entry.verdict is Verdict.LATER:
        not_yet.append((path, entry.note))
    elif entry.verdict is Verdict.HONOURED:
        if entry.only:
            _check_value(entry, field, value, path, errors)
        elif field.message_type is not None:
            _descend(field, value, path, errors, not_yet)


def _check_value(entry: FieldEntry, field: FieldDescriptor, value: Any, path: str, errors: ConfigErrors) -> None:
    if field.message_type is not None:  # a wrapper
        value = value.value
    shown = enum_name(field.enum_type, value) if field.enum_type is not None else str(value)
    if isinstance(value, bool):
        shown = shown.lower()
    if shown not in entry.only:
        errors.add(path, f"{shown} {NOT_SUPPORTED} (supported: {', '.join(sorted(entry.only))})")


def _descend(field: FieldDescriptor, value: Any, path: str, errors: ConfigErrors, not_yet: list[NotYet]) -> None:
    if not field.is_repeated:
        _walk(value, path, errors, not_yet)
    elif is_map(field):
        if map_entry(field)[1].message_type is not None:
            for key in value:
                _walk(value[key], f"{path}[{key}]", errors, not_yet)
    else:
        for index, element in enumerate(value):
            _walk(element, f"{path}[{index}]", errors, not_yet)
