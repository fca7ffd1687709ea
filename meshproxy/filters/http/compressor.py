"""`envoy.filters.http.compressor`: compresses responses for clients that accept it, and requests where asked to.

Each piece of a body is compressed and flushed as it comes; nothing is collected. Several of these filters in a chain
choose one coding between them: the one of the highest weight that the client gave, with what each of them may compress.
"""

from __future__ import annotations

from typing import Any, Final

from envoy.extensions.filters.http.compressor.v3.compressor_pb2 import Compressor as CompressorConfig
from envoy.extensions.filters.http.compressor.v3.compressor_pb2 import CompressorPerRoute

from meshproxy.codec import headers as h
from meshproxy.codec.headers import HeaderMap
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child
from meshproxy.config.runtime import RuntimeBool
from meshproxy.http.compression import brotli, gzip, zstd
from meshproxy.http.compression.accept_encoding import (
    NAMED,
    NO_CODING,
    WILDCARD,
    Choice,
    choose,
    has_token,
)
from meshproxy.http.compression.library import Compressor, CompressorLibrary, build_compressor_library
from meshproxy.http.filter import CONTINUE, DataResult, HttpFilter, HttpFilterType, Result, register_http_filter
from meshproxy.http.stream import Stream
from meshproxy.http.upgrade import establishes_tunnel
from meshproxy.observe.stats import StatsScope

LIBRARIES: Final = (brotli, gzip, zstd)  # they register themselves

_STATUS_HEADER: Final = b"x-envoy-compression-status"
_DEFAULT_MIN_LENGTH: Final = 30
_DEFAULT_CONTENT_TYPES: Final = (
    "text/html text/plain text/css application/javascript application/x-javascript text/javascript text/x-javascript "
    "text/ecmascript text/js text/jscript text/x-js application/ecmascript application/x-json application/xml "
    "application/json image/svg+xml text/xml application/xhtml+xml application/grpc-web application/grpc-web+proto"
)


class DirectionStats(StatsScope):
    """Under `<filter>.request.` and `<filter>.response.` (or `<filter>.`, without a `response_direction_config`)."""

    COUNTERS = (
        "compressed",
        "not_compressed",
        "total_uncompressed_bytes",
        "total_compressed_bytes",
        "content_length_too_small",
    )

    def __init__(self) -> None:
        super().__init__()
        self.compressed: int = 0
        self.not_compressed: int = 0
        self.total_uncompressed_bytes: int = 0
        self.total_compressed_bytes: int = 0
        self.content_length_too_small: int = 0


class AcceptStats(StatsScope):
    """Under `<filter>.`; what requests accepted whose responses could have been compressed."""

    COUNTERS = (
        "no_accept_header",
        "header_identity",
        "header_compressor_used",
        "header_compressor_overshadowed",
        "header_wildcard",
        "header_not_valid",
        "not_compressed_etag",
    )

    def __init__(self) -> None:
        super().__init__()
        self.no_accept_header: int = 0
        self.header_identity: int = 0
        self.header_compressor_used: int = 0
        self.header_compressor_overshadowed: int = 0
        self.header_wildcard: int = 0
        self.header_not_valid: int = 0
        self.not_compressed_etag: int = 0


class Direction:
    """Which messages of one direction are compressed, and their stats."""

    def __init__(
        self, enabled: RuntimeBool, min_length: int, content_types: frozenset[bytes], stats: DirectionStats
    ) -> None:
        self.enabled = enabled
        self.stats = stats
        self._min_length = min_length
        self._content_types = content_types

    def is_long_enough(self, headers: HeaderMap) -> bool:
        """A message that does not tell its length is."""
        length = headers.get(b"content-length") if headers.known & h.CONTENT_LENGTH else None
        if length is None or (length.isdigit() and int(length) >= self._min_length):
            return True
        self.stats.content_length_too_small += 1
        return False

    def takes_type(self, headers: HeaderMap) -> bool:
        """A message that does not tell its type is taken."""
        content_type = headers.joined(b"content-type")
        return content_type is None or content_type.partition(b";")[0].strip().lower() in self._content_types

    def run(self, compressor: Compressor, data: bytes, end: bool) -> bytes:
        """Compress the next piece."""
        compressed = compressor.finish(data) if end else compressor.compress(data)
        self.stats.total_uncompressed_bytes += len(data)
        self.stats.total_compressed_bytes += len(compressed)
        return compressed


