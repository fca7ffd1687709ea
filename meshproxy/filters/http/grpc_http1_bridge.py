"""`envoy.filters.http.grpc_http1_bridge`: lets clients that speak HTTP/1.1 without trailers make unary calls of gRPC.

The response waits until it is whole: the status that stands in its trailers then goes into its head, as `grpc-status`
and as 503 where it is not 0. With `upgrade_protobuf_to_grpc` a bare protobuf message gets the prefix of gRPC, and that
of the response is taken off.
"""

from __future__ import annotations

from typing import Any, Final

from envoy.extensions.filters.http.grpc_http1_bridge.v3.config_pb2 import Config

from meshproxy.codec import grpc
from meshproxy.codec.headers import HeaderMap, status_code
from meshproxy.config.context import BuildContext
from meshproxy.http.filter import CONTINUE, DataResult, HttpFilter, HttpFilterType, Result, register_http_filter
from meshproxy.http.grpc.messages import PREFIX_BYTES, frame
from meshproxy.http.stream import Stream
from meshproxy.observe.stream_info import PROTOCOL_HTTP11

_PROTOBUF: Final = b"application/x-protobuf"
_NO_LIMIT: Final = 1 << 60


class Call:
    """One stream that is bridged."""

    def __init__(self) -> None:
        self.frames: bool = False  # the request is a bare message
        self.unframes: bool = False  # … and the response is gRPC


class GrpcHttp1Bridge(HttpFilter):
    def __init__(self, upgrades_protobuf: bool, ignores_query: bool) -> None:
        self.upgrades_protobuf = upgrades_protobuf
        self.ignores_query = ignores_query

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        frames = self.upgrades_protobuf and headers.get(b"content-type") == _PROTOBUF
        if stream.info.protocol > PROTOCOL_HTTP11 or not (frames or grpc.is_grpc(headers)):
            return CONTINUE
        call = Call()
        stream.state[self.slot] = call
        if self.ignores_query:
            headers.set(b":path", (headers.get(b":path") or b"").partition(b"?")[0])
        if frames:
            call.frames = True
            stream.grpc_replies = 0
            headers.set(b"content-type", b"application/grpc")
            headers.remove(b"content-length")
            stream.buffer_request(stream.manager.buffer_limit_bytes or _NO_LIMIT)
        return CONTINUE

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        call = stream.state[self.slot]
        if call is None:
            return CONTINUE
        assert isinstance(call, Call)
        return frame(data) if call.frames else CONTINUE

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        call = stream.state[self.slot]
        if call is None:
            return CONTINUE
        assert isinstance(call, Call)
        if not end:
            call.unframes = call.frames and grpc.is_grpc_response(headers, status_code(headers), end)
            stream.buffer_response(stream.manager.buffer_limit_bytes or _NO_LIMIT)
        return CONTINUE

    def on_response_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        call = stream.state[self.slot]
        if call is None:
            return CONTINUE
        assert isinstance(call, Call)
        if call.unframes:
            data = data[PREFIX_BYTES:]
        trailers = stream.info.response_trailers
        if not end and trailers is not None:
            assert stream.response_headers is not None
            _put_into_head(stream.response_headers, trailers, len(data))
        return data


def _put_into_head(headers: HeaderMap, trailers: HeaderMap, body_bytes: int) -> None:
    """What the trailers say of the call, and the length of the body, of which all is there."""
    status = trailers.get(b"grpc-status")
    if status is not None:
        if grpc.grpc_status(trailers) != grpc.OK:
            headers.set(b":status", b"503")
        headers.set(b"grpc-status", status)
    message = trailers.get(b"grpc-message")
    if message is not None:
        headers.set(b"grpc-message", message)
    headers.set(b"content-length", b"%d" % body_bytes)


def build_grpc_http1_bridge(message: Any, path: str, context: BuildContext) -> GrpcHttp1Bridge:
    return GrpcHttp1Bridge(message.upgrade_protobuf_to_grpc, message.ignore_query_parameters)


register_http_filter(Config, HttpFilterType(build_grpc_http1_bridge))
