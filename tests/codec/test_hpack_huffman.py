"""Strings in Huffman code (RFC 7541 section 5.2)."""

import hpack
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman
from hypothesis import example, given
from hypothesis import strategies as st

from meshproxy.codec.http2.hpack_decoder import HpackDecoder
from meshproxy.codec.http2.huffman import huffman_decode, huffman_encode

ORACLE = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)
ALL = bytes(range(256))


def packed(bits: str) -> bytes:
    assert len(bits) % 8 == 0
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def oracle(data: bytes) -> bytes | None:
    """What `hpack` reads; its table is that of nghttp2."""
    try:
        return decode_huffman(data)
    except hpack.HPACKDecodingError:
        return None


def code(symbol: int) -> str:
    return f"{REQUEST_CODES[symbol]:0{REQUEST_CODES_LENGTH[symbol]}b}"


@given(st.binary(max_size=300))
@example(ALL)
@example(ALL[::-1])
def test_encoded_as_hpack_encodes_and_decoded_again(text: bytes) -> None:
    encoded = huffman_encode(text)
    assert encoded == ORACLE.encode(text)
    assert huffman_decode(encoded, 0, len(encoded)) == text


@pytest.mark.parametrize("symbol", range(256))
def test_every_symbol_at_every_place_within_an_octet(symbol: int) -> None:
    for before in range(8):  # "0" has five bits
        text = b"0" * before + bytes([symbol]) + b"z"
        encoded = ORACLE.encode(text)
        assert huffman_decode(b"xx" + encoded + b"yy", 2, 2 + len(encoded)) == text


@pytest.mark.parametrize("size", range(1, 9))
def test_padding_is_the_beginning_of_eos_and_shorter_than_an_octet(size: int) -> None:
    """Padding has 7 bits at most, all of them ones, as EOS begins (RFC 7541 section 5.2)."""
    text = b"0" * size
    bits = "".join(map(code, text))
    length = -len(bits) % 8
    good = packed(bits + "1" * length)
    assert huffman_decode(good, 0, len(good)) == text
    assert huffman_decode(good + b"\xff", 0, len(good) + 1) is None
    for padding in range((1 << length) - 1):
        bad = packed(bits + f"{padding:0{length}b}")
        assert huffman_decode(bad, 0, len(bad)) == oracle(bad)
        assert huffman_decode(bad, 0, len(bad)) != text


@pytest.mark.parametrize("before", range(8))
def test_eos_is_refused(before: int) -> None:
    """EOS stands in no string (RFC 7541 section 5.2)."""
    bits = code(ord("0")) * before + code(256)
    for rest in ("", code(ord("a")) + "1" * 8):
        whole = bits + rest
        bad = packed(whole + "1" * (-len(whole) % 8))
        assert huffman_decode(bad, 0, len(bad)) is None


@given(st.binary(max_size=60))
def test_anything_is_decoded_or_refused_as_hpack_does(data: bytes) -> None:
    assert huffman_decode(data, 0, len(data)) == oracle(data)


@pytest.mark.parametrize("place", ["name", "value"])
def test_a_wrong_code_in_a_block_is_a_compression_error(place: str) -> None:
    block = b"\x40\x81\xff\x01a" if place == "name" else b"\x40\x01a\x81\x00"
    decoder = HpackDecoder(4096, 1 << 20, 100)
    assert not decoder.decode(block)
    assert decoder.error
