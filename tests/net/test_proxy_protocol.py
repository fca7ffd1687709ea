"""The PROXY protocol header as it is written. The bytes are those that Envoy 1.40 writes."""

from __future__ import annotations

import pytest

from meshproxy.net.address import Address
from meshproxy.net.proxy_protocol import ProxyHeader, v1_header, v2_header

V4 = ProxyHeader(Address("1.2.3.4", 1000), Address("5.6.7.8", 2000), [])
V6 = ProxyHeader(Address("::1", 3), Address("::2", 4), [])
MIXED = ProxyHeader(Address("::1", 3), Address("5.6.7.8", 4), [])
UNIX = ProxyHeader(Address("", 0, "@"), Address("", 0, "/tmp/x"), [])


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (V4, b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 2000\r\n"),
        (V6, b"PROXY TCP6 ::1 ::2 3 4\r\n"),
        (MIXED, b"PROXY TCP6 ::1 ::ffff:5.6.7.8 3 4\r\n"),
        (UNIX, b"PROXY UNKNOWN\r\n"),  # section 2.1: where there are no such addresses
    ],
)
def test_v1(header: ProxyHeader, expected: bytes) -> None:
    assert v1_header(header) == expected


SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V4_ADDRESSES = b"\1\2\3\4\5\6\7\x08\x03\xe8\x07\xd0"


@pytest.mark.parametrize(
    ("header", "tlvs", "expected"),
    [
        (V4, [], b"\x21\x11\0\x0c" + V4_ADDRESSES),
        (V4, [(1, b"h2"), (0xE0, b"x")], b"\x21\x11\0\x15" + V4_ADDRESSES + b"\1\0\2h2\xe0\0\1x"),
        (V6, [], b"\x21\x21\0\x24" + bytes(15) + b"\1" + bytes(15) + b"\2\0\3\0\4"),
        (UNIX, [(1, b"h2")], b"\x20\0\0\5\1\0\2h2"),  # LOCAL
    ],
)
def test_v2(header: ProxyHeader, tlvs: list[tuple[int, bytes]], expected: bytes) -> None:
    assert v2_header(header, tlvs) == SIGNATURE + expected


def test_what_there_is_no_room_for_is_left_out() -> None:
    written = v2_header(V4, [(1, bytes(60_000)), (2, bytes(60_000)), (3, b"abc")])
    assert int.from_bytes(written[14:16], "big") == len(written) - 16 == 12 + 60_003 + 6
    assert written.endswith(b"\3\0\3abc")
