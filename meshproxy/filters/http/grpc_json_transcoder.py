"""`envoy.filters.http.grpc_json_transcoder`: lets clients that speak JSON over HTTP call the methods of gRPC services.

A request that matches a method's rule (google.api.http) becomes a call of it, its route being picked anew; others pass.
The call's messages become JSON: one is the body, several are an array, or lines, or events. A body of
google.api.HttpBody passes as it is, in both directions. The status of the call becomes that of the response.
"""

from __future__ import annotations

import base64
from typing import Any, Final

from envoy.config.core.v3.base_pb2 import DataSource
from envoy.extensions.filters.http.grpc_json_transcoder.v3.transcoder_pb2 import GrpcJsonTranscoder
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status

from meshproxy.codec import grpc
from meshproxy.codec.headers import HeaderMap, status_code
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child
from meshproxy.http.filter import CONTINUE, STOP, DataResult, HttpFilter, HttpFilterType, Result, register_http_filter
from meshproxy.http.grpc.messages import LONGEST, MessageReader, MessageTooLongError, frame
from meshproxy.http.stream import Stream
from meshproxy.http.transcoding import path_template, raw_body
from meshproxy.http.transcoding.json_array import JsonArray
from meshproxy.http.transcoding.json_request import MessageWriter, RequestError, parse_json
from meshproxy.http.transcoding.json_response import MessagePrinter, PrintOptions, ResponseError
from meshproxy.http.transcoding.methods import (
    Binding,
    MethodTable,
    Parameters,
    UnknownParameterError,
    add_service,
    read_descriptor_set,
)
from meshproxy.http.transcoding.path_template import PathTree
from meshproxy.http.transcoding.schema import Schema, SchemaError
from meshproxy.observe.stream_info import PROTOCOL_HTTP11

_PIECE_BYTES: Final = 1 << 20  # of a raw body in a stream of messages, since servers take 4 MiB by default
_JSON: Final = b"application/json"
_EVENTS: Final = b"text/event-stream"

# How a stream of messages is put together.
_ARRAY: Final = 0
_LINES: Final = 1
_SSE: Final = 2

# Details of responses that the filter gives.
_EARLY: Final = "early_grpc_json_transcode_failure"
_FAILED: Final = "grpc_json_transcode_failure"
_REQUEST_TOO_LARGE: Final = (
    b"Request rejected because the transcoder's internal buffer size exceeds the configured limit."
)
_RESPONSE_TOO_LARGE: Final = (
    b"Response not transcoded because the transcoder's internal buffer size exceeds the configured limit."
)


class TranscoderSettings:
    """A GrpcJsonTranscoder, of the filter or of a route."""

    def __init__(self, table: MethodTable, writer: MessageWriter, printer: MessagePrinter) -> None:
        self.table = table
        self.writer = writer
        self.printer = printer
        self.framing: int = _ARRAY
        self.keeps_route: bool = False
        self.converts_status: bool = False
        self.rejects_unknown_methods: bool = False
        self.rejects_unknown_parameters: bool = False
        self.max_request_bytes: int = 0  # 0: as much as the connection buffers
        self.max_response_bytes: int = 0


class Disabled:
    """A route where nothing is transcoded."""


