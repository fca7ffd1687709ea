"""Walks the fields that are set in a message and tells those that we cannot honour."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from meshproxy.config.errors import ConfigErrors, child
from meshproxy.config.fields import (
    access_log,
    bootstrap,
    cluster,
    common,
    config_source,
    filters,
    grpc_service,
    http2,
    http_connection_manager,
    istio,
    listener,
    rbac,
    route,
    tls,
    tracing,
)
from meshproxy.config.fields.access import guards, is_open, is_spared
from meshproxy.config.fields.table import NOT_SUPPORTED, FieldEntry, MessageTable, Tables, Verdict
from meshproxy.config.messages import enum_name, find_message, is_map, map_entry, type_name
from meshproxy.config.typed_struct import TYPED_STRUCTS, unpack_any

# (path, note) of a field that is accepted, though what it asks for is not done yet.
NotYet = tuple[str, str]

TABLES: Final[Tables] = {
    **bootstrap.TABLES,
    **common.TABLES,
    **config_source.TABLES,
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
    **istio.TABLES,
    **rbac.TABLES,
}


UNKNOWN_FIELD: Final = "unknown field"
_EXTENSION: Final = "envoy.config.core.v3.TypedExtensionConfig"
_OVERRIDE: Final = "envoy.config.route.v3.FilterConfig"
_MOST_ANYS: Final = 20  # within each other
_STRIDE: Final = 50  # messages in a step: about a millisecond


def register_table(full_name: str, table: MessageTable) -> None:
    """For extensions that bring a message of their own."""
    TABLES[full_name] = table


def check_fields(message: Message, path: str, errors: ConfigErrors, *, lenient: bool = False) -> list[NotYet]:
    """Add an error for every field that is set and refused, in `message` and all in it, through Any's.

    Returns what is accepted but not done yet, to be told to the operator. `lenient` is for resources of a control plane
    (access.py has the rule): what is refused in a file is cleared from `message`, so that whoever builds from it never
    meets it, and returned as well, unless it guards access. A TypedStruct becomes the message that it stands for.
    Fields that we do not know have notes that begin with `UNKNOWN_FIELD`.
    """
    walk = _Walk(errors, lenient)
    for _ in walk.enter(message, path):
        pass
    return walk.not_yet


def check_steps(
    message: Message, path: str, errors: ConfigErrors, *, lenient: bool = False
) -> Generator[None, None, list[NotYet]]:
    """`check_fields` for a large message, in steps of about a millisecond."""
    walk = _Walk(errors, lenient)
    yield from walk.enter(message, path)
    return walk.not_yet


class _Walk:
    """One walk through a message. Its methods that go down are iterators of steps."""

    def __init__(self, errors: ConfigErrors, lenient: bool) -> None:
        self.errors = errors
        self.not_yet: list[NotYet] = []
        self._lenient = lenient
        self._entered = 0
        self._depth = 0  # of Any's
        self._clears = 0

    def enter(self, message: Message, path: str) -> Iterator[None]:
        """Check a message and all in it."""
        self._entered += 1
        if self._entered % _STRIDE == 0:
            yield
        if isinstance(message, AnyMessage):
            if message.type_url:
                yield from self._any(message, path)
            return
        name = message.DESCRIPTOR.full_name
        if name.startswith("google.protobuf."):
            return
        table = TABLES.get(name)
        if table is None or table.refused_whole:
            self.errors.add(path, f"{name} {NOT_SUPPORTED}" if table is None else f"{name}: {table.refused_whole}")
            return
        if table.later_whole:
            self.not_yet.append((path, table.later_whole))
        for required in table.required:
            if not message.HasField(required):
                self.errors.add(child(path, required), "value is required")
        if self._lenient:
            self._check_unknown(message, name, path)
        yield from self._fields(message, table, path)

    def _fields(self, message: Message, table: MessageTable, path: str) -> Iterator[None]:
        for field, value in message.ListFields():
            entry = table.entry(field.name)
            if entry.verdict is Verdict.REFUSED:
                self._refuse(message, field, child(path, field.name), entry.note)
            elif entry.verdict is Verdict.LATER:
                yield from self._later(field, value, child(path, field.name), entry.note)
            elif entry.verdict is Verdict.HONOURED:
                if entry.only:
                    wrong = _wrong_value(entry, field, value)
                    if wrong:
                        self._refuse(message, field, child(path, field.name), wrong)
                elif field.message_type is not None:
                    yield from self._descend(message, field, value, child(path, field.name))

    def _later(self, field: FieldDescriptor, value: Any, path: str, note: str) -> Iterator[None]:
        """Of extensions, those are told that have no table of their own."""
        if not field.is_repeated or field.message_type is None or field.message_type.full_name != _EXTENSION:
            self.not_yet.append((path, note))
            return
        for index, extension in enumerate(value):
            if _held_name(extension.typed_config) in TABLES:
                yield from self.enter(extension, f"{path}[{index}]")
            else:
                self.not_yet.append((f"{path}[{index}]", note))

    def _refuse(self, message: Message, field: FieldDescriptor, path: str, reason: str) -> None:
        if self._lenient and not guards(message.DESCRIPTOR.full_name, field.name):
            self._clear(message, field)
            self.not_yet.append((path, reason))
        else:
            self.errors.add(path, reason)

    def _clear(self, message: Message, field: FieldDescriptor) -> None:
        message.ClearField(field.name)
        self._clears += 1

    def _check_unknown(self, message: Message, name: str, path: str) -> None:
        unknown = UnknownFieldSet(message)
        if len(unknown):
            numbers = ", ".join(sorted({str(unknown[index].field_number) for index in range(len(unknown))}))
            if is_open(name):
                self.not_yet.append((path, f"{UNKNOWN_FIELD} {numbers} of {name}"))
            else:
                self.errors.add(path, f"{UNKNOWN_FIELD} {numbers} of {name}, which guards access")

    def _descend(self, message: Message, field: FieldDescriptor, value: Any, path: str) -> Iterator[None]:
        if self._lenient and is_spared(message.DESCRIPTOR.full_name, field.name):
            yield from self._spare(message, field, value, path)
        elif not field.is_repeated:
            yield from self.enter(value, path)
        elif not is_map(field):
            if self._lenient and field.name == "http_filters":
                self._leave_optional_out(value, path)
            for index, element in enumerate(value):
                yield from self.enter(element, f"{path}[{index}]")
        elif map_entry(field)[1].message_type is not None:
            if self._lenient and field.name == "typed_per_filter_config":
                self._leave_optional_overrides_out(value, path)
            for key in value:
                yield from self.enter(value[key], f"{path}[{key}]")

    def _spare(self, message: Message, field: FieldDescriptor, value: Any, path: str) -> Iterator[None]:
        """Leave out what has an error in it."""
        if not field.is_repeated:
            if (yield from self._fails(value, path)):
                self._clear(message, field)
            return
        bad: list[int] = []
        for index, element in enumerate(value):
            if (yield from self._fails(element, f"{path}[{index}]")):
                bad.append(index)
        for index in reversed(bad):
            del value[index]
            self._clears += 1

    def _leave_optional_out(self, filters: Any, path: str) -> None:
        """A filter of a kind that nobody knows here, and that the control plane says may be missing."""
        for index in range(len(filters) - 1, -1, -1):
            entry = filters[index]
            if getattr(entry, "is_optional", False) and entry.HasField("typed_config"):
                if not _is_known(entry.typed_config):
                    del filters[index]
                    self._leave_out(f"{path}[{index}]")

    def _leave_optional_overrides_out(self, overrides: Any, path: str) -> None:
        """The same of what a route has for such a filter."""
        for name in list(overrides):
            if type_name(overrides[name].type_url) == _OVERRIDE:
                wrapper = unpack_any(overrides[name], path, ConfigErrors())
                if wrapper is not None and getattr(wrapper, "is_optional", False):
                    if not _is_known(getattr(wrapper, "config")):  # noqa: B009
                        del overrides[name]
                        self._leave_out(f"{path}[{name}]")

    def _leave_out(self, path: str) -> None:
        self._clears += 1
        self.not_yet.append((path, "is of a kind that is not known, and may be missing"))

    def _fails(self, message: Message, path: str) -> Generator[None, None, bool]:
        outer, self.errors = self.errors, ConfigErrors()
        yield from self.enter(message, path)
        inner, self.errors = self.errors, outer
        self.not_yet += [(error.path, error.reason) for error in inner.items]
        return bool(inner)

    def _any(self, message: AnyMessage, path: str) -> Iterator[None]:
        if self._depth >= _MOST_ANYS:
            self.errors.add(path, f"more than {_MOST_ANYS} extensions within each other")
            return
        inner = self._unpack(message, path)
        if inner is None:
            return
        clears = self._clears
        self._depth += 1
        yield from self.enter(inner, path)
        self._depth -= 1
        wrapped = type_name(message.type_url) in TYPED_STRUCTS
        if self._clears != clears or (self._lenient and wrapped):
            message.Pack(inner, deterministic=True)

    def _unpack(self, message: AnyMessage, path: str) -> Message | None:
        found = ConfigErrors()
        inner = unpack_any(message, path, found, allow_unknown_fields=self._lenient)
        for error in found.items:
            self.errors.add(error.path, error.reason)
        for warning in found.warnings:
            if inner is not None and is_open(inner.DESCRIPTOR.full_name):
                self.not_yet.append((warning.path, UNKNOWN_FIELD))
            else:
                self.errors.add(warning.path, f"{UNKNOWN_FIELD}, of what guards access")
        return inner


def _is_known(config: AnyMessage) -> bool:
    """Whether Envoy has such an extension: what it would do must not be missing, be it that we cannot do it."""
    name = _held_name(config)
    return name is None or find_message(name) is not None


def _held_name(config: AnyMessage) -> str | None:
    """The message that an extension's configuration is, or stands for as a TypedStruct; None if that is unreadable."""
    name = type_name(config.type_url)
    kind = find_message(name)
    if name in TYPED_STRUCTS and kind is not None:
        try:
            return type_name(getattr(kind.FromString(config.value), "type_url"))  # noqa: B009
        except DecodeError:
            return None
    return name


def _wrong_value(entry: FieldEntry, field: FieldDescriptor, value: Any) -> str:
    """What is wrong with the value of a field that has some only; "" when nothing is."""
    if field.message_type is not None:  # a wrapper
        value = value.value
    shown = enum_name(field.enum_type, value) if field.enum_type is not None else str(value)
    if isinstance(value, bool):
        shown = shown.lower()
    return "" if shown in entry.only else f"{shown} {NOT_SUPPORTED} (supported: {', '.join(sorted(entry.only))})"
