"""The decoder's rules, by section of RFC 7541, its limits, and what it remembers."""

import hpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from meshproxy.codec.headers import CONTENT_LENGTH, TE, Field
from meshproxy.codec.http2 import hpack_decoder
from meshproxy.codec.http2.field_rules import is_field_name, is_field_value
from meshproxy.codec.http2.hpack_decoder import HpackDecoder
from meshproxy.codec.http2.hpack_encoder import encode_integer

GET = (b":method", b"GET")
A1, B2 = (b"a", b"1"), (b"b", b"2")


def made(table_bytes: int = 4096, max_list_bytes: int = 60 * 1024, max_fields: int = 100) -> HpackDecoder:
    return HpackDecoder(table_bytes, max_list_bytes, max_fields)


def text(octets: bytes) -> bytes:
    return encode_integer(0, 0x7F, len(octets)) + octets


def literal(field: Field, pattern: int = 0x40) -> bytes:
    """A literal with a literal name; by default with incremental indexing."""
    return bytes([pattern]) + text(field[0]) + text(field[1])


def index(number: int) -> bytes:
    return encode_integer(0x80, 0x7F, number)


def resize(size: int) -> bytes:
    return encode_integer(0x20, 0x1F, size)


def sensitive(decoder: HpackDecoder) -> frozenset[bytes] | None:
    return decoder.sensitive


def too_large(decoder: HpackDecoder) -> bool:
    return decoder.too_large


def decoded(decoder: HpackDecoder, block: bytes) -> list[Field]:
    assert decoder.decode(block), decoder.error
    return list(decoder.fields)


# -- section 2.3: indexes


def test_2_3_2_the_newest_entry_is_the_first_of_the_dynamic_table() -> None:
    decoder = made()
    decoded(decoder, literal(A1) + literal(B2))
    assert decoded(decoder, index(62) + index(63) + index(2)) == [B2, A1, GET]


def test_2_3_2_duplicate_entries_are_no_error() -> None:
    """The same field may stand in the table twice (RFC 7541 section 2.3.2)."""
    decoder = made()
    decoded(decoder, literal(A1) + literal(A1))
    assert decoded(decoder, index(62) + index(63)) == [A1, A1]


@pytest.mark.parametrize("number", [63, 64, 126, 127, 128, 1 << 20, (1 << 35) - 1])
@pytest.mark.parametrize("pattern", ["indexed", "inserted", "plain", "never"])
def test_2_3_3_an_index_beyond_both_tables_is_an_error(number: int, pattern: str) -> None:
    """An index beyond both tables is an error (RFC 7541 section 2.3.3)."""
    decoder = made()
    decoded(decoder, literal(A1))
    representation = {
        "indexed": index(number),
        "inserted": encode_integer(0x40, 0x3F, number) + text(b"x"),
        "plain": encode_integer(0x00, 0x0F, number) + text(b"x"),
        "never": encode_integer(0x10, 0x0F, number) + text(b"x"),
    }[pattern]
    assert not decoder.decode(representation)
    assert decoder.error == "no such index"


def test_6_1_index_0_is_an_error() -> None:
    """The index 0 names nothing (RFC 7541 section 6.1)."""
    decoder = made()
    assert not decoder.decode(b"\x80")
    assert decoder.error == "no such index"


def test_6_2_names_by_index_static_and_dynamic() -> None:
    decoder = made()
    decoded(decoder, literal(A1))
    for pattern, largest in ((0x40, 0x3F), (0x00, 0x0F), (0x10, 0x0F)):
        place = 62 if pattern == 0x40 else 63  # the first of these goes into the table, before "a"
        block = encode_integer(pattern, largest, 62 if place == 62 else place) + text(b"3")
        assert decoded(decoder, block) == [(b"a", b"3")]
        assert decoded(decoder, encode_integer(pattern & 0x10, 0x0F, 28) + text(b"7")) == [(b"content-length", b"7")]
        assert decoder.known == CONTENT_LENGTH


def test_6_2_2_and_6_2_3_such_literals_do_not_enter_the_table() -> None:
    decoder = made()
    decoded(decoder, literal(A1, 0x00) + literal(B2, 0x10))
    assert decoder.table_size() == 0
    assert not decoder.decode(index(62))


def test_6_2_3_names_of_never_indexed_fields_are_told_once() -> None:
    decoder = made()
    decoded(decoder, literal(A1, 0x10) + literal(B2) + literal(A1, 0x10))
    assert sensitive(decoder) == frozenset({b"a"})
    decoded(decoder, index(62))
    assert sensitive(decoder) is None
    decoded(decoder, literal(A1, 0x10))
    assert sensitive(decoder) == frozenset({b"a"})


# -- section 4: the table's size