class Call:
    """A request that became a call, and the response to it."""

    def __init__(self, settings: TranscoderSettings, binding: Binding, parameters: Parameters, limit: int) -> None:
        self.settings = settings
        self.binding = binding
        self.method = binding.method
        self.parameters = parameters
        self.request_bytes_limit = limit
        self.content_type: str = ""  # of a raw body
        self.first: bytes = b""  # what the first message of a raw body begins with
        self.has_first: bool = False  # that message is still to come
        self.request_done: bool = False
        self._pieces: list[bytes] = []
        self._size: int = 0
        self._array: JsonArray | None = None
        if self.method.client_streaming and not self.method.raw_request:
            self._array = JsonArray()
        # the response
        self.passes: bool = False  # as it is
        self.reader = MessageReader()
        self.headers: HeaderMap | None = None  # as long as they wait
        self.has_body: bool = False
        self.body: bytes = b""  # of a single message
        self.printed: int = 0  # messages

    # -- the request

    def feed(self, data: bytes, end: bool) -> bytes | None:
        """What goes on of the request; None when there is more of it than may be kept. Raises RequestError."""
        self.request_done = end
        if self._array is not None:
            return self._feed_array(self._array, data, end)
        self._pieces.append(data)
        self._size += len(data)
        if self.method.raw_request and self.method.client_streaming:
            return self._cut()
        if self._size > self.request_bytes_limit:
            return None
        if not end:
            return b""
        body = b"".join(self._pieces)
        self._pieces = []
        if self.method.raw_request:
            return self._wrap(body)
        return self._message(parse_json(body) if body else {}, True)

    def _feed_array(self, array: JsonArray, data: bytes, end: bool) -> bytes | None:
        messages: list[bytes] = []
        for element in array.feed(data):
            messages.append(self._message(parse_json(element), self.has_first))
            self.has_first = False
        if array.size > self.request_bytes_limit:
            return None
        if end:
            array.finish()
        return b"".join(messages)

    def _message(self, tree: Any, first: bool) -> bytes:
        """The body, or an element of it, as a message: the first holds what path and query say."""
        bound = self.parameters.bound if first else None
        return frame(self.settings.writer.write(self.method.request, self.tree(tree), bound))

    def tree(self, tree: Any) -> Any:
        """The message's JSON, where that of the body is one of its fields."""
        for name in reversed(self.binding.body):
            tree = {name: tree}
        return tree

    def _cut(self) -> bytes:
        """A raw body that is a stream goes on in pieces as they come, in one at least."""
        data = b"".join(self._pieces)
        self._pieces = []
        if not data:
            return self._wrap(b"") if self.has_first else b""
        return b"".join([self._wrap(data[at : at + _PIECE_BYTES]) for at in range(0, len(data), _PIECE_BYTES)])

    def _wrap(self, data: bytes) -> bytes:
        first, self.first = self.first, b""
        content_type, self.content_type = self.content_type, ""
        self.has_first = False
        method = self.method
        return frame(first + raw_body.wrap(data, content_type, self.parameters.unknown, method.request_body))

    # -- the response

    def print(self, data: bytes) -> bytes:
        """What goes on of the response: of a single message nothing until the end. Raises ResponseError."""
        messages = self.reader.feed(data)
        streaming = self.method.server_streaming
        parts: list[bytes] = []
        for flags, message in messages:
            if self.printed and not streaming:
                break
            if self.method.raw_response:
                self._print_raw(message, parts)
            elif flags:
                raise ResponseError(f"Unsupported gRPC frame flag: {flags}")
            else:
                parts.append(self._print_message(message))
                self.printed += 1
        if streaming:
            return b"".join(parts)
        self.body += b"".join(parts)
        return b""

    def _print_message(self, message: bytes) -> bytes:
        settings = self.settings
        text = settings.printer.print_bytes(self.method.response_class, message)
        if not self.method.server_streaming:
            return text
        if settings.framing == _SSE:
            return b"data: " + text + b"\n\n"
        if settings.framing == _LINES:
            return text + b"\n"
        return (b"," if self.printed else b"[") + text

    def _print_raw(self, message: bytes, parts: list[bytes]) -> None:
        """The first that is not empty says what the body is."""
        if not message:
            return
        content_type, data = raw_body.unwrap(self.method.response_class, message, self.method.response_body)
        parts.append(data)
        if not self.printed and self.headers is not None:
            self.headers.set(b"content-type", content_type.encode())
        self.printed += 1

    def print_end(self) -> bytes:
        """What ends the body. Raises ResponseError when it was cut short."""
        if self.method.raw_response:
            return self.body
        if self.reader.partial:
            raise ResponseError("Incomplete gRPC frame")
        if not self.method.server_streaming:
            return self.body
        if self.settings.framing != _ARRAY:
            return b""
        return b"]" if self.printed else b"[]"

    def converted(self, status: int | None, fields: HeaderMap) -> bytes | None:
        """The JSON of a failed call's google.rpc.Status, where that is asked for and there is no other body."""
        if not self.settings.converts_status or self.has_body or status is None or status <= 0:
            return None
        try:
            return self.settings.printer.print(_status_message(status, fields))
        except ResponseError:
            return None


