"""The next mesh shares with the last what stays, and equals one that is made of the same documents at once."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from meshproxy.pilot.documents.document import Document, Identity, parse_document, split_documents
from meshproxy.pilot.mesh.model import Mesh, MeshConfig, empty_mesh
from tests.pilot.mesh.worlds import mesh_of, rule, service, virtual_service

ROOT: Final = Path(__file__).resolve().parents[3]
NAMESPACES: Final = ("shop", "default", "other", "istio-system")
LABELS: Final[tuple[dict[str, str], ...]] = ({}, {"app": "web"}, {"app": "reviews", "version": "v1"}, {"app": "edge"})


def sample_documents() -> list[Document]:
    found = []
    for path in (*(ROOT / "xds" / "rules").glob("*.yaml"), *(ROOT / "tests/pilot/documents/full").glob("*.yaml")):
        for raw in split_documents(path.name, path.read_text()):
            document = parse_document(raw).document
            assert document is not None
            found.append(document)
    return sorted(found, key=lambda each: each.identity)


SAMPLES: Final = sample_documents()


def seen(mesh: Mesh) -> object:
    """All that a mesh answers."""
    services = mesh.services.by_host
    return (
        mesh.documents,
        services,
        {service.key: mesh.endpoints(service.key) for by in services.values() for service in by.values()},
        [
            (
                dict(mesh.services.visible(client)),
                mesh.virtual_services.visible(client),
                mesh.virtual_services.visible(client, "shop/edge"),
                [mesh.sidecar(client, labels) for labels in LABELS],
                [
                    mesh.policies(kind, client, labels)
                    for kind in ("LocalRateLimit", "PythonFilter")
                    for labels in LABELS
                ],
                [{service.key for service in mesh.served_by(client, labels)} for labels in LABELS],
                [
                    (
                        [mesh.routes(service, client, port.number) for port in service.ports],
                        [mesh.destination_rule(service, client, each) for each in LABELS],
                    )
                    for _, service in sorted(mesh.services.visible(client).items())
                ],
            )
            for client in NAMESPACES
        ],
        [mesh.gateways(labels) for labels in LABELS],
    )


@given(st.lists(st.sets(st.sampled_from(range(len(SAMPLES)))), min_size=1, max_size=5))
def test_step_by_step_or_at_once_is_the_same(steps: list[set[int]]) -> None:
    mesh = empty_mesh(MeshConfig())
    there: dict[Identity, Document] = {}
    for step in steps:
        wanted = {SAMPLES[index].identity: SAMPLES[index] for index in step}
        pairs: list[tuple[Document | None, Document | None]]
        pairs = [(there.get(identity), document) for identity, document in wanted.items()]
        pairs += [(document, None) for identity, document in there.items() if identity not in wanted]
        before, mesh, there = mesh, mesh.updated(pairs), wanted
        changes = mesh.changes(before)
        assert changes.documents == before.documents.keys() ^ mesh.documents.keys()
        assert bool(changes) == bool(changes.documents)
    alone = mesh_of(*there.values())
    assert not mesh.changes(alone)  # which has another past, so that all is compared
    assert seen(mesh) == seen(alone)


def test_what_did_not_change_is_the_same_object() -> None:
    first = mesh_of(
        service("a.example"), service("b.example"), virtual_service("a.example", "a"), rule("a.example", "a")
    )
    old = first.documents[Identity("VirtualService", "shop", "a")]
    second = first.updated([(old, virtual_service("a.example", "a", more="exportTo: [.]"))])
    assert second.services is first.services
    assert second.destination_rules is first.destination_rules
    assert second.virtual_services is not first.virtual_services
    assert second.endpoints(("a.example", "shop")) is first.endpoints(("a.example", "shop"))
    changes = second.changes(first)
    assert changes.documents == {old.identity}
    assert not changes.services
    assert not changes.endpoints
    assert not changes.only_endpoints


def test_changes_name_the_services_that_came_went_or_changed() -> None:
    a, b, c = service("a.example"), service("b.example"), service("c.example")
    first = mesh_of(a, b)
    changed = service("b.example", more="exportTo: [.]")
    second = first.updated([(a, None), (b, changed), (None, c)])
    changes = second.changes(first)
    assert changes.services == {("a.example", "shop"), ("b.example", "shop"), ("c.example", "shop")}
    assert not changes.only_endpoints
    assert not second.changes(second)


def test_the_first_mesh_and_another_configuration_change_everything() -> None:
    mesh = mesh_of(service("a.example", more="endpoints: [{address: 10.0.0.1}]"))
    for previous in (None, empty_mesh(MeshConfig("other.test"))):
        changes = mesh.changes(previous)
        assert changes.everything
        assert changes.services == changes.endpoints == {("a.example", "shop")}


def test_changes_over_several_updates_and_back_are_exact() -> None:
    first = mesh_of(service("a.example"), service("b.example"))
    a = first.documents[Identity("ServiceEntry", "shop", "a.example")]
    other = service("a.example", more="exportTo: [.]")
    second = first.updated([(a, other)])
    third = second.updated([(None, service("c.example"))])
    fourth = third.updated([(other, a)])
    assert third.changes(first).services == {("a.example", "shop"), ("c.example", "shop")}
    assert fourth.changes(first).services == {("c.example", "shop")}
    beside = first.updated([(a, None)])
    assert beside.changes(second).services == {("a.example", "shop")}
    for _ in range(40):
        fourth = fourth.updated([(a, other)]).updated([(other, a)])
    assert fourth.changes(first).services == {("c.example", "shop")}
