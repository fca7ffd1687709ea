"""Hosts that requests name (ORIGINAL_DST): the destination that a connection had before it was redirected to us, or
what a header or metadata says. A host is made when it is first asked for, and goes when nobody uses it any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshproxy.net.address import Address, is_ip
from meshproxy.upstream.config import EndpointConfig, OriginalDstConfig
from meshproxy.upstream.host import Host, LbContext
from meshproxy.upstream.load_balancer import LoadBalancer

if TYPE_CHECKING:
    from meshproxy.upstream.cluster import Cluster


class OriginalDstBalancer(LoadBalancer):
    """Looks at metadata, the header and the connection, in this order (Envoy's)."""

    def __init__(self, cluster: Cluster, config: OriginalDstConfig) -> None:
        self._cluster = cluster
        self._config = config
        self._hosts: dict[str, Host] = {}  # by the address that was asked for
        self._used: set[str] = set()  # … since the last sweep

    def update(self, hosts: list[Host]) -> None:
        """The hosts are its own; health does not matter, there is one that can take a request."""

    def choose_host(self, context: LbContext | None) -> Host | None:
        destination = None if context is None else self._destination(context)
        if destination is None:
            return None
        if self._config.port_override:
            destination = Address(destination.ip, self._config.port_override)
        name = destination.text
        host = self._hosts.get(name)
        if host is None:
            if len(self._hosts) >= self._config.most_hosts:
                return None
            host = self._hosts[name] = self._cluster.add_host(EndpointConfig(destination, "", ""))
        self._used.add(name)
        return host

    def _destination(self, context: LbContext) -> Address | None:
        config = self._config
        if config.metadata_namespace:
            found = self._from_metadata(context)
            if found is not None:
                return found
        if config.header_name and context.headers is not None:
            value = context.headers.get(config.header_name)
            if value is not None:
                found = self._parsed(value.decode("latin-1"))
                if found is not None:
                    return found
        if context.info is None:
            return None
        connection = context.info.connection
        return connection.local if connection.local_restored and connection.local.ip else None

    def _from_metadata(self, context: LbContext) -> Address | None:
        """The stream's goes before the connection's."""
        info, config = context.info, self._config
        if info is None:
            return None
        for metadata in (info.dynamic_metadata, info.connection.dynamic_metadata):
            value: Any = None if metadata is None else metadata.get(config.metadata_namespace)
            for key in config.metadata_path:
                value = value.get(key) if isinstance(value, dict) else None
            if isinstance(value, str):
                return self._parsed(value)
        return None

    def _parsed(self, text: str) -> Address | None:
        """An IP address with its port; anything else is counted."""
        ip, _, port = text.rpartition(":")
        bracketed = ip.startswith("[") and ip.endswith("]")
        if bracketed:
            ip = ip[1:-1]
        if bracketed != (":" in ip):
            ip = ""
        if is_ip(ip) and port.isdecimal() and port.isascii() and int(port) <= 65535:
            return Address(ip, int(port))
        self._cluster.stats.original_dst_host_invalid += 1
        return None

    def sweep(self) -> None:
        """Let go of the hosts that were not asked for since the last time, and have no connection."""
        used, self._used = self._used, set()
        gone: list[Host] = []
        for name, host in list(self._hosts.items()):
            if name not in used and not host.stats.cx_active:
                del self._hosts[name]
                gone.append(host)
        if gone:
            self._cluster.remove_hosts(gone)
