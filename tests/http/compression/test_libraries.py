"""The compression libraries: what they make can be read by others, and the other way round; bombs are cut off."""

from __future__ import annotations

import random
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brotli
import pytest
import zstandard
from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.fields.check import check_fields
from meshproxy.config.runtime import Runtime
from meshproxy.http.compression import brotli as brotli_library
from meshproxy.http.compression import gzip, zstd
from meshproxy.http.compression.library import (
    Compressor,
    Decompressor,
    build_compressor_library,
    build_decompressor_library,
)
from meshproxy.observe.stats import StatsRegistry
from tests.http.harness import parse

KINDS = {"gzip": "Gzip", "brotli": "Brotli", "zstd": "Zstd"}
MODULES = (brotli_library, gzip, zstd)
WORDS = bytes(random.Random(7).choices(b"abcdef", k=200_000))
NULLS = bytes(20_000_000)


def gzipped(data: bytes) -> bytes:
    encoder = zlib.compressobj(9, zlib.DEFLATED, 31)
    return encoder.compress(data) + encoder.flush()


def zstd_frame(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


ENCODE: dict[str, Callable[[bytes], bytes]] = {"gzip": gzipped, "brotli": brotli.compress, "zstd": zstd_frame}


def reader(kind: str) -> Callable[[bytes], bytes]:
    """Reads what comes piece by piece, by the libraries themselves."""
    if kind == "gzip":
        return zlib.decompressobj(31).decompress
    if kind == "brotli":
        decoder = brotli.Decompressor()
        return lambda data: bytes(decoder.process(data) + decoder.process(b""))
    return zstandard.ZstdDecompressor().decompressobj().decompress


class Build:
    """A context, and what is built in it."""

    def __init__(self) -> None:
        self.errors = ConfigErrors()
        self.stats = StatsRegistry()
        self.context = BuildContext(self.errors, Runtime(), self.stats)

    def extension(self, kind: str, side: str, fields: dict[str, Any]) -> TypedExtensionConfig:
        url = f"type.googleapis.com/envoy.extensions.compression.{kind}.{side}.v3.{KINDS[kind]}"
        config: TypedExtensionConfig = parse(
            {"name": "n", "typed_config": {"@type": url, **fields}}, TypedExtensionConfig()
        )
        return config

    def compressor(self, kind: str, **fields: Any) -> Compressor:
        library = build_compressor_library(self.extension(kind, "compressor", fields), "lib", self.context)
        assert library is not None, str(self.errors)
        return library.compressor()

    def decompressor(self, kind: str, **fields: Any) -> Decompressor:
        library = build_decompressor_library(self.extension(kind, "decompressor", fields), "lib", self.context, "d.")
        assert library is not None, str(self.errors)
        return library.decompressor()

    def counted(self) -> dict[str, int]:
        return {name: value for name, value in self.stats.snapshot().counters.items() if value}


@pytest.mark.parametrize("kind", KINDS)
def test_each_piece_can_be_read_when_it_came(kind: str) -> None:
    compressor, read = Build().compressor(kind), reader(kind)
    for start in range(0, len(WORDS), 50_000):
        piece = WORDS[start : start + 50_000]
        assert read(compressor.compress(piece)) == piece
    assert read(compressor.finish(b"the end")) == b"the end"


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("gzip", {"memory_level": 1, "compression_level": "BEST_SPEED", "window_bits": 9}),
        ("gzip", {"compression_level": "COMPRESSION_LEVEL_9", "compression_strategy": "HUFFMAN_ONLY"}),
        ("gzip", {"compression_strategy": "RLE", "chunk_size": 65536}),
        ("brotli", {"quality": 0, "window_bits": 10, "input_block_bits": 24, "encoder_mode": "FONT"}),
        ("brotli", {"quality": 9, "window_bits": 24, "input_block_bits": 16, "encoder_mode": "TEXT"}),
        ("zstd", {"compression_level": 0, "strategy": "FAST"}),
        ("zstd", {"compression_level": 4_000_000, "enable_checksum": True}),
    ],
)
def test_options(kind: str, fields: dict[str, Any]) -> None:
    assert reader(kind)(Build().compressor(kind, **fields).finish(WORDS[:20_000])) == WORDS[:20_000]


