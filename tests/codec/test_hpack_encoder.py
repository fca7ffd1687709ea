"""The encoder's rules, by section of RFC 7541, and its choices."""

import hpack
import pytest
from hpack.struct import NeverIndexedHeaderTuple

from meshproxy.codec.headers import Field
from meshproxy.codec.http2 import hpack_encoder
from meshproxy.codec.http2.hpack_encoder import HpackEncoder, encode_integer

GET = (b":method", b"GET")
AGENT = (b"user-agent", b"test/1")


class Peer:
    """An encoder of ours and the decoder of `hpack` at its other end."""

    def __init__(self, max_table_bytes: int = 4096) -> None:
        self.encoder = HpackEncoder(max_table_bytes)
        self.decoder = hpack.Decoder(max_header_list_size=1 << 24)
        self.sensitive: set[bytes] = set()

    def allow(self, size: int) -> None:
        """SETTINGS_HEADER_TABLE_SIZE, sent and acknowledged."""
        self.decoder.max_allowed_table_size = size
        self.encoder.set_peer_table_size(size)

    def send(self, *fields: Field, sensitive: frozenset[bytes] | None = None) -> bytes:
        """The block for `fields`, which the other end has understood."""
        sent = list(fields)
        block = self.encoder.encode(sent, sensitive)
        received = self.decoder.decode(block, raw=True)
        assert [tuple(field) for field in received] == sent == list(fields)
        self.sensitive = {bytes(field[0]) for field in received if isinstance(field, NeverIndexedHeaderTuple)}
        return block

    def table(self) -> list[Field]:
        """The other end's dynamic table, the newest first."""
        return [(bytes(name), bytes(value)) for name, value in self.decoder.header_table.dynamic_entries]


def test_6_1_fields_of_the_static_table_take_one_octet() -> None:
    assert Peer().send(GET, (b":path", b"/"), (b":status", b"200")) == b"\x82\x84\x88"


def test_a_field_takes_one_octet_from_its_second_time_on() -> None:
    peer = Peer()
    assert len(peer.send(GET, AGENT)) > 2
    for _ in range(3):
        assert peer.send(GET, AGENT) == b"\x82\xbe"
        assert peer.send((b"user-agent", b"test/1")) == b"\xbe"  # another object, the same field


def test_indexes_move_when_something_is_inserted() -> None:
    peer = Peer()
    lists: list[list[Field]] = [[AGENT, (b"n-%d" % number, b"v")] for number in range(200)]
    for fields in lists + lists:
        peer.send(*fields)
        peer.send(*fields, sensitive=frozenset({b"other"}))


def test_another_value_is_inserted_when_it_comes_again() -> None:
    peer = Peer()
    for path in (b"/one", b"/two", b"/three"):
        peer.send((b":path", path))
    assert peer.table() == [(b":path", b"/one")]
    peer.send((b":path", b"/three"))
    assert peer.table() == [(b":path", b"/three"), (b":path", b"/one")]
    assert peer.send((b":path", b"/three")) == b"\xbe"


def test_values_that_never_come_again_do_not_push_out_what_does() -> None:
    peer = Peer()
    block = peer.send(GET, AGENT)
    for number in range(1000):
        block = peer.send(GET, (b"x-request-id", b"%032d" % number), (b":path", b"/%d" % number), AGENT)
    assert AGENT in peer.table()
    assert len(peer.table()) == 3
    assert len(block) == 1 + (3 + 32) + (2 + 4) + 1  # names by index


@pytest.mark.parametrize("name", [b"x-request-id", b"traceparent"])
def test_an_identifier_of_a_request_is_not_inserted_though_it_comes_again(name: bytes) -> None:
    peer = Peer()
    for value in (b"one", b"two", b"two"):
        peer.send((name, value))
    assert peer.table() == [(name, b"one")]


def test_6_2_names_far_back_in_a_large_table() -> None:
    peer = Peer(65_536)
    peer.allow(65_536)
    for number in range(600):
        peer.send((b"name-%d" % number, b"value"))
    for number in range(600):
        peer.send((b"name-%d" % number, b"another"))  # literals whose names have all indexes from 62 to 661
    assert len(peer.table()) == 600


def test_several_values_taking_turns_are_all_inserted() -> None:
    peer = Peer()
    block = b""
    for _ in range(3):
        for number in range(8):
            block = peer.send(GET, (b":path", b"/pkg.Service/Method%d" % number))
    assert len(block) == 2