def test_4_1_an_entry_counts_32_octets_more() -> None:
    decoder = made()
    decoded(decoder, literal((b"name", b"value")))
    assert decoder.table_size() == 4 + 5 + 32


def test_4_2_a_size_update_stands_at_the_beginning_of_a_block() -> None:
    decoder = made()
    assert decoded(decoder, resize(0) + resize(100) + index(2)) == [GET]
    assert not decoder.decode(index(2) + resize(50))
    assert decoder.error == "a size update behind a field"


def test_4_2_and_6_3_a_size_beyond_the_setting_is_an_error() -> None:
    assert made(8192).decode(resize(8192))
    assert not made(8192).decode(resize(8193))
    assert not made(4096).decode(resize(4097))


def test_4_3_entries_leave_when_the_table_shrinks() -> None:
    decoder = made()
    decoded(decoder, literal(A1) + literal(B2))  # 34 octets each
    assert decoded(decoder, resize(67) + index(62)) == [B2]
    assert decoder.table_size() == 34
    assert not decoder.decode(index(63))


def test_4_3_growing_again_brings_nothing_back() -> None:
    decoder = made()
    decoded(decoder, literal(A1))
    decoded(decoder, resize(0) + resize(4096))
    assert decoder.table_size() == 0
    assert not decoder.decode(index(62))


def test_4_4_the_oldest_entries_make_room() -> None:
    decoder = made()
    decoded(decoder, resize(68) + literal(A1) + literal(B2) + literal((b"c", b"3")))
    assert decoded(decoder, index(62) + index(63)) == [(b"c", b"3"), B2]
    assert not decoder.decode(index(64))


def test_4_4_an_entry_larger_than_the_table_empties_it() -> None:
    """An entry larger than the table leaves it empty, and is no error (RFC 7541 section 4.4)."""
    decoder = made()
    decoded(decoder, resize(68) + literal(A1) + literal(B2))
    assert decoded(decoder, literal((b"large", b"x" * 40))) == [(b"large", b"x" * 40)]
    assert decoder.table_size() == 0
    assert decoded(decoder, literal(A1) + index(62)) == [A1, A1]


def test_4_4_an_entry_may_name_itself_after_one_that_leaves_for_it() -> None:
    decoder = made()
    decoded(decoder, resize(40) + literal((b"name", b"1")))
    assert decoded(decoder, encode_integer(0x40, 0x3F, 62) + text(b"23")) == [(b"name", b"23")]
    assert decoded(decoder, index(62)) == [(b"name", b"23")]


def test_a_smaller_setting_holds_once_the_peer_knows_it() -> None:
    """RFC 9113 section 4.3.1: after the acknowledgement a block must begin with a size update that conforms."""
    decoder = made(100)
    decoded(decoder, literal((b"name", b"x" * 200)))  # sent before our SETTINGS arrived
    assert decoded(decoder, index(62)) == [(b"name", b"x" * 200)]
    decoder.settings_acknowledged()
    assert decoded(decoder, resize(100) + index(2)) == [GET]
    assert decoded(decoder, index(2)) == [GET]


@pytest.mark.parametrize("block", [index(2), b"", literal(A1), resize(101), resize(4096)])
def test_a_block_without_the_size_update_that_is_due_is_an_error(block: bytes) -> None:
    decoder = made(100)
    decoded(decoder, index(2))
    decoder.settings_acknowledged()
    assert not decoder.decode(block)


def test_no_size_update_is_due_where_the_table_may_stay_as_it_is() -> None:
    for table_bytes in (4096, 8192):
        decoder = made(table_bytes)
        decoder.settings_acknowledged()
        assert decoded(decoder, index(2)) == [GET]


# -- section 5: integers and strings


@pytest.mark.parametrize(
    "block",
    [
        b"\xff\x80\x80\x80\x80\x80\x00",  # index 127, in more octets than any number needs
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x00\x7f\xff\xff\xff\xff\xff\xff\x01a",
        b"\x0f\x80\x80\x80\x80\x80\x80\x00\x00",
        b"\x3f\xff\xff\xff\xff\xff\xff\x01",
    ],
)
def test_5_1_integers_beyond_our_limits_are_errors(block: bytes) -> None:
    """Integers beyond our limits, in value or in octets, are errors (RFC 7541 section 5.1)."""
    assert not made().decode(block)


def test_5_1_leading_zeros_within_the_limit_are_no_error() -> None:
    assert decoded(made(), b"\x0f\x8d\x80\x00" + text(b"1")) == [(b"content-length", b"1")]


@pytest.mark.parametrize("length", [127, 128, 254, 255, 256, 16_383, 16_384, 50_000])
def test_5_2_long_strings(length: int) -> None:
    assert decoded(made(), literal((b"a", b"v" * length), 0x00)) == [(b"a", b"v" * length)]


