"""Where PeerAuthentications, DestinationRules and workloads do not agree on mutual TLS (for `lint.py`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from meshproxy.pilot.documents.common import covers
from meshproxy.pilot.documents.service_entry import TLS_MODE
from meshproxy.pilot.mesh.mutual_tls import STRICT
from meshproxy.pilot.mesh.names import full_host, selects
from meshproxy.pilot.mesh.services import TAKES_MESH_TLS

if TYPE_CHECKING:
    from meshproxy.pilot.documents.destination_rule import ClientTLSSettings, DestinationRule
    from meshproxy.pilot.documents.document import Document
    from meshproxy.pilot.documents.security import PeerAuthentication
    from meshproxy.pilot.mesh.model import Mesh
    from meshproxy.pilot.mesh.services import Endpoint, Service

Doubts = Iterator[tuple[tuple[str | int, ...], str]]


def peer_doubts(mesh: Mesh, document: Document) -> Doubts:
    """What is wrong with a PeerAuthentication."""
    spec: PeerAuthentication = document.spec
    if spec.labels and document.namespace == mesh.config.root_namespace:
        yield ("selector",), "selects nobody: in the root namespace only those without a selector count"
        return
    older = _older(mesh, document)
    if older is not None:
        whom = "for workloads that both select" if spec.labels else "alone"
        yield ("selector",) if spec.labels else (), f"{older.identity} is heard {whom}, since it comes first"
    if spec.mtls is not None and spec.mtls.mode == STRICT:
        yield from _unreachable(mesh, document)


def _older(mesh: Mesh, document: Document) -> Document | None:
    """One that is heard in its place."""
    own = set(document.spec.labels)
    for other in mesh.of_kind(document.identity.kind, document.namespace):
        if other.identity == document.identity:
            return None
        labels = set(other.spec.labels)
        if bool(labels) == bool(own) and (labels <= own or own <= labels):
            return other
    return None


def _unreachable(mesh: Mesh, document: Document) -> Doubts:
    """Services that sidecars call in plaintext, since nothing says that their workloads take anything else."""
    everywhere = document.namespace == mesh.config.root_namespace
    for service in _services(mesh):
        if service.external or not (everywhere or service.namespace == document.namespace):
            continue
        for one in _endpoints(mesh, service):
            if one.tls_mode != TAKES_MESH_TLS and selects(document.spec.labels, dict(one.labels)):
                if _mode(mesh, one) == STRICT:
                    reason = (
                        f"neither a serviceAccount nor the label {TLS_MODE}: istio says that {one.address} takes it"
                    )
                    yield ("mtls", "mode"), f"{service.hostname} is called in plaintext: {reason}"
                    break


def destination_doubts(mesh: Mesh, document: Document) -> Doubts:
    """Policies of a DestinationRule that speak other than mutual TLS to those who take nothing else."""
    pattern = full_host(document.spec.host, document.namespace, mesh.config.domain)
    for steps, tls, ports in _settings(document.spec):
        if tls.mode != "ISTIO_MUTUAL":
            hosts = (each for each in _services(mesh) if covers(pattern, each.hostname))
            found = next((each for each in hosts if _takes_nothing_else(mesh, each, ports)), None)
            if found is not None:
                yield (
                    (*steps, "tls", "mode"),
                    f"{found.hostname} takes mutual TLS only (PeerAuthentication): it refuses",
                )


def _settings(spec: DestinationRule) -> Iterator[tuple[tuple[str | int, ...], ClientTLSSettings, frozenset[int]]]:
    """All that a rule says of TLS, each with the ports that it is for; none: all."""
    subsets = ((("subsets", index, "trafficPolicy"), each.traffic_policy) for index, each in enumerate(spec.subsets))
    for steps, policy in ((("trafficPolicy",), spec.traffic_policy), *subsets):
        if policy is None:
            continue
        if policy.tls is not None:
            yield steps, policy.tls, frozenset()
        for index, each in enumerate(policy.port_level_settings):
            if each.tls is not None:
                yield (*steps, "portLevelSettings", index), each.tls, frozenset({each.port.number})


def _takes_nothing_else(mesh: Mesh, service: Service, ports: frozenset[int]) -> bool:
    of_mesh = (one for one in _endpoints(mesh, service, ports) if one.tls_mode == TAKES_MESH_TLS)
    return not service.external and any(_mode(mesh, one) == STRICT for one in of_mesh)


def _services(mesh: Mesh) -> Iterable[Service]:
    return (
        mesh.services.by_host[host][of] for host in sorted(mesh.services.by_host) for of in mesh.services.by_host[host]
    )


def _endpoints(mesh: Mesh, service: Service, ports: frozenset[int] = frozenset()) -> Iterator[Endpoint]:
    for number, endpoints in mesh.endpoints(service.key).items():
        if not ports or number in ports:
            yield from endpoints


def _mode(mesh: Mesh, endpoint: Endpoint) -> str:
    return mesh.mutual_tls(endpoint.namespace, dict(endpoint.labels)).of(endpoint.port)
