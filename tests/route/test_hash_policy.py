"""Hash policies. That hashes equal Envoy's, tests/differential/test_hashing.py shows; here is how they come about."""

from __future__ import annotations

import pytest
import xxhash
import yaml
from envoy.config.route.v3 import route_components_pb2

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.json_message import MessageParser
from meshproxy.net.address import Address
from meshproxy.observe.stream_info import ConnectionInfo, StreamInfo
from meshproxy.route.hash_policy import NO_HASH, HashPolicy, build_hash_policy, cookie_value
from tests.route.support import new_headers, try_build

HEADER = "{ header: { header_name: X-Key } }"
COOKIE = "{ cookie: { name: sid, ttl: 0s } }"


def build(policies: str) -> HashPolicy:
    errors = ConfigErrors()
    message = route_components_pb2.RouteAction()
    MessageParser(errors).fill(message, {"hash_policy": yaml.safe_load(policies)}, "route")
    policy = build_hash_policy(message.hash_policy, "route", "hash_policy", errors)
    assert not errors, str(errors)
    assert policy is not None
    return policy


def evaluate(policies: str, headers: HeaderMap, cookies: list[bytes] | None = None, remote: str = "10.0.0.9") -> int:
    connection = ConnectionInfo(1, Address(remote, 1234), Address("10.0.0.1", 80))
    return build(policies).hash(headers, StreamInfo(connection, 1.0), cookies)


def xxh(text: bytes, seed: int = 0) -> int:
    return xxhash.xxh64_intdigest(text, seed)


def test_the_hash_is_xxh64() -> None:
    """The value that the algorithm's reference implementation gives for nothing."""
    assert evaluate(f"[{HEADER}]", new_headers(fields=[("x-key", "")])) == 0xEF46DB3751D8E999


def test_values_of_a_header_in_any_order() -> None:
    expected = xxh(b"b", xxh(b"a"))
    assert evaluate(f"[{HEADER}]", new_headers(fields=[("x-key", "b"), ("x-key", "a")])) == expected
    assert evaluate(f"[{HEADER}]", new_headers(fields=[("x-key", "a"), ("x-key", "b")])) == expected


@pytest.mark.parametrize(
    "policy",
    [
        HEADER,
        "{ cookie: { name: sid } }",
        "{ query_parameter: { name: q } }",
    ],
)
def test_what_is_not_there_gives_no_hash(policy: str) -> None:
    assert evaluate(f"[{policy}]", new_headers("/?p=1"), []) == NO_HASH


def test_source_address_without_its_port() -> None:
    policy = "[{ connection_properties: { source_ip: true } }]"
    assert evaluate(policy, new_headers()) == xxh(b"10.0.0.9")
    assert evaluate(policy, new_headers(), remote="") == NO_HASH  # a Unix socket


def test_hashes_of_several_policies_are_joined() -> None:
    policies = f"[{HEADER}, {{ query_parameter: {{ name: q }} }}]"
    first, second = xxh(b"k"), xxh(b"1")
    rotated = (first << 1 | first >> 63) & 0xFFFFFFFFFFFFFFFF
    assert evaluate(policies, new_headers("/?q=1", fields=[("x-key", "k")])) == rotated ^ second
    assert evaluate(policies, new_headers("/?q=1")) == second


def test_a_terminal_policy_ends_the_search_once_there_is_a_hash() -> None:
    policies = "[{ header: { header_name: x-key }, terminal: true }, { query_parameter: { name: q } }]"
    assert evaluate(policies, new_headers("/?q=1", fields=[("x-key", "k")])) == xxh(b"k")
    assert evaluate(policies, new_headers("/?q=1")) == xxh(b"1")


def test_a_cookie_is_made_up_from_the_connection() -> None:
    cookies: list[bytes] = []
    value = xxhash.xxh64_hexdigest(b"10.0.0.9:123410.0.0.1:80").encode()
    assert evaluate(f"[{COOKIE}]", new_headers(), cookies) == xxh(value)
    assert cookies == [b'sid="' + value + b'"; HttpOnly']


def test_no_cookie_is_made_up_where_nobody_would_send_it() -> None:
    assert evaluate(f"[{COOKIE}]", new_headers(), None) == NO_HASH


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sid=1", b"1"),
        ("a=b; sid=1; sid=2", b"1"),
        ('sid="1"', b"1"),
        ("a=b;sid=x=y", b"x=y"),
        ("sid", b""),
        ("xsid=1", b""),
    ],
)
def test_cookies(line: str, expected: bytes) -> None:
    assert cookie_value(new_headers(fields=[("cookie", line)]), b"sid") == expected


def test_a_policy_needs_its_kind() -> None:
    route = "{ match: { prefix: / }, route: { cluster: a, hash_policy: [{ terminal: true }] } }"
    table, errors = try_build(
        {"name": "t", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [yaml.safe_load(route)]}]}
    )
    assert table is None
    assert errors == ["route_config.virtual_hosts[0].routes[0].route.hash_policy[0]: a policy specifier is required"]


@pytest.mark.parametrize(
    ("value", "expected"), [("text", xxh(b"text")), (b"raw", xxh(b"raw")), ({"a": 1}, NO_HASH), (None, NO_HASH)]
)
def test_filter_state(value: object, expected: int) -> None:
    info = StreamInfo(ConnectionInfo(1, Address("10.0.0.9", 1234), Address("10.0.0.1", 80)), 1.0)
    policy = build("[{ filter_state: { key: who } }]")
    assert policy.hash(new_headers(), info, None) == NO_HASH
    info.filter_state = {"who": value}
    assert policy.hash(new_headers(), info, None) == expected
