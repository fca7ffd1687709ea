"""The compressor and decompressor filters: bodies are compared decoded, since nobody promises the same bytes."""

import difflib
import random
import zlib
from collections.abc import Callable
from dataclasses import replace

import brotli
import pytest
import zstandard

from tests.differential.cases import AwaitUpstream, Case, Differs, Expect, Receive, chunked, get, post, request
from tests.differential.outcome import Outcome
from tests.differential.pair import SUBJECT_IS_ENVOY, Pair, Side, check_expectation
from tests.differential.test_stats import values
from tests.differential.topic import Topic
from tests.support.downstream import RawDownstream
from tests.support.upstream import Answer, reply
from tests.support.wire import Message

HTTP = "type.googleapis.com/envoy.extensions.filters.http."
LIBRARY = "type.googleapis.com/envoy.extensions.compression."
KINDS = {"gzip": "Gzip", "brotli": "Brotli", "zstd": "Zstd"}
ROUTER = f"{{ name: router, typed_config: {{ '@type': {HTTP}router.v3.Router }} }}"
TEXT = b"hello world " * 100
# Compresses to a third: no bomb.
WORDS = bytes(random.Random(7).choices(b"abcdef", k=6000))
NULLS = bytes(2_000_000)
ZSTD_FLUSH = "zstd-flush"
DIFFERENCES = (ZSTD_FLUSH,)


def deflated(data: bytes, window_bits: int = 15) -> bytes:
    """As gzip."""
    encoder = zlib.compressobj(9, zlib.DEFLATED, 16 + window_bits)
    return encoder.compress(data) + encoder.flush()


def zstd_frame(data: bytes, *, checksum: bool = False) -> bytes:
    """As zstd."""
    return zstandard.ZstdCompressor(write_checksum=checksum).compress(data)


ENCODERS: dict[str, Callable[[bytes], bytes]] = {"gzip": deflated, "br": brotli.compress, "zstd": zstd_frame}
DECODERS: dict[bytes, Callable[[bytes], bytes]] = {
    b"gzip": lambda body: zlib.decompress(body, 31),
    b"br": brotli.decompress,
    b"zstd": lambda body: zstandard.ZstdDecompressor().decompressobj().decompress(body),
}


def library(kind: str, side: str, fields: str = "", name: str = "") -> str:
    """A compression library."""
    return f"{side}_library: {{ name: {name or kind}, typed_config: {{ '@type': {LIBRARY}{kind}.{side}.v3.{KINDS[kind]}, {fields} }} }}"


def compressor(kind: str = "gzip", fields: str = "response_direction_config: {}", options: str = "") -> str:
    """A compressor filter."""
    config = f"'@type': {HTTP}compressor.v3.Compressor, {library(kind, 'compressor', options)}, {fields}"
    return f"{{ name: compressor_{kind}, typed_config: {{ {config} }} }}"


def decompressor(kind: str = "gzip", fields: str = "", options: str = "", name: str = "any") -> str:
    """A decompressor filter. Envoy names the trailers of all after the library of the first: so all have one name."""
    config = f"'@type': {HTTP}decompressor.v3.Decompressor, {library(kind, 'decompressor', options, name)}, {fields}"
    return f"{{ name: decompressor_{kind}, typed_config: {{ {config} }} }}"


def filters(*items: str) -> str:
    """A listener's filters, and trailers on."""
    return (
        f"http_filters: [{', '.join((*items, ROUTER))}]\n"
        "http_protocol_options: { enable_trailers: true, accept_http_10: true }\n"
    )


def per_route(fields: str) -> str:
    """A route with a CompressorPerRoute."""
    override = f"{{ '@type': {HTTP}compressor.v3.CompressorPerRoute, {fields} }}"
    return (
        f"match: {{ prefix: / }}\nroute: {{ cluster: a }}\ntyped_per_filter_config: {{ compressor_gzip: {override} }}"
    )


def accepting(value: str, *headers: tuple[str, str], method: str = "GET") -> bytes:
    """A request with Accept-Encoding."""
    return request(method, "/", [("accept-encoding", value), *headers])


def ask(
    name: str, listener: str, answer: Answer, *headers: tuple[str, str], accept: str = "gzip, br, zstd", route: str = ""
) -> Case:
    """A GET that accepts encodings."""
    return Case(name, accepting(accept, *headers), (answer,), listener=listener, route=route, log_bytes=False)


