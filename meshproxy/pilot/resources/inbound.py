"""Listeners and clusters for what comes in to the proxy's own workload."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from envoy.config.core.v3.base_pb2 import INBOUND
from envoy.config.listener.v3.listener_components_pb2 import ListenerFilter, ListenerFilterChainMatchPredicate
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_components_pb2 import Route, RouteMatch, VirtualHost
from envoy.type.v3.range_pb2 import Int32Range

from meshproxy.pilot.documents.common import HTTP_PROTOCOLS
from meshproxy.pilot.resources import connection_pool, http_policies, names
from meshproxy.pilot.resources.actions import set_timeout
from meshproxy.pilot.resources.clusters import http_version, inbound_cluster
from meshproxy.pilot.resources.http_manager import manager, manager_filter
from meshproxy.pilot.resources.listeners import (
    ANY_ADDRESS,
    HTTP_INSPECTOR,
    LOOPBACK,
    ORIGINAL_DST,
    PLAIN_HTTP,
    TLS_INSPECTOR,
)
from meshproxy.pilot.resources.messages import address, duration, uint32
from meshproxy.pilot.resources.retries import inbound_retry_policy
from meshproxy.pilot.resources.routes import route_configuration
from meshproxy.pilot.resources.tcp import tcp_proxy

if TYPE_CHECKING:
    from envoy.config.cluster.v3.cluster_pb2 import Cluster
    from envoy.config.listener.v3.listener_components_pb2 import Filter

    from meshproxy.pilot.resources.scope import InboundPort
    from meshproxy.pilot.resources.view import View

INBOUND_PORT: Final = 15006
_INSPECTION_MS: Final = 1_000  # how long who says nothing on a port that nobody knows is waited for


def inbound_clusters(ports: Sequence[InboundPort]) -> list[Cluster]:
    return [inbound_cluster(port.target, http_version(port.protocol), _application(port)) for port in ports]


def _application(port: InboundPort) -> tuple[str, int] | None:
    """Where the application listens; None: where the caller connected to, which interception knows."""
    if not port.address:
        return None
    host, _, number = port.application.rpartition(":")
    return (host or LOOPBACK, int(number)) if port.application else (LOOPBACK, port.target)


def inbound_listeners(view: View, ports: Sequence[InboundPort]) -> list[Listener]:
    if view.scope.intercepted:
        return [virtual_inbound(view, ports)]
    return [_on_own_address(view, port) for port in ports]


def virtual_inbound(view: View, ports: Sequence[InboundPort]) -> Listener:
    """What iptables sends to port 15006: by the port that the caller connected to."""
    message = Listener(name=names.VIRTUAL_INBOUND, address=address(ANY_ADDRESS, INBOUND_PORT))
    message.traffic_direction = INBOUND
    message.listener_filters.append(ORIGINAL_DST)
    message.listener_filters.extend(_elsewhere(one, ports) for one in (TLS_INSPECTOR, HTTP_INSPECTOR))
    message.continue_on_listener_filters_timeout = True
    message.listener_filters_timeout.CopyFrom(duration(_INSPECTION_MS))
    loop = message.filter_chains.add(name="virtualInbound-blackhole")
    loop.filter_chain_match.destination_port.CopyFrom(uint32(INBOUND_PORT))
    loop.filters.append(tcp_proxy(names.BLACK_HOLE, [(names.BLACK_HOLE, 1)]))
    for port in ports:
        chain = message.filter_chains.add(name=f"{ANY_ADDRESS}_{port.target}")
        chain.filter_chain_match.destination_port.CopyFrom(uint32(port.target))
        chain.filters.append(_own_filter(view, port))
    http = message.filter_chains.add(name="virtualInbound-catchall-http")
    http.filter_chain_match.application_protocols.extend(PLAIN_HTTP)
    http.filter_chain_match.transport_protocol = "raw_buffer"
    routes = route_configuration(names.INBOUND_PASSTHROUGH, [_host("inbound|http|0", names.INBOUND_PASSTHROUGH)])
    http.filters.append(manager_filter(manager(names.INBOUND_PASSTHROUGH, routes, ())))
    message.default_filter_chain.name = names.VIRTUAL_INBOUND
    rest = tcp_proxy(names.INBOUND_PASSTHROUGH, [(names.INBOUND_PASSTHROUGH, 1)])
    message.default_filter_chain.filters.append(rest)
    return message


def _elsewhere(inspector: ListenerFilter, ports: Sequence[InboundPort]) -> ListenerFilter:
    """The filter, but not on these ports: their protocols are known, and who speaks last there must not wait for it."""
    ranges = [
        ListenerFilterChainMatchPredicate(destination_port_range=Int32Range(start=port.target, end=port.target + 1))
        for port in ports
    ]
    message = ListenerFilter()
    message.CopyFrom(inspector)
    if len(ranges) == 1:
        message.filter_disabled.CopyFrom(ranges[0])
    elif ranges:
        message.filter_disabled.or_match.rules.extend(ranges)
    return message


def _on_own_address(view: View, port: InboundPort) -> Listener:
    """Where the mesh looks for the workload; the application has the same port on the loopback address, or another."""
    message = Listener(name=f"{port.address}_{port.target}", address=address(port.address, port.target))
    message.traffic_direction = INBOUND
    message.filter_chains.add(name=message.name).filters.append(_own_filter(view, port))
    return message


def _own_filter(view: View, port: InboundPort) -> Filter:
    cluster = names.inbound_cluster(port.target)
    if port.protocol not in HTTP_PROTOCOLS:
        return tcp_proxy(cluster, [(cluster, 1)])
    host = _host(f"inbound|http|{port.number}", cluster)
    if http_version(port.protocol) == connection_pool.HTTP1:
        host.routes[0].route.retry_policy.CopyFrom(inbound_retry_policy())
    filters = http_policies.python_filters(view.python_filters, http_policies.INBOUND)
    filters += http_policies.inbound_policies(view.policies, port.number)
    message = manager(f"inbound_{ANY_ADDRESS}_{port.target}", route_configuration(cluster, [host]), filters)
    return manager_filter(message)


def _host(name: str, cluster: str) -> VirtualHost:
    route = Route(name="default", match=RouteMatch(prefix="/"))
    route.route.cluster = cluster
    set_timeout(route.route, None)
    return VirtualHost(name=name, domains=["*"], routes=[route])
