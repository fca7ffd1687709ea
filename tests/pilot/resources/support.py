"""Meshes of documents in a text, and the snapshots that proxies get of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from google.protobuf.json_format import MessageToJson

from meshproxy.config.subscription import ROUTE_TYPE
from meshproxy.pilot.documents.document import Document, parse_document, split_documents
from meshproxy.pilot.mesh.model import Mesh, MeshConfig, empty_mesh
from meshproxy.pilot.resources.translator import Translator
from meshproxy.pilot.snapshot import Proxy, Snapshot
from tests.pilot.resources.static_form import MESSAGES, messages

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).parent
RULES = ROOT / "xds" / "rules"
_FIRST = ("@type", "name", "cluster_name", "match")
SHOP_PAGE = Proxy(
    "sidecar~10.1.0.10~page.shop~shop.svc.cluster.local",
    namespace="shop",
    labels=(("app", "productpage"), ("version", "v1")),
    ips=("10.1.0.10",),
    region="eu",
    zone="eu-1",
    metadata=(("product", "meshproxy"),),
)


def documents_of(text: str) -> list[Document]:
    """All documents in a text; raises AssertionError with what is wrong with them."""
    found = []
    for raw in split_documents("test.yaml", text):
        parsed = parse_document(raw)
        assert parsed.document is not None, [str(problem) for problem in parsed.errors]
        found.append(parsed.document)
    return found


def sample(*names: str) -> str:
    """The text of sample rules."""
    return "\n---\n".join((RULES / f"{name}.yaml").read_text() for name in names)


def mesh_of(text: str, config: MeshConfig | None = None) -> Mesh:
    return empty_mesh(config or MeshConfig()).updated((None, document) for document in documents_of(text))


def changed(mesh: Mesh, text: str) -> Mesh:
    """The mesh with the documents of a text in place of those of the same name."""
    pairs = [(mesh.documents.get(document.identity), document) for document in documents_of(text)]
    return mesh.updated(pairs)


def without(mesh: Mesh, kind: str, namespace: str, name: str) -> Mesh:
    return mesh.updated(
        [(document, None) for identity, document in mesh.documents.items() if identity == (kind, namespace, name)]
    )


def snapshot_of(
    mesh: Mesh, proxy: Proxy, translator: Translator | None = None, previous: Snapshot | None = None
) -> Snapshot:
    made = translator or Translator()
    return made.build_snapshot(mesh, made.scope_of(mesh, proxy), previous)


def resource(snapshot: Snapshot, type_url: str, name: str) -> Any:
    """One resource as the message that it is."""
    return messages(snapshot, type_url)[name]


def as_yaml(snapshot: Snapshot, besides: Snapshot | None = None) -> str:
    """Readable: every resource as a document, without those (and the virtual hosts) that `besides` has alike."""
    documents = []
    for type_url in MESSAGES:
        known = messages(besides, type_url) if besides is not None else {}
        for name, message in sorted(messages(snapshot, type_url).items()):
            if known.get(name) == message:
                continue
            if name in known and type_url == ROUTE_TYPE:
                _leave_out_hosts(message, known[name])
            plain = json.loads(MessageToJson(message, preserving_proto_field_name=True))
            documents.append(_ordered({"@type": type_url, **plain}))
    return yaml.safe_dump_all(documents, sort_keys=False, width=120)


def _leave_out_hosts(message: Any, known: Any) -> None:
    hosts = [host for host in message.virtual_hosts if host not in known.virtual_hosts]
    del message.virtual_hosts[:]
    message.virtual_hosts.extend(hosts)


def _ordered(value: Any) -> Any:
    """What it is comes first, then the rest by name: maps of protobuf have no order of their own."""
    if isinstance(value, list):
        return [_ordered(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _ordered(value[key]) for key in sorted(value, key=lambda key: (key not in _FIRST, key))}
