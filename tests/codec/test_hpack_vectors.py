"""HPACK's constants, and the examples of RFC 7541 appendix C in both directions."""

import hpack
import pytest
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

from meshproxy.codec.headers import Field, bits_of
from meshproxy.codec.http2.hpack_decoder import HpackDecoder
from meshproxy.codec.http2.hpack_encoder import HpackEncoder, encode_integer
from meshproxy.codec.http2.hpack_tables import EOS, HUFFMAN_LENGTHS, STATIC_SIZE, STATIC_TABLE, huffman_codes
from tests.codec.hpack_vectors import LITERALS, SESSIONS, Session

EXACT = {"C.4": 3, "C.6": 1}  # blocks that our encoder's choices lead to, too; the RFC leaves them free


def decoder(table_bytes: int = 4096) -> HpackDecoder:
    made = HpackDecoder(4096, 1 << 20, 1000)
    if table_bytes != 4096:
        assert made.decode(encode_integer(0x20, 0x1F, table_bytes))
    return made


def test_the_static_table_is_that_of_appendix_a() -> None:
    assert list(hpack.table.HeaderTable.STATIC_TABLE) == list(STATIC_TABLE)
    assert len(STATIC_TABLE) == STATIC_SIZE


def test_the_huffman_code_is_that_of_appendix_b() -> None:
    assert list(REQUEST_CODES) == huffman_codes()
    assert list(REQUEST_CODES_LENGTH) == list(HUFFMAN_LENGTHS)
    assert len(HUFFMAN_LENGTHS) == EOS + 1


@pytest.mark.parametrize(
    ("value", "largest", "octets"), [(10, 0x1F, "0a"), (1337, 0x1F, "1f9a0a"), (42, 0xFF, "2a"), (31, 0x1F, "1f00")]
)
def test_integers_of_section_c1(value: int, largest: int, octets: str) -> None:
    assert encode_integer(0, largest, value) == bytes.fromhex(octets)


@pytest.mark.parametrize(("block", "field", "table_size", "is_sensitive"), LITERALS)
def test_literals_of_section_c2(block: str, field: Field, table_size: int, is_sensitive: bool) -> None:
    made = decoder()
    assert made.decode(bytes.fromhex(block))
    assert made.fields == [field]
    assert made.sensitive == (frozenset({field[0]}) if is_sensitive else None)
    assert made.table_size() == table_size


@pytest.mark.parametrize("session", SESSIONS, ids=lambda session: session.section)
def test_the_sessions_of_appendix_c_decoded(session: Session) -> None:
    made = decoder(session.table_bytes)
    for block, fields, table_size in zip(session.blocks, session.lists, session.table_sizes, strict=True):
        assert made.decode(bytes.fromhex(block))
        assert made.fields == fields
        known = 0
        for name, _ in fields:
            known |= bits_of(name)
        assert (made.known, made.sensitive, made.too_large, made.invalid) == (known, None, False, -1)
        assert made.table_size() == table_size


@pytest.mark.parametrize("session", SESSIONS, ids=lambda session: session.section)
def test_the_sessions_of_appendix_c_encoded(session: Session) -> None:
    """To the very octets where our choices are the RFC's, and with the same meaning everywhere."""
    made = HpackEncoder(session.table_bytes)
    peer = hpack.Decoder()
    resize = b"" if session.table_bytes == 4096 else encode_integer(0x20, 0x1F, session.table_bytes)
    for number, (block, fields) in enumerate(zip(session.blocks, session.lists, strict=True)):
        encoded = made.encode(list(fields), None)
        if number < EXACT.get(session.section, 0):
            assert encoded == (b"" if number else resize) + bytes.fromhex(block)
        assert [tuple(field) for field in peer.decode(encoded, raw=True)] == fields
