"""Listeners and routes of a proxy at the edge: of the Gateways that select it, and VirtualServices bound to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from envoy.config.listener.v3.listener_components_pb2 import FilterChain
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_components_pb2 import Route, VirtualHost
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)

from meshproxy.pilot.documents.common import HTTP_PROTOCOLS, TLS_PROTOCOLS, covers, plain_protocol
from meshproxy.pilot.resources import http_policies
from meshproxy.pilot.resources.downstream_tls import downstream_socket
from meshproxy.pilot.resources.http_manager import manager, manager_filter
from meshproxy.pilot.resources.listeners import ANY_ADDRESS, TLS_INSPECTOR, chain_of, distinct, tls_chain
from meshproxy.pilot.resources.matches import is_catch_all
from meshproxy.pilot.resources.messages import address, boolean
from meshproxy.pilot.resources.routes import RuleDestinations, route_configuration, rule_routes
from meshproxy.pilot.resources.tcp_routes import rule_targets, tcp_rule_targets

if TYPE_CHECKING:
    from envoy.config.listener.v3.listener_components_pb2 import Filter
    from envoy.config.route.v3.route_pb2 import RouteConfiguration

    from meshproxy.pilot.documents.document import Document, Identity
    from meshproxy.pilot.documents.gateway import Server
    from meshproxy.pilot.resources.view import View

_PASSTHROUGH: Final = "PASSTHROUGH"
_MUTUAL: Final = ("MUTUAL", "OPTIONAL_MUTUAL", "ISTIO_MUTUAL")


@dataclass(frozen=True, slots=True)
class Served:
    """A server, of a Gateway, which VirtualServices name as `key`."""

    key: str
    namespace: str
    server: Server

    @property
    def is_http(self) -> bool:
        """Whether requests are read: plain, or after the end of TLS."""
        protocol = plain_protocol(self.server.port.protocol)
        return protocol in HTTP_PROTOCOLS or (protocol == "HTTPS" and self.ends_tls)

    @property
    def ends_tls(self) -> bool:
        secure = plain_protocol(self.server.port.protocol) in TLS_PROTOCOLS
        return secure and self.server.tls is not None and self.server.tls.mode != _PASSTHROUGH

    @property
    def hosts(self) -> list[str]:
        return [host.rpartition("/")[2] for host in self.server.hosts]

    @property
    def routes(self) -> str:
        """The name of its route configuration: servers of plain HTTP share that of their port."""
        port = self.server.port
        if not self.ends_tls:
            return f"http.{port.number}"
        namespace, _, name = self.key.partition("/")
        return f"https.{port.number}.{port.name}.{name}.{namespace}"


def gateway_listeners(view: View) -> list[Listener]:
    """One for each address and port."""
    by_place: dict[tuple[str, int], list[Served]] = {}
    for served in _servers(view):
        place = (served.server.bind or ANY_ADDRESS, served.server.port.number)
        by_place.setdefault(place, []).append(served)
    listeners = [_listener(view, place, servers) for place, servers in sorted(by_place.items())]
    return [listener for listener in listeners if listener.filter_chains]  # with no rule for it nothing is served


def gateway_routes(view: View) -> list[RouteConfiguration]:
    """Of all servers that read requests."""
    by_name: dict[str, list[Served]] = {}
    for served in _servers(view):
        if served.is_http:
            by_name.setdefault(served.routes, []).append(served)
    return [route_configuration(name, _hosts(view, servers)) for name, servers in sorted(by_name.items())]


def _servers(view: View) -> Iterator[Served]:
    for gateway in view.gateways:
        for server in gateway.spec.servers:
            yield Served(f"{gateway.namespace}/{gateway.name}", gateway.namespace, server)


def _listener(view: View, place: tuple[str, int], servers: Sequence[Served]) -> Listener:
    host, port = place
    message = Listener(name=f"{host}_{port}", address=address(host, port))
    plain = [served for served in servers if served.is_http and not served.ends_tls]
    if plain:
        chain = message.filter_chains.add(name=plain[0].routes)
        chain.filters.append(_http(view, plain[0], message.name))
    for served in servers:
        if served not in plain:
            message.filter_chains.extend(_chains(view, served, message.name))
    _settle(message, with_plain=bool(plain))
    return message


def _settle(message: Listener, *, with_plain: bool) -> None:
    """The first chain that claims a server name has it."""
    if any(chain.filter_chain_match.transport_protocol == "tls" for chain in message.filter_chains):
        message.listener_filters.append(TLS_INSPECTOR)
        if with_plain:
            message.filter_chains[0].filter_chain_match.transport_protocol = "raw_buffer"
    kept = distinct(message.filter_chains)
    del message.filter_chains[:]
    message.filter_chains.extend(kept)


def _chains(view: View, served: Served, listener: str) -> list[FilterChain]:
    """None for a server whose secrets nobody has for this proxy."""
    tls = served.server.tls
    if served.ends_tls and tls is not None and tls.needs_secrets and not view.scope.sds:
        return []
    if served.is_http:
        chain = FilterChain(name=served.routes, filters=[_http(view, served, listener)])
        return [_secured(served, chain, view.scope.sds)]
    if served.ends_tls or plain_protocol(served.server.port.protocol) == "TCP":
        return _tcp_chains(view, served)
    return _passed_on(view, served)


def _secured(served: Served, chain: FilterChain, sds: str) -> FilterChain:
    """For its hosts, behind the end of TLS."""
    tls = served.server.tls
    if tls is None:
        return chain
    chain.transport_socket.CopyFrom(downstream_socket(tls, ("h2", "http/1.1") if served.is_http else (), sds))
    chain.filter_chain_match.transport_protocol = "tls"
    if "*" not in served.hosts:
        chain.filter_chain_match.server_names.extend(served.hosts)
    return chain


def _tcp_chains(view: View, served: Served) -> list[FilterChain]:
    """By the tcp routes of the first VirtualService that has some."""
    for document in _bound(view, served):
        targets = tcp_rule_targets(view, document, served.server.port.number, (served.key,))
        if targets:
            chains = [_guarded(view, chain_of(target)) for target in targets]
            return [_secured(served, chain, view.scope.sds) for chain in chains] if served.ends_tls else chains
    return []


def _guarded(view: View, chain: FilterChain) -> FilterChain:
    """Behind what says who may connect."""
    behind = list(chain.filters)
    del chain.filters[:]
    chain.filters.extend([*view.authorization.network, *behind])
    return chain


def _passed_on(view: View, served: Served) -> list[FilterChain]:
    """TLS that ends elsewhere: by server name, as the tls routes say."""
    chains: list[FilterChain] = []
    for document in _bound(view, served):
        for target in rule_targets(view, document, served.server.port.number, (served.key,)):
            names = [name for name in target.server_names if any(covers(host, name) for host in served.hosts)]
            if names:
                chains.append(_guarded(view, tls_chain(target, names)))
    return chains


def _http(view: View, served: Served, listener: str) -> Filter:
    """The edge believes no header about where a request comes from."""
    port = served.server.port.number
    filters = [*view.authorization.http, *http_policies.python_filters(view.python_filters, http_policies.INBOUND)]
    filters += http_policies.inbound_policies(view.policies, port)
    message = manager(f"outbound_{listener}", served.routes, filters)
    message.use_remote_address.CopyFrom(boolean(True))
    message.forward_client_cert_details = HttpConnectionManager.SANITIZE_SET
    if served.server.tls is not None and served.server.tls.mode in _MUTUAL:
        details = message.set_current_client_cert_details
        details.subject.CopyFrom(boolean(True))
        details.uri, details.dns = True, True
    return manager_filter(message)


def _hosts(view: View, servers: Sequence[Served]) -> list[VirtualHost]:
    """The hosts that VirtualServices and servers have in common; several VirtualServices may share one."""
    hosts: dict[str, VirtualHost] = {}
    added: set[tuple[str, Identity]] = set()
    for served in servers:
        for document in _bound(view, served):
            for host in _common_hosts(document, served):
                message = hosts.setdefault(host, _host(host, served))
                if (host, document.identity) not in added:
                    added.add((host, document.identity))
                    _add_routes(message, _routes(view, document, served))
        if served.server.tls is not None and served.server.tls.https_redirect:
            _redirect(hosts, served)
    return [hosts[host] for host in sorted(hosts)]


def _host(host: str, served: Served) -> VirtualHost:
    name = f"{host}:{served.server.port.number}"
    return VirtualHost(name=name, domains=[host], include_request_attempt_count=True)


def _routes(view: View, document: Document, served: Served) -> list[Route]:
    port = served.server.port.number
    return rule_routes(view, document, port, RuleDestinations(view, port), (served.key,))


def _add_routes(message: VirtualHost, routes: Sequence[Route]) -> None:
    """A route that takes everything stays the last one, and the oldest of several wins."""
    there = list(message.routes)
    last = [route for route in there if is_catch_all(route.match)]
    narrow = [route for route in routes if last == [] or not is_catch_all(route.match)]
    known = [route for route in there if route not in last]
    del message.routes[:]
    message.routes.extend([*known, *narrow, *last])


def _redirect(hosts: dict[str, VirtualHost], served: Served) -> None:
    """Plain requests to these hosts are sent to the same place by HTTPS."""
    for host in served.hosts:
        hosts.setdefault(host, _host(host, served))
    for host, message in hosts.items():
        if any(covers(own, host) for own in served.hosts):
            message.require_tls = VirtualHost.ALL


def _bound(view: View, served: Served) -> Iterator[Document]:
    """The VirtualServices of this Gateway that the server's hosts let in, the oldest first."""
    for document in view.mesh.virtual_services.visible(served.namespace, served.key):
        if _common_hosts(document, served):
            yield document


def _common_hosts(document: Document, served: Served) -> list[str]:
    """Of two hosts of which one covers the other, the narrower one."""
    found: dict[str, None] = {}
    for entry in served.server.hosts:
        namespace, _, host = entry.rpartition("/")
        of = served.namespace if namespace == "." else namespace
        if of not in ("", "*", document.namespace):
            continue
        for own in document.spec.hosts:
            if host == "*" or covers(host, own):
                found[own] = None
            elif own == "*" or covers(own, host):
                found[host] = None
    return list(found)