class GrpcJsonTranscoderFilter(HttpFilter):
    def __init__(self, settings: TranscoderSettings | None) -> None:
        self.settings = settings

    # -- the request

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        settings = self.settings
        route = stream.current_route()
        if route is not None and route.filter_configs:
            override = stream.route_config(self)
            if override is not None:
                settings = override if isinstance(override, TranscoderSettings) else None
        if settings is None or grpc.is_grpc(headers):
            return CONTINUE
        method = (headers.get(b":method") or b"").decode("latin-1")
        path, _, query = (headers.get(b":path") or b"").decode("latin-1").partition("?")
        binding, parts = settings.table.tree.find(method, path)
        if binding is None:
            if not settings.rejects_unknown_methods:
                return CONTINUE
            return _refuse(stream, 404, f"Could not resolve {path} to a method.", f"{_EARLY}{{NOT_FOUND}}")
        assert isinstance(binding, Binding)
        try:
            parameters = settings.table.parameters(binding, parts, query)
        except UnknownParameterError as error:
            if not settings.rejects_unknown_parameters:
                return CONTINUE
            return _refuse(stream, 400, str(error), f"{_EARLY}{{INVALID_ARGUMENT}}")
        call = Call(settings, binding, parameters, _limit(settings.max_request_bytes, stream))
        return self._begin(stream, call, headers, end)

    def _begin(self, stream: Stream, call: Call, headers: HeaderMap, end: bool) -> Result:
        """The request becomes a call."""
        call.has_first = True
        body: bytes | None = b""
        try:
            if call.method.raw_request:
                call.content_type = (headers.get(b"content-type") or b"").decode("latin-1")
                call.first = call.settings.writer.write(call.method.request, call.tree({}), call.parameters.bound)
            if end:
                body = call.feed(b"", True)
        except RequestError as error:
            details = _FAILED if call.method.raw_request else _EARLY
            return _refuse(stream, 400, str(error), f"{details}{{INVALID_ARGUMENT}}")
        stream.state[self.slot] = call
        stream.grpc_replies = 0  # whoever asked does not speak gRPC
        stream.buffer_limit_bytes = max(stream.buffer_limit_bytes, call.settings.max_request_bytes)
        _make_call(headers, call.method.path)
        if not call.settings.keeps_route:
            stream.clear_route_cache()
        if body:
            stream.add_to_request(body)
        elif not end and not call.method.client_streaming:
            stream.let_request_wait()
        return CONTINUE

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        call = stream.state[self.slot]
        if call is None:
            return CONTINUE
        assert isinstance(call, Call)
        if call.request_done:
            return CONTINUE
        return self._feed(stream, call, data, end)

    def on_request_trailers(self, stream: Stream, trailers: HeaderMap) -> Result:
        call = stream.state[self.slot]
        if call is None:
            return CONTINUE
        assert isinstance(call, Call)
        rest = self._feed(stream, call, b"", True)
        if rest is None:
            return STOP
        if rest:
            stream.add_to_request(rest)
        return CONTINUE

    def _feed(self, stream: Stream, call: Call, data: bytes, end: bool) -> bytes | None:
        """None when the request was refused."""
        try:
            fed = call.feed(data, end)
        except RequestError as error:
            _refuse(stream, 400, str(error), f"{_FAILED}{{INVALID_ARGUMENT}}")
            return None
        if fed is None:
            stream.send_local_reply(413, _REQUEST_TOO_LARGE, f"{_FAILED}{{request_buffer_size_limit_reached}}")
        return fed

    # -- the response

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        call = stream.state[self.slot]
        if call is None:
            return CONTINUE
        assert isinstance(call, Call)
        if not grpc.is_grpc_response(headers, status_code(headers), end):
            call.passes = True
            return CONTINUE
        method = call.method
        if method.server_streaming or not end:
            events = method.server_streaming and call.settings.framing == _SSE
            headers.set(b"content-type", _EVENTS if events else _JSON)
        call.headers = headers
        if end:
            return self._end_head_alone(stream, call, headers)
        headers.remove(b"content-length")
        limit = _limit(call.settings.max_response_bytes, stream)
        call.reader.limit_bytes = max(limit, stream.manager.buffer_limit_bytes) if method.raw_response else limit
        if method.server_streaming and not method.raw_response:
            call.headers = None
        else:
            stream.let_response_wait()
        return CONTINUE

    def on_response_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        call = stream.state[self.slot]
        if call is None:
            return CONTINUE
        assert isinstance(call, Call)
        if call.passes:
            return CONTINUE
        call.has_body = True
        try:
            printed = call.print(data)
            if end:
                printed += call.print_end()
        except MessageTooLongError:
            call.passes = True
            details = f"{_FAILED}{{response_buffer_size_limit_reached}}"
            stream.send_local_reply(500, _RESPONSE_TOO_LARGE, details)
            return None
        except ResponseError as error:
            return _fail(stream, call, error)
        return printed

    def on_response_trailers(self, stream: Stream, trailers: HeaderMap) -> Result:
        call = stream.state[self.slot]
        if call is None:
            return CONTINUE
        assert isinstance(call, Call)
        if call.passes:
            return CONTINUE
        status = grpc.grpc_status(trailers)
        body = call.converted(status, trailers)
        headers = call.headers
        if body is not None:
            if headers is not None:
                _put_status_in_body(headers, status, len(body), stream)
        else:
            try:
                body = call.print_end()
            except ResponseError as error:
                return _fail(stream, call, error)
            if headers is not None and not call.method.server_streaming:
                _put_status(headers, status, stream)
                _copy(trailers, headers, b"grpc-status", status is not None and status >= 0)
                _copy(trailers, headers, b"grpc-message", True)
                headers.set(b"content-length", b"%d" % len(body))
        if body:
            call.passes = True
            stream.add_to_response(body)
        return CONTINUE

    def _end_head_alone(self, stream: Stream, call: Call, headers: HeaderMap) -> Result:
        """A response of trailers only, which are its headers."""
        call.passes = True
        status = grpc.grpc_status(headers)
        body = call.converted(status, headers)
        if body is not None:
            _put_status_in_body(headers, status, len(body), stream)
            for name in (b"grpc-status", b"grpc-message", b"grpc-status-details-bin"):
                headers.remove(name)
        else:
            body = call.print_end()
            _put_status(headers, status, stream)
            if not call.method.server_streaming:
                headers.set(b"content-length", b"%d" % len(body))
            elif body:
                headers.remove(b"content-length")
        if body:
            stream.add_to_response(body)
        return CONTINUE


