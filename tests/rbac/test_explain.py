"""What `meshproxy explain` says of rules."""

from __future__ import annotations

from typing import Any

from meshproxy.server.explain.text import render
from tests.rbac.support import ANY, Yaml, policy
from tests.server.test_explain import (
    ANSWER,
    FILTERS,
    ROUTER,
    ask,
    bootstrap,
    host,
    listener,
    manager,
    secure_chain,
    simple,
    world_of,
)

RBAC = FILTERS + "http.rbac.v3.RBAC"
MESH: Yaml = {"authenticated": {"principal_name": {"prefix": "spiffe://mesh/"}}}
UNKNOWN = "goes by the names in the client's certificate, of which the question does not tell"


def rbac(name: str = "rbac", **policies: Yaml) -> Yaml:
    return {"name": name, "typed_config": {"@type": RBAC, "rules": {"policies": policies}}}


def reasons(plain: dict[str, Any]) -> list[str]:
    return [each.get("reason", "") for each in plain["http_filters"]]


def test_who_is_allowed_and_who_is_not() -> None:
    path = {"url_path": {"path": {"prefix": "/in"}}}
    header = {"header": {"name": "x-user", "string_match": {"exact": "ann"}}}
    world = simple([{"match": {"prefix": "/"}, **ANSWER}], http_filters=[rbac(p=policy(path, header)), ROUTER])
    inside = ask(world, ("path", "/in/x"), ("header", "x-user: ann"))
    assert (inside["found"], inside["outcome"]["kind"]) == (True, "direct_response")
    assert reasons(inside) == ["allowed by the policy 'p'", ""]
    outside = ask(world, ("path", "/in/x"))
    assert (outside["found"], outside["outcome"]["status"]) == (False, 403)
    assert outside["outcome"]["details"] == "rbac_access_denied_matched_policy[none]"
    assert "filter rbac: denied since no policy matches" in render(outside, colours=False)


def test_rules_of_the_route() -> None:
    own = {"@type": RBAC + "PerRoute", "rbac": {"rules": {"action": "DENY", "policies": {"d": policy()}}}}
    none = {"@type": RBAC + "PerRoute"}
    routes = [
        {"match": {"prefix": "/own"}, "typed_per_filter_config": {"rbac": own}, **ANSWER},
        {"match": {"prefix": "/none"}, "typed_per_filter_config": {"rbac": none}, **ANSWER},
    ]
    world = simple(routes, http_filters=[rbac(p=policy()), ROUTER])
    assert reasons(ask(world, ("path", "/own"))) == ["configured for this route; denied by the policy 'd'", ""]
    assert reasons(ask(world, ("path", "/none"))) == ["configured for this route", ""]
    assert ask(world, ("path", "/other"))["outcome"]["status"] == 404


def test_rules_come_before_a_route_is_missed() -> None:
    world = simple([{"match": {"prefix": "/a"}, **ANSWER}], http_filters=[rbac(), ROUTER])
    assert ask(world, ("path", "/b"))["outcome"]["status"] == 403


def test_the_identity_of_the_client() -> None:
    routes = [{"match": {"prefix": "/"}, **ANSWER}]
    terminal = manager([host(routes)], http_filters=[rbac(p=policy(ANY, MESH)), ROUTER])
    world = world_of(bootstrap([listener("main", 443, secure_chain(terminal))]))
    assert ask(world, ("client_uri", "spiffe://mesh/a"))["found"]
    assert ask(world, ("client_uri", "spiffe://other/a"))["outcome"]["status"] == 403
    assert ask(world, ("tls", "true"))["outcome"]["status"] == 403
    unknown = ask(world, ("tls", "true"), ("client_cert", "true"))
    assert (unknown["found"], reasons(unknown)[0]) == (True, UNKNOWN)


def test_rules_of_connections() -> None:
    config = {"@type": FILTERS + "network.rbac.v3.RBAC", "stat_prefix": "n"}
    inside = {"source_ip": {"address_prefix": "10.0.0.0", "prefix_len": 8}}
    guard = {"name": "rbac", "typed_config": config | {"rules": {"policies": {"p": policy(ANY, inside)}}}}
    terminal = manager([host([{"match": {"prefix": "/"}, **ANSWER}])])
    world = world_of(bootstrap([listener("main", 10000, {"filters": [guard, terminal]})]))
    assert ask(world, ("source", "10.1.1.1:1"))["found"]
    outside = ask(world, ("source", "11.1.1.1:1"))
    assert (outside["found"], outside["outcome"]["kind"]) == (False, "close")
    assert [each["name"] for each in outside["network_filters"]] == ["rbac", "hcm"]
