"""Whole connections between several encoders and decoders: ours, `hpack`, nghttp2."""

import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from typing import Self

import hpack
import pytest
from hpack.struct import HeaderTuple, NeverIndexedHeaderTuple
from hypothesis import given
from hypothesis import strategies as st

from meshproxy.codec.headers import Field, bits_of
from meshproxy.codec.http2.hpack_decoder import HpackDecoder
from meshproxy.codec.http2.hpack_encoder import HpackEncoder
from meshproxy.codec.http2.hpack_tables import STATIC_TABLE
from tests.support import http2_wire as h2

NAMES = st.sampled_from(
    [b":path", b"x-a", b"x-b", b"content-length", b"cookie", b"authorization", b"n" * 40, b"x-a\xff"]
)
VALUES = st.one_of(
    st.binary(max_size=12), st.sampled_from([b"", b"1", b"/", b"v" * 200, b"w" * 2000, b"x" * 5000, b"same"])
)
FIELDS = st.one_of(st.sampled_from(STATIC_TABLE), st.tuples(NAMES, VALUES))
SIZES = st.sampled_from([0, 31, 33, 64, 100, 500, 4096, 4097, 16_384])
LIMIT = 16_384


@st.composite
def sessions(draw: st.DrawFn) -> list[tuple[list[Field], frozenset[bytes], list[int]]]:
    """Blocks, most of whose fields came before; the names that are sensitive; new sizes of the table before each."""
    pool = draw(st.lists(FIELDS, min_size=1, max_size=10))
    blocks = []
    for _ in range(draw(st.integers(1, 12))):
        fields = draw(st.lists(st.sampled_from(pool) | FIELDS, max_size=8))
        sensitive = draw(st.frozensets(NAMES, max_size=2)) if draw(st.integers(0, 4)) == 0 else frozenset()
        sizes = draw(st.lists(SIZES, min_size=1, max_size=3)) if draw(st.integers(0, 4)) == 0 else []
        blocks.append((fields, sensitive, sizes))
    return blocks


def hpack_blocks(session: list[tuple[list[Field], frozenset[bytes], list[int]]], huffman: bool) -> Iterator[bytes]:
    encoder = hpack.Encoder()
    for fields, sensitive, sizes in session:
        for size in sizes:
            encoder.header_table_size = size
        marked = [
            (NeverIndexedHeaderTuple if name in sensitive else HeaderTuple)(name, value) for name, value in fields
        ]
        yield encoder.encode(marked, huffman=huffman)


def our_blocks(session: list[tuple[list[Field], frozenset[bytes], list[int]]]) -> Iterator[bytes]:
    encoder = HpackEncoder(LIMIT)
    for fields, sensitive, sizes in session:
        for size in sizes:
            encoder.set_peer_table_size(size)
        yield encoder.encode(list(fields), sensitive or None)


def cleaned(fields: list[Field]) -> list[Field]:
    """As our encoder sends them: a control in a value, but for a tab, is a space."""
    return [(name, re.sub(rb"[\x00-\x08\x0a-\x1f\x7f]", b" ", value)) for name, value in fields]


@given(sessions(), st.sampled_from(["hpack", "hpack with Huffman", "ours"]))
def test_what_any_encoder_sends_our_decoder_reads(
    session: list[tuple[list[Field], frozenset[bytes], list[int]]], sender: str
) -> None:
    decoder = HpackDecoder(LIMIT, 1 << 20, 1000)
    blocks = our_blocks(session) if sender == "ours" else hpack_blocks(session, sender != "hpack")
    for block, (fields, sensitive, _) in zip(blocks, session, strict=True):
        assert decoder.decode(block), decoder.error
        assert decoder.fields == (cleaned(fields) if sender == "ours" else fields)
        known = 0
        for name, _ in fields:
            known |= bits_of(name)
        assert decoder.known == known
        assert not decoder.too_large
        if sender == "ours":  # `hpack` sends what is in a table by its index, sensitive or not
            assert {name for name, _ in fields if name in sensitive} <= (decoder.sensitive or frozenset())


@given(sessions())
def test_what_our_encoder_sends_hpack_reads(
    session: list[tuple[list[Field], frozenset[bytes], list[int]]],
) -> None:
    decoder = hpack.Decoder(max_header_list_size=1 << 24)
    decoder.max_allowed_table_size = LIMIT
    for block, (fields, sensitive, _) in zip(our_blocks(session), session, strict=True):
        received = decoder.decode(block, raw=True)
        assert [tuple(field) for field in received] == cleaned(fields)
        for field in received:
            assert isinstance(field, NeverIndexedHeaderTuple) or field[0] not in sensitive


# -- nghttp2, which is Envoy's

