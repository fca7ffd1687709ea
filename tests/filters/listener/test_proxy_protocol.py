"""proxy_protocol. What Envoy accepts, and what it says of it, stands in tests/differential/test_filter_chains.py."""

from __future__ import annotations

import socket

import pytest

from meshproxy.filters.listener.proxy_protocol import TLV_FILTER_STATE
from meshproxy.filters.listener_filter import CLOSE, CONTINUE, NEEDS_DATA
from meshproxy.net.address import Address
from tests.filters.listener.harness import Filters, assert_any_split_is_the_same, mutations, run
from tests.filters.listener.headers import LOCAL, SIGNATURE, v1, v2

PLAIN = ("proxy_protocol", "")
OPTIONAL = ("proxy_protocol", "{allow_requests_without_proxy_protocol: true}")
REMOTE = Address("1.2.3.4", 1000)
DESTINATION = Address("5.6.7.8", 2000)


@pytest.mark.parametrize("header", [v1(), v2(), v2(tlvs=[(1, b"h2"), (4, b"")])])
@pytest.mark.parametrize("entry", [PLAIN, OPTIONAL])
def test_addresses_in_any_split(header: bytes, entry: tuple[str, str]) -> None:
    verdict, accepted, rest = assert_any_split_is_the_same(entry, header + b"rest")
    assert (verdict, rest) == (CONTINUE, b"rest")
    assert (accepted.remote, accepted.local, accepted.local_restored) == (REMOTE, DESTINATION, True)
    assert accepted.direct_remote == Address("192.0.2.1", 1)
    assert accepted.proxy_header is not None
    assert (accepted.proxy_header.remote, accepted.proxy_header.local) == (REMOTE, DESTINATION)


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN ff::1 x 1 2\r\n", v2(command=LOCAL)])
def test_a_header_for_nobody_leaves_the_addresses(header: bytes) -> None:
    verdict, accepted, rest = assert_any_split_is_the_same(PLAIN, header + b"rest")
    assert (verdict, rest) == (CONTINUE, b"rest")
    assert (accepted.remote, accepted.local_restored) == (Address("192.0.2.1", 1), False)
    assert accepted.proxy_header is not None
    assert accepted.proxy_header.remote == Address("192.0.2.1", 1)
    assert accepted.proxy_header.local == Address("192.0.2.2", 2)


def test_the_destination_that_the_socket_has_is_not_a_restored_one() -> None:
    _, accepted, _ = run(Filters(PLAIN).filters, v1(destination="192.0.2.2:2"))
    assert not accepted.local_restored


@pytest.mark.parametrize(
    "data",
    [
        v1("1.2.3:1"),
        v1("1.2.3.4:65536"),
        v1("1.2.3.4:+1"),
        v1("1.2.3.4:"),
        v1("1.2.3.4:\N{ARABIC-INDIC DIGIT ONE}"),
        v1().replace(b"TCP4", b"UDP4"),
        v2(command=5),
        v2(family=0),
        v2(raw_tlvs=b"\1"),
        v2("224.0.0.1:1"),
        b"PROXY " + b"x" * 102,
    ],
)
def test_malformed_headers_close_in_any_split(data: bytes) -> None:
    verdict, accepted, _ = assert_any_split_is_the_same(PLAIN, data)
    assert verdict == CLOSE
    assert (accepted.remote, accepted.proxy_header, accepted.dynamic_metadata) == (Address("192.0.2.1", 1), None, {})


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", b"PROXZ", b"\r\n\r\n\0\r\nQUIX", b"\0"])
def test_without_a_header(data: bytes) -> None:
    filters = Filters(PLAIN)
    assert run(filters.filters, data)[0] == CLOSE
    assert filters.counted() == {"downstream_cx_proxy_proto_error": 1, "proxy_proto.not_found_disallowed": 1}
    filters = Filters(OPTIONAL)
    assert run(filters.filters, data)[::2] == (CONTINUE, data)
    assert filters.counted() == {"proxy_proto.not_found_allowed": 1}


COUNTS = {
    v1(): {"versions.v1.found": 1},
    v2(): {"versions.v2.found": 1},
    v1("1.2.3:1"): {"versions.v1.error": 1},
    v2(version=1): {"versions.v2.error": 1},
}


@pytest.mark.parametrize("data", COUNTS)
@pytest.mark.parametrize("prefix", ["", "edge"])
def test_what_is_counted(data: bytes, prefix: str) -> None:
    filters = Filters(("proxy_protocol", f"{{stat_prefix: '{prefix}'}}"))
    run(filters.filters, data)
    counted = filters.counted()
    assert counted.pop("downstream_cx_proxy_proto_error", 0) == (1 if "error" in next(iter(COUNTS[data])) else 0)
    under = f"proxy_proto.{prefix}." if prefix else "proxy_proto."
    assert counted == {under + name: value for name, value in COUNTS[data].items()}


