"""What `upgrade_configs` of a route allow, and what they refuse."""

from __future__ import annotations

import pytest

from meshproxy.route.route import Route
from meshproxy.route.upgrade import RouteUpgrades
from tests.route.support import build, new_headers, new_info, try_build

ROUTE = """
name: r
virtual_hosts:
- name: a
  domains: ["*"]
  routes:
  - match: {connect_matcher: {}, headers: [{name: x-a, string_match: {exact: "1"}}]}
    route: {cluster: first}
  - match: {connect_matcher: {}}
    route: {cluster: c, upgrade_configs: CONFIGS}
  - match: {safe_regex: {regex: ".*"}}
    route: {cluster: other}
"""
UPGRADES = "route_config.virtual_hosts[0].routes[1].route.upgrade_configs"


def connect_route(configs: str, **fields: str) -> Route:
    """The route of a CONNECT request, which has no path."""
    headers = new_headers("/", fields=list(fields.items()))
    headers.set(b":method", b"CONNECT")
    headers.remove(b":path")
    route = build(ROUTE.replace("CONFIGS", configs)).match(headers, new_info(headers), 0)
    assert route is not None
    return route


def upgrades(configs: str) -> RouteUpgrades:
    found = connect_route(configs).upgrades
    assert found is not None
    return found


def test_only_a_connect_matcher_takes_a_connect() -> None:
    assert connect_route("[]").cluster_name == "c"
    assert connect_route("[]", **{"x-a": "1"}).cluster_name == "first"


def test_a_connect_matcher_takes_nothing_else() -> None:
    headers = new_headers("/")
    route = build(ROUTE.replace("CONFIGS", "[]")).match(headers, new_info(headers), 0)
    assert route is not None
    assert route.cluster_name == "other"


def test_protocols_are_compared_without_case() -> None:
    allowed = upgrades("[{upgrade_type: WebSocket}, {upgrade_type: foo, enabled: false}]").allowed
    assert allowed == {b"websocket": True, b"foo": False}


@pytest.mark.parametrize(
    ("config", "method", "connects"),
    [
        ("", b"CONNECT", False),
        (", connect_config: {}", b"CONNECT", True),
        (", connect_config: {}", b"POST", False),
        (", connect_config: {allow_post: true}", b"POST", True),
        (", connect_config: {allow_post: true}", b"GET", False),
    ],
)
def test_what_ends_here(config: str, method: bytes, connects: bool) -> None:
    assert (upgrades(f"[{{upgrade_type: CONNECT{config}}}]").connects(method) is not None) == connects


@pytest.mark.parametrize(
    ("configs", "error"),
    [
        ("[{upgrade_type: a}, {upgrade_type: A}]", f"{UPGRADES}[1].upgrade_type: the upgrade 'A' is there twice"),
        (
            "[{upgrade_type: a, connect_config: {}}]",
            f"{UPGRADES}[0].connect_config: is for the upgrade_type CONNECT only",
        ),
        (
            "[{upgrade_type: CONNECT, connect_config: {proxy_protocol_config: {pass_through_tlvs: {}}}}]",
            f"{UPGRADES}[0].connect_config.proxy_protocol_config.pass_through_tlvs: is not supported for CONNECT",
        ),
    ],
)
def test_errors(configs: str, error: str) -> None:
    _, errors = try_build(ROUTE.replace("CONFIGS", configs))
    assert errors == [error]
