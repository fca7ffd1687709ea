"""google.api.HttpBody: a body that is passed on as it is, in a message or in a field of one."""

from __future__ import annotations

from typing import Any

from envoy.extensions.filters.http.grpc_json_transcoder.v3.transcoder_pb2 import UnknownQueryParams
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import DecodeError

from meshproxy.http.transcoding.json_response import ResponseError
from meshproxy.http.transcoding.scalars import put_counted
from meshproxy.http.transcoding.schema import FieldType


def wrap(data: bytes, content_type: str, unknown: dict[str, list[str]], path: list[FieldType]) -> bytes:
    """A message whose field at `path` (itself, where that is empty) is the body `data`; `unknown` are parameters of the
    request that name no field."""
    body: Any = HttpBody(content_type=content_type)
    if unknown:
        parameters: Any = UnknownQueryParams()
        for name, values in unknown.items():
            parameters.key[name].values.extend(values)
        body.extensions.add().Pack(parameters, deterministic=True)
    head: bytes = body.SerializeToString(deterministic=True)
    message = bytearray(head)
    put_counted(message, HttpBody.DATA_FIELD_NUMBER, data)
    for field in reversed(path):
        outer = bytearray()
        put_counted(outer, field.number, message)
        message = outer
    return bytes(message)


def unwrap(message_class: Any, message: bytes, path: list[str]) -> tuple[str, bytes]:
    """Content type and data of the HttpBody in a message. Raises ResponseError, also where no header can hold the
    type."""
    try:
        body = message_class.FromString(message)
    except DecodeError as error:
        raise ResponseError(str(error)) from None
    for name in path:
        body = getattr(body, name)
    if not body.content_type.isprintable():
        raise ResponseError("a content type with control characters")
    return body.content_type, body.data