def test_options_change_what_is_written() -> None:
    build = Build()
    sizes = [
        len(build.compressor("gzip", compression_level=level).finish(WORDS))
        for level in ("BEST_SPEED", "BEST_COMPRESSION")
    ]
    assert sizes[0] > sizes[1]
    assert build.compressor("gzip", compression_strategy="FIXED").finish(WORDS) != build.compressor("gzip").finish(
        WORDS
    )
    checked = build.compressor("zstd", enable_checksum=True).finish(WORDS)
    assert zstandard.get_frame_parameters(checked).has_checksum
    assert not zstandard.get_frame_parameters(build.compressor("zstd").finish(WORDS)).has_checksum
    assert len(build.compressor("brotli", quality=11).finish(WORDS)) < len(build.compressor("brotli").finish(WORDS))


@pytest.mark.parametrize("piece_bytes", [1, 7, 1000, 1 << 20])
@pytest.mark.parametrize("kind", KINDS)
def test_a_body_in_pieces_of_any_size(kind: str, piece_bytes: int) -> None:
    build = Build()
    body = ENCODE[kind](WORDS)
    decompressor = build.decompressor(kind)
    pieces = [decompressor.decompress(body[at : at + piece_bytes]) for at in range(0, len(body), piece_bytes)]
    assert b"".join(pieces) == WORDS
    # A byte may complete a block of zstd, which counts, but does no harm.
    assert set(build.counted()) <= {"d.zstd.decompressor_library.zstd_generic_error"}


@pytest.mark.parametrize("kind", KINDS)
def test_each_piece_is_read_when_it_came(kind: str) -> None:
    build = Build()
    compressor, decompressor = build.compressor(kind), build.decompressor(kind)
    for start in range(0, len(WORDS), 50_000):
        piece = WORDS[start : start + 50_000]
        assert decompressor.decompress(compressor.compress(piece)) == piece
    assert decompressor.decompress(compressor.finish(b"the end")) == b"the end"


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_piece_is_nothing(kind: str) -> None:
    build = Build()
    decompressor = build.decompressor(kind)
    assert decompressor.decompress(b"") == b""
    assert decompressor.decompress(ENCODE[kind](b"x")) == b"x"
    assert decompressor.decompress(b"") == b""
    assert build.counted() == {}