def _limit(limit_bytes: int, stream: Stream) -> int:
    return limit_bytes or stream.manager.buffer_limit_bytes or LONGEST


def _refuse(stream: Stream, status: int, text: str, details: str) -> int:
    stream.send_local_reply(status, text.encode("utf-8", "surrogateescape"), details)
    return STOP


def _fail(stream: Stream, call: Call, error: ResponseError) -> None:
    """The upstream's messages are none: 502, where the response has not begun."""
    call.passes = True
    stream.send_local_reply(502, str(error).encode(), f"{_FAILED}{{INTERNAL}}")


def _make_call(headers: HeaderMap, path: bytes) -> None:
    """The head of a call; what it was stays in x-envoy-original-…"""
    headers.remove(b"content-length")
    headers.set(b"content-type", b"application/grpc")
    headers.set(b"x-envoy-original-path", headers.get(b":path") or b"")
    headers.add(b"x-envoy-original-method", headers.get(b":method") or b"")
    headers.set(b":path", path)
    headers.set(b":method", b"POST")
    headers.set(b"te", b"trailers")


def _put_status(headers: HeaderMap, status: int | None, stream: Stream) -> None:
    """The HTTP status that a gRPC status amounts to; 503 without one."""
    code = 503 if status is None or status < 0 else grpc.http_status_of(status)
    headers.set(b":status", b"%d" % code)
    if stream.info.protocol <= PROTOCOL_HTTP11:
        headers.remove(b"trailer")


def _put_status_in_body(headers: HeaderMap, status: int | None, body_bytes: int, stream: Stream) -> None:
    _put_status(headers, status, stream)
    headers.set(b"content-type", _JSON)
    headers.set(b"content-length", b"%d" % body_bytes)


def _copy(trailers: HeaderMap, headers: HeaderMap, name: bytes, wanted: bool) -> None:
    value = trailers.get(name)
    if wanted and value is not None:
        headers.set(name, value)


