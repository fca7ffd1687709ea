"""Every field that is honoured changes some resource of some proxy: taken away, the snapshots are not the same."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from meshproxy.pilot.documents.document import Document
from meshproxy.pilot.mesh.model import Mesh
from meshproxy.pilot.proxy import EXPLICIT, GRPC
from meshproxy.pilot.resources.translator import Translator
from meshproxy.pilot.snapshot import Proxy
from tests.pilot.resources.golden import EDGE
from tests.pilot.resources.support import HERE, documents_of, mesh_of

TEXT = "\n---\n".join(
    path.read_text()
    for path in [HERE / "everything_services.yaml", *sorted((HERE.parent / "documents/full").iterdir())]
)
# So that the conditions on who asks hold for those who ask here, and on ports for ports that there are.
TEXT = TEXT.replace("sourceNamespace: front", "sourceNamespace: shop").replace("port: 3306\n", "port: 82\n")
WEB = Proxy(
    "web",
    namespace="shop",
    labels=(("app", "web"), ("topology.istio.io/network", "net-1"), ("version", "v1")),
    ips=("10.0.0.8", "10.2.0.1"),
    region="eu",
    zone="a",
    metadata=(("meshproxy.io/sds-cluster", "sds-grpc"), ("product", "meshproxy")),
)
PROXIES = [
    WEB,
    replace(WEB, mode=EXPLICIT),
    replace(WEB, labels=()),
    replace(WEB, namespace="default"),
    replace(WEB, namespace="default", labels=WEB.labels[1:]),
    replace(WEB, namespace="front"),
    replace(WEB, namespace="default", mode=GRPC),
    replace(EDGE, labels=(("app", "edge"), ("version", "v1"))),
    replace(EDGE, labels=()),
]
# Fields that may be said in one way only, or that are for people.
ALIKE = {
    "HTTPRoute parent_refs.group": "with the kind Service it is always empty",
    "HTTPRoute parent_refs.kind": "Service is the only one, but for Hostname",
    "HTTPRoute rules.backend_refs.group": "goes with the kind",
    "HTTPRoute rules.backend_refs.kind": "a host with dots is a host by either kind",
    "HTTPRoute rules.filters.request_mirror.backend_ref.group": "goes with the kind",
    "HTTPRoute rules.filters.request_mirror.backend_ref.kind": "a host with dots is a host by either kind",
    "GRPCRoute parent_refs.group": "with the kind Service it is always empty",
    "GRPCRoute parent_refs.kind": "Service is the only one, but for Hostname",
    "GRPCRoute rules.backend_refs.group": "goes with the kind",
    "GRPCRoute rules.backend_refs.kind": "a host with dots is a host by either kind",
    "Gateway servers.name": "is for people",
    "Service type": "NodePort and LoadBalancer are about what lies outside the mesh; ExternalName goes with its name",
    "StickySplit hash_on.source_ip": "else nothing is said",
}
_INDEX = re.compile(r"\[\d+\]")


def fields_of(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every field that has not its default, as a path and the value without it."""
    if isinstance(value, tuple):
        for index, item in enumerate(value):
            for below, changed in fields_of(item, f"{path}[{index}]"):
                yield below, (*value[:index], changed, *value[index + 1 :])
        return
    if not dataclasses.is_dataclass(value):
        return
    for field in dataclasses.fields(value):
        present = getattr(value, field.name)
        where = f"{path}.{field.name}".lstrip(".")
        if field.default is not dataclasses.MISSING and present != field.default:
            yield where, replace(value, **{field.name: field.default})  # type: ignore[type-var]
        for below, changed in fields_of(present, where):
            yield below, replace(value, **{field.name: changed})  # type: ignore[type-var]


def cases() -> dict[str, list[tuple[Document, Any]]]:
    """By kind and field, every document that has it, and what it is without it."""
    found: dict[str, list[tuple[Document, Any]]] = {}
    for document in documents_of(TEXT):
        for path, changed in fields_of(document.spec):
            name = f"{document.identity.kind} {_INDEX.sub('', path)}"
            found.setdefault(name, []).append((document, changed))
    return found


CASES = cases()


class Base:
    """The mesh with all documents, and what its proxies get."""

    def __init__(self) -> None:
        self.mesh = mesh_of(TEXT)
        self.translator = Translator()
        self.seen = [self._of(self.mesh, proxy) for proxy in PROXIES]

    def differs(self, document: Document, changed: Any) -> bool:
        """Whether some proxy gets something else with that in its place."""
        old = self.mesh.documents[document.identity]
        mesh = self.mesh.updated([(old, replace(old, spec=changed))])
        return any(self._of(mesh, proxy) != seen for proxy, seen in zip(PROXIES, self.seen, strict=True))

    def _of(self, mesh: Mesh, proxy: Proxy) -> dict[str, dict[str, str]]:
        snapshot = self.translator.build_snapshot(mesh, self.translator.scope_of(mesh, proxy))
        return {url: {name: one.version for name, one in named.items()} for url, named in snapshot.types.items()}


@pytest.fixture(scope="module")
def base() -> Base:
    return Base()


@pytest.mark.parametrize("name", CASES)
def test_a_field_that_is_taken_away_is_missed(base: Base, name: str) -> None:
    missed = any(base.differs(document, changed) for document, changed in CASES[name])
    assert missed is (name not in ALIKE)


def test_every_exception_is_one() -> None:
    assert ALIKE.keys() <= CASES.keys()
