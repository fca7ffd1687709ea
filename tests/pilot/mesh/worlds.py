"""Meshes of a few documents."""

from __future__ import annotations

from meshproxy.pilot.documents.document import Document
from meshproxy.pilot.mesh.model import Mesh, MeshConfig, empty_mesh
from tests.pilot.documents.text import document

DOMAIN = "svc.cluster.local"


def mesh_of(*documents: Document, config: MeshConfig | None = None) -> Mesh:
    return empty_mesh(config or MeshConfig()).updated((None, each) for each in documents)


def service(host: str, name: str = "", namespace: str = "shop", more: str = "", created: str = "") -> Document:
    """A ServiceEntry with the port 80."""
    spec = f"hosts: [{host}]\nports: [{{number: 80, name: http, protocol: HTTP}}]\nresolution: STATIC\n{more}"
    return document("ServiceEntry", spec, name or host.replace("*", "all"), namespace, born(created))


def virtual_service(host: str, name: str, namespace: str = "shop", more: str = "", created: str = "") -> Document:
    spec = f"hosts: [{host}]\nhttp: [{{route: [{{destination: {{host: {host.replace('*', 'any')}}}}}]}}]\n{more}"
    return document("VirtualService", spec, name, namespace, born(created))


def rule(host: str, name: str, namespace: str = "shop", more: str = "", created: str = "") -> Document:
    """A DestinationRule with the subset that is named as it."""
    return document(
        "DestinationRule", f"host: {host}\nsubsets: [{{name: {name}}}]\n{more}", name, namespace, born(created)
    )


def born(created: str) -> str:
    return f', creationTimestamp: "{created}"' if created else ""