def test_4_4_more_than_the_table_holds() -> None:
    peer = Peer()
    for turn in range(3):
        for number in range(200):
            peer.send((b"name-%d" % number, b"value"), GET, (b"same", b"%d" % (number // 2 * turn)))
    assert sum(len(name) + len(value) + 32 for name, value in peer.table()) <= 4096


def test_what_would_fill_half_of_the_table_is_not_inserted() -> None:
    peer = Peer()
    for _ in range(2):
        peer.send((b"x-token", b"t" * 2010), AGENT)
        peer.send((b"x-small", b"t" * 2009), AGENT)
    assert peer.table() == [(b"x-small", b"t" * 2009), AGENT]


# -- size updates (section 4.2)


def test_4_2_a_new_size_is_told_in_the_next_block() -> None:
    peer = Peer()
    peer.send(AGENT)
    peer.allow(100)
    assert peer.send(AGENT).startswith(encode_integer(0x20, 0x1F, 100))
    assert peer.send(AGENT) == b"\xbe"


def test_4_2_the_smallest_size_in_between_is_told_first() -> None:
    """Of several changes the next block tells the smallest size and the last (RFC 7541 section 4.2)."""
    peer = Peer()
    peer.send(AGENT)
    for size in (1000, 0, 50, 4096):
        peer.allow(size)
    assert peer.send(GET) == encode_integer(0x20, 0x1F, 0) + encode_integer(0x20, 0x1F, 4096) + b"\x82"
    assert peer.send(AGENT).startswith(b"\x7a")  # it is not in the table any more, nor remembered
    assert peer.send(AGENT) == b"\xbe"


def test_4_2_an_unchanged_size_is_not_told() -> None:
    peer = Peer()
    peer.allow(4096)
    assert peer.send(GET) == b"\x82"


def test_more_than_our_own_limit_is_not_used() -> None:
    peer = Peer(4096)
    peer.allow(1 << 20)
    assert peer.send(GET) == b"\x82"
    small = Peer(100)
    assert small.send(GET) == encode_integer(0x20, 0x1F, 100) + b"\x82"
    small.allow(65_536)
    assert small.send(GET) == b"\x82"


def test_a_larger_table_is_used_when_both_agree() -> None:
    peer = Peer(65_536)
    peer.allow(65_536)
    for number in range(500):
        peer.send((b"name-%d" % number, b"value"))
    assert len(peer.table()) == 500
    assert len(peer.send((b"name-0", b"value"))) == 3


def test_without_a_table_nothing_is_inserted() -> None:
    peer = Peer()
    peer.send(AGENT)
    peer.allow(0)
    for _ in range(3):
        peer.send(GET, AGENT, (b"x", b"y"))
    assert peer.table() == []


@pytest.mark.parametrize("fields", [[], [GET], [GET, AGENT]])
def test_a_size_update_is_told_whatever_the_block_holds(fields: list[Field]) -> None:
    for sensitive in (None, frozenset({b"user-agent"})):
        peer = Peer()
        peer.send(*fields)
        peer.allow(200)
        assert peer.send(*fields, sensitive=sensitive).startswith(encode_integer(0x20, 0x1F, 200))
        assert not peer.send(*fields, sensitive=sensitive).startswith(encode_integer(0x20, 0x1F, 200))


# -- sensitive fields (sections 6.2.3 and 7.1.3)


@pytest.mark.parametrize(
    "field", [(b"authorization", b"Bearer x"), (b"proxy-authorization", b"Basic x"), (b"cookie", b"short=1")]
)
def test_7_1_3_what_can_be_guessed_is_never_indexed(field: Field) -> None:
    """Credentials, and short cookies, as nghttp2 does, whose encoder Envoy has."""
    peer = Peer()
    for sensitive in (None, None, frozenset({field[0]}), frozenset({b"authorization"})):
        peer.send(GET, field, AGENT, sensitive=sensitive)
        assert peer.sensitive == {field[0]}
    assert peer.table() == [AGENT]


def test_6_2_3_what_came_as_never_indexed_goes_so() -> None:
    """What came never-indexed goes on so (RFC 7541 section 6.2.3)."""
    peer = Peer()
    names = frozenset({b"x-secret", b":method", b"user-agent"})
    peer.send(GET, AGENT)
    for _ in range(2):
        peer.send(GET, (b"x-secret", b"1"), AGENT, (b"x-open", b"1"), sensitive=names)
        assert peer.sensitive == names
        peer.send(GET, AGENT, (b"x-open", b"1"))
        assert peer.sensitive == set()
    assert (b"x-secret", b"1") not in peer.table()


def test_a_long_cookie_may_be_inserted() -> None:
    peer = Peer()
    peer.send((b"cookie", b"session=0123456789abcdef"))
    assert peer.table() == [(b"cookie", b"session=0123456789abcdef")]


# -- a filter's mistakes


@pytest.mark.parametrize("names", [None, frozenset({b"x-broken", b"X-Case"})])
def test_8_2_1_of_rfc_9113_neither_controls_nor_upper_case_are_sent(names: frozenset[bytes] | None) -> None:
    """Also not by index, and both ends agree about the table that holds such a field."""
    encoder, decoder = HpackEncoder(4096), hpack.Decoder()
    fields: list[Field] = [(b"x-broken", b"a\r\nb\x00\x7fc\td"), (b"X-Case", b"1"), AGENT]
    for _ in range(3):
        received = decoder.decode(encoder.encode(list(fields), names), raw=True)
        assert received == [(b"x-broken", b"a  b  c\td"), (b"x-case", b"1"), AGENT]


# -- what is remembered


def test_a_list_may_change_after_it_was_encoded() -> None:
    peer = Peer()
    fields: list[Field] = [GET, AGENT]
    assert peer.decoder.decode(peer.encoder.encode(fields, None), raw=True) == fields
    fields[1] = (b"user-agent", b"another")
    fields.reverse()
    assert peer.decoder.decode(peer.encoder.encode(fields, None), raw=True) == fields


def test_lists_of_every_length_take_turns() -> None:
    peer = Peer()
    for turn in range(3):
        for size in range(12):
            peer.send(*[(b"n-%d" % number, b"%d" % (turn if number % 5 == 4 else 0)) for number in range(size)])


def test_an_empty_list_is_an_empty_block() -> None:
    peer = Peer()
    peer.send(GET, AGENT, GET, GET)
    assert peer.send() == b""


def test_strings_that_are_remembered_are_bounded_over_all_connections() -> None:
    for number in range(6000):
        HpackEncoder(4096).encode([(b"n-%d" % number, b"v-%d" % number)], None)
    assert len(hpack_encoder._STRINGS) <= 2048
