"""Clears fields in the messages that gRPC services answer with, at any depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from meshproxy import STOP, GrpcMessages, GrpcServices, HeaderMap, HttpFilter, Result, Stream


@dataclass(frozen=True)
class Config:
    """`descriptor_set` is a file; `fields` are full names, such as `shop.v1.Customer.email`."""

    descriptor_set: str
    fields: frozenset[str]


class GrpcRedact(HttpFilter):
    """Calls of methods that the descriptor set lacks are refused: what they answer could not be read."""

    config: Config

    @classmethod
    def on_start(cls, context: Any) -> None:
        context.state = GrpcServices.from_file(context.config.descriptor_set)

    def __init__(self) -> None:
        self._messages: GrpcMessages | None = None

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        self._method = self.context.state.method(headers)
        if self._method is None:
            stream.send_local_reply(404, b"no such method", "grpc_redact_unknown_method")
            return STOP
        return None

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> None:
        if not end and not stream.local_reply:
            self._messages = GrpcMessages(headers, self._method.response)

    def on_response_data(self, stream: Stream, data: bytes, end: bool) -> bytes:
        if self._messages is None:
            return data
        messages = self._messages.read(data)
        for message in messages:
            redact(message, self.config.fields)
        return self._messages.write(messages)


def redact(message: Any, fields: frozenset[str]) -> None:
    """Clear the fields, in the message and in those that it holds."""
    for field, value in message.ListFields():
        if field.full_name in fields:
            message.ClearField(field.name)
        elif field.message_type is not None:
            for inner in inner_messages(field, value):
                redact(inner, fields)


def inner_messages(field: Any, value: Any) -> list[Any]:
    if field.message_type.GetOptions().map_entry:
        in_map = field.message_type.fields_by_name["value"].message_type is not None
        return list(value.values()) if in_map else []
    return list(value) if field.is_repeated else [value]
