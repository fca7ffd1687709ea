"""Which connections a workload takes, by PeerAuthentication: Istio's precedence and inheritance."""

from __future__ import annotations

import pytest

from meshproxy.pilot.mesh.model import MeshConfig
from tests.pilot.resources.support import changed, mesh_of, without

LABELS = {"app": "web", "version": "v1"}
SERVICE = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: web, namespace: shop}
spec:
  hosts: [web.shop.svc.cluster.local]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}, {number: 90, name: tcp}]
  resolution: STATIC
  location: MESH_INTERNAL
  endpoints:
    - {address: 10.0.0.1, labels: {app: web}, serviceAccount: web}
    - {address: 10.0.0.2, labels: {app: web, security.istio.io/tlsMode: disabled}, serviceAccount: web}
    - {address: 10.0.0.3, labels: {app: other, security.istio.io/tlsMode: istio}}
"""
KEY = ("web.shop.svc.cluster.local", "shop")


def peer(name: str, namespace: str, spec: str, created: str = "") -> str:
    when = f", creationTimestamp: '{created}'" if created else ""
    head = "\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n"
    return f"{head}metadata: {{name: {name}, namespace: {namespace}{when}}}\nspec: {{{spec}}}\n"


def mode(name: str) -> str:
    return f"mtls: {{mode: {name}}}"


WEB = "selector: {matchLabels: {app: web}}, "
PAGES = "selector: {matchLabels: {app: page}}, "
OF_MESH = peer("mesh", "istio-system", mode("STRICT"))
OF_SHOP = peer("shop", "shop", mode("DISABLE"))
CASES = {
    "nothing is said": ("", "PERMISSIVE", {}),
    "the mesh": (OF_MESH, "STRICT", {}),
    "the namespace comes before the mesh": (OF_MESH + OF_SHOP, "DISABLE", {}),
    "a selector comes before the namespace": (OF_SHOP + peer("web", "shop", WEB + mode("STRICT")), "STRICT", {}),
    "other workloads": (OF_SHOP + peer("page", "shop", PAGES + mode("STRICT")), "DISABLE", {}),
    "another namespace": (peer("other", "other", mode("STRICT")), "PERMISSIVE", {}),
    "UNSET inherits": (OF_MESH + peer("shop", "shop", mode("UNSET")), "STRICT", {}),
    "no mtls inherits": (OF_MESH + peer("shop", "shop", ""), "STRICT", {}),
    "UNSET of a workload inherits": (OF_SHOP + peer("web", "shop", WEB + mode("UNSET")), "DISABLE", {}),
    "no labels in a selector": (peer("shop", "shop", "selector: {}, " + mode("STRICT")), "STRICT", {}),
    "a port": (peer("web", "shop", WEB + "portLevelMtls: {8080: {mode: STRICT}}"), "PERMISSIVE", {8080: "STRICT"}),
    "a port against its workload": (
        peer("web", "shop", WEB + mode("STRICT") + ", portLevelMtls: {8080: {mode: DISABLE}, 9090: {}}"),
        "STRICT",
        {8080: "DISABLE", 9090: "STRICT"},
    ),
    "a selector in the root namespace selects nobody": (
        peer("web", "istio-system", WEB + mode("STRICT")),
        "PERMISSIVE",
        {},
    ),
    "of equals the oldest": (
        peer("a", "shop", mode("STRICT"), "2024-01-02T00:00:00Z")
        + peer("b", "shop", mode("DISABLE"), "2024-01-01T00:00:00Z"),
        "DISABLE",
        {},
    ),
    "of equal selectors the oldest, and it alone": (
        peer("a", "shop", WEB + "portLevelMtls: {8080: {mode: STRICT}}", "2024-01-02T00:00:00Z")
        + peer("b", "shop", "selector: {matchLabels: {version: v1}}", "2024-01-01T00:00:00Z"),
        "PERMISSIVE",
        {8080: "PERMISSIVE"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_who_is_heard(case: str) -> None:
    text, expected, ports = CASES[case]
    takes = mesh_of(SERVICE + text).mutual_tls("shop", LABELS)
    assert takes.mode == expected
    assert {port: takes.of(port) for port in ports} == ports


def test_workloads_of_the_root_namespace_obey_the_mesh() -> None:
    config = MeshConfig(root_namespace="shop")
    assert (
        mesh_of(OF_SHOP + peer("web", "shop", WEB + mode("STRICT")), config).mutual_tls("shop", LABELS).mode
        == "DISABLE"
    )


def modes(text: str) -> list[list[str]]:
    endpoints = mesh_of(text).endpoints(KEY)
    return [[one.tls_mode for one in endpoints[port]] for port in (80, 90)]


def test_endpoints_with_an_identity_take_mutual_tls() -> None:
    assert modes(SERVICE) == [["istio", "disabled", "istio"]] * 2


def test_endpoints_that_must_not_take_it_are_sent_none() -> None:
    assert modes(SERVICE + OF_SHOP) == [["disabled", "disabled", "disabled"]] * 2
    assert modes(SERVICE + OF_MESH) == [["istio", "disabled", "istio"]] * 2
    by_port = peer("web", "shop", WEB + "portLevelMtls: {8080: {mode: DISABLE}}")
    assert modes(SERVICE + by_port) == [["disabled", "disabled", "istio"], ["istio", "disabled", "istio"]]


@pytest.mark.parametrize(("namespace", "there"), [("shop", True), ("istio-system", True), ("other", False)])
def test_a_rule_that_comes_and_goes_changes_the_endpoints_it_is_about(namespace: str, there: bool) -> None:
    before = mesh_of(SERVICE)
    after = changed(before, peer("one", namespace, mode("DISABLE")))
    assert after.changes(before).endpoints == (frozenset({KEY}) if there else frozenset())
    assert not after.changes(before).only_endpoints
    again = without(after, "PeerAuthentication", namespace, "one")
    assert again.endpoints(KEY) == before.endpoints(KEY)
