"""`envoy.filters.http.decompressor`: takes the content coding off requests and responses, piece by piece.

It also tells the upstream that it can (Accept-Encoding). How many bytes went in and came out stands in trailers.
"""

from __future__ import annotations

from typing import Any, Final

from envoy.extensions.filters.http.decompressor.v3.decompressor_pb2 import Decompressor as DecompressorConfig

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child
from meshproxy.config.runtime import RuntimeBool
from meshproxy.config.values import bool_or
from meshproxy.http.compression import brotli, gzip, zstd
from meshproxy.http.compression.accept_encoding import has_token, with_encoding
from meshproxy.http.compression.library import Decompressor, DecompressorLibrary, build_decompressor_library
from meshproxy.http.filter import CONTINUE, DataResult, HttpFilter, HttpFilterType, Result, register_http_filter
from meshproxy.http.stream import Stream
from meshproxy.observe.stats import StatsScope

LIBRARIES: Final = (brotli, gzip, zstd)  # they register themselves


class DecompressorStats(StatsScope):
    """Under `<filter>.request.` and `<filter>.response.`; of messages with a body."""

    COUNTERS = ("decompressed", "not_decompressed", "total_uncompressed_bytes", "total_compressed_bytes")

    def __init__(self) -> None:
        super().__init__()
        self.decompressed: int = 0
        self.not_decompressed: int = 0
        self.total_uncompressed_bytes: int = 0
        self.total_compressed_bytes: int = 0


class DecompressedBody:
    """One body on its way through the filter."""

    def __init__(self, decompressor: Decompressor) -> None:
        self._decompressor = decompressor
        self._compressed_bytes: int = 0
        self._uncompressed_bytes: int = 0

    def run(self, data: bytes, stats: DecompressorStats) -> bytes:
        decompressed = self._decompressor.decompress(data)
        self._compressed_bytes += len(data)
        self._uncompressed_bytes += len(decompressed)
        stats.total_compressed_bytes += len(data)
        stats.total_uncompressed_bytes += len(decompressed)
        return decompressed

    def report(self, trailers: HeaderMap, prefix: bytes) -> None:
        trailers.add(prefix + b"-compressed-bytes", b"%d" % self._compressed_bytes)
        trailers.add(prefix + b"-uncompressed-bytes", b"%d" % self._uncompressed_bytes)


class DecompressedStream:
    """What the filter does to one stream."""

    def __init__(self) -> None:
        self.request: DecompressedBody | None = None
        self.response: DecompressedBody | None = None


class Direction:
    """Which messages of one direction are decompressed, and their stats."""

    def __init__(self, enabled: RuntimeBool, ignore_no_transform: bool, stats: DecompressorStats) -> None:
        self.enabled = enabled
        self.stats = stats
        self._ignore_no_transform = ignore_no_transform

    def begin(self, headers: HeaderMap, library: DecompressorLibrary) -> DecompressedBody | None:
        """The body to come, when the library's coding is the first that was put on it; its headers follow suit."""
        encodings = headers.joined(b"content-encoding") if self.enabled.value else None
        if encodings is not None:
            first, _, others = encodings.partition(b",")
            if first.strip().lower() == library.encoding and self._may_be_changed(headers):
                self.stats.decompressed += 1
                headers.remove(b"content-length")
                headers.remove(b"content-encoding")
                if others.strip():
                    headers.add(b"content-encoding", others.strip())
                return DecompressedBody(library.decompressor())
        self.stats.not_decompressed += 1
        return None

    def _may_be_changed(self, headers: HeaderMap) -> bool:
        return self._ignore_no_transform or not has_token(headers.joined(b"cache-control"), b"no-transform")


class DecompressorFilter(HttpFilter):
    def __init__(
        self, library: DecompressorLibrary, trailer: bytes, request: Direction, response: Direction, advertises: bool
    ) -> None:
        self.library = library
        self.trailer = trailer  # how the names of the trailers begin
        self.request = request
        self.response = response
        self.advertises = advertises

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        if self.advertises and self.response.enabled.value:
            accepted = with_encoding(headers.joined(b"accept-encoding"), self.library.encoding)
            headers.set(b"accept-encoding", accepted)
        if not end:
            body = self.request.begin(headers, self.library)
            if body is not None:
                self._state(stream).request = body
        return CONTINUE

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        state = stream.state[self.slot]
        if not isinstance(state, DecompressedStream) or state.request is None:
            return CONTINUE
        decompressed = state.request.run(data, self.request.stats)
        if end:
            trailers = HeaderMap()
            state.request.report(trailers, self.trailer)
            stream.add_to_request(trailers)
        return decompressed

    def on_request_trailers(self, stream: Stream, trailers: HeaderMap) -> Result:
        state = stream.state[self.slot]
        if isinstance(state, DecompressedStream) and state.request is not None:
            state.request.report(trailers, self.trailer)
        return CONTINUE

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        if not end:
            body = self.response.begin(headers, self.library)
            if body is not None:
                self._state(stream).response = body
        return CONTINUE

    def on_response_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        state = stream.state[self.slot]
        if not isinstance(state, DecompressedStream) or state.response is None:
            return CONTINUE
        decompressed = state.response.run(data, self.response.stats)
        if end:
            trailers = HeaderMap()
            state.response.report(trailers, self.trailer)
            stream.add_to_response(trailers)
        return decompressed

    def on_response_trailers(self, stream: Stream, trailers: HeaderMap) -> Result:
        state = stream.state[self.slot]
        if isinstance(state, DecompressedStream) and state.response is not None:
            state.response.report(trailers, self.trailer)
        return CONTINUE

    def _state(self, stream: Stream) -> DecompressedStream:
        """The stream's, made when there is something to keep."""
        state = stream.state[self.slot]
        if not isinstance(state, DecompressedStream):
            state = stream.state[self.slot] = DecompressedStream()
        return state


# -- building ----------------------------------------------------------------------------------------------------------


def build_decompressor(message: Any, path: str, context: BuildContext) -> DecompressorFilter | None:
    name = message.decompressor_library.name
    prefix = f"{context.stat_prefix}decompressor.{name}."
    where = child(path, "decompressor_library")
    library = build_decompressor_library(message.decompressor_library, where, context, prefix)
    if library is None:
        return None
    prefix += f"{library.stat_name}."
    return DecompressorFilter(
        library,
        f"x-envoy-decompressor-{name}".lower().encode(),
        _build_direction(message.request_direction_config.common_config, f"{prefix}request.", context),
        _build_direction(message.response_direction_config.common_config, f"{prefix}response.", context),
        bool_or(message.request_direction_config, "advertise_accept_encoding", True),
    )


def _build_direction(message: Any, prefix: str, context: BuildContext) -> Direction:
    enabled = context.runtime.boolean(message.enabled) if message.HasField("enabled") else RuntimeBool("", True)
    return Direction(enabled, message.ignore_no_transform_header, context.scope(prefix, DecompressorStats))


register_http_filter(DecompressorConfig, HttpFilterType(build_decompressor))
