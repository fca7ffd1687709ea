"""Field lines that are remembered mean what they meant when they were parsed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshproxy.codec.headers import HOST, Field
from meshproxy.codec.http1.fields import FieldLines
from meshproxy.errors import ProtocolError

LONG = b"x: " + b"y" * 500
LINES = (b"Host: a", b"host:b ", b"X: 1", b"x: 2", b"X:\t3", b"Accept: */*", b"Connection: close", b"Empty:", LONG)
FAULTY = (b" folded: x", b"\tx", b"no colon", b"a b: c", b": empty", b"x: a\rb", b"x: a\x00b", b"x : y", b"x: a\nb: c")


def block(*lines: bytes) -> bytes:
    return b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def parse(parser: FieldLines, *lines: bytes) -> tuple[list[Field], int, int, int]:
    """Fields, bits, number of Hosts and the last one's place."""
    fields: list[Field] = [(b":first", b"")]
    known = parser.parse(block(*lines), fields)
    return fields, known, parser.hosts, parser.host_at if parser.hosts else -1


@given(st.lists(st.lists(st.sampled_from(LINES), max_size=6), max_size=5), st.lists(st.sampled_from(LINES), max_size=6))
def test_whatever_was_seen_before_a_block_means_the_same(before: list[list[bytes]], lines: list[bytes]) -> None:
    warm = FieldLines()
    for earlier in before:
        parse(warm, *earlier)
    assert parse(warm, *lines) == parse(FieldLines(), *lines)


def test_order_and_hosts() -> None:
    parser = FieldLines()
    parse(parser, b"B: 2")
    fields, known, hosts, host_at = parse(parser, b"Host: a", b"B: 2", b"Host: b", b"C: 3")
    assert fields[1:] == [(b"host", b"a"), (b"b", b"2"), (b"host", b"b"), (b"c", b"3")]
    assert (known, hosts, host_at) == (HOST, 2, 3)


@pytest.mark.parametrize("faulty", FAULTY)
def test_a_faulty_line_is_refused_among_known_ones_and_not_remembered(faulty: bytes) -> None:
    parser = FieldLines()
    parse(parser, b"A: 1", b"B: 2")
    for _ in range(2):
        for lines in ([faulty], [b"A: 1", faulty], [faulty, b"A: 1"], [b"A: 1", faulty, b"B: 2", b"New: 3"]):
            with pytest.raises(ProtocolError):
                parse(parser, *lines)
    assert parse(parser, b"A: 1")[0][1:] == [(b"a", b"1")]


def test_a_stream_of_new_lines_does_not_disturb_known_ones() -> None:
    """More than are remembered."""
    parser = FieldLines()
    for number in range(10_000):
        new = b"x-request-id: %d" % number
        assert parse(parser, b"A: 1", new)[0][1:] == [(b"a", b"1"), (b"x-request-id", b"%d" % number)]
