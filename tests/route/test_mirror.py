"""Mirroring policies: what the shadow's request is called, and who is mirrored."""

from __future__ import annotations

import pytest

from meshproxy.route.mirror import MirrorPolicy
from tests.route.support import build_routes, new_headers, new_info, try_build


def policies(text: str) -> list[MirrorPolicy]:
    """The policies of a route."""
    route = f"[{{ match: {{ prefix: / }}, route: {{ cluster: a, request_mirror_policies: {text} }} }}]"
    headers = new_headers()
    found = build_routes(route).match(headers, new_info(headers), 0)
    assert found is not None
    assert found.mirrors is not None
    return found.mirrors


@pytest.mark.parametrize(
    ("fields", "host", "shadow"),
    [
        ("", "a.test", b"a.test-shadow"),
        ("", "a.test:80", b"a.test-shadow:80"),
        ("", "[::1]", b"[::1]-shadow"),
        ("", "[::1]:80", b"[::1]-shadow:80"),
        (", disable_shadow_host_suffix_append: true", "a.test:80", b"a.test:80"),
        (", host_rewrite_literal: b.test", "a.test:80", b"b.test"),
    ],
)
def test_host(fields: str, host: str, shadow: bytes) -> None:
    headers = new_headers(authority=host)
    policies(f"[{{ cluster: b{fields} }}]")[0].finalize(headers, new_info(headers))
    assert headers.get(b":authority") == shadow


def test_share() -> None:
    value = "runtime_fraction: { default_value: { numerator: 25, denominator: HUNDRED } }"
    policy = policies(f"[{{ cluster: b, {value} }}]")[0]
    assert sum(policy.samples(random) for random in range(1000)) == 250
    assert all(policies("[{ cluster: b }]")[0].samples(random) for random in range(100))


def test_the_most_specific_level_counts() -> None:
    def level(cluster: str) -> list[dict[str, str]]:
        return [{"cluster": cluster}]

    routes = [
        {"match": {"prefix": "/own"}, "route": {"cluster": "a", "request_mirror_policies": level("route")}},
        {"match": {"prefix": "/"}, "route": {"cluster": "a"}},
    ]
    hosts = [
        {"name": "x", "domains": ["x"], "request_mirror_policies": level("host"), "routes": routes},
        {"name": "y", "domains": ["y"], "routes": routes},
    ]
    config = {"name": "t", "virtual_hosts": hosts, "request_mirror_policies": level("table")}
    table, errors = try_build(config)
    assert table is not None, errors
    found = []
    for host, path in (("x", "/own"), ("x", "/"), ("y", "/")):
        headers = new_headers(path, host)
        route = table.match(headers, new_info(headers), 0)
        assert route is not None
        found.append([policy.cluster_name for policy in route.mirrors or []])
    assert found == [["route"], ["host"], ["table"]]
    assert {"route", "host", "table"} <= table.clusters