RESPONSES = {
    "plain": reply(200, TEXT),
    "typed": reply(200, TEXT, [("content-type", "Text/HTML ; charset=x")]),
    "image": reply(200, TEXT, [("content-type", "image/png")]),
    "small": reply(200, b"x" * 29),
    "just_enough": reply(200, b"x" * 30),
    "empty": reply(200, b""),
    "no_content": reply(204),
    "not_modified": reply(304, b"", [("etag", '"a"')]),
    "partial": reply(206, TEXT, [("content-range", "bytes 0-1199/2000")]),
    "partial_small": reply(206, b"x"),
    "partial_etag": reply(206, TEXT, [("etag", '"a"')]),
    "error": reply(500, TEXT),
    "etag": reply(200, TEXT, [("etag", '"a"')]),
    "etag_empty": reply(200, TEXT, [("etag", '""')]),
    "etag_weak": reply(200, TEXT, [("etag", 'W/"a"')]),
    "etag_image": reply(200, TEXT, [("etag", '"a"'), ("content-type", "image/png")]),
    "encoded": reply(200, deflated(TEXT), [("content-encoding", "gzip")]),
    "no_transform": reply(200, TEXT, [("cache-control", "max-age=1, No-Transform")]),
    "no_transform_small": reply(200, b"x", [("cache-control", "no-transform")]),
    "vary": reply(200, TEXT, [("vary", "Origin")]),
    "vary_already": reply(200, TEXT, [("vary", "Origin, Accept-Encoding")]),
    "vary_spelled": reply(200, TEXT, [("vary", "accept-encoding")]),
    "vary_star": reply(200, TEXT, [("vary", "*")]),
    "chunked": Answer((b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(b"a" * 9, WORDS),)),
    "trailers": Answer(
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(WORDS, trailers=[("x-t", "1")]),)
    ),
    "until_close": Answer((b"HTTP/1.1 200 OK\r\n\r\n" + TEXT,), then="close"),
}
HEAD_ANSWER = Answer((b'HTTP/1.1 200 OK\r\ncontent-length: 2000\r\netag: "a"\r\n\r\n',))

COMPRESSED = [
    ask(f"{listener}_{name}", listener, answer) for listener in ("gzip", "status") for name, answer in RESPONSES.items()
]
COMPRESSED += [
    Case(f"{listener}_head", accepting("gzip", method="HEAD"), (HEAD_ANSWER,), listener=listener, log_bytes=False)
    for listener in ("gzip", "status", "etag")
]
COMPRESSED += [
    Case(f"{listener}_nothing_accepted", get("/"), (RESPONSES[name],), listener=listener, log_bytes=False)
    for listener, name in (("gzip", "plain"), ("status", "small"), ("etag", "etag"))
]
COMPRESSED += [
    ask(f"{listener}_{name}", listener, RESPONSES[name])
    for listener in ("brotli", "zstd", "options", "legacy", "etag")
    for name in ("plain", "trailers", "small", "etag", "etag_image", "partial", "partial_small", "typed")
]
COMPRESSED += [
    Case(
        f"gzip_to_http_1_0_{name}",
        request("GET", "/", [("accept-encoding", "gzip")], version="HTTP/1.0"),
        (RESPONSES[name],),
        listener="gzip",
        log_bytes=False,
    )
    for name in ("plain", "small")
]
COMPRESSED += [
    ask("off", "off", RESPONSES["plain"]),
    ask("off_turned_on", "off", RESPONSES["plain"], route=per_route("overrides: { response_direction_config: {} }")),
    ask("runtime", "runtime", RESPONSES["plain"]),
    ask("hidden", "hidden", RESPONSES["plain"]),
    ask("hidden_image", "hidden", RESPONSES["image"]),
    ask("route_off", "gzip", RESPONSES["plain"], route=per_route("disabled: true")),
    ask("route_off_status", "status", RESPONSES["small"], route=per_route("disabled: true")),
    ask("route_off_hidden", "hidden", RESPONSES["small"], route=per_route("disabled: true")),
    ask("route_no_overrides", "gzip", RESPONSES["plain"], route=per_route("overrides: {}")),
    ask(
        "route_hidden",
        "gzip",
        RESPONSES["plain"],
        route=per_route("overrides: { response_direction_config: { remove_accept_encoding_header: true } }"),
    ),
    ask(
        "route_not_hidden",
        "hidden",
        RESPONSES["plain"],
        route=per_route("overrides: { response_direction_config: { remove_accept_encoding_header: false } }"),
    ),
    *(
        ask(
            f"route_library_{accept}",
            "gzip",
            RESPONSES["plain"],
            accept=accept,
            route=per_route(f"overrides: {{ {library('brotli', 'compressor', name='other')} }}"),
        )
        for accept in ("gzip", "br")
    ),
    Case(
        "route_library_status",
        accepting("br"),
        (RESPONSES["plain"],),
        listener="status",
        log_bytes=False,
        route=per_route(f"overrides: {{ {library('brotli', 'compressor', name='other')} }}"),
        differs=Differs(
            "compression-status-library",
            ours=Expect((200,), upstream=("GET / HTTP/1.1",), contains=("content-encoding: br", "body: 1200 bytes")),
            envoy=Expect((200,), upstream=("GET / HTTP/1.1",), contains=("content-encoding: br", "'not br'")),
        ),
    ),
    ask(
        "direct_response",
        "gzip",
        RESPONSES["plain"],
        route="match: { prefix: / }\ndirect_response: { status: 404, body: { inline_string: " + "x" * 40 + " } }",
    ),
    ask("local_reply", "gzip", RESPONSES["plain"], route="match: { prefix: / }\nroute: { cluster: empty }"),
]

