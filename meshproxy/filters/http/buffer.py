"""`envoy.filters.http.buffer`: a request goes on when all of it is there, with its length; 413 when it is too long."""

from __future__ import annotations

from typing import Any

from envoy.extensions.filters.http.buffer.v3.buffer_pb2 import Buffer, BufferPerRoute

from meshproxy.codec import headers as h
from meshproxy.codec.headers import HeaderMap
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child
from meshproxy.http.filter import CONTINUE, DataResult, HttpFilter, HttpFilterType, Result, register_http_filter
from meshproxy.http.stream import Stream


class BufferSettings:
    """A Buffer or BufferPerRoute; `limit_bytes` is None where a route turns the filter off."""

    def __init__(self, limit_bytes: int | None) -> None:
        self.limit_bytes = limit_bytes


class BufferFilter(HttpFilter):
    """Its limit stands in the place of `per_connection_buffer_limit_bytes`, be it smaller or larger."""

    def __init__(self, settings: BufferSettings) -> None:
        self.settings = settings

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        if end:
            return CONTINUE
        settings = self.settings
        override = stream.route_config(self)
        if isinstance(override, BufferSettings):
            settings = override
        limit_bytes = settings.limit_bytes
        if limit_bytes is not None:
            stream.state[self.slot] = headers
            stream.buffer_request(limit_bytes)
        return CONTINUE

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        headers = stream.state[self.slot]
        if headers is None:
            return CONTINUE
        assert isinstance(headers, HeaderMap)
        if not headers.known & h.CONTENT_LENGTH or headers.get(b"content-length") is None:
            headers.add(b"content-length", b"%d" % len(data))
        return CONTINUE


def build_buffer(message: Any, path: str, context: BuildContext) -> BufferFilter:
    return BufferFilter(BufferSettings(message.max_request_bytes.value))


def build_per_route(message: Any, path: str, context: BuildContext) -> BufferSettings | None:
    if message.WhichOneof("override") is None:
        context.errors.add(path, "one of disabled, buffer is required")
        return None
    if message.WhichOneof("override") == "disabled":
        return BufferSettings(None)
    if not message.buffer.HasField("max_request_bytes"):
        context.errors.add(child(path, "buffer.max_request_bytes"), "value is required")
    return BufferSettings(message.buffer.max_request_bytes.value)


register_http_filter(Buffer, HttpFilterType(build_buffer, BufferPerRoute, build_per_route))
