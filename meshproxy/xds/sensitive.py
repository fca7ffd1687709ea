"""Whether a resource has a secret in it, so that it is not to be written to a disk."""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterator
from typing import Any, Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from udpa.annotations import sensitive_pb2

from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.large_message import merge_in_steps
from meshproxy.config.messages import find_message, is_map, type_name
from meshproxy.config.typed_struct import TYPED_STRUCTS, unpack_any

_DATA_SOURCE: Final = "envoy.config.core.v3.DataSource"
# Secrets that the API does not mark as such (with `udpa.annotations.sensitive`).
_UNMARKED: Final = frozenset(
    f"envoy.config.core.v3.GrpcService.GoogleGrpc.CallCredentials.{name}"
    for name in ("access_token", "google_refresh_token", "service_account_jwt_access", "google_iam", "sts_service")
)
_PRIVATE_KEY: Final = b"PRIVATE KEY-----"

Search = Generator[None, None, str | None]


def secret_in(kind: type[Message], data: bytes) -> Search:
    """The path of a secret that stands in a message itself, and not in a file; None where there is none. `data` is the
    message serialised. What an unknown type holds nobody can tell: then that is it. In steps, large as it may be."""
    message = kind()
    yield from merge_in_steps(message, data)
    found = yield from _search(message, "")
    if found is None and _PRIVATE_KEY in data:
        return "a private key"
    return found


def _search(message: Message, path: str) -> Search:
    for field, value in message.ListFields():
        at = child(path, field.name)
        if _is_sensitive(field):
            if not _elsewhere(field, value):
                return at
        elif field.message_type is not None:
            found = yield from _search_field(field, value, at, path)
            if found is not None:
                return found
    yield
    return None


def _search_field(field: FieldDescriptor, value: Any, at: str, path: str) -> Search:
    for where, each in _members(field, value, at, path):
        found = yield from (_search_any if isinstance(each, AnyMessage) else _search)(each, where)
        if found is not None:
            return found
    return None


def _members(field: FieldDescriptor, value: Any, at: str, path: str) -> Iterator[tuple[str, Any]]:
    """The messages in a field, each with its path."""
    if is_map(field):
        for key in value:
            if isinstance(value[key], Message):
                yield f"{at}[{key}]", value[key]
    elif field.is_repeated:
        for index, each in enumerate(value):
            yield item(path, field.name, index), each
    else:
        yield at, value


def _search_any(packed: Any, path: str) -> Search:
    name = type_name(packed.type_url)
    kind = find_message(name)
    if kind is None or name in TYPED_STRUCTS:
        inner = unpack_any(packed, path, ConfigErrors(), allow_unknown_fields=True)
    else:
        inner = kind()
        try:
            yield from merge_in_steps(inner, packed.value)
        except DecodeError:
            return path
    return path if inner is None else (yield from _search(inner, path))


def _elsewhere(field: FieldDescriptor, value: Any) -> bool:
    """A secret that is read from a file, or from the environment."""
    if field.message_type is None or field.message_type.full_name != _DATA_SOURCE:
        return False
    sources = value if field.is_repeated else [value]
    return all(each.WhichOneof("specifier") in ("filename", "environment_variable") for each in sources)


@functools.cache
def _is_sensitive(field: FieldDescriptor) -> bool:
    return field.full_name in _UNMARKED or bool(field.GetOptions().Extensions[sensitive_pb2.sensitive])