@pytest.mark.parametrize(("version", "data"), [("V1", v1()), ("V2", v2())])
def test_a_version_that_is_not_allowed(version: str, data: bytes) -> None:
    """Refused as such where there must be a header, else passed on as any other data."""
    filters = Filters(("proxy_protocol", f"{{disallowed_versions: [{version}]}}"))
    assert run(filters.filters, data)[0] == CLOSE
    under = f"proxy_proto.versions.{version.lower()}"
    assert filters.counted() == {f"{under}.found": 1, f"{under}.disallowed": 1}
    text = f"{{disallowed_versions: [{version}], allow_requests_without_proxy_protocol: true}}"
    verdict, accepted, rest = run(Filters(("proxy_protocol", text)).filters, data)
    assert (verdict, rest, accepted.proxy_header) == (CONTINUE, data, None)


def test_no_version_allowed_is_an_error() -> None:
    filters = Filters(("proxy_protocol", "{disallowed_versions: [V1, V2]}"))
    assert [error.path for error in filters.errors.items] == [
        "listener.listener_filters[0].typed_config.disallowed_versions"
    ]


RULES = (
    "rules: [{tlv_type: 1, on_tlv_present: {key: a}}, {tlv_type: 2, on_tlv_present: {key: b, metadata_namespace: n}}]"
)
TLVS = v2(tlvs=[(1, b"x"), (2, b"y"), (3, b"z"), (1, b"w")])


def test_tlvs_by_rules() -> None:
    _, accepted, _ = run(Filters(("proxy_protocol", f"{{{RULES}}}")).filters, TLVS)
    assert accepted.dynamic_metadata == {"envoy.filters.listener.proxy_protocol": {"a": "x"}, "n": {"b": "y"}}
    assert accepted.filter_state == {}


def test_tlvs_in_filter_state() -> None:
    _, accepted, _ = run(Filters(("proxy_protocol", f"{{tlv_location: FILTER_STATE, {RULES}}}")).filters, TLVS)
    assert accepted.filter_state == {TLV_FILTER_STATE: {"a": "w", "b": "y"}}
    assert accepted.dynamic_metadata == {}


@pytest.mark.parametrize(
    ("config", "passed"),
    [
        ("{}", []),
        ("{pass_through_tlvs: {match_type: INCLUDE_ALL}}", [(1, b"x"), (2, b"y"), (3, b"z"), (1, b"w")]),
        ("{pass_through_tlvs: {}}", [(1, b"x"), (2, b"y"), (3, b"z"), (1, b"w")]),
        ("{pass_through_tlvs: {match_type: INCLUDE, tlv_type: [3, 1]}}", [(1, b"x"), (3, b"z"), (1, b"w")]),
        ("{pass_through_tlvs: {match_type: INCLUDE}}", []),
    ],
)
def test_tlvs_for_the_upstream(config: str, passed: list[tuple[int, bytes]]) -> None:
    _, accepted, _ = run(Filters(("proxy_protocol", config)).filters, TLVS)
    assert accepted.proxy_header is not None
    assert accepted.proxy_header.tlvs == passed


def test_the_largest_header_is_taken_and_no_more_is_held() -> None:
    largest = v2(raw_tlvs=b"\1\xff\xf0" + bytes(65_520))
    assert len(largest) == 16 + 65_535
    verdict, _, rest = run(Filters(PLAIN).filters, largest[:-1], largest[-1:] + b"rest")
    assert (verdict, rest) == (CONTINUE, b"rest")
    assert run(Filters(PLAIN).filters, b"PROXY " + b"x" * 101)[0] == NEEDS_DATA
    assert run(Filters(PLAIN).filters, b"PROXY " + b"x" * 102)[0] == CLOSE


@pytest.mark.parametrize("data", [v1(), v1("::1:7", "2001:db8::1:8"), v2(tlvs=[(1, b"x"), (2, b"")]), SIGNATURE])
def test_mutated_input_never_raises(data: bytes) -> None:
    filters = Filters(("proxy_protocol", f"{{allow_requests_without_proxy_protocol: true, {RULES}}}"))
    for mutated in mutations(data):
        verdict, accepted, rest = run(filters.filters, mutated)
        assert mutated.endswith(rest)
        if verdict == CONTINUE and rest != mutated:
            family = socket.AF_INET6 if ":" in accepted.remote.ip else socket.AF_INET
            assert socket.inet_pton(family, accepted.remote.ip)