ACCEPT = (
    "gzip;q=1.0",
    "gzip; q=0.1",
    "gzip;Q=0",
    "gzip;q=abc",
    "gzip;q=",
    "gzip;q=-1",
    "gzip;level=1;q=0",
    "gzip;q=0;x=1",
    "gzip,gzip;q=0",
    "identity, gzip",
    "gzip, identity",
    "identity;q=0.5, gzip;q=0.5",
    "*",
    "*;q=0",
    "*;q=0, gzip",
    "gzip;q=0,*",
    "br, *;q=0.1",
    "br, gzip",
    "gzip, br",
    "gzip, br;q=0.9",
    "gzip;q=0.5, br;q=0.6",
    "gzip;q=0, br;q=0, *",
    "GZIP",
    "x-gzip",
    "deflate",
    "identity;q=0",
    ",,gzip,,",
    "gzip ; q = 0",
    "gzip;q=inf",
    "gzip;q=nan",
    "gzip;q=1e-3",
    "",
)
CHOSEN = [
    ask(f"accept_{listener}_{number}", listener, RESPONSES["plain"], accept=accept)
    for listener in ("gzip", "two", "two_first", "two_status")
    for number, accept in enumerate(ACCEPT)
]
CHOSEN += [
    ask("two_image", "two_status", RESPONSES["image"]),
    ask("two_small", "two_status", RESPONSES["small"]),
    ask("two_types_css", "two_types", reply(200, TEXT, [("content-type", "text/css")])),
    ask("two_types_html", "two_types", reply(200, TEXT, [("content-type", "text/html")])),
    ask("two_types_none", "two_types", RESPONSES["plain"]),
    ask("two_types_overlap", "two_types", RESPONSES["typed"], accept="br;q=0.1, gzip"),
]

REQUESTS = [
    Case("request", post("/", TEXT), listener="requests", log_bytes=False),
    Case("request_small", post("/", b"x" * 29), listener="requests", log_bytes=False),
    Case("request_empty", get("/"), listener="requests", log_bytes=False),
    Case("request_image", post("/", TEXT, ("content-type", "image/png")), listener="requests", log_bytes=False),
    Case("request_json", post("/", TEXT, ("content-type", "application/json")), listener="requests", log_bytes=False),
    Case("request_encoded", post("/", TEXT, ("content-encoding", "x")), listener="requests", log_bytes=False),
    Case(
        "request_no_transform", post("/", TEXT, ("cache-control", "no-transform")), listener="requests", log_bytes=False
    ),
    Case("request_off", post("/", TEXT), listener="requests_off", log_bytes=False),
    Case("request_not_configured", post("/", TEXT), listener="gzip", log_bytes=False),
    Case("request_route_off", post("/", TEXT), listener="requests", route=per_route("disabled: true"), log_bytes=False),
    Case(
        "request_route_library",
        post("/", TEXT),
        listener="requests",
        route=per_route(f"overrides: {{ {library('zstd', 'compressor')} }}"),
        log_bytes=False,
    ),
    *(
        Case(
            f"request_chunked_{name}",
            request("POST", "/", [("transfer-encoding", "chunked")]) + chunked(b"a", WORDS, trailers=trailers),
            listener="requests",
            route="match: { prefix: / }\nroute: { cluster: trailers }",
            log_bytes=False,
        )
        for name, trailers in (("plain", ()), ("trailers", [("x-t", "1")]))
    ),
]


