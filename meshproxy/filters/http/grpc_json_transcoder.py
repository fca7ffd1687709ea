"""`envoy.filters.http.grpc_json_transcoder`: lets clients that speak JSON over HTTP call the methods of gRPC services.

A request that matches a method's rule (google.api.http) becomes a call of it, its route being picked anew; others pass.
The call's messages become JSON: one is the body, several are an array, or lines, or events. A body of
google.api.HttpBody passes as it is, in both directions. The status of the call becomes that of the response.
"""

from __future__ import annotations

from typing import Any, Final

from envoy.config.core.v3.base_pb2 import DataSource
from envoy.extensions.filters.http.grpc_json_transcoder.v3.transcoder_pb2 import GrpcJsonTranscoder

from meshproxy.codec import grpc
from meshproxy.codec.headers import HeaderMap, status_code
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child
from meshproxy.http.filter import CONTINUE, STOP, DataResult, HttpFilter, HttpFilterType, Result, register_http_filter
from meshproxy.http.grpc.messages import LONGEST, MessageTooLongError
from meshproxy.http.stream import Stream
from meshproxy.http.transcoding import path_template
from meshproxy.http.transcoding.call import EVENTS, LINES, Call, TranscoderSettings
from meshproxy.http.transcoding.json_request import MessageWriter, RequestError
from meshproxy.http.transcoding.json_response import MessagePrinter, PrintOptions, ResponseError
from meshproxy.http.transcoding.methods import (
    Binding,
    MethodTable,
    UnknownParameterError,
    add_service,
    read_descriptor_set,
)
from meshproxy.http.transcoding.path_template import PathTree
from meshproxy.http.transcoding.schema import Schema, SchemaError
from meshproxy.observe.stats import StatsScope
from meshproxy.observe.stream_info import PROTOCOL_HTTP11

_JSON: Final = b"application/json"
_EVENT_STREAM: Final = b"text/event-stream"

# Details of responses that the filter gives.
_EARLY: Final = "early_grpc_json_transcode_failure"
_FAILED: Final = "grpc_json_transcode_failure"
_REQUEST_TOO_LARGE: Final = (
    b"Request rejected because the transcoder's internal buffer size exceeds the configured limit."
)
_RESPONSE_TOO_LARGE: Final = (
    b"Response not transcoded because the transcoder's internal buffer size exceeds the configured limit."
)


class TranscoderStats(StatsScope):
    """Under `http.<stat_prefix>.`: what is kept of messages that are not whole."""

    GAUGES = ("transcoder_request_buffer_bytes", "transcoder_response_buffer_bytes")

    def __init__(self) -> None:
        super().__init__()
        self.transcoder_request_buffer_bytes: int = 0
        self.transcoder_response_buffer_bytes: int = 0


class Disabled:
    """A route where nothing is transcoded."""


class GrpcJsonTranscoderFilter(HttpFilter):
    def __init__(self, settings: TranscoderSettings | None, stats: TranscoderStats) -> None:
        self.settings = settings
        self.stats = stats

    def on_stream_done(self, stream: Stream) -> None:
        call = stream.state[self.slot]
        if call is not None:
            assert isinstance(call, Call)
            self.stats.transcoder_request_buffer_bytes -= call.counted_request
            self.stats.transcoder_response_buffer_bytes -= call.counted_response

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
        try:
            call.begin(headers)
            stream.state[self.slot] = call
            stream.grpc_replies = 0  # whoever asked does not speak gRPC
            stream.buffer_limit_bytes = max(stream.buffer_limit_bytes, call.settings.max_request_bytes)
            _make_call(headers, call.method.path)
            if not call.settings.keeps_route:
                stream.clear_route_cache()
            if end:
                stream.add_to_request(call.feed(b"", True) or b"")
            elif not call.method.client_streaming:
                stream.let_request_wait()
        except RequestError as error:
            details = _FAILED if call.method.raw_request else _EARLY
            return _refuse(stream, 400, str(error), f"{details}{{INVALID_ARGUMENT}}")
        return CONTINUE

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        call = stream.state[self.slot]
        if call is None:
            return CONTINUE
        assert isinstance(call, Call)
        if call.request_done:
            return CONTINUE
        fed = self._feed(stream, call, data, end)
        self.stats.transcoder_request_buffer_bytes += call.kept_request - call.counted_request
        call.counted_request = call.kept_request
        return fed

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
            events = method.server_streaming and call.settings.framing == EVENTS
            headers.set(b"content-type", _EVENT_STREAM if events else _JSON)
        call.headers = headers
        if end:
            return self._end_head_alone(stream, call, headers)
        limit = _limit(call.settings.max_response_bytes, stream)
        call.reader.limit_bytes = max(limit, stream.manager.buffer_limit_bytes) if method.raw_response else limit
        if method.server_streaming:
            headers.remove(b"content-length")
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
                if call.headers is not None and not call.method.raw_response:
                    call.headers.remove(b"content-length")  # that of the messages
        except MessageTooLongError:
            call.passes = True
            details = f"{_FAILED}{{response_buffer_size_limit_reached}}"
            stream.send_local_reply(500, _RESPONSE_TOO_LARGE, details)
            return STOP
        except ResponseError as error:
            _fail(stream, call, error)
            return STOP
        self.stats.transcoder_response_buffer_bytes += call.kept_response - call.counted_response
        call.counted_response = call.kept_response
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
                _fail(stream, call, error)
                return STOP
            if headers is not None and not call.method.server_streaming:
                _put_status(headers, status, stream)
                _copy(trailers, headers, b"grpc-status", status is not None and status >= 0)
                _copy(trailers, headers, b"grpc-message", True)
                call.set_length(len(body))
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
    stream.send_local_reply(status, text.encode("utf-8", "replace"), details)
    return STOP


def _fail(stream: Stream, call: Call, error: ResponseError) -> None:
    """The upstream's messages are none: 502, where the response has not begun."""
    call.passes = True
    stream.send_local_reply(502, str(error).encode(), f"{_FAILED}{{{error.status}}}")


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
        settings.framing = EVENTS
    elif message.print_options.stream_newline_delimited:
        settings.framing = LINES
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
    stats = context.scope(context.stat_prefix, TranscoderStats)
    if not message.services:
        return GrpcJsonTranscoderFilter(None, stats)
    settings = build_settings(message, path, context)
    return None if settings is None else GrpcJsonTranscoderFilter(settings, stats)


def build_override(message: Any, path: str, context: BuildContext) -> TranscoderSettings | Disabled | None:
    """One that names no services turns the filter off (Envoy's rule)."""
    return build_settings(message, path, context) if message.services else Disabled()


register_http_filter(GrpcJsonTranscoder, HttpFilterType(build_transcoder, GrpcJsonTranscoder, build_override))
