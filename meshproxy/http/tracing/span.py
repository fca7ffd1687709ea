"""The spans of a stream that is traced: its own, and one for each attempt upstream; names and tags are Envoy's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshproxy.clock import monotonic, wall_time_ns
from meshproxy.codec import headers as h
from meshproxy.codec.grpc import is_grpc
from meshproxy.codec.headers import HeaderMap
from meshproxy.http.local_reply import reset_flag, reset_words
from meshproxy.http.tracing.otlp import KIND_CLIENT, KIND_SERVER, SpanData
from meshproxy.http.tracing.propagation import IDS, RemoteContext, traceparent, write_b3
from meshproxy.observe.response_flags import short_names
from meshproxy.observe.stream_info import PROTOCOL_NAMES, StreamInfo
from meshproxy.route.route import Route
from meshproxy.route.tracing import CustomTag, RouteTracing

if TYPE_CHECKING:
    from meshproxy.http.stream import Stream
    from meshproxy.http.tracing.tracing import Tracing
    from meshproxy.http.upstream_request import UpstreamRequest

_TRUE: Final = b"true"
_NONE: Final = b"-"
_DECORATOR: Final = b"x-envoy-decorator-operation"
# https://opentelemetry.io/docs/specs/semconv/registry/attributes/http/: any other method is `_OTHER`
_METHODS: Final = frozenset(
    (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH")
)  # fmt: skip
# Unknown, DeadlineExceeded, Unimplemented, Internal, Unavailable, DataLoss: the server's fault
_GRPC_SERVER_ERRORS: Final = frozenset((b"2", b"4", b"12", b"13", b"14", b"15"))


class StreamTrace:
    """A stream's place in a trace, and the span that comes of it where it is `sampled`."""

    def __init__(self, tracing: Tracing, trace_id: bytes, span_id: bytes, remote: RemoteContext, sampled: bool) -> None:
        self.tracing = tracing
        self.trace_id = trace_id
        self.span_id = span_id
        self.remote = remote
        self.sampled = sampled
        self.spawns: bool = sampled and tracing.spawns_attempts
        self.name: bytes = b""  # that a decorator gives; b"": the usual one
        self.decorated: bytes = b""  # what the response tells the downstream
        self.route: RouteTracing | None = None
        self._epoch_ns: int = wall_time_ns(0.0) if sampled else 0

    @property
    def decorates(self) -> bool:
        return bool(self.decorated)

    def decorate(self, headers: HeaderMap, route: Route | None) -> None:
        """Take the route's decorator; outbound the next proxy is told of it, inbound what the last one told wins."""
        propagated = b""
        if route is not None and route.decorator is not None:
            self.name = route.decorator.operation
            propagated = self.name if route.decorator.propagate else b""
        if self.tracing.egress:
            if propagated:
                headers.set(_DECORATOR, propagated)
            return
        told = headers.get(_DECORATOR) if headers.known & h.ENVOY_TRACE else None
        if told is not None:
            headers.remove(_DECORATOR)
            if told:
                self.name = told
                propagated = b""
        self.decorated = propagated

    def at_ns(self, at: float) -> int:
        """A reading of the monotonic clock as Unix time: one for all spans, so that none begins before its parent."""
        return self._epoch_ns + int(at * 1e9)

    # -- attempts

    def start_attempt(self, headers: HeaderMap, number: int) -> AttemptSpan:
        """A span of its own for an attempt (the first is 1), of which its upstream is told."""
        span = AttemptSpan(self, number)
        headers.set(b"traceparent", traceparent(self.trace_id, span.data.span_id, True))
        if self.remote.b3:
            write_b3(headers, self.remote.b3, self.trace_id, span.data.span_id, self.span_id, True)
        return span

    # -- the end

    def finish(self, stream: Stream) -> None:
        """The stream is done, and `info.end` known."""
        tracing, info = self.tracing, stream.info
        if not self.sampled or tracing.exporter is None:
            return
        data = SpanData(self.trace_id, self.span_id, self.remote.span_id, self.remote.state)
        data.remote_parent = bool(self.remote.span_id)
        data.kind = KIND_CLIENT if tracing.egress and not self.spawns else KIND_SERVER
        data.start_ns, data.end_ns = self.at_ns(info.start), self.at_ns(info.end)
        data.name = self._stream_name(stream)
        attributes = data.attributes
        attributes[b"node_id"] = tracing.node
        attributes[b"zone"] = tracing.zone
        self._add_request(attributes, stream.request_headers, info)
        attributes[b"request_size"] = b"%d" % info.bytes_received
        attributes[b"response_size"] = b"%d" % info.bytes_sent
        grpc = _add_grpc_response(attributes, info.response_trailers) or _add_grpc_response(
            attributes, info.response_headers
        )
        status = info.response_code
        self.add_common(data, info, status, short_names(info.response_flags))
        data.failed = _failed(data.kind, status, grpc)
        if tracing.verbose:
            self._add_stream_events(data.events, info)
        self.add_custom(data, info)
        tracing.exporter.add(data.encode())

    def _stream_name(self, stream: Stream) -> bytes:
        operation = None if self.route is None else self.route.operation
        if operation is None:
            operation = self.tracing.defaults.operation
        if operation is not None:
            return operation.format(stream.info)
        if self.name:
            return self.name
        if self.tracing.egress:
            return b"egress " + (stream.request_headers.get(b":authority") or b"")
        return b"ingress"

    def attempt_name(self, cluster: str, info: StreamInfo) -> bytes:
        operation = None if self.route is None else self.route.upstream_operation
        if operation is None:
            operation = self.tracing.defaults.upstream_operation
        return f"router {cluster} egress".encode() if operation is None else operation.format(info)

    def _add_request(self, attributes: dict[bytes, bytes], headers: HeaderMap, info: StreamInfo) -> None:
        if info.request_id:
            attributes[b"guid:x-request-id"] = info.request_id
        path = headers.get(b"x-envoy-original-path") or headers.get(b":path") or b""
        scheme = headers.get(b"x-forwarded-proto") or b""
        authority = headers.get(b":authority") or b""
        attributes[b"http.url"] = b"%b://%b%b" % (scheme, authority, path[: self.tracing.max_path_bytes])
        attributes[b"http.method"] = headers.get(b":method") or b""
        attributes[b"downstream_cluster"] = headers.get(b"x-envoy-downstream-service-cluster") or _NONE
        attributes[b"user_agent"] = headers.get(b"user-agent") or _NONE
        attributes[b"http.protocol"] = PROTOCOL_NAMES.get(info.protocol, "-").encode()
        peer = info.connection.direct_remote
        attributes[b"peer.address"] = (peer.ip or peer.text).encode()
        client = headers.get(b"x-client-trace-id")
        if client is not None:
            attributes[b"guid:x-client-trace-id"] = client
        if is_grpc(headers):
            attributes[b"grpc.path"] = headers.get(b":path") or b""
            attributes[b"grpc.authority"] = authority
            attributes[b"grpc.content_type"] = headers.get(b"content-type") or b""
            timeout = headers.get(b"grpc-timeout")
            if timeout is not None:
                attributes[b"grpc.timeout"] = timeout

    def add_common(self, data: SpanData, info: StreamInfo, status: int, flags: str) -> None:
        """What spans of both kinds have."""
        attributes = data.attributes
        attributes[b"component"] = b"proxy"
        upstream = info.upstream
        if upstream is not None and upstream.cluster is not None:
            attributes[b"upstream_cluster"] = upstream.cluster.name.encode()
            attributes[b"upstream_cluster.name"] = upstream.cluster.observability_name.encode()
        attributes[b"http.status_code"] = b"%d" % status
        attributes[b"response_flags"] = flags.encode()
        if status == 0 or 500 <= status < 600:
            attributes[b"error"] = _TRUE

    def add_custom(self, data: SpanData, info: StreamInfo) -> None:
        """The configuration's tags; a route's stand in place of the connection manager's of the same name."""
        attributes = data.attributes
        tags = self.tracing.defaults.tags
        if self.route is not None and self.route.tags:
            tags = _merged(tags, self.route.tags)
        for tag in tags:
            value = tag.read(info)
            if value is not None:
                attributes[tag.name.encode()] = value
        method = attributes.get(b"http.method")
        if method is not None and method not in _METHODS:
            attributes[b"http.method"] = b"_OTHER"

    def _add_stream_events(self, events: list[tuple[bytes, int]], info: StreamInfo) -> None:
        """`verbose`: when what arrived and left."""
        self._add_event(events, b"last_downstream_rx_byte_received", info.request_end, info.start)
        self.add_attempt_events(events, info, info.start)
        if info.response_start > 0.0:
            self._add_event(events, b"first_downstream_tx_byte_sent", info.response_start, info.start)
            self._add_event(events, b"last_downstream_tx_byte_sent", info.end, info.start)

    def add_attempt_events(self, events: list[tuple[bytes, int]], info: StreamInfo, start: float) -> None:
        """`verbose`, of what went to the upstream since `start`."""
        upstream = info.upstream
        if upstream is not None:
            self._add_event(events, b"first_upstream_tx_byte_sent", upstream.first_byte_sent, start)
            self._add_event(events, b"last_upstream_tx_byte_sent", upstream.last_byte_sent, start)
            self._add_event(events, b"first_upstream_rx_byte_received", upstream.first_byte_received, start)
            self._add_event(events, b"last_upstream_rx_byte_received", upstream.last_byte_received, start)

    def _add_event(self, events: list[tuple[bytes, int]], name: bytes, at: float, start: float) -> None:
        """One that did not happen, or to another attempt before this one, is left out."""
        if at > 0.0 and at >= start:
            events.append((name, self.at_ns(at)))


