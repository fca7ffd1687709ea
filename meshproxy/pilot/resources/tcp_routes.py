"""Where connections go that are not HTTP: rules for TCP and TLS, else the service's own cluster."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from meshproxy.pilot.documents.virtual_service import MESH
from meshproxy.pilot.resources import names

if TYPE_CHECKING:
    from meshproxy.pilot.documents.document import Document
    from meshproxy.pilot.documents.virtual_service import (
        Destination,
        L4MatchAttributes,
        RouteDestination,
        TLSMatchAttributes,
    )
    from meshproxy.pilot.mesh.services import Service, ServicePort
    from meshproxy.pilot.resources.view import View


@dataclass(frozen=True, slots=True)
class TcpTarget:
    """Clusters with their weights, for connections with one of these server names, to one of these networks."""

    name: str
    clusters: tuple[tuple[str, int], ...]
    server_names: tuple[str, ...] = ()
    subnets: tuple[str, ...] = ()
    source_hash: bool = False
    idle_timeout: timedelta | None = None


def tcp_targets(view: View, service: Service, port: ServicePort) -> list[TcpTarget]:
    """In the order of the rules, up to one for all networks: that is always the last."""
    document = view.virtual_services.of(service.hostname)
    found = tcp_rule_targets(view, document, port.number) if document is not None else []
    return found if found and not found[-1].subnets else [*found, _own(view, service, port)]


def tcp_rule_targets(view: View, document: Document, port: int, gateways: Iterable[str] = (MESH,)) -> list[TcpTarget]:
    """The routes for TCP of one VirtualService, up to one for all networks."""
    found: list[TcpTarget] = []
    for rule in document.spec.tcp:
        for match in rule.match or (None,):
            if match is None or applies(view, match, port, gateways):
                subnets = match.destination_subnets if match is not None else ()
                found.append(_target(view, rule.route, port, subnets=subnets))
                if not subnets:
                    return found
    return found


def tls_targets(view: View, owned: Iterable[tuple[Service, ServicePort]]) -> list[TcpTarget]:
    """By server name: those of rules, and of each service without any its host."""
    found: list[TcpTarget] = []
    for service, port in owned:
        document = view.virtual_services.of(service.hostname)
        targets = rule_targets(view, document, port.number) if document is not None else []
        found += targets or [_own(view, service, port, (service.hostname,))]
    return found


def rule_targets(view: View, document: Document, port: int, gateways: Iterable[str] = (MESH,)) -> list[TcpTarget]:
    """The routes for TLS of one VirtualService."""
    return [
        _target(view, rule.route, port, names=match.sni_hosts, subnets=match.destination_subnets)
        for rule in document.spec.tls
        for match in rule.match
        if applies(view, match, port, gateways)
    ]


def applies(
    view: View, match: TLSMatchAttributes | L4MatchAttributes, port: int, gateways: Iterable[str] = (MESH,)
) -> bool:
    """Whether these proxies may take the route on this port."""
    if match.port not in (None, port):
        return False
    if match.source_namespace and match.source_namespace != view.scope.namespace:
        return False
    if match.gateways and set(match.gateways).isdisjoint(gateways):
        return False
    return set(match.source_labels) <= set(view.scope.labels)


def _own(view: View, service: Service, port: ServicePort, server_names: tuple[str, ...] = ()) -> TcpTarget:
    cluster = names.outbound_cluster(service.hostname, port.number)
    source_hash, idle_timeout = _policy(view, service.hostname, "", port.number)
    return TcpTarget(cluster, ((cluster, 1),), server_names, (), source_hash, idle_timeout)


def _target(
    view: View,
    route: Sequence[RouteDestination],
    port: int,
    *,
    names: tuple[str, ...] = (),
    subnets: tuple[str, ...] = (),
) -> TcpTarget:
    """The first destination's policy says how a caller stays with a host, and how long a connection may be silent."""
    weighted = [(one.destination, one.weight or 1) for one in route if one.weight or len(route) == 1]
    clusters = tuple((view.cluster_of(destination, port), weight) for destination, weight in weighted)
    first: Destination = weighted[0][0]
    source_hash, idle_timeout = _policy(view, first.host, first.subset, view.port_of(first, port))
    return TcpTarget(clusters[0][0], clusters, names, subnets, source_hash, idle_timeout)


def _policy(view: View, hostname: str, subset: str, port: int) -> tuple[bool, timedelta | None]:
    service = view.services.get(hostname)
    if service is None:
        return False, None
    policy = view.policy(service, subset, port)
    balancer = policy.load_balancer
    hashed = balancer.consistent_hash if balancer is not None else None
    tcp = policy.connection_pool.tcp if policy.connection_pool is not None else None
    return bool(hashed is not None and hashed.use_source_ip), tcp.idle_timeout if tcp is not None else None
