"""Rate limit actions. That they describe requests as Envoy's do, tests/differential/test_local_ratelimit.py shows."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from envoy.config.route.v3 import route_components_pb2

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.json_message import MessageParser
from meshproxy.net.address import Address
from meshproxy.observe.stream_info import ConnectionInfo, StreamInfo
from meshproxy.route.rate_limit import (
    Descriptor,
    RateLimit,
    build_filter_rate_limits,
    build_rate_limits,
    decoded_query,
    network,
)
from tests.route.support import build, new_context, new_headers, try_build

GENERIC = "{ generic_key: { descriptor_value: v } }"


def parse(text: str) -> Any:
    message = route_components_pb2.VirtualHost()
    MessageParser(new_context().errors).fill(message, {"rate_limits": yaml.safe_load(text)}, "v")
    return message.rate_limits


def only(text: str) -> RateLimit:
    """The limit of a filter's `rate_limits`."""
    context = new_context()
    context.service_cluster = "here"
    (limit,) = build_filter_rate_limits(parse(text), "f", context)
    assert not context.errors, str(context.errors)
    return limit


def info(remote: str = "10.1.2.3") -> StreamInfo:
    return StreamInfo(ConnectionInfo(1, Address(remote, 1234), Address("10.0.0.1", 80)), 1.0)


def entries(action: str, headers: HeaderMap | None = None, about: StreamInfo | None = None) -> tuple[bytes, ...] | None:
    """What one action makes of a request that no route forwards."""
    found = only(f"[{{ actions: [{action}] }}]").describe(headers or new_headers(), about or info(), None)
    return None if found is None else found.entries


def test_what_depends_on_nothing_is_made_once() -> None:
    limit = only(f"[{{ actions: [{GENERIC}, {{ source_cluster: {{}} }}] }}]")
    found = limit.describe(new_headers(), info(), None)
    assert found is not None
    assert (found.entries, found.hits) == ((b"generic_key", b"v", b"source_cluster", b"here"), 1)
    assert limit.describe(new_headers(), info(), None) is found


def test_an_action_that_says_no_leaves_no_descriptor() -> None:
    assert entries("{ request_headers: { header_name: x-user, descriptor_key: user } }, " + GENERIC) is None


def test_host_is_the_authority() -> None:
    action = "{ request_headers: { header_name: Host, descriptor_key: host } }"
    assert entries(action, new_headers(authority="a.b")) == (b"host", b"a.b")


def test_a_unix_socket_has_no_address() -> None:
    about = StreamInfo(ConnectionInfo(1, Address("", 0, "/run/s"), Address("", 0, "/run/s")), 1.0)
    assert entries("{ remote_address: {} }", about=about) is None
    assert entries("{ masked_remote_address: {} }", about=about) is None


def test_a_number_in_metadata_is_no_text() -> None:
    about = info()
    about.dynamic_metadata = {"ns": {"a": {"b": "text", "c": 1}}}
    found = {}
    for key in ("b", "c", "d"):
        path = f"[{{ key: a }}, {{ key: {key} }}]"
        action = f"{{ metadata: {{ descriptor_key: m, metadata_key: {{ key: ns, path: {path} }} }} }}"
        found[key] = entries(action, about=about)
    assert found == {"b": (b"m", b"text"), "c": None, "d": None}


@pytest.mark.parametrize(
    ("ip", "expected"),
    [("10.1.2.3", b"10.1.2.0/24"), ("255.255.255.255", b"255.255.255.0/24"), ("2001:db8:1:2::3", b"2001:db8::/40")],
)
def test_the_network_of_an_address(ip: str, expected: bytes) -> None:
    assert network(ip, 24, 40) == expected


def test_the_first_of_equal_parameters_counts_decoded() -> None:
    headers = new_headers("/p?a=%41+b&a=2&%62=x%zz&c&=e")
    assert decoded_query(headers) == {b"a": b"A+b", b"b": b"x%zz", b"c": b"", b"": b"e"}
    assert decoded_query(new_headers("/p?")) == {}


@pytest.mark.parametrize(
    ("value", "hits"),
    [("0", 0), ("2.9", 2), ("1e3", 1000), ("1000000001", None), ("-1", None), ("nan", None), ("x", None)],
)
def test_hits_by_a_format(value: str, hits: int | None) -> None:
    about = info()
    about.request_headers = headers = new_headers(fields=[("x-hits", value)])
    limit = only(f"[{{ actions: [{GENERIC}], hits_addend: {{ format: '%REQ(x-hits)%' }} }}]")
    found: Descriptor | None = limit.describe(headers, about, None)
    assert (None if found is None else found.hits) == hits


def test_limits_with_a_disable_key_are_there_without_effect() -> None:
    assert build_rate_limits(parse(f"[{{ disable_key: k, actions: [{GENERIC}] }}]"), "v", new_context()) == []
    assert build_rate_limits(parse("[]"), "v", new_context()) is None


@pytest.mark.parametrize(
    ("limit", "error"),
    [
        (
            f"{{ stage: 0, actions: [{GENERIC}] }}",
            "f.rate_limits[0]: 'stage' field and 'disable_key' field are not supported",
        ),
        (
            f"{{ actions: [{GENERIC}], hits_addend: {{}} }}",
            "f.rate_limits[0].hits_addend: hits_addend must contain either a format or a number",
        ),
        (
            f"{{ actions: [{GENERIC}], hits_addend: {{ format: '%REQ(a)%%REQ(b)%' }} }}",
            "f.rate_limits[0].hits_addend.format: hits_addend format must contain exactly one substitution",
        ),
        (
            "{ actions: [{ dynamic_metadata: {} }] }",
            "f.rate_limits[0].actions[0]: this action is not supported",
        ),
    ],
)
def test_errors_have_their_path(limit: str, error: str) -> None:
    context = new_context()
    build_filter_rate_limits(parse(f"[{limit}]"), "f", context)
    assert [str(each) for each in context.errors.items] == [error]


def test_a_route_and_each_of_its_weighted_clusters_have_its_limits() -> None:
    route = {
        "match": {"prefix": "/"},
        "route": {
            "rate_limits": [{"actions": [{"destination_cluster": {}}]}],
            "include_vh_rate_limits": True,
            "weighted_clusters": {"clusters": [{"name": "a", "weight": 1}, {"name": "b", "weight": 1}]},
        },
    }
    host = {
        "name": "v",
        "domains": ["*"],
        "routes": [route],
        "rate_limits": yaml.safe_load(f"[{{ actions: [{GENERIC}] }}]"),
    }
    table = build({"name": "t", "virtual_hosts": [host]})
    found = set()
    for random in range(2):
        headers = new_headers()
        picked = table.match(headers, info(), random)
        assert picked is not None
        assert picked.rate_limits is not None
        assert picked.include_vh_rate_limits
        assert picked.virtual_host.rate_limits is not None
        described = picked.rate_limits[0].describe(headers, info(), picked)
        assert described is not None
        found.add(described.entries)
    assert found == {(b"destination_cluster", b"a"), (b"destination_cluster", b"b")}


def test_hits_are_for_filters() -> None:
    limits = yaml.safe_load(f"[{{ actions: [{GENERIC}], hits_addend: {{ number: 2 }} }}]")
    host = {"name": "v", "domains": ["*"], "rate_limits": limits}
    errors = try_build({"name": "t", "virtual_hosts": [host]})[1]
    assert errors == ["route_config.virtual_hosts[0].rate_limits[0].hits_addend: is for the rate_limits of a filter"]
