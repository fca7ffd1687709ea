"""The content coding `gzip` (RFC 1952), by the zlib of the standard library."""

from __future__ import annotations

import zlib
from typing import Any, Final

from envoy.extensions.compression.gzip.compressor.v3 import gzip_pb2 as compressor_pb2
from envoy.extensions.compression.gzip.decompressor.v3 import gzip_pb2 as decompressor_pb2

from meshproxy.config.context import BuildContext
from meshproxy.config.values import int_or
from meshproxy.http.compression.library import (
    COMPRESSORS,
    DECOMPRESSORS,
    DEFAULT_CHUNK_BYTES,
    DEFAULT_INFLATE_RATIO,
    Compressor,
    CompressorLibrary,
    Decompressor,
    DecompressorLibrary,
    FlushingCompressor,
    most_output,
)
from meshproxy.observe.stats import StatsScope

_GZIP_FRAMING: Final = 16  # added to zlib's window bits
_DEFAULT_COMPRESSOR_WINDOW_BITS: Final = 12
_DEFAULT_MEMORY_LEVEL: Final = 5


class ZlibStats(StatsScope):
    """Under `<filter>.gzip.decompressor_library.`; reading what is no gzip is a data error, as is a bomb."""

    COUNTERS = (
        "zlib_errno",
        "zlib_stream_error",
        "zlib_data_error",
        "zlib_mem_error",
        "zlib_buf_error",
        "zlib_version_error",
    )

    def __init__(self) -> None:
        super().__init__()
        self.zlib_errno: int = 0
        self.zlib_stream_error: int = 0
        self.zlib_data_error: int = 0
        self.zlib_mem_error: int = 0
        self.zlib_buf_error: int = 0
        self.zlib_version_error: int = 0


class GzipCompressorLibrary(CompressorLibrary):
    encoding = b"gzip"
    stat_name = "gzip"

    def __init__(self, level: int, window_bits: int, memory_level: int, strategy: int) -> None:
        self._level = level
        self._window_bits = window_bits
        self._memory_level = memory_level
        self._strategy = strategy

    def compressor(self) -> Compressor:
        deflate = zlib.compressobj(self._level, zlib.DEFLATED, self._window_bits, self._memory_level, self._strategy)
        return FlushingCompressor(deflate, zlib.Z_SYNC_FLUSH, zlib.Z_FINISH)


class GzipDecompressor(Decompressor):
    """Reads one member; what follows it is dropped, as in Envoy."""

    def __init__(self, library: GzipDecompressorLibrary) -> None:
        self._library = library
        self._inflate: Any = zlib.decompressobj(library.window_bits)
        self._failed: bool = False

    def decompress(self, data: bytes) -> bytes:
        if self._failed or self._inflate.eof:
            return b""
        library = self._library
        most = most_output(len(data), library.inflate_ratio, library.chunk_bytes)
        try:
            decompressed: bytes = self._inflate.decompress(data, most)
        except zlib.error:
            self._failed = True
            library.stats.zlib_data_error += 1
            return b""
        if len(decompressed) == most and not self._inflate.eof:
            self._failed = len(self._inflate.unconsumed_tail) > 0  # without one, the rest comes with the next piece
            library.stats.zlib_data_error += 1
        return decompressed


class GzipDecompressorLibrary(DecompressorLibrary):
    encoding = b"gzip"
    stat_name = "gzip"

    def __init__(self, window_bits: int, chunk_bytes: int, inflate_ratio: int, stats: ZlibStats) -> None:
        self.window_bits = window_bits
        self.chunk_bytes = chunk_bytes
        self.inflate_ratio = inflate_ratio
        self.stats = stats

    def decompressor(self) -> Decompressor:
        return GzipDecompressor(self)


def build_compressor(message: Any, path: str, context: BuildContext) -> GzipCompressorLibrary:
    # The numbers of the API's levels and strategies are zlib's own, but for the default level.
    return GzipCompressorLibrary(
        message.compression_level or zlib.Z_DEFAULT_COMPRESSION,
        int_or(message, "window_bits", _DEFAULT_COMPRESSOR_WINDOW_BITS) + _GZIP_FRAMING,
        int_or(message, "memory_level", _DEFAULT_MEMORY_LEVEL),
        message.compression_strategy,
    )


def build_decompressor(message: Any, path: str, context: BuildContext, stat_prefix: str) -> GzipDecompressorLibrary:
    return GzipDecompressorLibrary(
        int_or(message, "window_bits", zlib.MAX_WBITS) + _GZIP_FRAMING,
        int_or(message, "chunk_size", DEFAULT_CHUNK_BYTES),
        int_or(message, "max_inflate_ratio", DEFAULT_INFLATE_RATIO),
        context.scope(f"{stat_prefix}gzip.decompressor_library.", ZlibStats),
    )


COMPRESSORS.register(compressor_pb2.Gzip, build_compressor)
DECOMPRESSORS.register(decompressor_pb2.Gzip, build_decompressor)
