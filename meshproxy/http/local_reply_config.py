"""`local_reply_config`: what the configuration makes of the answers that the proxy gives itself."""

from __future__ import annotations

from typing import Any, Final

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.context import BuildContext
from meshproxy.config.datasource import load_data_source
from meshproxy.config.errors import child, item
from meshproxy.http.access_log import build_filter, build_line_format
from meshproxy.observe.access_log import LogFilter
from meshproxy.observe.formatter import LineFormat
from meshproxy.observe.stream_info import StreamInfo
from meshproxy.route.header_ops import HeaderOperations, build_header_operations

_TEXT: Final = b"text/plain"
_JSON: Final = b"application/json"


class BodyFormat:
    """The format of a reply's body, and the content type that goes with it."""

    def __init__(self, line: LineFormat, content_type: bytes) -> None:
        self.line = line
        self.content_type = content_type


class ReplyMapper:
    """A ResponseMapper: what becomes of the replies that its filter lets pass."""

    def __init__(
        self,
        reply_filter: LogFilter,
        status: int,
        body: bytes | None,
        body_format: BodyFormat | None,
        operations: HeaderOperations | None,
    ) -> None:
        self.filter = reply_filter
        self.status = status  # 0: as it is
        self.body = body
        self.body_format = body_format
        self.operations = operations


class LocalReplyConfig:
    """The first mapper that matches changes a reply's head and body; then a format, its own or that of all replies,
    makes the body that is sent."""

    def __init__(self, mappers: list[ReplyMapper], body_format: BodyFormat | None) -> None:
        self._mappers = mappers
        self._body_format = body_format

    def rewrite(
        self, headers: HeaderMap, info: StreamInfo, status: int, body: bytes, content_type: bytes, grpc: bool
    ) -> tuple[int, bytes, bytes]:
        """Status, body and content type (empty: as `headers` say, or plain text) of a reply with this head so far.

        Filters and formats find the reply in `info`.
        """
        if content_type:
            headers.set(b"content-type", content_type)
        info.response_headers = headers
        info.response_code = status
        given_type = headers.get(b"content-type")
        given_body = body
        body_format = self._body_format
        mapper = self._matching(info)
        if mapper is not None:
            if mapper.body is not None:
                body = mapper.body
            if mapper.operations is not None:
                mapper.operations.apply(headers, info)
            if mapper.status:
                info.response_code = status = mapper.status
                headers.set(b":status", b"%d" % status)
            body_format = mapper.body_format or body_format
        content_type = _TEXT
        if body_format is not None:
            body = _format(body_format, info, body)
            content_type = body_format.content_type
        if grpc and content_type == _JSON:
            body = body.removesuffix(b"\n")  # it becomes a header's value
        if not body:
            headers.remove(b"content-length")
            headers.remove(b"content-type")
        # A type that the mapper gave stands; the one that the reply came with, as long as its body does.
        type_now = headers.get(b"content-type")
        stands = type_now is not None and (type_now != given_type or body == given_body)
        return status, body, b"" if stands else content_type

    def _matching(self, info: StreamInfo) -> ReplyMapper | None:
        for mapper in self._mappers:
            if mapper.filter.matches(info):
                return mapper
        return None


def _format(body_format: BodyFormat, info: StreamInfo, body: bytes) -> bytes:
    """%LOCAL_REPLY_BODY% is known here alone: to logs it is empty (Envoy)."""
    info.local_reply_body = body
    formatted = body_format.line.format(info)
    info.local_reply_body = b""
    return formatted


def build_local_reply_config(message: Any, path: str, context: BuildContext) -> LocalReplyConfig | None:
    """The mapping of an HttpConnectionManager.LocalReplyConfig; errors go to the context."""
    mappers = []
    for index, entry in enumerate(message.mappers):
        mapper = _build_mapper(entry, item(path, "mappers", index), context)
        if mapper is not None:
            mappers.append(mapper)
    return LocalReplyConfig(mappers, _build_body_format(message, "body_format", path, context))


def _build_mapper(message: Any, path: str, context: BuildContext) -> ReplyMapper | None:
    reply_filter = build_filter(message.filter, child(path, "filter"), context)
    body = None
    if message.HasField("body"):
        body = load_data_source(message.body, child(path, "body"), context.errors)
    body_format = _build_body_format(message, "body_format_override", path, context)
    operations = build_header_operations(message.headers_to_add, (), path, context.errors)
    if reply_filter is None:
        return None
    return ReplyMapper(reply_filter, message.status_code.value, body, body_format, operations)


def _build_body_format(message: Any, field: str, path: str, context: BuildContext) -> BodyFormat | None:
    if not message.HasField(field):
        return None
    config = getattr(message, field)
    line = build_line_format(config, child(path, field), context, for_log=False)
    if line is None:
        return None
    usual = _JSON if config.WhichOneof("format") == "json_format" else _TEXT
    return BodyFormat(line, config.content_type.encode() or usual)
