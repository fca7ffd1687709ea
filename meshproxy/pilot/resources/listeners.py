"""Listeners for outbound traffic: those behind iptables, and those on loopback ports for machines without."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from envoy.config.core.v3.address_pb2 import CidrRange
from envoy.config.core.v3.base_pb2 import OUTBOUND
from envoy.config.listener.v3.listener_components_pb2 import FilterChain, FilterChainMatch, ListenerFilter
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.listener.http_inspector.v3.http_inspector_pb2 import HttpInspector
from envoy.extensions.filters.listener.original_dst.v3.original_dst_pb2 import OriginalDst
from envoy.extensions.filters.listener.tls_inspector.v3.tls_inspector_pb2 import TlsInspector

from meshproxy.pilot.documents.common import HTTP_PROTOCOLS, TLS_PROTOCOLS
from meshproxy.pilot.resources import http_policies, names
from meshproxy.pilot.resources.http_manager import manager, manager_filter
from meshproxy.pilot.resources.messages import address, boolean, duration, pack, uint32
from meshproxy.pilot.resources.routes import own_routes
from meshproxy.pilot.resources.tcp import tcp_proxy
from meshproxy.pilot.resources.tcp_routes import TcpTarget, tcp_targets, tls_targets

if TYPE_CHECKING:
    from envoy.config.listener.v3.listener_components_pb2 import Filter

    from meshproxy.pilot.mesh.services import Service, ServicePort
    from meshproxy.pilot.resources.view import View

OUTBOUND_PORT: Final = 15001
ANY_ADDRESS: Final = "0.0.0.0"
LOOPBACK: Final = "127.0.0.1"
PLAIN_HTTP: Final = ("http/1.1", "h2c")  # what http_inspector calls it

TLS_INSPECTOR: Final = ListenerFilter(name="envoy.filters.listener.tls_inspector", typed_config=pack(TlsInspector()))
HTTP_INSPECTOR: Final = ListenerFilter(name="envoy.filters.listener.http_inspector", typed_config=pack(HttpInspector()))
ORIGINAL_DST: Final = ListenerFilter(name="envoy.filters.listener.original_dst", typed_config=pack(OriginalDst()))

Owned = tuple["Service", "ServicePort"]


def port_listeners(view: View, number: int, owned: Sequence[Owned]) -> list[Listener]:
    """Of one port of services. Where two of them claim one address, the first has it."""
    make = _behind_interception if view.scope.intercepted else _on_loopback
    found: dict[str, Listener] = {}
    for listener in make(view, number, owned):
        found.setdefault(listener.name, listener)
    return list(found.values())


def virtual_outbound(view: View) -> Listener:
    """What iptables sends to port 15001: handed to the listener of its destination, or passed on."""
    message = Listener(name=names.VIRTUAL_OUTBOUND, address=address(ANY_ADDRESS, OUTBOUND_PORT))
    message.traffic_direction = OUTBOUND
    message.use_original_dst.CopyFrom(boolean(True))
    loop = message.filter_chains.add(name="virtualOutbound-blackhole")
    loop.filter_chain_match.destination_port.CopyFrom(uint32(OUTBOUND_PORT))
    loop.filters.append(tcp_proxy(names.BLACK_HOLE, [(names.BLACK_HOLE, 1)]))
    rest = message.filter_chains.add(name="virtualOutbound-catchall-tcp")
    rest.filters.append(_rest(view))
    return message


def _rest(view: View) -> Filter:
    cluster = names.PASSTHROUGH if view.allow_any else names.BLACK_HOLE
    return tcp_proxy(cluster, [(cluster, 1)])


def _behind_interception(view: View, number: int, owned: Sequence[Owned]) -> list[Listener]:
    """`<address>_<port>` for services with addresses that are not HTTP, `0.0.0.0_<port>` for all others."""
    own = [(one, each) for one in owned if not _is_http(one) for each in one[0].addresses if "/" not in each]
    found = [_of_address(view, one, each) for one, each in own]
    shared = [one for one in owned if _is_http(one) or not one[0].addresses or _networks(one)]
    if shared or not owned:
        found.append(_of_port(view, number, shared))
    return found


def _networks(owned: Owned) -> list[str]:
    """Those of its addresses that are whole networks."""
    return [each for each in owned[0].addresses if "/" in each]


def _of_address(view: View, owned: Owned, where: str) -> Listener:
    """Of a service that is not HTTP: everything to its address is for it."""
    service, port = owned
    message = _unbound(f"{where}_{port.number}", where, port.number)
    if _is_tls(owned):
        message.listener_filters.append(TLS_INSPECTOR)
        message.filter_chains.extend(distinct(_tls_chains(view, [owned])))
        message.default_filter_chain.CopyFrom(_default_chain(view))
    else:
        message.filter_chains.extend(distinct(chain_of(target) for target in tcp_targets(view, service, port)))
    return message


def _of_port(view: View, number: int, owned: Sequence[Owned]) -> Listener:
    """HTTP by its host, TLS by its server name, other TCP by its network; the first TCP service without any address
    has the rest."""
    message = _unbound(f"{ANY_ADDRESS}_{number}", ANY_ADDRESS, number)
    chains = _tls_chains(view, [one for one in owned if _is_tls(one)])
    with_http = not owned or any(_is_http(one) for one in owned)
    if chains or with_http:  # for nobody else a client that lets the server speak first has to wait
        message.listener_filters.append(TLS_INSPECTOR)
    if with_http:
        message.listener_filters.append(HTTP_INSPECTOR)
        chain = FilterChain(name=message.name, filters=[http_filter(view, number, f"outbound_{message.name}")])
        chain.filter_chain_match.transport_protocol = "raw_buffer"
        chain.filter_chain_match.application_protocols.extend(PLAIN_HTTP)
        chains.append(chain)
    message.default_filter_chain.CopyFrom(_default_chain(view))
    placeless = [one for one in owned if not _is_http(one) and not _is_tls(one) and not one[0].addresses]
    if placeless:
        *narrow, rest = tcp_targets(view, *placeless[0])
        chains += [chain_of(target) for target in narrow]
        message.default_filter_chain.CopyFrom(chain_of(rest))
    for one in owned:
        if not _is_http(one) and not _is_tls(one):
            chains += _network_chains(view, one)
    message.filter_chains.extend(distinct(chains))
    message.continue_on_listener_filters_timeout = True
    message.listener_filters_timeout.CopyFrom(duration(5_000))
    return message


def _network_chains(view: View, owned: Owned) -> list[FilterChain]:
    """Of a service whose addresses are networks: rules for narrower ones come first by themselves."""
    networks = [_network(each) for each in _networks(owned)]
    chains = [chain_of(target) for target in tcp_targets(view, *owned)] if networks else []
    for chain in chains:
        if not chain.filter_chain_match.prefix_ranges:
            chain.filter_chain_match.prefix_ranges.extend(networks)
    return chains


def distinct(chains: Iterable[FilterChain]) -> list[FilterChain]:
    """The first chain that claims a server name within a network has it: of two that claim one thing the listener would
    be refused as a whole. A chain to which nothing is left is left out."""
    taken: set[tuple[str, ...]] = set()
    found: list[FilterChain] = []
    for chain in chains:
        left: dict[tuple[int, ...], list[str]] = {}  # the server names by the networks that they are left
        for server_name in chain.filter_chain_match.server_names or ("",):
            networks = _claimed(chain.filter_chain_match, server_name, taken)
            if networks:
                left.setdefault(networks, []).append(server_name)
        found += [_narrowed(chain, server_names, networks) for networks, server_names in left.items()]
    return found


def _claimed(match: FilterChainMatch, server_name: str, taken: set[tuple[str, ...]]) -> tuple[int, ...]:
    """Which of its networks (by index; none at all is everything: 0) a chain gets for a server name: they are taken."""
    of_chain = (match.transport_protocol, *match.application_protocols)
    found = []
    for index, network in enumerate(_texts(match)):
        place = (server_name.lower(), network, *of_chain)
        if place not in taken:
            taken.add(place)
            found.append(index)
    return tuple(found)


def _texts(match: FilterChainMatch) -> list[str]:
    return [f"{one.address_prefix}/{one.prefix_len.value}" for one in match.prefix_ranges] or [""]


def _narrowed(chain: FilterChain, server_names: Sequence[str], networks: Sequence[int]) -> FilterChain:
    """The chain for these of its server names, and these of its networks."""
    message = FilterChain()
    message.CopyFrom(chain)
    match = message.filter_chain_match
    if match.server_names:
        match.server_names[:] = server_names
    if match.prefix_ranges:
        ranges = [chain.filter_chain_match.prefix_ranges[index] for index in networks]
        del match.prefix_ranges[:]
        match.prefix_ranges.extend(ranges)
    return message


def _unbound(name: str, host: str, number: int) -> Listener:
    message = Listener(name=name, address=address(host, number), traffic_direction=OUTBOUND)
    message.bind_to_port.CopyFrom(boolean(False))
    return message


def _default_chain(view: View) -> FilterChain:
    return FilterChain(name="PassthroughFilterChain", filters=[_rest(view)])


def _on_loopback(view: View, number: int, owned: Sequence[Owned]) -> list[Listener]:
    """One for all HTTP and TLS services of the port, and one for each service that the node gives a port of its own.

    Where `meshproxy.io/ports` of the node says ports, it says all of them: those of ports (`"80": 15080`), and those of
    services (`"mongo.default.svc.cluster.local:27017": 27017`), which TCP services need, since behind a loopback port
    nothing tells them apart.
    """
    local = dict(view.scope.ports)
    place = local.get(str(number), "" if local else str(number))
    found: list[Listener] = []
    http = not owned or any(_is_http(one) for one in owned)
    tls = _tls_chains(view, [one for one in owned if _is_tls(one)])
    if place and (http or tls):
        found.append(_loopback_port(view, int(place), number, tls, with_http=http))
    for one in owned:
        own = local.get(f"{one[0].hostname}:{number}")
        if own is not None:
            found.append(_loopback_service(view, int(own), one))
    return found


def _loopback_port(view: View, place: int, number: int, tls: list[FilterChain], *, with_http: bool) -> Listener:
    message = Listener(name=f"{LOOPBACK}_{number}", address=address(LOOPBACK, place), traffic_direction=OUTBOUND)
    if with_http:
        chain = message.filter_chains.add(name=message.name)
        chain.filters.append(http_filter(view, number, f"outbound_{message.name}"))
        if tls:
            chain.filter_chain_match.transport_protocol = "raw_buffer"
    if tls:
        message.listener_filters.append(TLS_INSPECTOR)
        message.filter_chains.extend(distinct(tls))
    return message


def _loopback_service(view: View, place: int, owned: Owned) -> Listener:
    """Everything on that port is for one service, whatever host a request names."""
    service, port = owned
    name = f"{LOOPBACK}_{service.hostname}_{port.number}"
    message = Listener(name=name, address=address(LOOPBACK, place), traffic_direction=OUTBOUND)
    if _is_http(owned):
        chain = message.filter_chains.add(name=message.name)
        chain.filters.append(http_filter(view, port.number, f"outbound_{message.name}", own_routes(service, port)))
    else:
        message.filter_chains.append(chain_of(tcp_targets(view, service, port)[-1]))
    return message


def http_filter(view: View, port: int, stat_prefix: str, routes: str = "") -> Filter:
    """The connection manager of outbound requests: its routes come under the port's number, or under that name."""
    filters = http_policies.python_filters(view.python_filters, http_policies.OUTBOUND)
    filters += http_policies.outbound_policies(view.policies, port)
    return manager_filter(manager(stat_prefix, routes or str(port), filters))


