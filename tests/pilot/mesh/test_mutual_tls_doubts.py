"""Rules that do not agree on mutual TLS are told of."""

from __future__ import annotations

import pytest

from meshproxy.pilot.documents.problems import path_text
from meshproxy.pilot.mesh.lint import lint
from tests.pilot.mesh.test_mutual_tls import PAGES, SERVICE, WEB, mode, peer
from tests.pilot.resources.support import mesh_of

STRICT = peer("strict", "shop", WEB + mode("STRICT"))
EXTERNAL = SERVICE.replace("MESH_INTERNAL", "MESH_EXTERNAL")


def doubts(text: str) -> list[str]:
    return [f"{each.identity}: {path_text(each.steps)}: {each.reason}" for each in lint(mesh_of(SERVICE + text))]


def about(*, of: str, text: str) -> list[str]:
    """Without those about endpoints that say nothing of mutual TLS."""
    return [each for each in doubts(text) if each.startswith(of) and "is called in plaintext" not in each]


def rule(policy: str, host: str = "web") -> str:
    head = "\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: r, namespace: shop}\n"
    return f"{head}spec: {{host: {host}, {policy}}}\n"


TLS = "tls: {mode: %s}"
PORT = "portLevelSettings: [{port: {number: %d}, tls: {mode: %s}}]"
FIRST = "web.shop.svc.cluster.local takes mutual TLS only (PeerAuthentication): it refuses"


@pytest.mark.parametrize(
    ("policy", "host", "path"),
    [
        (f"trafficPolicy: {{{TLS % 'DISABLE'}}}", "web", "spec.trafficPolicy.tls.mode"),
        (f"trafficPolicy: {{{TLS % 'SIMPLE'}}}", "'*.shop.svc.cluster.local'", "spec.trafficPolicy.tls.mode"),
        (f"trafficPolicy: {{{TLS % 'ISTIO_MUTUAL'}}}", "web", ""),
        (f"trafficPolicy: {{{PORT % (80, 'DISABLE')}}}", "web", "spec.trafficPolicy.portLevelSettings[0].tls.mode"),
        (f"trafficPolicy: {{{PORT % (81, 'DISABLE')}}}", "web", ""),
        (
            f"subsets: [{{name: a, trafficPolicy: {{{TLS % 'DISABLE'}}}}}]",
            "web",
            "spec.subsets[0].trafficPolicy.tls.mode",
        ),
    ],
)
def test_a_destination_rule_that_speaks_other_than_is_taken(policy: str, host: str, path: str) -> None:
    expected = [f"DestinationRule shop/r: {path}: {FIRST}"] if path else []
    assert about(of="DestinationRule", text=STRICT + rule(policy, host)) == expected
    assert about(of="DestinationRule", text=rule(policy, host)) == []


def test_of_two_for_one_thing_only_the_first_is_heard() -> None:
    of_shop = peer("a", "shop", mode("STRICT")) + peer("b", "shop", mode("DISABLE"))
    other = peer("c", "other", mode("DISABLE")) + peer("d", "shop", PAGES + mode("STRICT"))
    assert about(of="PeerAuthentication", text=of_shop + other) == [
        "PeerAuthentication shop/b: spec: PeerAuthentication shop/a is heard alone, since it comes first"
    ]
    narrow = peer("y", "shop", "selector: {matchLabels: {app: web, version: v1}}, " + mode("DISABLE"))
    (doubt,) = about(of="PeerAuthentication", text=STRICT + narrow)
    assert "shop/y: spec.selector: PeerAuthentication shop/strict is heard for workloads that both select" in doubt


def test_a_selector_in_the_root_namespace() -> None:
    (doubt,) = doubts(peer("a", "istio-system", WEB + mode("STRICT")))
    assert doubt.startswith("PeerAuthentication istio-system/a: spec.selector: selects nobody")


@pytest.mark.parametrize("text", [peer("a", "shop", mode("STRICT")), peer("a", "istio-system", mode("STRICT"))])
def test_workloads_that_nobody_knows_to_take_it(text: str) -> None:
    (doubt,) = doubts(text)
    assert "spec.mtls.mode: web.shop.svc.cluster.local is called in plaintext" in doubt
    assert "10.0.0.2" in doubt
    assert [each.reason for each in lint(mesh_of(EXTERNAL + text))] == []
    assert doubts(peer("a", "shop", PAGES + mode("STRICT"))) == []
