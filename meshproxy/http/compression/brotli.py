"""The content coding `br` (RFC 7932), by the package brotli, imported when a configuration asks for it."""

from __future__ import annotations

import importlib
from typing import Any, Final

from envoy.extensions.compression.brotli.compressor.v3 import brotli_pb2 as compressor_pb2
from envoy.extensions.compression.brotli.decompressor.v3 import brotli_pb2 as decompressor_pb2

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
    most_output,
)
from meshproxy.observe.stats import StatsScope

_DEFAULT_QUALITY: Final = 3
_DEFAULT_WINDOW_BITS: Final = 18
_DEFAULT_INPUT_BLOCK_BITS: Final = 24


class BrotliStats(StatsScope):
    """Under `<filter>.brotli.decompressor_library.`; an overflow and redundant input count as errors, too."""

    COUNTERS = ("brotli_error", "brotli_output_overflow", "brotli_redundant_input")

    def __init__(self) -> None:
        super().__init__()
        self.brotli_error: int = 0
        self.brotli_output_overflow: int = 0
        self.brotli_redundant_input: int = 0


class BrotliCompressor(Compressor):
    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder

    def compress(self, data: bytes) -> bytes:
        compressed: bytes = self._encoder.process(data) + self._encoder.flush()
        return compressed

    def finish(self, data: bytes) -> bytes:
        compressed: bytes = self._encoder.process(data) + self._encoder.finish()
        return compressed


class BrotliCompressorLibrary(CompressorLibrary):
    encoding = b"br"
    stat_name = "brotli"

    def __init__(self, mode: int, quality: int, window_bits: int, input_block_bits: int) -> None:
        self._brotli: Any = importlib.import_module("brotli")
        self._mode = mode
        self._quality = quality
        self._window_bits = window_bits
        self._input_block_bits = input_block_bits

    def compressor(self) -> Compressor:
        encoder = self._brotli.Compressor(
            mode=self._mode, quality=self._quality, lgwin=self._window_bits, lgblock=self._input_block_bits
        )
        return BrotliCompressor(encoder)


class BrotliDecompressor(Decompressor):
    """The package hands out what it decodes in blocks of 32 KiB, and keeps the rest: what is too much is cut off."""

    def __init__(self, library: BrotliDecompressorLibrary) -> None:
        self._library = library
        self._decoder: Any = library.brotli.Decompressor()
        self._failed: bool = False

    def decompress(self, data: bytes) -> bytes:
        if self._failed or not data:
            return b""
        library = self._library
        if self._decoder.is_finished():
            library.stats.brotli_redundant_input += 1
            self._fail()
            return b""
        most = most_output(len(data), DEFAULT_INFLATE_RATIO, library.chunk_bytes)
        most += 3 * library.chunk_bytes  # Envoy notices a chunk later, and takes two more at the end of the body
        try:
            decompressed = self._process(data, most)
        except library.brotli.error:
            self._fail()
            return b""
        if len(decompressed) > most or not self._decoder.can_accept_more_data():
            library.stats.brotli_output_overflow += 1
            self._fail()
        return decompressed[:most]

    def _process(self, data: bytes, most: int) -> bytes:
        """All there is to have of a piece, or more than `most`. The package may give a first part and be content."""
        decoder = self._decoder
        part: bytes = decoder.process(data, output_buffer_limit=most)
        parts = [part]
        size = len(part)
        while part and size <= most and not decoder.is_finished():
            part = decoder.process(b"", output_buffer_limit=most - size + 1)
            parts.append(part)
            size += len(part)
        return b"".join(parts)

    def _fail(self) -> None:
        self._failed = True
        self._library.stats.brotli_error += 1


class BrotliDecompressorLibrary(DecompressorLibrary):
    encoding = b"br"
    stat_name = "brotli"

    def __init__(self, chunk_bytes: int, stats: BrotliStats) -> None:
        self.brotli: Any = importlib.import_module("brotli")
        self.chunk_bytes = chunk_bytes
        self.stats = stats

    def decompressor(self) -> Decompressor:
        return BrotliDecompressor(self)


def build_compressor(message: Any, path: str, context: BuildContext) -> BrotliCompressorLibrary:
    # DEFAULT is the encoder's own default, GENERIC; the others' numbers are one above the encoder's.
    return BrotliCompressorLibrary(
        max(message.encoder_mode - 1, 0),
        int_or(message, "quality", _DEFAULT_QUALITY),
        int_or(message, "window_bits", _DEFAULT_WINDOW_BITS),
        int_or(message, "input_block_bits", _DEFAULT_INPUT_BLOCK_BITS),
    )


def build_decompressor(message: Any, path: str, context: BuildContext, stat_prefix: str) -> BrotliDecompressorLibrary:
    stats = context.scope(f"{stat_prefix}brotli.decompressor_library.", BrotliStats)
    return BrotliDecompressorLibrary(int_or(message, "chunk_size", DEFAULT_CHUNK_BYTES), stats)


COMPRESSORS.register(compressor_pb2.Brotli, build_compressor)
DECOMPRESSORS.register(decompressor_pb2.Brotli, build_decompressor)