def encoded(encoding: str, body: bytes, *headers: tuple[str, str], status: int = 200) -> Answer:
    """An encoded answer."""
    return reply(status, body, [("content-encoding", encoding), *headers])


def plain(name: str, listener: str, answer: Answer, *headers: tuple[str, str]) -> Case:
    """A GET through a decompressor."""
    return Case(name, get("/", *headers), (answer,), listener=listener, log_bytes=False)


def flipped(body: bytes) -> bytes:
    """With a wrong last byte."""
    return body[:-1] + bytes([body[-1] ^ 255])


GZIP = deflated(WORDS)
DECOMPRESSED = [
    plain("inflate", "inflate", encoded("gzip", GZIP)),
    plain("inflate_spelled", "inflate", encoded("GZIP", GZIP)),
    plain("inflate_first_of_two", "inflate", encoded(" gzip , br", GZIP)),
    plain("inflate_two_lines", "inflate", encoded("gzip", GZIP, ("content-encoding", "br"))),
    plain("inflate_not_first", "inflate", encoded("br, gzip", GZIP)),
    plain("inflate_not_encoded", "inflate", reply(200, WORDS)),
    plain("inflate_etag", "inflate", encoded("gzip", GZIP, ("etag", '"a"'), ("vary", "x"))),
    plain("inflate_partial", "inflate", encoded("gzip", GZIP, ("content-range", "bytes 0-9/20"), status=206)),
    plain("inflate_no_transform", "inflate", encoded("gzip", GZIP, ("cache-control", "a, no-transform"))),
    plain("inflate_no_transform_ignored", "ignoring", encoded("gzip", GZIP, ("cache-control", "no-transform"))),
    plain("inflate_empty", "inflate", encoded("gzip", b"")),
    plain("inflate_not_modified", "inflate", encoded("gzip", b"", status=304)),
    Case(
        "inflate_head",
        request("HEAD", "/"),
        (Answer((b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 9\r\n\r\n",)),),
        listener="inflate",
        log_bytes=False,
    ),
    plain("inflate_off", "inflate_off", encoded("gzip", GZIP)),
    plain("inflate_truncated", "inflate", encoded("gzip", GZIP[:-9])),
    plain("inflate_two_members", "inflate", encoded("gzip", GZIP + GZIP)),
    plain("inflate_and_more", "inflate", encoded("gzip", GZIP + b"more")),
    plain("inflate_garbage", "inflate", encoded("gzip", b"this is no gzip at all")),
    plain("inflate_zlib", "inflate", encoded("gzip", zlib.compress(WORDS))),
    plain("inflate_bomb", "inflate", encoded("gzip", deflated(NULLS))),
    plain("inflate_bomb_at_10", "inflate_10", encoded("gzip", deflated(NULLS))),
    plain("inflate_no_bomb_at_1032", "inflate_1032", encoded("gzip", deflated(NULLS))),
    plain("inflate_small_window", "inflate_9", encoded("gzip", deflated(WORDS, 9))),
    plain("inflate_nested", "inflate_both", encoded("gzip, br", deflated(brotli.compress(WORDS)))),
    *(
        plain(f"inflate_accepts_{number}", "inflate", reply(), ("accept-encoding", accept))
        for number, accept in enumerate(
            ("", "gzip", "gzip;q=0.5", "br, gzip;q=0", "*", "GZIP, br", "br ,  deflate;q=0.1", "x-gzip, gzip")
        )
    ),
    plain("inflate_not_advertised", "ignoring", reply(), ("accept-encoding", "br")),
    plain("inflate_again_deflated", "inflate_deflate", encoded("gzip", GZIP), ("accept-encoding", "gzip")),
    replace(
        plain("inflate_what_was_deflated", "deflate_inflate", reply(200, WORDS), ("accept-encoding", "br")),
        ignore=("trailer x-envoy-decompressor-any-compressed-bytes",),
    ),
    *(
        Case(f"inflate_request_{name}", post("/", body, *headers), listener=listener, log_bytes=False)
        for name, listener, body, headers in (
            ("body", "inflate", GZIP, [("content-encoding", "gzip")]),
            ("plain", "inflate", b"ok", []),
            ("no_transform", "inflate", GZIP, [("content-encoding", "gzip"), ("cache-control", "no-transform")]),
            ("off", "inflate_off", GZIP, [("content-encoding", "gzip")]),
        )
    ),
    *(
        Case(
            f"inflate_request_chunked_{name}",
            request("POST", "/", [("content-encoding", "gzip"), ("transfer-encoding", "chunked")])
            + chunked(GZIP[:1000], GZIP[1000:], trailers=trailers),
            listener="inflate",
            route="match: { prefix: / }\nroute: { cluster: trailers }",
            log_bytes=False,
        )
        for name, trailers in (("plain", ()), ("trailers", [("x-t", "1")]))
    ),
    Case(
        "inflate_request_bomb_in_two",
        (
            request("POST", "/", [("content-encoding", "gzip"), ("transfer-encoding", "chunked")])
            + chunked(deflated(NULLS)[:1000])[:-5],
            AwaitUpstream(1),
            chunked(deflated(NULLS)[1000:]),
            Receive(),
        ),
        listener="inflate",
        log_bytes=False,
        differs=Differs(
            "decompressor-after-error",
            ours=Expect((200,), upstream=("POST / HTTP/1.1",), contains=("body: 102400 bytes",)),
            envoy=Expect((200,), upstream=("POST / HTTP/1.1",), contains=("body: 200704 bytes",)),
        ),
    ),
    Case(
        "inflate_trailers_of_second",
        get("/"),
        (encoded("br", brotli.compress(WORDS)),),
        listener="inflate_second",
        log_bytes=False,
        differs=Differs(
            "decompressor-trailers",
            ours=Expect(
                (200,), upstream=("GET / HTTP/1.1",), contains=("x-envoy-decompressor-second-uncompressed-bytes: 6000",)
            ),
            envoy=Expect(
                (200,), upstream=("GET / HTTP/1.1",), contains=("x-envoy-decompressor-any-uncompressed-bytes: 6000",)
            ),
        ),
    ),
    Case(
        "br_and_more",
        get("/"),
        (encoded("br", brotli.compress(WORDS) + b"more"),),
        listener="brotli",
        log_bytes=False,
        differs=Differs(
            "decompressor-after-error",
            ours=Expect((200,), upstream=("GET / HTTP/1.1",), contains=("uncompressed-bytes: 0",)),
            envoy=Expect((200,), upstream=("GET / HTTP/1.1",), contains=("uncompressed-bytes: 6000",)),
        ),
    ),
    *(
        plain(f"{encoding}_{name}", listener, encoded(encoding, body))
        for encoding, listener, name, body in (
            ("br", "brotli", "body", brotli.compress(WORDS)),
            ("br", "brotli", "truncated", brotli.compress(WORDS)[:-20]),
            ("br", "brotli", "garbage", b"this is no brotli at all"),
            ("br", "brotli", "ratio", brotli.compress(bytes(12000))),
            ("br", "brotli", "bomb", brotli.compress(NULLS)),
            ("zstd", "zstd", "body", zstd_frame(WORDS)),
            ("zstd", "zstd", "truncated", zstd_frame(WORDS)[:-9]),
            ("zstd", "zstd", "two_frames", zstd_frame(WORDS) * 2),
            ("zstd", "zstd", "and_more", zstd_frame(WORDS) + b"more!"),
            ("zstd", "zstd", "garbage", b"this is no zstd at all"),
            ("zstd", "zstd", "checksum", flipped(zstd_frame(WORDS, checksum=True))),
            ("zstd", "zstd", "ratio", zstd_frame(bytes(12000))),
            ("zstd", "zstd", "bomb", zstd_frame(NULLS)),
            ("zstd", "zstd", "large", zstd_frame(random.Random(8).randbytes(300_000) + WORDS)),
        )
    ),
]
STATUS = "status_header_enabled: true, disable_on_etag_header: true, uncompressible_response_codes: [206]"
FLAG = "{ default_value: %s, runtime_key: %s }"
TOPIC = Topic(
    [*COMPRESSED, *CHOSEN, *REQUESTS, *DECOMPRESSED],
    listeners={
        "gzip": filters(compressor()),
        "brotli": filters(compressor("brotli"), decompressor("brotli")),
        "zstd": filters(compressor("zstd"), decompressor("zstd")),
        "status": filters(compressor(fields=f"response_direction_config: {{ {STATUS} }}")),
        "etag": filters(
            compressor(
                fields="response_direction_config: { disable_on_etag_header: true, uncompressible_response_codes: [206] }"
            )
        ),
        "legacy": filters(
            compressor(
                fields="content_length: 50, content_type: [text/html], disable_on_etag_header: true, "
                "remove_accept_encoding_header: true"
            )
        ),
        "options": filters(
            compressor(
                "gzip",
                "response_direction_config: { common_config: { min_content_length: 20, content_type: [text/html, x/y] } }",
                "memory_level: 9, compression_level: BEST_COMPRESSION, compression_strategy: FIXED, window_bits: 9, "
                "chunk_size: 8192",
            ),
            compressor(
                "brotli",
                "choose_first: true",
                "quality: 11, encoder_mode: TEXT, window_bits: 24, input_block_bits: 16, chunk_size: 8192",
            ),
            compressor(
                "zstd", "", "compression_level: 19, enable_checksum: true, strategy: BTULTRA2, chunk_size: 8192"
            ),
        ),
        "off": filters(
            compressor(
                fields=f"response_direction_config: {{ common_config: {{ enabled: {FLAG % ('false', 'none')} }} }}"
            )
        ),
        "runtime": filters(
            compressor(
                fields=f"response_direction_config: {{ common_config: {{ enabled: {FLAG % ('true', 'test.off')} }} }}"
            )
        ),
        "hidden": filters(compressor(fields="response_direction_config: { remove_accept_encoding_header: true }")),
        "two": filters(compressor(), compressor("brotli")),
        "two_first": filters(compressor(), compressor("brotli", "choose_first: true, response_direction_config: {}")),
        "two_status": filters(
            *(compressor(kind, f"response_direction_config: {{ {STATUS} }}") for kind in ("gzip", "brotli"))
        ),
        "two_types": filters(
            *(
                compressor(kind, f"response_direction_config: {{ common_config: {{ content_type: [{types}] }} }}")
                for kind, types in (("gzip", "text/css, text/html"), ("brotli", "text/html"))
            )
        ),
        "requests": filters(compressor(fields="request_direction_config: {}")),
        "requests_off": filters(
            compressor(
                fields=f"request_direction_config: {{ common_config: {{ enabled: {FLAG % ('false', 'none')} }} }}"
            )
        ),
        "inflate": filters(decompressor()),
        "inflate_10": filters(decompressor(options="max_inflate_ratio: 10, chunk_size: 8192")),
        "inflate_1032": filters(decompressor(options="max_inflate_ratio: 1032")),
        "inflate_9": filters(decompressor(options="window_bits: 9")),
        "inflate_both": filters(decompressor("brotli"), decompressor()),
        "inflate_second": filters(decompressor(), decompressor("brotli", name="second")),
        "inflate_off": filters(
            decompressor(
                fields=", ".join(
                    f"{side}_direction_config: {{ common_config: {{ enabled: {FLAG % ('false', 'none')} }} }}"
                    for side in ("request", "response")
                )
            )
        ),
        "ignoring": filters(
            decompressor(
                fields="request_direction_config: { advertise_accept_encoding: false }, "
                "response_direction_config: { common_config: { ignore_no_transform_header: true } }"
            )
        ),
        "inflate_deflate": filters(compressor(), decompressor()),
        "deflate_inflate": filters(decompressor(), compressor()),
    },
    clusters={
        "trailers": "hosts: [a]\ntyped_extension_protocol_options: { envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { "
        "'@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, "
        "explicit_http_config: { http_protocol_options: { enable_trailers: true } } } }"
    },
    vhosts="[{ name: any, domains: ['*'], routes: [{ match: { prefix: / }, route: { cluster: a } }] }]",
    bootstrap="layered_runtime: { layers: [{ name: static, static_layer: { test: { 'off': false } } }] }",
)


def decoded(message: Message) -> Message:
    """With the body as its Content-Encoding says, and its name before it."""
    encoding = message.get(b"content-encoding") or b""
    decoder = DECODERS.get(encoding)
    if decoder is None or not message.body:
        return message
    try:
        return replace(message, body=decoder(message.body))
    except (zlib.error, brotli.error, zstandard.ZstdError):
        return replace(message, body=b"not " + encoding)


def decode(outcome: Outcome) -> Outcome:
    """All its messages."""
    outcome.responses = [decoded(message) for message in outcome.responses]
    for seen in outcome.seen:
        seen.message = decoded(seen.message)
    return outcome


def test_case(pair: Pair, case: Case) -> None:
    expected, actual = map(decode, pair.run(case))
    if case.differs is not None:
        check_expectation("Envoy", case, expected, case.differs.envoy)
        check_expectation("the subject", case, actual, case.differs.envoy if SUBJECT_IS_ENVOY else case.differs.ours)
        return
    lines = [
        [line for line in outcome.lines() if not line.strip().startswith(case.ignore)] for outcome in (expected, actual)
    ]
    assert lines[0] == lines[1], f"{case.name}: Envoy (-) and the subject (+)\n" + "\n".join(
        difflib.ndiff(lines[0], lines[1])
    )


PIECES = {"brotli", "inflate_both", "deflate_inflate"}
COUNTED_BY_PIECE = ("brotli_error", "brotli_output_overflow", "zlib_data_error")
"""Where Envoy's pieces are not ours (its last one is often empty), and what it counts once more with each."""


@pytest.mark.parametrize("listener", TOPIC.listeners)
def test_stats(pair: Pair, listener: str) -> None:
    """After the cases of a listener that agree, the same is counted; sizes where they do not depend on the encoder."""
    before = [counted(side, listener) for side in (pair.reference, pair.subject)]
    for case in TOPIC.cases:
        if case.listener == listener and case.differs is None:
            pair.run(case)
    after = [counted(side, listener) for side in (pair.reference, pair.subject)]
    grown = [
        {name: value - old.get(name, 0) for name, value in new.items()} for old, new in zip(before, after, strict=True)
    ]
    expected, actual = ({name: value for name, value in side.items() if value} for side in grown)
    assert actual == expected
    assert actual or listener == "inflate_second"


def counted(side: Side, listener: str) -> dict[str, int]:
    """What a listener's filters counted."""
    found = {name: value for name, value in values(side, f"http.{listener}.").items() if "compressor." in name}
    for name in list(found):
        own_size = name.endswith("total_compressed_bytes") and (".compressor." in name or listener == "deflate_inflate")
        if own_size or (listener in PIECES and name.endswith(COUNTED_BY_PIECE)):
            del found[name]
    return found


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd"])
def test_a_piece_is_flushed(pair: Pair, encoding: str) -> None:
    """A client can read each piece of a stream when it comes; Envoy's zstd keeps it."""
    for side in (pair.reference, pair.subject):
        side.upstream.play(
            (Answer((b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",), then="stall"),)
        )
        flushed = encoding != "zstd" or (side is pair.subject and not SUBJECT_IS_ENVOY)
        listener = {"br": "brotli"}.get(encoding, encoding)
        with RawDownstream(side.ports[listener], timeout_s=5.0 if flushed else 0.3) as downstream:
            downstream.send(accepting(encoding).replace(b"$HOST", b"accept-gzip-0.test"))
            head = downstream.reader.read_head()
            assert head.get(b"content-encoding") == encoding.encode()
            if flushed:
                assert first_piece(downstream, encoding) == b"hello"
            else:
                with pytest.raises(TimeoutError):
                    downstream.reader.fill()


def first_piece(downstream: RawDownstream, encoding: str) -> bytes:
    """What can be read of a body whose end has not come."""
    while not downstream.reader.buffer.endswith(b"\r\n"):
        downstream.reader.fill()
    _, _, data = downstream.reader.buffer.partition(b"\r\n")
    if encoding == "gzip":
        return zlib.decompressobj(31).decompress(data[:-2])
    return (
        brotli.Decompressor().process(data[:-2])
        if encoding == "br"
        else zstandard.ZstdDecompressor().decompressobj().decompress(data[:-2])
    )
