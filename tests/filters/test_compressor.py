"""The compressor and decompressor filters, by what was recorded from Envoy 1.40; tests/differential has more."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
from envoy.extensions.filters.http.compressor.v3.compressor_pb2 import Compressor, CompressorPerRoute
from envoy.extensions.filters.http.decompressor.v3.decompressor_pb2 import Decompressor

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.fields.check import check_fields
from meshproxy.config.runtime import Layer
from meshproxy.filters.http import compressor, decompressor
from meshproxy.http.filter import HTTP_FILTER_OVERRIDES, HTTP_FILTERS
from tests.http.harness import Downstream, Harness, ScriptedUpstream, parse

LIBRARY = "type.googleapis.com/envoy.extensions.compression."
GZIP = {"name": "lib", "typed_config": {"@type": f"{LIBRARY}gzip.compressor.v3.Gzip"}}
GUNZIP = {"name": "lib", "typed_config": {"@type": f"{LIBRARY}gzip.decompressor.v3.Gzip"}}
REQUEST = b"GET / HTTP/1.1\r\nhost: h\r\naccept-encoding: gzip\r\n\r\n"


def harness(runtime: dict[str, Any] | None = None, **fields: Any) -> Harness:
    """A compressor before an upstream that answers when it is told."""
    made = Harness(upstream=ScriptedUpstream(None), runtime=runtime)
    message = parse({"compressor_library": GZIP, **fields}, Compressor())
    made.add(compressor.build_compressor(message, "f", made.context), "compressor")
    return made


def answer(made: Harness, *fields: tuple[bytes, bytes]) -> Downstream:
    """A connection whose response has begun."""
    connection = made.connect()
    connection.send(REQUEST)
    made.upstream.streams[-1].send_response_headers(HeaderMap([(b":status", b"200"), *fields]), False)
    return connection


def test_a_response_is_compressed_piece_by_piece() -> None:
    made = harness()
    connection = answer(made, (b"content-length", b"5000"))
    head = connection.received()
    assert b"content-encoding: gzip\r\n" in head
    assert b"vary: Accept-Encoding\r\n" in head
    assert b"content-length" not in head
    inflate = zlib.decompressobj(31)
    stream = made.upstream.streams[-1]
    for _ in range(4):
        stream.send_response_data(b"x" * 1000, False)
        _, _, piece = connection.received().partition(b"\r\n")
        assert inflate.decompress(piece[:-2]) == b"x" * 1000
    stream.send_response_data(b"y" * 1000, True)
    _, _, piece = connection.received().partition(b"\r\n")
    assert inflate.decompress(piece) == b"y" * 1000
    assert inflate.eof
    counters = made.registry.snapshot().counters
    assert counters["http.test.compressor.lib.gzip.compressed"] == 1
    assert counters["http.test.compressor.lib.gzip.total_uncompressed_bytes"] == 5000
    assert counters["http.test.compressor.lib.gzip.header_compressor_used"] == 1
    assert counters["http.test.compressor.lib.gzip.request.not_compressed"] == 1


def test_the_end_of_the_coding_comes_before_trailers() -> None:
    made = harness()
    connection = answer(made)
    connection.received()
    stream = made.upstream.streams[-1]
    stream.send_response_data(b"hello", False)
    stream.send_response_trailers(HeaderMap([(b"x-t", b"1")]))
    chunks = connection.received().split(b"\r\n")
    assert chunks[-3:] == [b"x-t: 1", b"", b""]
    inflate = zlib.decompressobj(31)
    assert inflate.decompress(chunks[1]) == b"hello"
    assert inflate.decompress(chunks[3]) == b""
    assert inflate.eof


def test_a_runtime_key_turns_it_off_and_on() -> None:
    flag = {"default_value": True, "runtime_key": "gzip.on"}
    made = harness({"gzip.on": False}, response_direction_config={"common_config": {"enabled": flag}})
    assert b"content-encoding" not in answer(made).received()
    made.runtime.replace_layers([Layer("static", {"gzip.on": True})])
    assert b"content-encoding: gzip" in answer(made).received()


def test_what_one_stream_leaves_another_does_not_find() -> None:
    made = harness()
    one, other = answer(made), answer(made)
    streams = made.upstream.streams[-2:]
    one.received(), other.received()
    for stream, data in zip(streams, (b"one" * 20, b"other" * 20), strict=True):
        stream.send_response_data(data, False)
    for connection, data in ((one, b"one" * 20), (other, b"other" * 20)):
        _, _, piece = connection.received().partition(b"\r\n")
        assert zlib.decompressobj(31).decompress(piece) == data


def test_a_reply_to_a_request_that_did_not_come_so_far() -> None:
    """The filter has seen no Accept-Encoding: it compresses nothing, as Envoy."""
    made = harness()
    config = made.config()
    stopping = made.filters[0]
    assert isinstance(stopping, compressor.CompressorFilter)
    connection = made.connect(config)
    connection.send(REQUEST)
    stream = made.upstream.streams[-1]
    stream.state[stopping.slot] = None
    stream.send_local_reply(500, b"x" * 100, "test")
    assert b"content-encoding" not in connection.received()
    assert made.registry.snapshot().counters["http.test.compressor.lib.gzip.no_accept_header"] == 1


def test_it_is_registered_with_its_overrides() -> None:
    prefix = "type.googleapis.com/envoy.extensions.filters.http"
    assert f"{prefix}.compressor.v3.Compressor" in HTTP_FILTERS.type_urls()
    assert f"{prefix}.decompressor.v3.Decompressor" in HTTP_FILTERS.type_urls()
    assert f"{prefix}.compressor.v3.CompressorPerRoute" in HTTP_FILTER_OVERRIDES.type_urls()


WRONG = {
    "name": "lib",
    "typed_config": {"@type": f"{LIBRARY}zstd.compressor.v3.Zstd", "dictionary": {"inline_string": "no"}},
}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"compressor_library": {"name": "lib"}}, "f.compressor_library.typed_config"),
        ({"compressor_library": GUNZIP}, "f.compressor_library.typed_config"),
        ({"compressor_library": WRONG}, "f.compressor_library.typed_config.dictionary"),
    ],
)
def test_a_library_that_cannot_be_built_is_told_with_its_path(fields: dict[str, Any], path: str) -> None:
    made = Harness()
    assert compressor.build_compressor(parse(fields, Compressor()), "f", made.context) is None
    assert [error.path for error in made.errors.sorted()] == [path]


def test_a_decompressor_library_that_cannot_be_built_is_told_with_its_path() -> None:
    made = Harness()
    message = parse({"decompressor_library": GZIP}, Decompressor())
    assert decompressor.build_decompressor(message, "f", made.context) is None
    assert [error.path for error in made.errors.sorted()] == ["f.decompressor_library.typed_config"]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({}, "r"),
        ({"overrides": {"compressor_library": WRONG}}, "r.overrides.compressor_library.typed_config.dictionary"),
    ],
)
def test_a_route_that_cannot_be_built_is_told_with_its_path(fields: dict[str, Any], path: str) -> None:
    made = Harness()
    assert compressor.build_per_route(parse(fields, CompressorPerRoute()), "r", made.context) is None
    assert [error.path for error in made.errors.sorted()] == [path]


def test_every_field_is_known() -> None:
    errors = ConfigErrors()
    common = {"enabled": {"default_value": True, "runtime_key": "k"}, "min_content_length": 1, "content_type": ["a/b"]}
    response = {
        "common_config": common,
        "disable_on_etag_header": True,
        "remove_accept_encoding_header": True,
        "uncompressible_response_codes": [206],
        "status_header_enabled": True,
    }
    options = {
        "memory_level": 1,
        "compression_level": 1,
        "compression_strategy": 1,
        "window_bits": 9,
        "chunk_size": 4096,
    }
    library = {"name": "lib", "typed_config": {**GZIP["typed_config"], **options}}  # type: ignore[dict-item]
    fields: dict[str, Any] = {
        "compressor_library": library,
        "request_direction_config": {"common_config": common},
        "response_direction_config": response,
        "choose_first": True,
        "content_length": 1,
        "content_type": ["a/b"],
        "disable_on_etag_header": True,
        "remove_accept_encoding_header": True,
        "runtime_enabled": {"default_value": True, "runtime_key": "k"},
    }
    assert check_fields(parse(fields, Compressor()), "f", errors) == []
    overrides = {"response_direction_config": {"remove_accept_encoding_header": True}, "compressor_library": GZIP}
    assert check_fields(parse({"overrides": overrides}, CompressorPerRoute()), "r", errors) == []
    common = {"enabled": {"default_value": True, "runtime_key": "k"}, "ignore_no_transform_header": True}
    decompressing = {
        "decompressor_library": GUNZIP,
        "request_direction_config": {"common_config": common, "advertise_accept_encoding": True},
        "response_direction_config": {"common_config": common},
    }
    assert check_fields(parse(decompressing, Decompressor()), "d", errors) == []
    assert not errors, str(errors)
