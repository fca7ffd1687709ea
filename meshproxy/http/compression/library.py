"""What a compression library is to the filters, and how a configuration finds one.

A library is made once from its configuration, and makes an object for each body. All of it is synchronous: a piece of a
body goes in, and what became of it comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child
from meshproxy.config.registry import Registry

DEFAULT_CHUNK_BYTES: Final = 4096
DEFAULT_INFLATE_RATIO: Final = 100  # of a bomb's output to its input; Envoy's, fixed for brotli and zstd


class Compressor:
    """One body on its way into a content coding."""

    def compress(self, data: bytes) -> bytes:
        """The next piece, flushed: whoever decodes what came so far has all of it."""
        raise NotImplementedError

    def finish(self, data: bytes) -> bytes:
        """The last piece, and the end of the coding."""
        raise NotImplementedError


class FlushingCompressor(Compressor):
    """By an encoder of zlib's shape, which gives what it has when it is flushed: in one mode to go on, in the other to
    end."""

    def __init__(self, encoder: Any, flush_mode: int, finish_mode: int) -> None:
        self._encoder = encoder
        self._flush_mode = flush_mode
        self._finish_mode = finish_mode

    def compress(self, data: bytes) -> bytes:
        compressed: bytes = self._encoder.compress(data) + self._encoder.flush(self._flush_mode)
        return compressed

    def finish(self, data: bytes) -> bytes:
        compressed: bytes = self._encoder.compress(data) + self._encoder.flush(self._finish_mode)
        return compressed


class Decompressor:
    """One body on its way out of a content coding.

    Neither what is no such coding nor a bomb fails the message, as in Envoy: both are counted, and the body ends there.
    """

    def decompress(self, data: bytes) -> bytes:
        raise NotImplementedError


class CompressorLibrary:
    """`encoding` is the name of the content coding, `stat_name` that of the library in stats."""

    encoding: bytes = b""
    stat_name: str = ""

    def compressor(self) -> Compressor:
        raise NotImplementedError


class DecompressorLibrary:
    """The way back."""

    encoding: bytes = b""
    stat_name: str = ""

    def decompressor(self) -> Decompressor:
        raise NotImplementedError


CompressorBuilder = Callable[[Any, str, BuildContext], CompressorLibrary | None]
# The last argument is where the filter's stats stand, e.g. `http.ingress.decompressor.NAME.`
DecompressorBuilder = Callable[[Any, str, BuildContext, str], DecompressorLibrary | None]

COMPRESSORS: Final[Registry[CompressorBuilder]] = Registry("compressor library")
DECOMPRESSORS: Final[Registry[DecompressorBuilder]] = Registry("decompressor library")


def build_compressor_library(extension: Any, path: str, context: BuildContext) -> CompressorLibrary | None:
    """The library of a TypedExtensionConfig; None after an error."""
    where = child(path, "typed_config")
    found = COMPRESSORS.find(extension.typed_config, where, context)
    return None if found is None else found[1](found[0], where, context)


def build_decompressor_library(
    extension: Any, path: str, context: BuildContext, stat_prefix: str
) -> DecompressorLibrary | None:
    """The library of a TypedExtensionConfig; None after an error."""
    where = child(path, "typed_config")
    found = DECOMPRESSORS.find(extension.typed_config, where, context)
    return None if found is None else found[1](found[0], where, context, stat_prefix)


def most_output(input_bytes: int, ratio: int, chunk_bytes: int) -> int:
    """How much a piece of so many bytes may become: a bomb is noticed when the output passes `ratio` times the input,
    looked at after each chunk of it, as Envoy does."""
    return (input_bytes * ratio // chunk_bytes + 1) * chunk_bytes
