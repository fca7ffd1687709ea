"""The content coding `zstd` (RFC 8878), by the package zstandard, imported when a configuration asks for it."""

from __future__ import annotations

import importlib
from typing import Any, Final

from envoy.extensions.compression.zstd.compressor.v3 import zstd_pb2 as compressor_pb2
from envoy.extensions.compression.zstd.decompressor.v3 import zstd_pb2 as decompressor_pb2

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child, item
from meshproxy.config.values import int_or
from meshproxy.http.compression.library import (
    COMPRESSORS,
    DECOMPRESSORS,
    DEFAULT_INFLATE_RATIO,
    Compressor,
    CompressorLibrary,
    Decompressor,
    DecompressorLibrary,
    FlushingCompressor,
    most_output,
)
from meshproxy.observe.stats import StatsScope

_DEFAULT_LEVEL: Final = 3
_BLOCK_BYTES: Final = 128 * 1024  # a block of a frame decodes to no more (RFC 8878 section 3.1.1.2.4)


class ZstdStats(StatsScope):
    """Under `<filter>.zstd.decompressor_library.`; a bomb is a generic error."""

    COUNTERS = ("zstd_generic_error", "zstd_dictionary_error", "zstd_checksum_wrong_error", "zstd_memory_error")

    def __init__(self) -> None:
        super().__init__()
        self.zstd_generic_error: int = 0
        self.zstd_dictionary_error: int = 0
        self.zstd_checksum_wrong_error: int = 0
        self.zstd_memory_error: int = 0


class ZstdCompressorLibrary(CompressorLibrary):
    encoding = b"zstd"
    stat_name = "zstd"

    def __init__(self, zstandard: Any, parameters: Any, dictionary: Any) -> None:
        self._zstandard = zstandard
        self._parameters = parameters
        self._dictionary = dictionary  # None without one

    def compressor(self) -> Compressor:
        zstandard = self._zstandard
        compressor = zstandard.ZstdCompressor(compression_params=self._parameters, dict_data=self._dictionary)
        return FlushingCompressor(
            compressor.compressobj(), zstandard.COMPRESSOBJ_FLUSH_BLOCK, zstandard.COMPRESSOBJ_FLUSH_FINISH
        )


class Overflow(Exception):
    """A piece of a body became more than it may."""


class Output:
    """Takes what a piece of a body becomes, up to a limit."""

    def __init__(self) -> None:
        self.size: int = 0
        self._pieces: list[bytes] = []
        self._most: int = 0

    def begin(self, most: int) -> None:
        self.size = 0
        self._most = most

    def write(self, piece: bytes) -> int:
        """Called by the decoder; raises Overflow when there was more than the limit, which is kept."""
        size = len(piece)
        self._pieces.append(piece[: self._most - self.size])
        self.size += size
        if self.size > self._most:
            raise Overflow
        return size

    def take(self) -> bytes:
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken


class ZstdDecompressor(Decompressor):
    """Reads frame after frame. The decoder writes what it decodes piece by piece, so that a bomb can be stopped.

    A few bytes may complete a block that came before them, so output beyond the ratio is counted, as Envoy does, but
    only what is beyond its next chunk, too, ends the body.
    """

    def __init__(self, library: ZstdDecompressorLibrary) -> None:
        self._library = library
        self._output = Output()
        self._writer: Any = None
        self._failed: bool = False

    def decompress(self, data: bytes) -> bytes:
        if self._failed or not data:
            return b""
        library = self._library
        output = self._output
        output.begin(most_output(len(data), DEFAULT_INFLATE_RATIO, library.chunk_bytes))
        try:
            if self._writer is None:
                self._writer = library.writer(data, output)
            # A write can leave a block inside, when its output buffer is full just as its input ends. So the last
            # byte goes on its own: with it comes that block, and at most one more, for which the buffer is enough.
            self._writer.write(data[:-1])
            self._writer.write(data[-1:])
        except Overflow:
            self._failed = True
        except library.zstandard.ZstdError as error:
            self._failed = True
            return self._after(str(error))
        if output.size > len(data) * DEFAULT_INFLATE_RATIO:
            library.stats.zstd_generic_error += 1
        return output.take()

    def _after(self, reason: str) -> bytes:
        """What is left of a piece after this error: what a wrong checksum was of is not passed on."""
        decompressed = self._output.take()
        stats = self._library.stats
        if "checksum" in reason:
            stats.zstd_checksum_wrong_error += 1
            return b""
        if "ictionary" in reason:
            stats.zstd_dictionary_error += 1
        elif "not enough memory" in reason:
            stats.zstd_memory_error += 1
        else:
            stats.zstd_generic_error += 1
        return decompressed


