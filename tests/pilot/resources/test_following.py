"""A snapshot that is made from the one before is what would be made from nothing, and shares with it all that stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings, strategies

from meshproxy.config.subscription import CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE
from meshproxy.pilot.documents.document import Document
from meshproxy.pilot.mesh.model import Mesh, MeshConfig, empty_mesh
from meshproxy.pilot.proxy import EXPLICIT, GATEWAY, GRPC, SIDECAR
from meshproxy.pilot.resources.translator import Translator
from meshproxy.pilot.snapshot import Proxy, Snapshot
from tests.pilot.resources.golden import EDGE, SAMPLES, SERVICES
from tests.pilot.resources.support import SHOP_PAGE, changed, documents_of, mesh_of, sample, snapshot_of, without

DOCUMENTS = documents_of(sample(SERVICES, *SAMPLES))
PROXIES = [
    *(replace(SHOP_PAGE, mode=mode) for mode in (SIDECAR, EXPLICIT, GRPC)),
    replace(SHOP_PAGE, namespace="other", ips=()),
    EDGE,
]
IDS = [f"{proxy.mode}-{proxy.namespace}" for proxy in PROXIES]

REVIEWS_V1 = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-v1, namespace: shop}
spec:
  address: 10.1.0.99
  labels: {app: reviews, version: v1}
  locality: eu/eu-1
"""
CANARY = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews]
  http:
    - route:
        - {destination: {host: reviews, subset: v1}, weight: 50}
        - {destination: {host: reviews, subset: v2}, weight: 50}