class ResponseOptions:
    """What there is to say of responses only."""

    def __init__(self, message: Any) -> None:
        """Of a ResponseDirectionConfig, or of the older fields of a Compressor by the same names."""
        self.disable_on_etag: bool = message.disable_on_etag_header
        self.remove_accept_encoding: bool = message.remove_accept_encoding_header
        self.uncompressible_codes: frozenset[int] = frozenset()
        self.status_header: bool = False


class RouteOverride:
    """A CompressorPerRoute; None says "as the filter does"."""

    def __init__(self) -> None:
        self.enabled: bool | None = None
        self.remove_accept_encoding: bool | None = None
        self.library: CompressorLibrary | None = None


class CompressedStream:
    """What the filter knows of one stream."""

    def __init__(self, accept_encoding: bytes | None) -> None:
        self.accept_encoding = accept_encoding
        self.choice: Choice | None = None
        self.request: Compressor | None = None
        self.response: Compressor | None = None


class CompressorFilter(HttpFilter):
    def __init__(
        self,
        library: CompressorLibrary,
        choose_first: bool,
        request: Direction | None,
        response: Direction,
        options: ResponseOptions,
        request_stats: DirectionStats,
        accept_stats: AcceptStats,
    ) -> None:
        self.library = library
        self.choose_first = choose_first
        self.request = request
        self.response = response
        self.options = options
        self.request_stats = request_stats
        self.accept_stats = accept_stats

    # -- requests

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        state = CompressedStream(headers.joined(b"accept-encoding"))
        stream.state[self.slot] = state
        override = self._override(stream)
        if state.accept_encoding is not None and self._is_enabled(override) and self._hides_accept_encoding(override):
            headers.remove(b"accept-encoding")
        direction = self.request
        if end or direction is None or not self._takes_request(direction, stream, headers):
            self.request_stats.not_compressed += 1
            return CONTINUE
        state.request = self._begin(headers, direction, self._library(override))
        return CONTINUE

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        state = stream.state[self.slot]
        if not isinstance(state, CompressedStream) or state.request is None or self.request is None:
            return CONTINUE
        return self.request.run(state.request, data, end)

    def on_request_trailers(self, stream: Stream, trailers: HeaderMap) -> Result:
        state = stream.state[self.slot]
        if isinstance(state, CompressedStream) and state.request is not None and self.request is not None:
            stream.add_to_request(self.request.run(state.request, b"", True))
        return CONTINUE

    def _takes_request(self, direction: Direction, stream: Stream, headers: HeaderMap) -> bool:
        return (
            direction.enabled.value
            and not stream.tunnel
            and direction.is_long_enough(headers)
            and direction.takes_type(headers)
            and headers.get(b"content-encoding") is None
        )

    # -- responses

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        state = stream.state[self.slot]
        if not isinstance(state, CompressedStream):  # a reply to a request that did not come as far as this filter
            state = stream.state[self.slot] = CompressedStream(None)
        override = self._override(stream)
        compressible = compress = False
        if self._is_enabled(override):
            if self.options.status_header:
                compressible = self._is_compressible_or_why(stream, headers, end, override)
                compress = compressible and not end and self._is_chosen(stream, state, override)
            elif self.response.is_long_enough(headers):
                compressible = self._is_compressible(stream, headers)
                compress = not end and self._is_chosen(stream, state, override) and compressible
        if compressible:
            _vary_on_accept_encoding(headers)
        if compress:
            self._compress_response(state, headers, override)
        else:
            self.response.stats.not_compressed += 1
        return CONTINUE

    def on_response_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        state = stream.state[self.slot]
        if not isinstance(state, CompressedStream) or state.response is None:
            return CONTINUE
        return self.response.run(state.response, data, end)

    def on_response_trailers(self, stream: Stream, trailers: HeaderMap) -> Result:
        state = stream.state[self.slot]
        if isinstance(state, CompressedStream) and state.response is not None:
            stream.add_to_response(self.response.run(state.response, b"", True))
        return CONTINUE

    def _compress_response(self, state: CompressedStream, headers: HeaderMap, override: RouteOverride | None) -> None:
        etag = headers.get(b"etag")
        if etag is not None and etag[:2].lower() != b"w/":  # a strong one promises these very bytes (RFC 9110 8.8.1)
            headers.remove(b"etag")
        length = headers.get(b"content-length") or b""
        library = self._library(override)
        state.response = self._begin(headers, self.response, library)
        if self.options.status_header:
            headers.add(_STATUS_HEADER, library.encoding + b";Compressed;OriginalLength=" + length)

    def _is_compressible(self, stream: Stream, headers: HeaderMap) -> bool:
        """Whether the response, which is long enough, may be compressed for those who accept it."""
        if not self._may_be_changed(stream, headers) or not self.response.takes_type(headers):
            return False
        if self._etag_forbids(headers):
            self.accept_stats.not_compressed_etag += 1
            return False
        return stream.info.response_code not in self.options.uncompressible_codes

    def _is_compressible_or_why(
        self, stream: Stream, headers: HeaderMap, end: bool, override: RouteOverride | None
    ) -> bool:
        """As `_is_compressible`, length and all, with what stood against it in a header. A response without a body gets
        none, and its etag is not counted; a length that is too small is counted twice for others, as Envoy does."""
        if not self._may_be_changed(stream, headers):
            return False
        reason = b""
        if not self.response.is_long_enough(headers):
            reason = b"ContentLengthTooSmall"
            self.response.stats.content_length_too_small += 0 if end else 1
        elif not self.response.takes_type(headers):
            reason = b"ContentTypeNotAllowed"
        elif self._etag_forbids(headers):
            reason = b"EtagNotAllowed"
            self.accept_stats.not_compressed_etag += 0 if end else 1
        elif stream.info.response_code in self.options.uncompressible_codes:
            reason = b"StatusCodeNotAllowed"
        if reason and not end:
            headers.add(_STATUS_HEADER, self._library(override).encoding + b";" + reason)
        return not reason

    def _may_be_changed(self, stream: Stream, headers: HeaderMap) -> bool:
        return (
            not has_token(headers.joined(b"cache-control"), b"no-transform")
            and headers.get(b"content-encoding") is None
            and not (stream.tunnel and establishes_tunnel(stream.tunnel, stream.info.response_code))
        )

    def _etag_forbids(self, headers: HeaderMap) -> bool:
        return self.options.disable_on_etag and headers.get(b"etag") is not None

    # -- which of the chain's compressors

    def _is_chosen(self, stream: Stream, state: CompressedStream, override: RouteOverride | None) -> bool:
        """Whether the client gets this filter's coding; counted."""
        stats = self.accept_stats
        if state.accept_encoding is None:
            stats.no_accept_header += 1
            return False
        choice = state.choice
        if choice is None:
            choice = _choose_in_chain(stream, state.accept_encoding)
        chosen = choice.encoding == self._library(override).encoding
        if choice.kind == NAMED:
            if chosen:
                stats.header_compressor_used += 1
            else:
                stats.header_compressor_overshadowed += 1
        elif choice.kind == WILDCARD:
            stats.header_wildcard += 1
        elif choice.kind == NO_CODING:
            stats.header_identity += 1
        else:
            stats.header_not_valid += 1
        return chosen

    def offer(self, stream: Stream) -> bytes:
        """The coding that this filter has for the stream's response; b"" when it does not take its type."""
        headers = stream.response_headers
        if headers is None or not self.response.takes_type(headers):
            return b""
        return self._library(self._override(stream)).encoding

    # -- configuration and route

    def _begin(self, headers: HeaderMap, direction: Direction, library: CompressorLibrary) -> Compressor:
        headers.remove(b"content-length")
        headers.set(b"content-encoding", library.encoding)
        direction.stats.compressed += 1
        return library.compressor()

    def _override(self, stream: Stream) -> RouteOverride | None:
        override = stream.route_config(self)
        return override if isinstance(override, RouteOverride) else None

    def _library(self, override: RouteOverride | None) -> CompressorLibrary:
        return self.library if override is None or override.library is None else override.library

    def _is_enabled(self, override: RouteOverride | None) -> bool:
        """For responses."""
        if override is not None and override.enabled is not None:
            return override.enabled
        return self.response.enabled.value

    def _hides_accept_encoding(self, override: RouteOverride | None) -> bool:
        if override is not None and override.remove_accept_encoding is not None:
            return override.remove_accept_encoding
        return self.options.remove_accept_encoding


