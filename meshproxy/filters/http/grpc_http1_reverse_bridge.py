"""`envoy.filters.http.grpc_http1_reverse_bridge`: unary gRPC calls to services that know nothing of gRPC.

The upstream sees an ordinary request of the configured content type, with the message's prefix taken off where
`withhold_grpc_frames` says so; its response becomes one of gRPC, with the status in trailers.
"""

from __future__ import annotations

from typing import Any, Final

from envoy.extensions.filters.http.grpc_http1_reverse_bridge.v3.config_pb2 import FilterConfig, FilterConfigPerRoute

from meshproxy.codec import grpc
from meshproxy.codec.headers import HeaderMap, status_code
from meshproxy.config.context import BuildContext
from meshproxy.http.filter import CONTINUE, STOP, DataResult, HttpFilter, HttpFilterType, Result, register_http_filter
from meshproxy.http.grpc.messages import LONGEST, PREFIX_BYTES, prefix
from meshproxy.http.stream import Stream

_NAME: Final = "envoy reverse bridge"  # Envoy's, in what it tells clients
_NO_LIMIT: Final = 1 << 60


class Settings:
    """A FilterConfig; without a `size_header` the response waits until all of it is there."""

    def __init__(self, content_type: bytes, withholds_frames: bool, size_header: bytes) -> None:
        self.content_type = content_type
        self.withholds_frames = withholds_frames
        self.size_header = size_header


class RouteSettings:
    """A FilterConfigPerRoute."""

    def __init__(self, disabled: bool) -> None:
        self.disabled = disabled


class Call:
    """One stream."""

    def __init__(self, content_type: bytes) -> None:
        self.content_type = content_type  # the downstream's
        self.stripped: int = 0  # bytes of the request's prefix that were taken off
        self.status: bytes = b""  # for the trailers; b"": the response is not the upstream's
        self.announced: int = -1  # bytes of the response, where its head says so
        self.received: int = 0
        self.framed: bool = False


class GrpcHttp1ReverseBridge(HttpFilter):
    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        if end or not grpc.is_grpc(headers):
            return CONTINUE
        override = stream.route_config(self)
        if isinstance(override, RouteSettings) and override.disabled:
            return CONTINUE
        settings = self.settings
        stream.state[self.slot] = Call(headers.get(b"content-type") or b"")
        stream.grpc_replies = 1
        headers.set(b"content-type", settings.content_type)
        headers.set(b"accept", settings.content_type)
        if settings.withholds_frames:
            _change_length(headers, -PREFIX_BYTES)
        stream.clear_route_cache()
        return CONTINUE

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        call = stream.state[self.slot]
        if call is None:
            return CONTINUE
        assert isinstance(call, Call)
        if not self.settings.withholds_frames or call.stripped == PREFIX_BYTES:
            return CONTINUE
        missing = PREFIX_BYTES - call.stripped
        if end and len(data) < missing:
            details = "grpc_bridge_data_too_small"
            stream.send_local_reply(200, b"invalid request body", details, grpc_status=grpc.UNKNOWN)
            return STOP
        call.stripped += min(missing, len(data))
        return data[missing:]

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        call = stream.state[self.slot]
        if call is None or stream.local_reply:
            return CONTINUE
        assert isinstance(call, Call)
        settings = self.settings
        status = status_code(headers)
        content_type = headers.get(b"content-type")
        if content_type != settings.content_type:
            text = _wrong_content_type(content_type, status)
            stream.send_local_reply(200, text, "grpc_bridge_content_type_wrong", grpc_status=grpc.UNKNOWN)
            return STOP
        headers.set(b"content-type", call.content_type)
        if settings.withholds_frames and not self._announces_size(call, headers):
            text = f"{_NAME}: upstream did not set content length".encode()
            stream.send_local_reply(200, text, "grpc_bridge_content_length_missing", grpc_status=grpc.INTERNAL)
            return STOP
        call.status = b"%d" % (grpc.OK if status == 200 else grpc.status_of_http(status))
        headers.set(b":status", b"200")
        if settings.withholds_frames:
            if end:
                headers.set(b"content-length", b"%d" % PREFIX_BYTES)
                stream.add_to_response(b"")
            elif not settings.size_header:
                stream.buffer_response(stream.manager.buffer_limit_bytes or _NO_LIMIT)
        return CONTINUE

    def _announces_size(self, call: Call, headers: HeaderMap) -> bool:
        """Take the size of the response from the header that is to have it. False where it has none."""
        if not self.settings.size_header:
            return True
        value = (headers.get(self.settings.size_header) or b"").partition(b",")[0].strip()
        if not value.isdigit() or len(value) > 10 or int(value) > LONGEST:
            return False
        call.announced = int(value)
        headers.set(b"content-length", b"%d" % (call.announced + PREFIX_BYTES))
        return True

    def on_response_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        call = stream.state[self.slot]
        if call is None or not call.status:
            return CONTINUE
        assert isinstance(call, Call)
        call.received += len(data)
        if end and 0 <= call.announced != call.received:
            details = "grpc_bridge_content_length_wrong"
            text = f"{_NAME}: upstream set incorrect content length".encode()
            stream.send_local_reply(200, text, details, grpc_status=grpc.INTERNAL)
            return STOP
        if end:
            stream.add_to_response(HeaderMap([(b"grpc-status", call.status)]))
        if not self.settings.withholds_frames or call.framed:
            return CONTINUE
        call.framed = True
        return prefix(len(data) if call.announced < 0 else call.announced) + data

    def on_response_trailers(self, stream: Stream, trailers: HeaderMap) -> Result:
        call = stream.state[self.slot]
        if call is not None and call.status:
            assert isinstance(call, Call)
            trailers.set(b"grpc-status", call.status)
        return CONTINUE


def _change_length(headers: HeaderMap, by: int) -> None:
    """Change a content-length that says more than nothing."""
    length = headers.get(b"content-length")
    if length is not None and length.isdigit() and int(length) > 0:
        headers.set(b"content-length", b"%d" % max(int(length) + by, 0))


def _wrong_content_type(content_type: bytes | None, status: int) -> bytes:
    if content_type is None:
        return f"{_NAME}: upstream responded with no content-type header, status code {status}".encode()
    shown = content_type.decode("latin-1")
    text = f"{_NAME}: upstream responded with unsupported content-type {shown}, status code {status}"
    return text.encode("latin-1")


def build_reverse_bridge(message: Any, path: str, context: BuildContext) -> GrpcHttp1ReverseBridge:
    size_header = message.response_size_header.lower().encode()
    return GrpcHttp1ReverseBridge(Settings(message.content_type.encode(), message.withhold_grpc_frames, size_header))


def build_per_route(message: Any, path: str, context: BuildContext) -> RouteSettings:
    return RouteSettings(message.disabled)


register_http_filter(FilterConfig, HttpFilterType(build_reverse_bridge, FilterConfigPerRoute, build_per_route))