class AttemptSpan:
    """The span of one attempt: from its beginning to its last byte, or to what became of it instead."""

    def __init__(self, trace: StreamTrace, number: int) -> None:
        data = SpanData(trace.trace_id, IDS.span(), trace.span_id, trace.remote.state)
        data.kind = KIND_CLIENT
        self.data = data
        self.flags: int = 0  # response flags of the attempt alone
        self._trace = trace
        self._start: float = monotonic()
        self._grpc: bytes = b""
        if number > 1:
            data.attributes[b"retry.count"] = b"%d" % (number - 1)

    def on_response(self, part: HeaderMap) -> None:
        """The head of the response, or its trailers."""
        self._grpc = _add_grpc_response(self.data.attributes, part) or self._grpc

    def on_canceled(self) -> None:
        """It is given up before its response is whole."""
        self.data.attributes[b"canceled"] = _TRUE

    def on_reset(self, reason: int) -> None:
        attributes = self.data.attributes
        attributes[b"error"] = _TRUE
        attributes[b"error.reason"] = reset_words(reason).encode()
        self.flags |= reset_flag(reason)

    def finish(self, attempt: UpstreamRequest, info: StreamInfo) -> None:
        """The attempt is done."""
        trace, data = self._trace, self.data
        exporter = trace.tracing.exporter
        if exporter is None:
            return
        now = monotonic()
        data.name = trace.attempt_name(attempt.cluster.observability_name, info)
        data.start_ns, data.end_ns = trace.at_ns(self._start), trace.at_ns(now)
        attributes = data.attributes
        attributes[b"http.protocol"] = b"HTTP/1.1" if attempt.started else _NONE
        attributes[b"upstream_address"] = attributes[b"peer.address"] = attempt.host.address.text.encode()
        trace.add_common(data, info, attempt.status, short_names(self.flags))
        data.failed = _failed(KIND_CLIENT, attempt.status, self._grpc)
        if trace.tracing.verbose:
            trace.add_attempt_events(data.events, info, self._start)
        trace.add_custom(data, info)
        exporter.add(data.encode())


def _add_grpc_response(attributes: dict[bytes, bytes], part: HeaderMap | None) -> bytes:
    """The status of a gRPC response, where `part` of it says so; b"" where it does not."""
    status = None if part is None else part.get(b"grpc-status")
    if status is None or part is None:
        return b""
    attributes[b"grpc.status_code"] = status
    message = part.get(b"grpc-message")
    if message is not None:
        attributes[b"grpc.message"] = message
    if status in _GRPC_SERVER_ERRORS:
        attributes[b"error"] = _TRUE
    return status


def _failed(kind: int, status: int, grpc: bytes) -> bool:
    """OpenTelemetry's conventions: to a client what the server holds against it is an error too."""
    if kind == KIND_CLIENT:
        return status >= 400 or grpc not in (b"", b"0")
    return status >= 500 or grpc in _GRPC_SERVER_ERRORS


def _merged(tags: list[CustomTag], more: list[CustomTag]) -> list[CustomTag]:
    by_name = {tag.name: tag for tag in tags}
    for tag in more:
        by_name[tag.name] = tag
    return list(by_name.values())
