"""Messages by full name: finds the Python module of any Envoy type, and imports only that.

In the Envoy API a proto package is a directory (`envoy.config.core.v3` is `envoy/config/core/v3`), so the modules that
may hold a type are those of one directory; each puts its types into the default descriptor pool when it is imported.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

# The roots of the protobuf packages that a configuration may name; no other module is ever imported for a type URL.
_ROOTS = ("cel", "envoy", "google", "meshproxy", "opentelemetry", "udpa", "xds")
# Packages of messages that are generated into meshproxy.api: our own, and Istio's.
_OURS = ("meshproxy.", "istio.", "io.istio.", "stats.", "envoy.tcp.metadataexchange.")


def find_descriptor(full_name: str) -> Descriptor | None:
    """The descriptor of a message type such as `envoy.config.cluster.v3.Cluster`; None when there is no such type."""
    pool = descriptor_pool.Default()
    try:
        return pool.FindMessageTypeByName(full_name)
    except KeyError:
        root, _, _ = full_name.partition(".")
    ours = full_name.startswith(_OURS)
    package = "meshproxy.api" if ours else full_name.rpartition(".")[0]
    if not (ours or root in _ROOTS) or not _import_package(package):
        return None
    try:
        return pool.FindMessageTypeByName(full_name)
    except KeyError:
        return None


def find_message(full_name: str) -> type[Message] | None:
    """The class of a message type; None when there is no such type."""
    descriptor = find_descriptor(full_name)
    return None if descriptor is None else message_factory.GetMessageClass(descriptor)


def type_name(type_url: str) -> str:
    """The full name in a type URL: what follows its last slash."""
    return type_url.rpartition("/")[2]


@functools.cache
def is_map(field: FieldDescriptor) -> bool:
    """Whether the field is a map: to protobuf, a list of entries."""
    return field.is_repeated and field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def map_entry(field: FieldDescriptor) -> tuple[FieldDescriptor, FieldDescriptor]:
    """The fields of a map's key and value."""
    assert field.message_type is not None
    fields = field.message_type.fields_by_name
    return fields["key"], fields["value"]


def enum_of(field: FieldDescriptor) -> EnumDescriptor:
    """The enum of an enum field."""
    assert field.enum_type is not None
    return field.enum_type


def enum_name(enum: EnumDescriptor, number: int) -> str:
    """The name of an enum value, or its number where it has none."""
    value = enum.values_by_number.get(number)
    return str(number) if value is None else str(value.name)


@functools.cache
def _import_package(package: str) -> bool:
    """Import the `_pb2` modules of a proto package; of the enclosing one when the name was that of a nested type."""
    while package:
        locations = _locations(package)
        if locations is not None:
            for module in pkgutil.iter_modules(locations):
                if module.name.endswith("_pb2"):
                    importlib.import_module(f"{package}.{module.name}")
            return True
        package = package.rpartition(".")[0]
    return False


def _locations(package: str) -> list[str] | None:
    if not all(part.isidentifier() for part in package.split(".")):
        return None
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.submodule_search_locations is None:
        return None
    return list(spec.submodule_search_locations)