# Limits as Envoy has them: 100 times the input, noticed at the end of the chunk in which it is passed.
@pytest.mark.parametrize(
    ("kind", "fields", "counter", "most"),
    [
        ("gzip", {}, "zlib_data_error", lambda size: (size * 100 // 4096 + 1) * 4096),
        ("gzip", {"max_inflate_ratio": 3}, "zlib_data_error", lambda size: (size * 3 // 4096 + 1) * 4096),
        ("gzip", {"chunk_size": 65536}, "zlib_data_error", lambda size: (size * 100 // 65536 + 1) * 65536),
        ("brotli", {}, "brotli_output_overflow", lambda size: (size * 100 // 4096 + 4) * 4096),
        ("zstd", {}, "zstd_generic_error", lambda size: (size * 100 // 131072 + 1) * 131072),
        ("zstd", {"chunk_size": 4096}, "zstd_generic_error", lambda size: (size * 100 // 4096 + 1) * 4096),
    ],
)
def test_a_bomb_is_cut_off_and_counted(
    kind: str, fields: dict[str, Any], counter: str, most: Callable[[int], int]
) -> None:
    build = Build()
    bomb = ENCODE[kind](NULLS)
    decompressor = build.decompressor(kind, **fields)
    assert decompressor.decompress(bomb) == bytes(most(len(bomb)))
    assert decompressor.decompress(bomb) == b""
    assert build.counted()[f"d.{kind}.decompressor_library.{counter}"] == 1


def test_a_ratio_that_is_allowed() -> None:
    assert Build().decompressor("gzip", max_inflate_ratio=1032).decompress(gzipped(NULLS)) == NULLS


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_such_coding_is_dropped_and_counted_once(kind: str) -> None:
    build = Build()
    decompressor = build.decompressor(kind)
    assert decompressor.decompress(b"this is something else") == b""
    assert decompressor.decompress(ENCODE[kind](b"x")) == b""
    assert list(build.counted().values()) == [1]


@pytest.mark.parametrize(
    ("kind", "counted"),
    [("gzip", {}), ("brotli", {"brotli_error": 1, "brotli_redundant_input": 1}), ("zstd", {"zstd_generic_error": 1})],
)
def test_what_follows_the_end_is_dropped(kind: str, counted: dict[str, int]) -> None:
    build = Build()
    decompressor = build.decompressor(kind)
    assert decompressor.decompress(ENCODE[kind](WORDS)) == WORDS
    assert decompressor.decompress(b"more of something else") == b""
    assert build.counted() == {f"d.{kind}.decompressor_library.{name}": count for name, count in counted.items()}


def test_zstd_reads_frame_after_frame() -> None:
    decompressor = Build().decompressor("zstd")
    assert decompressor.decompress(zstd_frame(WORDS) * 2) == WORDS * 2
    assert decompressor.decompress(zstd_frame(b"x")) == b"x"


def test_a_wrong_checksum_is_counted_and_its_piece_lost() -> None:
    build = Build()
    frame = zstd_frame(WORDS)
    assert build.decompressor("zstd").decompress(frame[:-1] + bytes([frame[-1] ^ 1])) == b""
    assert build.counted() == {"d.zstd.decompressor_library.zstd_checksum_wrong_error": 1}


@pytest.fixture(scope="module")
def dictionary() -> Any:
    choose = random.Random(3).choices
    samples: list[bytes | bytearray | memoryview] = [
        b" ".join(choose([b"alpha", b"beta", b'{"key": ', b"gamma"], k=50)) for _ in range(300)
    ]
    return zstandard.train_dictionary(2048, samples, dict_id=42)


def test_dictionaries(dictionary: Any, tmp_path: Path) -> None:
    file = tmp_path / "dictionary"
    file.write_bytes(dictionary.as_bytes())
    build = Build()
    source = {"filename": str(file)}
    text = b"alpha beta gamma " * 9
    compressed = build.compressor("zstd", dictionary=source).finish(text)
    assert zstandard.get_frame_parameters(compressed).dict_id == 42
    assert build.decompressor("zstd", dictionaries=[source]).decompress(compressed) == text
    assert build.decompressor("zstd", dictionaries=[source]).decompress(zstd_frame(text)) == text
    assert str(file) in build.context.files  # by which the listener goes when it is written
    assert build.counted() == {}


def test_a_frame_with_a_dictionary_that_nobody_has(dictionary: Any) -> None:
    build = Build()
    inline = {"inline_bytes": "N6Qw7A=="}
    frame = zstandard.ZstdCompressor(dict_data=dictionary).compress(WORDS)
    assert build.decompressor("zstd").decompress(frame) == b""
    assert build.counted() == {"d.zstd.decompressor_library.zstd_dictionary_error": 1}
    for side, field, value in (("compressor", "dictionary", inline), ("decompressor", "dictionaries", [inline])):
        extension = build.extension("zstd", side, {field: value})
        if side == "compressor":
            assert build_compressor_library(extension, "lib", build.context) is None
        else:
            assert build_decompressor_library(extension, "lib", build.context, "d.") is None
    assert [(error.path, error.reason) for error in build.errors.sorted()] == [
        ("lib.typed_config.dictionaries[0]", "is not a Zstandard dictionary"),
        ("lib.typed_config.dictionary", "is not a Zstandard dictionary"),
    ]


def test_a_library_of_the_other_side_is_refused() -> None:
    build = Build()
    assert build_compressor_library(build.extension("gzip", "decompressor", {}), "lib", build.context) is None
    assert "lib.typed_config" in str(build.errors)
    assert "is not supported as a compressor library" in str(build.errors)


def test_a_field_that_the_package_has_not_is_refused() -> None:
    build = Build()
    check_fields(
        build.extension("brotli", "compressor", {"disable_literal_context_modeling": True}), "lib", build.errors
    )
    assert [error.path for error in build.errors.sorted()] == ["lib.typed_config.disable_literal_context_modeling"]


def test_packages_are_imported_when_they_are_asked_for() -> None:
    program = (
        "import sys, meshproxy.filters.builtin\n"
        "assert MODULES\n"
        "raise SystemExit(bool({'brotli', 'zstandard'} & set(sys.modules)))"
    ).replace("MODULES", str([module.__name__ for module in MODULES]))
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