def _status_message(status: int, fields: HeaderMap) -> Any:
    """The google.rpc.Status in `grpc-status-details-bin`, or one of `grpc-status` and `grpc-message`."""
    details = fields.get(b"grpc-status-details-bin")
    if details is not None:
        try:
            return Status.FromString(base64.b64decode(details + b"=" * (-len(details) % 4), validate=True))
        except (ValueError, DecodeError):
            pass  # it is as good as none
    text = grpc.decode_message(fields.get(b"grpc-message") or b"")
    return Status(code=status, message=text.decode("utf-8", "replace"))


# -- building ----------------------------------------------------------------------------------------------------------


def build_settings(message: Any, path: str, context: BuildContext) -> TranscoderSettings | None:
    """Compile a GrpcJsonTranscoder that names services; errors go to the context."""
    data = _load_descriptor_set(message, path, context)
    if data is None:
        return None
    try:
        files = read_descriptor_set(data)
        schema = Schema(files)
    except SchemaError as error:
        context.errors.add(path, str(error))
        return None
    table = MethodTable(schema, PathTree(message.match_unregistered_custom_verb))
    for number, name in enumerate(message.services):
        try:
            add_service(table, files, name, message.auto_mapping)
        except SchemaError as error:
            context.errors.add(f"{child(path, 'services')}[{number}]", str(error))
    _set_parameters(table, message)
    checks = message.request_validation_options
    writer = MessageWriter(schema, message.case_insensitive_enum_parsing, checks.reject_binding_body_field_collisions)
    settings = TranscoderSettings(table, writer, MessagePrinter(schema, _print_options(message.print_options)))
    if message.print_options.stream_sse_style_delimited:
        settings.framing = _SSE
    elif message.print_options.stream_newline_delimited:
        settings.framing = _LINES
    settings.keeps_route = message.match_incoming_request_route
    settings.converts_status = message.convert_grpc_status
    settings.rejects_unknown_methods = checks.reject_unknown_method
    settings.rejects_unknown_parameters = checks.reject_unknown_query_parameters
    settings.max_request_bytes = message.max_request_body_size.value
    settings.max_response_bytes = message.max_response_body_size.value
    return settings


def _load_descriptor_set(message: Any, path: str, context: BuildContext) -> bytes | None:
    kind = message.WhichOneof("descriptor_set")
    if kind == "proto_descriptor_bin":
        data: bytes = message.proto_descriptor_bin
        return data
    if kind is None:
        context.errors.add(path, "one of proto_descriptor, proto_descriptor_bin is required")
        return None
    return context.load(DataSource(filename=message.proto_descriptor), child(path, "proto_descriptor"))


def _set_parameters(table: MethodTable, message: Any) -> None:
    spec = GrpcJsonTranscoder.UrlUnescapeSpec.Name(message.url_unescape_spec)
    if spec == "ALL_CHARACTERS_EXCEPT_RESERVED":
        table.kept_escapes = path_template.RESERVED
    elif spec == "ALL_CHARACTERS_EXCEPT_SLASH":
        table.kept_escapes = path_template.SLASH
    table.unescapes_plus = message.query_param_unescape_plus
    table.ignored = frozenset(message.ignored_query_parameters)
    table.ignores_unknown = message.ignore_unknown_query_parameters
    table.captures_unknown = message.capture_unknown_query_parameters


def _print_options(message: Any) -> PrintOptions:
    return PrintOptions(
        message.add_whitespace,
        message.always_print_primitive_fields,
        message.always_print_enums_as_ints,
        message.preserve_proto_field_names,
    )


def build_transcoder(message: Any, path: str, context: BuildContext) -> GrpcJsonTranscoderFilter | None:
    if not message.services:
        return GrpcJsonTranscoderFilter(None)
    settings = build_settings(message, path, context)
    return None if settings is None else GrpcJsonTranscoderFilter(settings)


def build_override(message: Any, path: str, context: BuildContext) -> TranscoderSettings | Disabled | None:
    """One that names no services turns the filter off (Envoy's rule)."""
    return build_settings(message, path, context) if message.services else Disabled()


register_http_filter(GrpcJsonTranscoder, HttpFilterType(build_transcoder, GrpcJsonTranscoder, build_override))