def _tls_chains(view: View, owned: Sequence[Owned]) -> list[FilterChain]:
    """By server name: rules for TLS first, else each service by its host."""
    return [tls_chain(target, target.server_names) for target in tls_targets(view, owned)]


def tls_chain(target: TcpTarget, server_names: Sequence[str]) -> FilterChain:
    """A chain for TLS that ends elsewhere; `*` is any server name, and none."""
    chain = chain_of(target)
    chain.filter_chain_match.transport_protocol = "tls"
    if "*" not in server_names:
        chain.filter_chain_match.server_names.extend(server_names)
    return chain


def chain_of(target: TcpTarget) -> FilterChain:
    """A chain that passes connections on."""
    proxy = tcp_proxy(target.name, target.clusters, source_hash=target.source_hash, idle_timeout=target.idle_timeout)
    chain = FilterChain(name=target.name, filters=[proxy])
    if target.subnets:
        chain.filter_chain_match.prefix_ranges.extend(_network(subnet) for subnet in target.subnets)
    return chain


def _network(text: str) -> CidrRange:
    """An address alone is a network of one."""
    network = ipaddress.ip_network(text, strict=False)
    return CidrRange(address_prefix=str(network.network_address), prefix_len=uint32(network.prefixlen))


def _is_http(owned: Owned) -> bool:
    return owned[1].protocol in HTTP_PROTOCOLS


def _is_tls(owned: Owned) -> bool:
    return owned[1].protocol in TLS_PROTOCOLS