"""


def plain(snapshot: Snapshot) -> dict[str, dict[str, str]]:
    return {url: {name: one.version for name, one in named.items()} for url, named in snapshot.types.items()}


def differences(old: Snapshot, new: Snapshot) -> list[tuple[str, str]]:
    """Type and name of every resource that is not the same object."""
    return [
        (url.rpartition(".")[2], name)
        for url, named in new.types.items()
        for name, one in named.items()
        if old.of_type(url).get(name) is not one
    ]


def varied(document: Document) -> Document:
    """Another version of a document: one that the mesh has to notice, whatever its kind."""
    spec: Any = document.spec
    if document.identity.kind == "ServiceEntry":
        return replace(document, spec=replace(spec, addresses=("10.99.0.1",), endpoints=spec.endpoints[:1]))
    if document.identity.kind == "WorkloadEntry":
        return replace(document, spec=replace(spec, weight=7))
    if document.identity.kind == "VirtualService":
        return replace(document, spec=replace(spec, http=spec.http[1:], tls=spec.tls, tcp=spec.tcp))
    if document.identity.kind == "DestinationRule":
        return replace(document, spec=replace(spec, subsets=spec.subsets[:1], traffic_policy=None))
    if document.identity.kind in ("HTTPRoute", "GRPCRoute"):
        return replace(document, spec=replace(spec, rules=spec.rules[:1]))
    return replace(document, labels=(("varied", "yes"),))


# Few, since each of them makes a mesh and a snapshot from nothing.
_EXAMPLES = 40
STEPS = strategies.lists(
    strategies.tuples(strategies.integers(0, len(DOCUMENTS) - 1), strategies.sampled_from(["there", "varied", "gone"])),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("proxy", PROXIES, ids=IDS)
@settings(max_examples=_EXAMPLES)
@given(steps=STEPS)
def test_what_follows_a_change_is_what_is_made_from_nothing(proxy: Proxy, steps: list[tuple[int, str]]) -> None:
    translator = Translator()
    mesh = mesh_of(sample(SERVICES))
    snapshot: Snapshot | None = None
    for index, verb in steps:
        mesh = step(mesh, DOCUMENTS[index], verb)
        snapshot = snapshot_of(mesh, proxy, translator, snapshot)
        fresh = empty_mesh(MeshConfig()).updated((None, one) for one in mesh.documents.values())
        assert plain(snapshot) == plain(snapshot_of(fresh, proxy))


def step(mesh: Mesh, document: Document, verb: str) -> Mesh:
    old = mesh.documents.get(document.identity)
    new = {"there": document, "varied": varied(document), "gone": None}[verb]
    return mesh.updated([(old, new)])


def test_one_endpoint_changes_one_assignment() -> None:
    translator = Translator()
    mesh = mesh_of(sample(SERVICES))
    first = snapshot_of(mesh, SHOP_PAGE, translator)
    second = snapshot_of(changed(mesh, REVIEWS_V1), SHOP_PAGE, translator, first)
    assert differences(first, second) == [("ClusterLoadAssignment", "outbound|9080||reviews.shop.svc.cluster.local")]
    for url in (CLUSTER_TYPE, LISTENER_TYPE, ROUTE_TYPE):
        assert second.types[url] is first.types[url]


def test_one_rule_changes_the_routes_of_its_port() -> None:
    translator = Translator()
    mesh = mesh_of(sample(SERVICES, "canary"))
    first = snapshot_of(mesh, SHOP_PAGE, translator)
    second = snapshot_of(changed(mesh, CANARY), SHOP_PAGE, translator, first)
    assert differences(first, second) == [("RouteConfiguration", "9080")]
    for url in (CLUSTER_TYPE, LISTENER_TYPE, ENDPOINT_TYPE):
        assert second.types[url] is first.types[url]


def test_a_rule_of_another_namespace_changes_nothing() -> None:
    translator = Translator()
    mesh = mesh_of(sample(SERVICES))
    first = snapshot_of(mesh, SHOP_PAGE, translator)
    private = CANARY.replace("namespace: shop", "namespace: other").replace("hosts:", "exportTo: [.]\n  hosts:")
    second = snapshot_of(changed(mesh, private), SHOP_PAGE, translator, first)
    assert differences(first, second) == []
    assert all(second.types[url] is first.types[url] for url in first.types)


def test_a_mesh_that_has_not_changed_gives_the_same_snapshot() -> None:
    translator = Translator()
    mesh = mesh_of(sample(SERVICES, "canary"))
    first = snapshot_of(mesh, SHOP_PAGE, translator)
    assert snapshot_of(mesh, SHOP_PAGE, translator, first) is first


def test_scopes_share_their_clusters_and_endpoints() -> None:
    translator = Translator()
    mesh = mesh_of(sample(SERVICES, "canary"))
    one = snapshot_of(mesh, SHOP_PAGE, translator)
    other = snapshot_of(mesh, replace(SHOP_PAGE, namespace="other", ips=()), translator)
    for name, assignment in one.types[ENDPOINT_TYPE].items():
        assert other.types[ENDPOINT_TYPE][name] is assignment


def test_a_service_that_is_gone_takes_its_resources_with_it() -> None:
    translator = Translator()
    mesh = mesh_of(sample(SERVICES))
    first = snapshot_of(mesh, SHOP_PAGE, translator)
    second = snapshot_of(without(mesh, "ServiceEntry", "shop", "mysql"), SHOP_PAGE, translator, first)
    for url, names in (
        (CLUSTER_TYPE, ["outbound|3306||mysql.shop.svc.cluster.local"]),
        (ENDPOINT_TYPE, ["outbound|3306||mysql.shop.svc.cluster.local"]),
        (LISTENER_TYPE, ["10.96.0.14_3306"]),
    ):
        assert sorted(first.types[url].keys() - second.types[url].keys()) == names


def test_the_edge_is_a_scope_of_its_own() -> None:
    mesh = mesh_of(sample(SERVICES, "gateway"))
    assert list(snapshot_of(mesh, EDGE).types[LISTENER_TYPE]) == ["0.0.0.0_8080", "0.0.0.0_8443"]
    assert snapshot_of(mesh, replace(SHOP_PAGE, mode=GATEWAY)).types[LISTENER_TYPE] == {}