def _choose_in_chain(stream: Stream, accept_encoding: bytes) -> Choice:
    """Choose once for all compressors of the chain, by what the first that asks saw of the request."""
    chain = stream.chain
    offers: dict[bytes, bool] = {}
    for http_filter in chain.filters:
        if isinstance(http_filter, CompressorFilter) and http_filter.name not in chain.disabled:
            encoding = http_filter.offer(stream)
            if encoding and encoding not in offers:
                offers[encoding] = http_filter.choose_first
    choice = choose(accept_encoding, offers)
    for state in stream.state:
        if isinstance(state, CompressedStream):
            state.choice = choice
    return choice


def _vary_on_accept_encoding(headers: HeaderMap) -> None:
    """Tell caches that another client may get other bytes (RFC 9110 section 12.5.5)."""
    vary = headers.joined(b"vary")
    if vary is None:
        headers.add(b"vary", b"Accept-Encoding")
    elif b"Accept-Encoding" not in [token.strip() for token in vary.split(b",")]:
        headers.set(b"vary", vary + b", Accept-Encoding")


# -- building ----------------------------------------------------------------------------------------------------------


def build_compressor(message: Any, path: str, context: BuildContext) -> CompressorFilter | None:
    library = build_compressor_library(message.compressor_library, child(path, "compressor_library"), context)
    if library is None:
        return None
    prefix = f"{context.stat_prefix}compressor.{message.compressor_library.name}.{library.stat_name}."
    request_stats = context.scope(f"{prefix}request.", DirectionStats)
    request = None
    if message.HasField("request_direction_config"):
        request = _build_direction(message.request_direction_config.common_config, request_stats, context)
    response, options = _build_response(message, prefix, context)
    accept_stats = context.scope(prefix, AcceptStats)
    return CompressorFilter(library, message.choose_first, request, response, options, request_stats, accept_stats)


