"""Whether a resource has a secret in it, so that it is not to be written to a disk."""

from __future__ import annotations

import functools
from typing import Any, Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from udpa.annotations import sensitive_pb2

from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.messages import is_map
from meshproxy.config.typed_struct import unpack_any

_DATA_SOURCE: Final = "envoy.config.core.v3.DataSource"
# Secrets that the API does not mark as such (with `udpa.annotations.sensitive`).
_UNMARKED: Final = frozenset(
    f"envoy.config.core.v3.GrpcService.GoogleGrpc.CallCredentials.{name}"
    for name in ("access_token", "google_refresh_token", "service_account_jwt_access", "google_iam", "sts_service")
)
_PRIVATE_KEY: Final = b"PRIVATE KEY-----"


def secret_in(message: Message, data: bytes) -> str | None:
    """The path of a secret that stands in the message itself, and not in a file; None where there is none. `data` is
    the message serialised. What an unknown type holds nobody can tell: then that is it."""
    found = _search(message, "")
    if found is None and _PRIVATE_KEY in data:
        return "a private key"
    return found


def _search(message: Message, path: str) -> str | None:
    for field, value in message.ListFields():
        at = child(path, field.name)
        if _is_sensitive(field):
            if not _elsewhere(field, value):
                return at
        elif field.message_type is not None:
            found = _search_field(field, value, at, path)
            if found is not None:
                return found
    return None


def _search_field(field: FieldDescriptor, value: Any, at: str, path: str) -> str | None:
    if is_map(field):
        values = [(f"{at}[{key}]", value[key]) for key in value]
        inner = [(where, each) for where, each in values if isinstance(each, Message)]
    elif field.is_repeated:
        inner = [(item(path, field.name, index), each) for index, each in enumerate(value)]
    else:
        inner = [(at, value)]
    for where, each in inner:
        found = _search_any(each, where) if isinstance(each, AnyMessage) else _search(each, where)
        if found is not None:
            return found
    return None


def _search_any(packed: Any, path: str) -> str | None:
    inner = unpack_any(packed, path, ConfigErrors(), allow_unknown_fields=True)
    return path if inner is None else _search(inner, path)


def _elsewhere(field: FieldDescriptor, value: Any) -> bool:
    """A secret that is read from a file, or from the environment."""
    if field.message_type is None or field.message_type.full_name != _DATA_SOURCE:
        return False
    sources = value if field.is_repeated else [value]
    return all(each.WhichOneof("specifier") in ("filename", "environment_variable") for each in sources)


@functools.cache
def _is_sensitive(field: FieldDescriptor) -> bool:
    return field.full_name in _UNMARKED or bool(field.GetOptions().Extensions[sensitive_pb2.sensitive])