@pytest.mark.parametrize("whole", [literal((b"name", b"value")), index(200), b"\x5f\x81\x00" + text(b"x"), resize(300)])
def test_a_truncated_block_is_an_error(whole: bytes) -> None:
    for size in range(1, len(whole)):
        assert not made().decode(whole[:size])


# -- what no HTTP/2 message may have (RFC 9113 section 8.2.1)

NAMES = (
    b"",
    b":",
    b"::a",
    b"a:b",
    b"A",
    b"aB",
    b"a b",
    b" a",
    b"a\x00",
    b"a\x7f",
    b"a\xff",
    b"a\tb",
    b'a"',
    b"a(b",
    b"a/b",
)
VALUES = (
    b"a\x00b",
    b"a\rb",
    b"a\nb",
    b" a",
    b"a ",
    b"\ta",
    b"a\t",
    b" ",
    b"\t",
    b"\r",
    b"\n",
    b"\x00",
    b"\x01",
    b"a\x7f",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pattern", [0x00, 0x10, 0x40])
def test_8_2_1_a_bad_name_is_told(name: bytes, pattern: int) -> None:
    assert not is_field_name(name)
    decoder = made()
    for _ in range(2):  # nothing bad is remembered as good
        assert decoded(decoder, index(2) + literal((name, b"x"), pattern) + literal(A1)) == [GET, (name, b"x"), A1]
        assert decoder.invalid == 1


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("pattern", [0x00, 0x10, 0x40])
def test_8_2_1_a_bad_value_is_told(value: bytes, pattern: int) -> None:
    assert not is_field_value(value)
    decoder = made()
    for _ in range(2):
        assert decoded(decoder, index(2) + literal((b"a", value), pattern) + literal(A1)) == [GET, (b"a", value), A1]
        assert decoder.invalid == 1


@pytest.mark.parametrize("field", [(b"A", b"x"), (b"a", b"x\ny")])
def test_8_2_1_a_bad_entry_is_told_whenever_it_is_used(field: Field) -> None:
    decoder = made()
    decoded(decoder, literal(field))
    for _ in range(3):
        decoded(decoder, index(2) + index(62))
        assert decoder.invalid == 1
        decoded(decoder, index(2))
        assert decoder.invalid == -1
    decoded(decoder, encode_integer(0x00, 0x0F, 62) + text(b"y"))
    assert decoder.invalid == (0 if field[0] == b"A" else -1)


@pytest.mark.parametrize(
    "field", [(b":path", b"/"), (b"x_y", b""), (b"x!#$%&'*+-.^_`|~9", b"a\tb"), (b"a", b"\xff \x80")]
)
def test_8_2_1_what_may_be(field: Field) -> None:
    decoder = made()
    assert decoded(decoder, literal(field)) == [field]
    assert decoder.invalid == -1


# -- limits


def test_the_list_is_cut_at_its_size_and_the_table_is_right_all_the_same() -> None:
    """Names and values, without the 32 octets of RFC 9113 section 6.5.2, as Envoy does."""
    decoder = made(max_list_bytes=3 * 2)
    assert decoded(decoder, literal(A1) * 3) == [A1] * 3
    assert not too_large(decoder)
    assert decoded(decoder, literal(A1) * 3 + literal(B2)) == [A1] * 3
    assert too_large(decoder)
    assert decoded(decoder, index(62)) == [B2]
    assert not too_large(decoder)


def test_pseudo_headers_count_among_the_fields() -> None:
    decoder = made(max_fields=5)
    pseudo = index(2) + index(4) + index(6)
    assert len(decoded(decoder, pseudo + literal(A1) + literal(B2))) == 5
    assert not too_large(decoder)
    assert decoded(decoder, pseudo + literal(A1) + literal(B2) + literal(A1))[3:] == [A1, B2]
    assert too_large(decoder)


def test_what_is_cut_is_not_told_as_bad() -> None:
    decoder = made(max_fields=1)
    assert decoded(decoder, literal(A1) + literal((b"A", b"x"))) == [A1]
    assert (decoder.too_large, decoder.invalid) == (True, -1)


def test_a_bomb_costs_its_references_alone() -> None:
    """One entry of 4 KiB, and 10,000 octets that each mean it: 40 MB, were they copied."""
    decoder = made()
    large = (b"x-bomb", b"v" * 4000)
    assert decoded(decoder, literal(large) + index(62) * 10_000 + literal(A1)) == [large] * 15
    assert too_large(decoder)
    assert len({id(field) for field in decoder.fields}) == 1
    assert decoded(decoder, index(62)) == [A1]
    assert len(decoded(decoder, index(2) * 50_000)) == 100
    assert too_large(decoder)


def test_what_is_learnt_is_bounded_over_all_connections() -> None:
    for number in range(6000):
        decoded(
            made(),
            literal((b"x-%d" % number, b"%d" % number), 0x00) + encode_integer(0x40, 0x3F, 4) + text(b"/%d" % number),
        )
    assert len(hpack_decoder._LITERALS) <= 2048
    assert len(hpack_decoder._NAMES) <= 2048


def test_what_is_learnt_of_long_literals_is_bounded_and_the_connections_own() -> None:
    one, other = made(), made()
    for number in range(50):
        field = (b"x-token", b"%d" % number + b"v" * 3000)
        for _ in range(2):
            assert decoded(one, literal(field, 0x10)) == [field]
            assert sensitive(one) == frozenset({b"x-token"})
        assert decoded(other, literal(field, 0x10)) == [field]
        assert other.fields[0] is not one.fields[0]
    assert len(one._long_literals) <= 4
    decoded(one, literal((b"x-token", b"v" * 5000), 0x00))
    assert max(map(len, one._long_literals)) <= 4096


def test_what_may_not_be_indexed_and_could_be_guessed_is_not_learnt() -> None:
    decoder = made()
    decoded(decoder, literal((b"x-not-learnt", b"secret"), 0x10))
    assert not [entry for entry in hpack_decoder._LITERALS.values() if entry.name == b"x-not-learnt"]
    assert not decoder._long_literals


# -- what is remembered


def test_the_list_is_the_callers() -> None:
    decoder = made()
    decoded(decoder, literal(A1))
    for _ in range(4):
        decoded(decoder, index(2) + index(62))
        assert decoder.fields == [GET, A1]
        decoder.fields.clear()


def test_tuples_are_shared_where_they_come_from_a_table() -> None:
    decoder = made()
    decoded(decoder, literal(A1))
    for _ in range(3):
        decoded(decoder, index(2) + index(62))
    first = decoder.fields
    decoded(decoder, index(2) + index(62))
    assert decoder.fields is not first
    assert all(one is other for one, other in zip(decoder.fields, first, strict=True))


def test_a_literal_that_other_connections_sent_is_the_same_tuple() -> None:
    one, other = made(), made()
    decoded(one, literal((b"x-shared", b"1"), 0x00))
    decoded(other, literal((b"x-shared", b"1"), 0x00))
    assert one.fields[0] is other.fields[0]


def test_a_block_means_something_else_when_the_table_has_changed() -> None:
    decoder = made()
    for field in (A1, B2, (b"te", b"trailers")):
        decoded(decoder, literal(field))
        for _ in range(3):
            assert decoded(decoder, index(62)) == [field]
    assert decoder.known == TE
    decoded(decoder, resize(0))
    assert not decoder.decode(index(62))


def test_many_blocks_taking_turns() -> None:
    decoder = made()
    decoded(decoder, b"".join(literal((b"n", b"%d" % number)) for number in range(50)))
    for _ in range(3):
        for number in range(50):
            assert decoded(decoder, index(2) + index(62 + number)) == [GET, (b"n", b"%d" % (49 - number))]


POOL = [
    A1,
    B2,
    (b":path", b"/x"),
    (b"a", b"2"),
    (b"x-long", b"v" * 300),
    (b"cookie", b"k=v"),
    (b"content-length", b"3"),
]
STEP = st.tuples(st.lists(st.sampled_from(POOL), max_size=6), st.booleans(), st.sampled_from([None, None, 0, 70, 500]))


@given(st.lists(STEP, max_size=12))
def test_whatever_was_seen_before_a_block_means_the_same(steps: list[tuple[list[Field], bool, int | None]]) -> None:
    """A connection that has a memory of everything, against one that has seen nothing else."""
    encoder = hpack.Encoder()
    warm, again = made(), made()
    for fields, huffman, size in steps:
        if size is not None:
            encoder.header_table_size = size
        block = encoder.encode(fields, huffman=huffman)
        assert decoded(warm, block) == decoded(again, block) == fields
        assert warm.known == again.known
        assert warm.table_size() == again.table_size() == encoder.header_table._current_size
        repeated = encoder.encode(fields, huffman=huffman)
        assert decoded(warm, repeated) == fields
        assert decoded(again, repeated) == fields


@given(st.lists(st.binary(max_size=80), max_size=5))
@example([literal(A1), b"\xbe\xbf", b"\x40"])
def test_garbage_never_raises(blocks: list[bytes]) -> None:
    decoder = made(max_list_bytes=200, max_fields=3)
    decoded(decoder, literal(A1))
    for block in blocks:
        if not decoder.decode(block):
            assert decoder.error
            return
        assert sum(len(name) + len(value) for name, value in decoder.fields) <= 200
        assert -1 <= decoder.invalid < max(len(decoder.fields), 1)
