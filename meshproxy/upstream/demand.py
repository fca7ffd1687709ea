"""What one downstream asks of the connections that carry its requests: a name for TLS, its own addresses told upstream,
connections that nobody else uses, or that speak as it does.

Connections are shared by requests that ask for the same, which `ConnectionDemand.key` stands for. Only clusters that
say so (`ClusterConfig.demands`) look at any of this.
"""

from __future__ import annotations

import re
from typing import Final

from meshproxy.codec.headers import HeaderMap
from meshproxy.net.address import is_ip
from meshproxy.net.proxy_protocol import ProxyHeader
from meshproxy.observe.stream_info import ConnectionInfo

_HTTP_1_1: Final = 11
_HTTP_2: Final = 20
_MAYBE_PORT: Final = re.compile("[0-9]{1,9}")


class ConnectionDemand:
    """One downstream's. Names that are "" leave it to the transport socket's configuration."""

    def __init__(self) -> None:
        self.server_name: str = ""  # what TLS asks for (SNI)
        self.demanded_name: str = ""  # which the peer's certificate must have
        self.protocol: int = 0  # 11 or 20; 0: the cluster's
        self.header: ProxyHeader | None = None  # the addresses that a PROXY protocol header tells
        self.application_protocols: tuple[str, ...] = ()  # what TLS offers (ALPN), in place of all that is configured
        self.key: str = ""


class DemandRules:
    """What a cluster's configuration makes of a downstream. Names are those of `UpstreamHttpProtocolOptions`."""

    def __init__(self) -> None:
        self.auto_sni: bool = False
        self.auto_san_validation: bool = False
        self.override_header: bytes = b""  # override_auto_sni_header, lower-case; b"": the host of the request
        self.tells_addresses: bool = False  # a transport socket of the cluster writes a PROXY protocol header
        self.tells_tlvs: bool = False  # and the TLVs decide who shares a connection
        self.per_connection: bool = False  # connection_pool_per_downstream_connection
        self.limits_pools: bool = False  # max_connection_pools
        self.by_protocol: bool = False  # use_downstream_protocol_config

    @property
    def any(self) -> bool:
        """Whether there is more than one pool for a host, or a limit to their number."""
        return self._asks or self.limits_pools or self.by_protocol

    @property
    def only_by_protocol(self) -> bool:
        """Whether nothing else of a request decides about its pool."""
        return self.by_protocol and not self._asks

    @property
    def _asks(self) -> bool:
        return self.auto_sni or self.auto_san_validation or self.tells_addresses or self.per_connection

    def of_request(self, headers: HeaderMap, connection: ConnectionInfo, protocol: int) -> ConnectionDemand:
        """What a request asks for that came in this version. Its `:authority` is the one that goes upstream."""
        if self.only_by_protocol:
            return _AS_HTTP2 if protocol >= _HTTP_2 else _AS_HTTP1
        demand = self.of_connection(connection)
        if self.by_protocol:
            _take_protocol(demand, _HTTP_2 if protocol >= _HTTP_2 else _HTTP_1_1)
        self._take_names(demand, headers)
        return demand

    def of_own_request(self, headers: HeaderMap) -> ConnectionDemand:
        """As `of_request`, for one of the proxy itself: there are no addresses to tell."""
        demand = ConnectionDemand()
        self._take_names(demand, headers)
        return demand

    def _take_names(self, demand: ConnectionDemand, headers: HeaderMap) -> None:
        if self.auto_sni or self.auto_san_validation:
            authority = headers.get(b":authority") or b""
            if self.override_header:
                authority = headers.joined(self.override_header) or authority
            host = _host_of(authority.decode("latin-1"))
            if self.auto_sni and not is_ip(host):
                demand.server_name = host
            if self.auto_san_validation:
                demand.demanded_name = host
            demand.key = f"{demand.server_name}|{demand.demanded_name}|{demand.key}"

    def of_connection(self, connection: ConnectionInfo) -> ConnectionDemand:
        """What a connection asks for that is passed on as it is."""
        demand = ConnectionDemand()
        if self.tells_addresses:
            header = demand.header = connection.proxy_header or ProxyHeader(connection.remote, connection.local, [])
            demand.key = f"{header.remote.text}|{header.local.text}"
            if self.tells_tlvs:
                demand.key += f"|{header.tlvs!r}"
        if self.per_connection:
            demand.key += f"|{connection.connection_id}"
        return demand


def demand_for(application_protocols: tuple[str, ...]) -> ConnectionDemand:
    """For connections on which TLS offers these."""
    demand = ConnectionDemand()
    demand.application_protocols = application_protocols
    demand.key = f"|alpn={','.join(application_protocols)}"
    return demand


def offering(offered: ConnectionDemand, demand: ConnectionDemand) -> ConnectionDemand:
    """What `demand` asks for, with the protocols of `offered`."""
    both = ConnectionDemand()
    both.server_name = demand.server_name
    both.demanded_name = demand.demanded_name
    both.protocol = demand.protocol
    both.header = demand.header
    both.application_protocols = offered.application_protocols
    both.key = demand.key + offered.key
    return both


def _take_protocol(demand: ConnectionDemand, protocol: int) -> None:
    demand.protocol = protocol
    demand.key += f"|{protocol}"


def _speaking(protocol: int) -> ConnectionDemand:
    demand = ConnectionDemand()
    _take_protocol(demand, protocol)
    return demand


_AS_HTTP1: Final = _speaking(_HTTP_1_1)
_AS_HTTP2: Final = _speaking(_HTTP_2)


def _host_of(authority: str) -> str:
    """Without its port, and an IPv6 address without its brackets."""
    host, colon, port = authority.rpartition(":")
    if not colon or not _MAYBE_PORT.fullmatch(port) or int(port) > 65535:
        host = authority
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return host
