"""LOGICAL_DNS: the cluster is one host, whose address is what its name resolves to at present.

Where there are several addresses, new connections try them in turn (`net.happy_eyeballs`). An answer without addresses
counts as a failure: the host stays. As in Envoy, another address makes another host: the old one's connections end with
the streams that they carry.
"""

from __future__ import annotations

from meshproxy.net.address import Address
from meshproxy.net.resolver import DnsAddress, Resolution
from meshproxy.upstream.config import EndpointConfig
from meshproxy.upstream.dns_discovery import DnsDiscovery, DnsTarget


class LogicalDns(DnsDiscovery):
    """Of a cluster with exactly one endpoint."""

    def answers(self, resolution: Resolution) -> bool:
        return not resolution.error and len(resolution.addresses) > 0

    def ttl_s(self, addresses: list[DnsAddress]) -> int:
        return addresses[0].ttl_s

    def hosts_of(self, target: DnsTarget) -> list[EndpointConfig]:
        host = target.host_at(target.addresses[0])
        port = host.address.port
        host.set_more([Address(address.ip, port) for address in target.addresses[1:]])
        return [host]