class ZstdDecompressorLibrary(DecompressorLibrary):
    """`dictionaries` by their id."""

    encoding = b"zstd"
    stat_name = "zstd"

    def __init__(self, zstandard: Any, dictionaries: dict[int, Any], chunk_bytes: int, stats: ZstdStats) -> None:
        self.zstandard = zstandard
        self.dictionaries = dictionaries
        self.chunk_bytes = chunk_bytes
        self.stats = stats

    def decompressor(self) -> Decompressor:
        return ZstdDecompressor(self)

    def writer(self, beginning: bytes, output: Output) -> Any:
        """What decodes a body that begins so; raises ZstdError when nobody has its dictionary."""
        dictionary = None
        if self.dictionaries:
            wanted = self._dictionary_id(beginning)
            if wanted and wanted not in self.dictionaries:
                raise self.zstandard.ZstdError(f"no dictionary {wanted}")
            dictionary = self.dictionaries.get(wanted)
        decompressor = self.zstandard.ZstdDecompressor(dict_data=dictionary)
        return decompressor.stream_writer(output, write_size=2 * _BLOCK_BYTES, closefd=False)

    def _dictionary_id(self, beginning: bytes) -> int:
        """0 when the frame's header names none, or is not all there (then Envoy has no dictionary for it either)."""
        try:
            return int(self.zstandard.get_frame_parameters(beginning).dict_id)
        except self.zstandard.ZstdError:
            return 0


def build_compressor(message: Any, path: str, context: BuildContext) -> ZstdCompressorLibrary | None:
    zstandard: Any = importlib.import_module("zstandard")
    level = min(int_or(message, "compression_level", _DEFAULT_LEVEL), zstandard.MAX_COMPRESSION_LEVEL)
    chosen = {"strategy": message.strategy} if message.strategy else {}  # the numbers are zstd's own
    parameters = zstandard.ZstdCompressionParameters(
        compression_level=level, write_checksum=message.enable_checksum, write_dict_id=True, **chosen
    )
    dictionary = None
    if message.HasField("dictionary"):
        dictionary = _load_dictionary(zstandard, message.dictionary, child(path, "dictionary"), context)
        if dictionary is None:
            return None
    return ZstdCompressorLibrary(zstandard, parameters, dictionary)


def build_decompressor(
    message: Any, path: str, context: BuildContext, stat_prefix: str
) -> ZstdDecompressorLibrary | None:
    zstandard: Any = importlib.import_module("zstandard")
    dictionaries: dict[int, Any] = {}
    for index, source in enumerate(message.dictionaries):
        dictionary = _load_dictionary(zstandard, source, item(path, "dictionaries", index), context)
        if dictionary is None:
            return None
        dictionaries[dictionary.dict_id()] = dictionary
    stats = context.scope(f"{stat_prefix}zstd.decompressor_library.", ZstdStats)
    return ZstdDecompressorLibrary(zstandard, dictionaries, int_or(message, "chunk_size", _BLOCK_BYTES), stats)


def _load_dictionary(zstandard: Any, source: Any, path: str, context: BuildContext) -> Any:
    """A dictionary with an id (RFC 8878 section 5); None, with an error, for anything else."""
    data = context.load(source, path)
    if data is None:
        return None
    try:
        dictionary = zstandard.ZstdCompressionDict(data, dict_type=zstandard.DICT_TYPE_FULLDICT)
        zstandard.ZstdDecompressor(dict_data=dictionary).decompressobj()
    except zstandard.ZstdError:
        dictionary = None
    if dictionary is None or not dictionary.dict_id():
        context.errors.add(path, "is not a Zstandard dictionary")
        return None
    return dictionary


COMPRESSORS.register(compressor_pb2.Zstd, build_compressor)
DECOMPRESSORS.register(decompressor_pb2.Zstd, build_decompressor)
