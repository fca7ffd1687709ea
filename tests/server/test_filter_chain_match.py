"""Filter chain matching: what a configuration may say, and the choice among chains.

How single criteria choose is tried with the real Envoy in tests/differential/test_filter_chains.py.
"""

from __future__ import annotations

import random
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from meshproxy.filters.listener_filter import AcceptedSocket
from meshproxy.net.address import Address
from meshproxy.server.filter_chain_match import PrefixTable, ip_number, is_same_ip_or_loopback
from tests.server.chains import Match, build, expected_chain, random_chains, random_connection, range_message

OVERLAPPING = "multiple filter chains with overlapping matching rules are defined"
WHERE = "listener.filter_chains[{}].filter_chain_match"


def connection(remote: str = "10.0.0.1", local: str = "10.0.0.2", **facts: Any) -> AcceptedSocket:
    accepted = AcceptedSocket(None, Address(remote, 1), Address(local, 2))
    for name, value in facts.items():
        setattr(accepted, name, value)
    return accepted


@hypothesis.given(st.integers(0, 2**32))
@hypothesis.settings(max_examples=300)
def test_the_choice_is_that_of_the_documentation(seed: int) -> None:
    rng = random.Random(seed)
    matches = random_chains(rng)
    matcher, errors = build(*matches)
    assert matcher is not None, str(errors)
    for _ in range(20):
        accepted = random_connection(rng)
        assert matcher.find(accepted) == expected_chain(matches, accepted)


# What Envoy says to each of these, but for the path.
@pytest.mark.parametrize(
    ("matches", "index", "reason"),
    [
        ([{}, {}], 1, "filter chain 'c1' has the same matching rules defined as 'c0'"),
        ([{"destination_port": 80}] * 2, 1, "filter chain 'c1' has the same matching rules defined as 'c0'"),
        ([{"source_ports": [80, 81]}, {"source_ports": [81, 82]}], 1, OVERLAPPING),
        ([{"server_names": ["a", "b"]}, {"server_names": ["b", "a"]}], 1, OVERLAPPING),
        ([{"server_names": ["A.com"]}, {"server_names": ["a.com"]}], 1, OVERLAPPING),
        ([{"server_names": ["A.com", "a.com"]}], 0, OVERLAPPING),
        ([{"server_names": [""]}, {}], 1, OVERLAPPING),
        ([{"server_names": ["*.x"]}, {"server_names": [".x"]}], 1, OVERLAPPING),
        ([{"application_protocols": [""]}, {}], 1, OVERLAPPING),
        ([{"source_prefix_ranges": [range_message("10.1.2.3/8")] * 2}], 0, OVERLAPPING),
        ([{"prefix_ranges": [range_message(each)]} for each in ("10.1.2.3/8", "10.9.2.3/8")], 1, OVERLAPPING),
        ([{"prefix_ranges": [range_message(each)]} for each in ("10.1.2.3/33", "10.1.2.3/32")], 1, OVERLAPPING),
        (
            [{"prefix_ranges": [{"address_prefix": "10.1.2.3"}]}, {"prefix_ranges": [range_message("0.0.0.0/0")]}],
            1,
            OVERLAPPING,
        ),
    ],
)
def test_chains_that_compete(matches: list[Match], index: int, reason: str) -> None:
    matcher, errors = build(*matches)
    assert matcher is None
    assert [(error.path, error.reason) for error in errors.items] == [(WHERE.format(index), reason)]


@pytest.mark.parametrize("name", ["a*.com", "*", "a.*.com", "*a.com", "a*"])
def test_partial_wildcards(name: str) -> None:
    matcher, errors = build({}, {"server_names": ["ok", name]})
    assert matcher is None
    assert [(error.path, error.reason) for error in errors.items] == [
        (f"{WHERE.format(1)}.server_names[1]", 'partial wildcards are not supported in "server_names"')
    ]


@pytest.mark.parametrize("field", ["prefix_ranges", "source_prefix_ranges", "direct_source_prefix_ranges"])
@pytest.mark.parametrize("address", ["10.1.2", "foo", "", "10.0.0.1:80", "1::2::3"])
def test_malformed_addresses(field: str, address: str) -> None:
    matcher, errors = build({field: [range_message("10.0.0.0/8"), {"address_prefix": address, "prefix_len": 8}]})
    assert matcher is None
    assert [(error.path, error.reason) for error in errors.items] == [
        (f"{WHERE.format(0)}.{field}[1].address_prefix", f"malformed IP address: {address}")
    ]


def test_all_errors_at_once() -> None:
    _, errors = build({"server_names": ["*"]}, {"prefix_ranges": [range_message("x/8")]}, {}, {})
    assert [error.path for error in errors.items] == [
        f"{WHERE.format(0)}.server_names[0]",
        f"{WHERE.format(1)}.prefix_ranges[0].address_prefix",
        WHERE.format(3),
    ]


@pytest.mark.parametrize(
    "matches",
    [
        [{"server_names": ["*.a*.com"]}],  # Envoy takes it, and compares the second star as it is
        [{"prefix_ranges": [range_message("::ffff:10.1.2.3/128")]}],
        [{"transport_protocol": "foo"}, {"transport_protocol": "FOO"}],
        [{"prefix_ranges": [range_message("0.0.0.0/0")]}, {}],
        [],
    ],
)
def test_what_envoy_accepts(matches: list[Match]) -> None:
    matcher, errors = build(*matches)
    assert matcher is not None, str(errors)


def test_no_chain_is_the_default_one() -> None:
    matcher, _ = build()
    assert matcher is not None
    assert matcher.find(connection()) is None


def test_a_range_of_everything_is_narrower_than_none() -> None:
    matcher, _ = build({}, {"prefix_ranges": [range_message("0.0.0.0/0")]})
    assert matcher is not None
    assert matcher.find(connection()) == 1
    assert matcher.find(connection("2001:db8::1", "2001:db8::2")) == 0


def test_a_unix_socket_has_no_address_and_no_port() -> None:
    ranges = {"prefix_ranges": [range_message("10.0.0.0/8")]}
    matcher, _ = build({"destination_port": 80}, ranges, {"source_ports": [7]}, {"source_type": "SAME_IP_OR_LOOPBACK"})
    assert matcher is not None
    unix = AcceptedSocket(None, Address("", 0, "@"), Address("", 0, "/run/x"))
    assert matcher.find(unix) == 3


@pytest.mark.parametrize(
    ("remote", "local", "same"),
    [
        ("127.0.0.1", "10.0.0.1", True),
        ("127.0.0.2", "127.0.0.1", False),
        ("127.0.0.2", "127.0.0.2", True),
        ("::1", "2001:db8::1", True),
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
    ],
)
def test_same_ip_or_loopback(remote: str, local: str, same: bool) -> None:
    assert is_same_ip_or_loopback(connection(remote, local)) is same


def test_many_prefixes_cost_one_look_up_for_each_length() -> None:
    ranges = [((4, 32, number), number) for number in range(20_000)]
    table = PrefixTable([*ranges, ((4, 8, 10 << 24), -1)], -2)
    assert table.find(ip_number("0.0.78.31")) == 78 * 256 + 31
    assert table.find(ip_number("10.9.9.9")) == -1
    assert table.find(ip_number("11.9.9.9")) == -2
    assert table.find(ip_number("::1")) == -2


def test_a_scoped_address_is_looked_up_without_its_scope() -> None:
    assert ip_number("fe80::1%eth0") == ip_number("fe80::1")