PATHS = [b"/", b"/one?x=1", b"/two", b"/" + b"long/" * 60]
TIMES = 2
EXTRA = [(b"x-note", b"some words, and (others)"), (b"x-octets", b"\xc3\xa9!~"), (b"authorization", b"Basic YTpi")]


class Nghttp:
    """A run of nghttp, whose requests are read and answered on one connection."""

    def __init__(self, paths: list[bytes], settings: bytes, *options: str | bytes) -> None:
        program = shutil.which("nghttp")
        if program is None:
            pytest.skip("needs nghttp")
        self.table_bytes = 4096  # its SETTINGS_HEADER_TABLE_SIZE
        self.requests: dict[int, bytes] = {}  # header blocks by their stream
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(10)
            origin = b"http://127.0.0.1:%d" % server.getsockname()[1]
            command: list[str | bytes] = [program, "-v", *options, *[origin + path for path in paths]]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            self.connection, _ = server.accept()
        self.connection.settimeout(10)
        self.connection.sendall(settings)
        self.reader = self.connection.makefile("rb")
        assert self.reader.read(len(h2.PREFACE)) == h2.PREFACE

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.reader.close()
        self.connection.close()

    def read_requests(self, count: int) -> None:
        while len(self.requests) < count:
            head = self.reader.read(9)
            payload = self.reader.read(int.from_bytes(head[:3], "big"))
            kind, flags = head[3], head[4]
            if kind == h2.SETTINGS and not flags & h2.ACK:
                pairs = dict(struct.iter_unpack("!HL", payload))
                self.table_bytes = pairs.get(1, 4096)
                self.connection.sendall(h2.frame(h2.SETTINGS, h2.ACK))
            if kind == h2.HEADERS:
                assert flags & h2.END_HEADERS
                assert not flags & h2.PADDED
                block = payload[5:] if flags & h2.PRIORITY_FLAG else payload
                self.requests[int.from_bytes(head[5:], "big")] = block

    def output(self) -> bytes:
        """What it has printed when it is done."""
        return self.process.communicate(timeout=10)[0]


@pytest.mark.parametrize("table_bytes", [4096, 100, 0])
def test_what_nghttp_sends_is_read_as_hpack_reads_it(table_bytes: int) -> None:
    extra = [b"-H%b: %b" % field for field in EXTRA]
    with Nghttp(PATHS, h2.settings((1, table_bytes)), f"--multiply={TIMES}", *extra) as client:
        client.read_requests(len(PATHS) * TIMES)
    oracle = hpack.Decoder()
    decoder = HpackDecoder(table_bytes, 1 << 20, 100)
    paths: list[bytes] = []
    for block in client.requests.values():
        assert decoder.decode(block), decoder.error
        assert decoder.fields == oracle.decode(block, raw=True)
        paths += [value for name, value in decoder.fields if name == b":path"]
        assert set(EXTRA) <= set(decoder.fields)
        assert decoder.sensitive == frozenset({b"authorization"})
        assert decoder.invalid == -1
    assert sorted(paths) == sorted(PATHS * TIMES)


@pytest.mark.parametrize("sizes", [(4096,), (100,), (0,), (0, 65_536)])
def test_what_our_encoder_sends_nghttp_reads(sizes: tuple[int, ...]) -> None:
    options = [f"--header-table-size={size}" for size in sizes]
    answers: dict[int, list[Field]] = {}
    sensitive: set[tuple[int, bytes]] = set()
    with Nghttp(PATHS, h2.settings(), f"--multiply={TIMES}", *options) as client:
        client.read_requests(len(PATHS) * TIMES)
        encoder = HpackEncoder(65_536)
        for size in sizes:
            encoder.set_peer_table_size(size)
        for number, stream in enumerate(client.requests):
            answers[stream] = [(b":status", b"200"), (b"server", b"test"), (b"x-turn", b"%d" % (number // 3)), *EXTRA]
            names = frozenset({b"x-octets"} if number % 2 else {b"authorization"})
            sensitive |= {(stream, name) for name in names | {b"authorization"}}
            block = encoder.encode(list(answers[stream]), names)
            client.connection.sendall(h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, stream, block))
        output = client.output()
    received: dict[int, list[Field]] = {}
    never_indexed: set[tuple[int, bytes]] = set()
    for stream, mark, name, value in re.findall(rb"recv \(stream_id=(\d+)(, sensitive)?\) (:?[^:]+): (.*)\n", output):
        received.setdefault(int(stream), []).append((name, value))
        if mark:
            never_indexed.add((int(stream), name))
    assert received == answers
    assert never_indexed == sensitive
    assert client.table_bytes == sizes[-1]