def _build_response(message: Any, prefix: str, context: BuildContext) -> tuple[Direction, ResponseOptions]:
    """Where there is a `response_direction_config`, the older fields beside it say nothing."""
    if not message.HasField("response_direction_config"):
        stats = context.scope(prefix, DirectionStats)
        enabled = _enabled(message, "runtime_enabled", context)
        types = _content_types(message.content_type)
        length = message.content_length.value or _DEFAULT_MIN_LENGTH
        return Direction(enabled, length, types, stats), ResponseOptions(message)
    config = message.response_direction_config
    options = ResponseOptions(config)
    options.uncompressible_codes = frozenset(config.uncompressible_response_codes)
    options.status_header = config.status_header_enabled
    stats = context.scope(f"{prefix}response.", DirectionStats)
    return _build_direction(config.common_config, stats, context), options


def _build_direction(message: Any, stats: DirectionStats, context: BuildContext) -> Direction:
    return Direction(
        _enabled(message, "enabled", context),
        message.min_content_length.value or _DEFAULT_MIN_LENGTH,
        _content_types(message.content_type),
        stats,
    )


def _enabled(message: Any, field: str, context: BuildContext) -> RuntimeBool:
    return context.runtime.boolean(getattr(message, field)) if message.HasField(field) else RuntimeBool("", True)


def _content_types(types: Any) -> frozenset[bytes]:
    return frozenset(name.lower().encode() for name in types or _DEFAULT_CONTENT_TYPES.split())


def build_per_route(message: Any, path: str, context: BuildContext) -> RouteOverride | None:
    """Compile a CompressorPerRoute; a `response_direction_config`, empty as it may be, turns compression on."""
    override = RouteOverride()
    kind = message.WhichOneof("override")
    if kind is None:
        context.errors.add(path, "one of disabled, overrides is required")
        return None
    if kind == "disabled":
        override.enabled = False
        return override
    overrides = message.overrides
    if overrides.HasField("response_direction_config"):
        override.enabled = True
        if overrides.response_direction_config.HasField("remove_accept_encoding_header"):
            override.remove_accept_encoding = overrides.response_direction_config.remove_accept_encoding_header.value
    if overrides.HasField("compressor_library"):
        where = child(child(path, "overrides"), "compressor_library")
        override.library = build_compressor_library(overrides.compressor_library, where, context)
        if override.library is None:
            return None
    return override


register_http_filter(CompressorConfig, HttpFilterType(build_compressor, CompressorPerRoute, build_per_route))
