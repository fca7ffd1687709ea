"""Weighted clusters by a number of the request: both proxies put every one of 10,000 users on the same side.

The clusters have no hosts: which one it was is told by a header of the 503, so that a user costs no upstream request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import yaml

from tests.differential.topic import ROUTER, TYPE, address
from tests.support.downstream import RawDownstream
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy

USERS = 10_000
CONNECTIONS = 40  # each with one request at a time: Envoy closes one that has more than two local replies in a row

HEADER = {"header": {"header_name": "X-User"}}
COOKIE = {"cookie": {"name": "user"}}
QUERY = {"query_parameter": {"name": "user"}}
RUNTIME = {"layers": [{"name": "static", "static_layer": {"split": {"a": 30, "b": 0, "c": 90}}}]}


def split(prefix: str, weights: Sequence[int], policies: Sequence[Any] = (), **fields: Any) -> dict[str, Any]:
    """A route over the clusters a, b … with these weights."""
    clusters = [
        {
            "name": name,
            "weight": weight,
            "response_headers_to_add": [{"header": {"key": "x-side", "value": f"{index}{name}"}}],
        }
        for index, (name, weight) in enumerate(zip("abc", weights, strict=False))
    ]
    action: dict[str, Any] = {"weighted_clusters": {"clusters": clusters, **fields}}
    if policies:
        action["hash_policy"] = list(policies)
    return {"match": {"prefix": f"/{prefix}/"}, "route": action}


HASHED: dict[str, Any] = {"use_hash_policy": True}
ROUTES = [
    split("two", (10, 90), [HEADER], **HASHED),
    split("three", (10, 45, 45), [HEADER], **HASHED),
    split("cookie", (33, 33, 34), [COOKIE], **HASHED),
    split("made-up", (50, 50), [{"cookie": {"name": "user", "ttl": "60s"}}], **HASHED),
    split("both", (1, 2, 4), [HEADER, COOKIE], **HASHED),
    split("first", (1, 1), [{**HEADER, "terminal": True}, COOKIE], **HASHED),
    split("odd", (1, 99_998, 7), [HEADER], **HASHED),
    split("query", (10, 45, 45), [QUERY], **HASHED),
    split("none", (0, 3, 0), [HEADER], **HASHED),
    split("runtime", (10, 45, 45), [HEADER], runtime_key_prefix="split", **HASHED),
    split("not-used", (50, 50), [HEADER], use_hash_policy=False),
    split("no-policy", (50, 50), **HASHED),
    split("number", (10, 45, 45), header_name="X-Number"),
    split("number-before-policy", (10, 45, 45), [HEADER], header_name="x-number"),
    split("number-runtime", (10, 45, 45), header_name="x-number", runtime_key_prefix="split"),
    split("host", (10, 45, 45), header_name="host"),
    split("authority", (10, 45, 45), header_name=":authority"),
    split("user-agent", (10, 45, 45), header_name="user-agent"),
]


def bootstrap() -> str:
    """One listener with all routes."""
    manager = {
        "@type": TYPE + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "main",
        "http_filters": [ROUTER],
        "route_config": {"virtual_hosts": [{"name": "splits", "domains": ["*"], "routes": ROUTES}]},
    }
    chain = {"filters": [{"name": "hcm", "typed_config": manager}]}
    tree = {
        "admin": {"address": address(0)},
        "layered_runtime": RUNTIME,
        "static_resources": {
            "listeners": [{"name": "main", "address": address(0), "filter_chains": [chain]}],
            "clusters": [{"name": name, "type": "STATIC", "connect_timeout": "1s"} for name in "abc"],
        },
    }
    return yaml.dump(tree, sort_keys=False)


@pytest.fixture(scope="module")
def proxies() -> Iterator[tuple[ProxyProcess, ProxyProcess]]:
    """Envoy and meshproxy on one configuration."""
    with ExitStack() as stack:
        yield stack.enter_context(start_envoy(bootstrap())), stack.enter_context(start_meshproxy(bootstrap()))


def request(target: str, *fields: str, host: str = "h") -> bytes:
    """A GET."""
    return "\r\n".join([f"GET {target} HTTP/1.1", f"host: {host}", *fields, "", ""]).encode()


def sides(proxy: ProxyProcess, requests: Sequence[bytes]) -> list[str]:
    """Which cluster each request takes, asked over few connections."""
    found: list[str] = []
    with ExitStack() as stack:
        port = proxy.listener_ports()["main"]
        downstreams = [stack.enter_context(RawDownstream(port)) for _ in range(min(CONNECTIONS, len(requests)))]
        for first in range(0, len(requests), CONNECTIONS):
            asked = list(zip(downstreams, requests[first : first + CONNECTIONS], strict=False))
            for downstream, each in asked:
                downstream.send(each)
            found += [side(downstream) for downstream, _ in asked]
    return found


def side(downstream: RawDownstream) -> str:
    """The cluster of the next response."""
    response = downstream.receive()
    return (response.get(b"x-side") or b"%d" % response.status).decode()


USERS_OF = {
    "two": [request("/two/", f"x-user: user-{i}@example.com") for i in range(USERS)],
    "three": [request("/three/", f"x-user: {i}") for i in range(USERS)],
    "cookie": [request("/cookie/", f"cookie: theme=dark; user=u{i}; lang=en") for i in range(USERS)],
}


@pytest.mark.parametrize("name", USERS_OF)
def test_same_side_for_every_user(proxies: tuple[ProxyProcess, ProxyProcess], name: str) -> None:
    expected, actual = (sides(proxy, USERS_OF[name]) for proxy in proxies)
    assert min(Counter(expected).values()) > USERS // 20
    assert actual == expected


NUMBERS = (
    "0",
    "9",
    "10",
    "54",
    "55",
    "99",
    "100",
    "1109",
    "18446744073709551615",
    "007",
    "0" * 40 + "77",
    "+54",
    " 54 ",
)
NO_NUMBERS = ("", "-1", "-0", "+", "+-5", "1.0", "0x10", "1e1", "a", "5 5", "18446744073709551616", "9" * 30, "٥")
CASES = {
    "hashed_cookie_forms": [
        request("/cookie/", f"cookie: {text}")
        for text in ('user="q"', "user=a=b", "a=1;user=x", "user=1; user=2", "user=x;")
    ],
    "made_up_but_there": [request("/made-up/", f"cookie: user={i}") for i in range(60)],
    "two_policies": [request("/both/", f"x-user: {i}", f"cookie: user={i}") for i in range(120)],
    "two_policies_one_hash": [request("/both/", f"cookie: user={i}") for i in range(60)],
    "terminal": [request("/first/", f"x-user: {i}", f"cookie: user={i}") for i in range(60)],
    "terminal_is_missing": [request("/first/", f"cookie: user={i}") for i in range(60)],
    "large_weights": [request("/odd/", f"x-user: {i}") for i in range(200)],
    "query": [request(f"/query/?user={i}") for i in range(120)],
    "user_twice": [request("/three/", f"x-user: {i}", "x-user: b") for i in range(60)],
    "user_empty": [request("/three/", "x-user: ")],
    "one_side": [request("/none/", f"x-user: {i}") for i in range(20)],
    "runtime": [request("/runtime/", f"x-user: {i}") for i in range(200)],
    "number": [request("/number/", f"x-number: {text}") for text in NUMBERS],
    "number_and_user": [request("/number-before-policy/", "x-user: u", f"x-number: {text}") for text in NUMBERS],
    "number_runtime": [request("/number-runtime/", f"x-number: {i}") for i in range(240)],
    "host": [request("/host/", host=str(i)) for i in range(120)],
    "authority": [request("/authority/", host=str(i)) for i in range(120)],
    "user_agent": [request("/user-agent/", f"user-agent: {i}") for i in range(120)],
}


@pytest.mark.parametrize("kind", CASES)
def test_same_side(proxies: tuple[ProxyProcess, ProxyProcess], kind: str) -> None:
    expected, actual = (sides(proxy, CASES[kind]) for proxy in proxies)
    assert actual == expected


DRAWN = {
    "no_user": request("/three/"),
    "no_cookie_is_made_up": request("/made-up/"),
    "hash_policy_is_not_used": request("/not-used/", "x-user: u"),
    "no_hash_policy": request("/no-policy/", "x-user: u"),
    "number_twice": request("/number/", "x-number: 5", "x-number: 5"),
    "user_agent_twice": request("/user-agent/", "user-agent: 5", "user-agent: 6"),
    "header_name_leaves_the_policy_out": request("/number-before-policy/", "x-user: u"),
    **{f"no_number_{text}": request("/number/", f"x-number: {text}") for text in NO_NUMBERS if text.isascii()},
}


@pytest.mark.parametrize("kind", DRAWN)
def test_others_are_drawn(proxies: tuple[ProxyProcess, ProxyProcess], kind: str) -> None:
    """What has no number is on any side."""
    for proxy in proxies:
        assert len(set(sides(proxy, [DRAWN[kind]] * 80))) > 1
