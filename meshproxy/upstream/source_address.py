"""Where connections to hosts come from: `upstream_bind_config` of a cluster, or of the bootstrap for all of them."""

from __future__ import annotations

import socket
from typing import Any, Final

from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.values import socket_options
from meshproxy.net.address import Address, is_ip
from meshproxy.net.connect import SocketOption

_IP_FREEBIND: Final = 15  # <linux/in.h>
_IPV6_FREEBIND: Final = 78  # <linux/in6.h>
_IP_BIND_ADDRESS_NO_PORT: Final = 24  # <linux/in.h>


class SourceAddress:
    """What a socket is bound to (None: the kernel chooses) and its options."""

    def __init__(self, address: Address | None, options: tuple[SocketOption, ...]) -> None:
        self.address = address
        self.options = options


class SourceAddresses:
    """The sources of one cluster: one for each family of addresses, or none."""

    def __init__(self, options: tuple[SocketOption, ...]) -> None:
        self._unbound = SourceAddress(None, options)
        self._first: SourceAddress | None = None
        self._v4: SourceAddress | None = None
        self._v6: SourceAddress | None = None

    def add(self, source: SourceAddress) -> bool:
        """False when there is one of its family."""
        assert source.address is not None
        if self._first is None:
            self._first = source
        if ":" in source.address.ip:
            taken, self._v6 = self._v6, self._v6 or source
        else:
            taken, self._v4 = self._v4, self._v4 or source
        return taken is None

    def to(self, address: Address) -> SourceAddress:
        """The source of a connection to `address`. Without one of its family it is the first, which cannot be bound."""
        if address.path:
            return self._unbound
        return (self._v6 if ":" in address.ip else self._v4) or self._first or self._unbound


def with_bind_config(cluster: Any, manager: Any) -> Any:
    """The Cluster message with what the bootstrap's ClusterManager says for those that do not say it themselves."""
    if not manager.HasField("upstream_bind_config"):
        return cluster
    made = type(cluster)()
    made.CopyFrom(cluster)
    common, own = manager.upstream_bind_config, made.upstream_bind_config
    if not cluster.HasField("upstream_bind_config"):
        own.CopyFrom(common)
        return made
    if not own.socket_options:
        own.socket_options.extend(common.socket_options)
    if common.HasField("freebind") and not own.HasField("freebind"):
        own.freebind.CopyFrom(common.freebind)
    return made


def build_source_addresses(message: Any, path: str, errors: ConfigErrors) -> SourceAddresses:
    """Of a BindConfig."""
    options = socket_options(message)
    free = message.freebind.value
    sources = SourceAddresses(options)
    if message.HasField("source_address"):
        _add(sources, message.source_address, child(path, "source_address"), options, free, errors)
    elif message.extra_source_addresses or message.additional_source_addresses:
        field = "extra_source_addresses" if message.extra_source_addresses else "additional_source_addresses"
        errors.add(child(path, field), "needs a source_address")
    if message.extra_source_addresses and message.additional_source_addresses:
        errors.add(child(path, "additional_source_addresses"), "stands beside extra_source_addresses")
    for index, extra in enumerate(message.extra_source_addresses):
        own = socket_options(extra.socket_options) if extra.HasField("socket_options") else options
        where = child(item(path, "extra_source_addresses", index), "address")
        _add(sources, extra.address, where, own, free, errors)
    for index, address in enumerate(message.additional_source_addresses):
        _add(sources, address, item(path, "additional_source_addresses", index), options, free, errors)
    return sources


def _add(
    sources: SourceAddresses,
    message: Any,
    path: str,
    options: tuple[SocketOption, ...],
    free: bool,
    errors: ConfigErrors,
) -> None:
    if not is_ip(message.address):
        errors.add(path, f"malformed IP address: {message.address}")
        return
    v6 = ":" in message.address
    if free:
        level, name = (socket.IPPROTO_IPV6, _IPV6_FREEBIND) if v6 else (socket.IPPROTO_IP, _IP_FREEBIND)
        options = (*options, (level, name, 1))
    if message.port_value == 0:  # a port is taken only by the connection, so that one can serve many hosts
        options = (*options, (socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1))
    if not sources.add(SourceAddress(Address(message.address, message.port_value), options)):
        errors.add(path, "is the second of its family: there can be one source for IPv4, and one for IPv6")
