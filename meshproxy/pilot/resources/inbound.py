"""Listeners and clusters for what comes in to the proxy's own workload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from envoy.config.core.v3.base_pb2 import INBOUND
from envoy.config.listener.v3.listener_components_pb2 import ListenerFilter, ListenerFilterChainMatchPredicate
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_components_pb2 import Route, RouteMatch, VirtualHost
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.type.v3.range_pb2 import Int32Range

from meshproxy.pilot.documents.common import HTTP_PROTOCOLS
from meshproxy.pilot.resources import connection_pool, http_policies, names
from meshproxy.pilot.resources.actions import set_timeout
from meshproxy.pilot.resources.clusters import http_version, inbound_cluster
from meshproxy.pilot.resources.downstream_tls import mesh_socket
from meshproxy.pilot.resources.http_manager import manager, manager_filter
from meshproxy.pilot.resources.inbound_tls import AUTO, HTTP, TCP, Way, inspects_tls, ways_in
from meshproxy.pilot.resources.listeners import ANY_ADDRESS, HTTP_INSPECTOR, LOOPBACK, ORIGINAL_DST, TLS_INSPECTOR
from meshproxy.pilot.resources.messages import address, boolean, duration, uint32
from meshproxy.pilot.resources.retries import inbound_retry_policy
from meshproxy.pilot.resources.routes import route_configuration
from meshproxy.pilot.resources.tcp import tcp_proxy

if TYPE_CHECKING:
    from envoy.config.cluster.v3.cluster_pb2 import Cluster
    from envoy.config.listener.v3.listener_components_pb2 import Filter
    from envoy.config.route.v3.route_pb2 import RouteConfiguration
    from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import HttpFilter

    from meshproxy.pilot.mesh.mutual_tls import MutualTls
    from meshproxy.pilot.resources.scope import InboundPort
    from meshproxy.pilot.resources.view import View

INBOUND_PORT: Final = 15006
_INSPECTION_MS: Final = 1_000  # how long who says nothing is waited for, where what is spoken is not known
_HTTP_ALPN: Final = ("h2", "http/1.1")
_TCP_ALPN: Final = ("istio",)


def inbound_clusters(ports: Sequence[InboundPort]) -> list[Cluster]:
    return [inbound_cluster(port.target, http_version(port.protocol), _application(port)) for port in ports]


def _application(port: InboundPort) -> tuple[str, int] | None:
    """Where the application listens; None: where the caller connected to, which interception knows."""
    if not port.address:
        return None
    host, _, number = port.application.rpartition(":")
    return (host or LOOPBACK, int(number)) if port.application else (LOOPBACK, port.target)


def inbound_listeners(view: View, ports: Sequence[InboundPort], takes: MutualTls) -> list[Listener]:
    """`takes` says which connections: mutual TLS, plaintext, or both."""
    if view.scope.intercepted:
        return [_virtual_inbound(view, ports, takes)]
    return [_on_own_address(view, port, takes) for port in ports]


def _virtual_inbound(view: View, ports: Sequence[InboundPort], takes: MutualTls) -> Listener:
    """What iptables sends to port 15006: by the port that the caller connected to. Nothing stands behind the chains of
    a port, so that what it does not take goes nowhere."""
    message = Listener(name=names.VIRTUAL_INBOUND, address=address(ANY_ADDRESS, INBOUND_PORT))
    message.traffic_direction = INBOUND
    loop = message.filter_chains.add(name="virtualInbound-blackhole")
    loop.filter_chain_match.destination_port.CopyFrom(uint32(INBOUND_PORT))
    loop.filters.append(_nowhere())
    plain: set[int] = set()
    for port in ports:
        ways = ways_in(takes.of(port.target), _protocol(port), view.scope.sds)
        if not inspects_tls(ways):
            plain.add(port.target)
        _add_chains(message, view, ways, _Inside.of_port(view, port), f"{ANY_ADDRESS}_{port.target}", port.target)
    known = {port.target for port in ports}
    for number, mode in takes.ports:
        if number not in known and number != INBOUND_PORT:
            name = f"{names.VIRTUAL_INBOUND}_{number}"
            _add_chains(message, view, ways_in(mode, AUTO, view.scope.sds), _Inside.of_rest(view), name, number)
    rest = ways_in(takes.mode, AUTO, view.scope.sds)
    _add_chains(message, view, rest, _Inside.of_rest(view), names.VIRTUAL_INBOUND)
    message.listener_filters.append(ORIGINAL_DST)
    message.listener_filters.append(_elsewhere(TLS_INSPECTOR, sorted(plain)))
    message.listener_filters.append(_elsewhere(HTTP_INSPECTOR, sorted(known)))
    _limit_inspection(message)
    return message


def _on_own_address(view: View, port: InboundPort, takes: MutualTls) -> Listener:
    """Where the mesh looks for the workload; the application has the same port on the loopback address, or another."""
    message = Listener(name=f"{port.address}_{port.target}", address=address(port.address, port.target))
    message.traffic_direction = INBOUND
    ways = ways_in(takes.of(port.target), _protocol(port), view.scope.sds)
    _add_chains(message, view, ways, _Inside.of_port(view, port), message.name)
    if inspects_tls(ways):
        message.listener_filters.append(TLS_INSPECTOR)
        _limit_inspection(message)
    return message


def _protocol(port: InboundPort) -> str:
    return HTTP if port.protocol in HTTP_PROTOCOLS else TCP


def _limit_inspection(message: Listener) -> None:
    """Who says nothing is taken for one who speaks plaintext."""
    message.continue_on_listener_filters_timeout = True
    message.listener_filters_timeout.CopyFrom(duration(_INSPECTION_MS))


def _elsewhere(inspector: ListenerFilter, ports: Sequence[int]) -> ListenerFilter:
    """The filter, but not on these ports: what it would see is known, and who speaks last there must not wait."""
    ranges = [
        ListenerFilterChainMatchPredicate(destination_port_range=Int32Range(start=port, end=port + 1)) for port in ports
    ]
    message = ListenerFilter()
    message.CopyFrom(inspector)
    if len(ranges) == 1:
        message.filter_disabled.CopyFrom(ranges[0])
    elif ranges:
        message.filter_disabled.or_match.rules.extend(ranges)
    return message


@dataclass(frozen=True, slots=True)
class _Inside:
    """The filters of a chain: `http` of those that read requests, `tcp` of the others; of a kind that there is not they
    are empty."""

    http: tuple[Filter, ...]
    tcp: tuple[Filter, ...]

    @classmethod
    def of_port(cls, view: View, port: InboundPort) -> _Inside:
        """A port of a service."""
        cluster = names.inbound_cluster(port.target)
        if port.protocol not in HTTP_PROTOCOLS:
            return cls((), _tcp(view, cluster))
        host = _host(f"inbound|http|{port.number}", cluster)
        if http_version(port.protocol) == connection_pool.HTTP1:
            host.routes[0].route.retry_policy.CopyFrom(inbound_retry_policy())
        filters = http_policies.python_filters(view.python_filters, http_policies.INBOUND)
        filters += http_policies.inbound_policies(view.policies, port.number)
        routes = route_configuration(cluster, [host])
        return cls(_http(view, f"inbound_{ANY_ADDRESS}_{port.target}", routes, filters), ())

    @classmethod
    def of_rest(cls, view: View) -> _Inside:
        """Where no service is: to where it was going."""
        cluster = names.INBOUND_PASSTHROUGH
        routes = route_configuration(cluster, [_host("inbound|http|0", cluster)])
        return cls(_http(view, cluster, routes, ()), _tcp(view, cluster))


def _http(
    view: View, stat_prefix: str, routes: RouteConfiguration, filters: Sequence[HttpFilter]
) -> tuple[Filter, ...]:
    """What proves who calls is told to the application, as with Istio: a header that says so comes from the mesh, since
    it is taken from whoever has not proved anything."""
    message = manager(stat_prefix, routes, [*view.authorization.http, *filters])
    message.forward_client_cert_details = HttpConnectionManager.APPEND_FORWARD
    details = message.set_current_client_cert_details
    details.subject.CopyFrom(boolean(True))
    details.uri, details.dns = True, True
    return (manager_filter(message),)


def _tcp(view: View, cluster: str) -> tuple[Filter, ...]:
    return (*view.authorization.network, tcp_proxy(cluster, [(cluster, 1)]))


def _nowhere() -> Filter:
    return tcp_proxy(names.BLACK_HOLE, [(names.BLACK_HOLE, 1)])


def _add_chains(
    message: Listener, view: View, ways: Sequence[Way], inside: _Inside, name: str, port: int | None = None
) -> None:
    for way in ways:
        chain = message.filter_chains.add(name=name + way.suffix)
        match = chain.filter_chain_match
        if port is not None:
            match.destination_port.CopyFrom(uint32(port))
        if way.transport:
            match.transport_protocol = way.transport
        if way.protocols:
            match.application_protocols.extend(way.protocols)
        chain.filters.extend(_filters_of(way, inside))
        if way.is_mutual:
            domains = (*view.mesh.config.trust_domains, *view.mesh.config.federated_domains)
            alpn = _HTTP_ALPN if way.is_http else _TCP_ALPN
            chain.transport_socket.CopyFrom(mesh_socket(alpn, domains, view.scope.sds))


def _filters_of(way: Way, inside: _Inside) -> tuple[Filter, ...]:
    if way.is_closed:
        return (_nowhere(),)
    return inside.http if way.is_http else inside.tcp


def _host(name: str, cluster: str) -> VirtualHost:
    route = Route(name="default", match=RouteMatch(prefix="/"))
    route.route.cluster = cluster
    set_timeout(route.route, None)
    return VirtualHost(name=name, domains=["*"], routes=[route])
