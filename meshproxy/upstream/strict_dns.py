"""STRICT_DNS: every address that a name resolves to is a host."""

from __future__ import annotations

from meshproxy.net.resolver import DnsAddress, Resolution
from meshproxy.upstream.config import EndpointConfig
from meshproxy.upstream.dns_discovery import DnsDiscovery, DnsTarget


class StrictDns(DnsDiscovery):
    """A name without addresses has no hosts."""

    def answers(self, resolution: Resolution) -> bool:
        return not resolution.error

    def ttl_s(self, addresses: list[DnsAddress]) -> int:
        return min([address.ttl_s for address in addresses])

    def hosts_of(self, target: DnsTarget) -> list[EndpointConfig]:
        return [target.host_at(address) for address in _without_twins(target.addresses)]

    def on_answer(self, target: DnsTarget, resolution: Resolution) -> None:
        if not resolution.error:  # as Envoy, of this name only
            self.cluster.stats.max_host_weight = target.endpoint.weight if resolution.addresses else 1
        super().on_answer(target, resolution)


def _without_twins(addresses: list[DnsAddress]) -> list[DnsAddress]:
    found: dict[str, DnsAddress] = {}
    for address in addresses:
        found.setdefault(address.ip, address)
    return list(found.values())
