"""Hosts from DNS: each endpoint's name is resolved again and again.

When it is resolved next, follows Envoy: after `dns_refresh_rate`, or the answer's TTL, and a jitter; after a failure
with `dns_failure_refresh_rate`, a back-off that the cluster's names share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mypy_extensions import mypyc_attr

from meshproxy.net.address import Address
from meshproxy.net.resolver import DnsAddress, DnsQuery, Resolution, Resolver
from meshproxy.net.timers import Timer, TimerWheel
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.config import DnsConfig, EndpointConfig
from meshproxy.upstream.discovery import Discovery, DiscoveryListener

_MOST_DOUBLINGS: Final = 30


@mypyc_attr(allow_interpreted_subclasses=True)
class DnsDiscovery(Discovery):
    """Keeps the hosts of one cluster as DNS says. A name that cannot be resolved keeps the hosts that it had."""

    def __init__(
        self,
        cluster: Cluster,
        listener: DiscoveryListener,
        resolver: Resolver,
        timers: TimerWheel,
        random_bits: Callable[[int], int],
    ) -> None:
        super().__init__(cluster, listener)
        self.resolver = resolver
        self._timers = timers
        self._random_bits = random_bits
        self._targets: list[DnsTarget] = []
        self._failures: int = 0  # in a row

    def start(self) -> None:
        self.set_endpoints(self.cluster.config.endpoints)
        if not self._targets or not self.cluster.config.dns.wait_for_warm:
            self.ready()

    def stop(self) -> None:
        for target in self._targets:
            target.stop()
        self._targets = []

    def set_endpoints(self, endpoints: list[EndpointConfig]) -> None:
        """Resolve these names from now on. What is known of a name that stays is kept until it is resolved again."""
        known = {target.endpoint.address.text: target for target in self._targets}
        self.stop()
        for endpoint in endpoints:
            target = DnsTarget(self, endpoint)
            before = known.get(endpoint.address.text)
            if before is not None:
                target.addresses = before.addresses
            self._targets.append(target)
        if not endpoints or any(target.addresses for target in self._targets):
            self._apply()
        for target in list(self._targets):
            target.resolve()

    def query(self, target: DnsTarget) -> DnsQuery:
        self.cluster.stats.update_attempt += 1
        return self.resolver.resolve(target.endpoint.dns_name, self.cluster.config.dns.family, target.on_resolution)

    def on_answer(self, target: DnsTarget, resolution: Resolution) -> None:
        stats = self.cluster.stats
        if self.answers(resolution):
            stats.update_success += 1
            self._failures = 0
            target.addresses = resolution.addresses
            if not self._apply():
                stats.update_no_rebuild += 1
            wait_ms = self._refresh_ms(resolution)
        else:
            stats.update_failure += 1
            wait_ms = self._retry_ms(self.cluster.config.dns)
        self._timers.arm(target, wait_ms)
        self.ready()

    def _refresh_ms(self, resolution: Resolution) -> float:
        config = self.cluster.config.dns
        wait_ms = config.refresh_ms
        if config.respect_ttl and resolution.addresses:
            ttl_s = self.ttl_s(resolution.addresses)
            if ttl_s > 0:
                wait_ms = ttl_s * 1000.0
        jitter = int(config.jitter_ms)
        return wait_ms + (self._random_bits(30) % jitter if jitter > 0 else 0)

    def _retry_ms(self, config: DnsConfig) -> float:
        """A back-off has full jitter."""
        if config.failure_base_ms <= 0.0:
            return config.refresh_ms
        limit = min(config.failure_base_ms * 2.0 ** min(self._failures, _MOST_DOUBLINGS), config.failure_max_ms)
        self._failures += 1
        return float(self._random_bits(30) % max(1, int(limit)))

    def _apply(self) -> bool:
        """Whether anything changed."""
        endpoints: list[EndpointConfig] = []
        for target in self._targets:
            if target.addresses:
                endpoints.extend(self.hosts_of(target))
        had_hosts = len(self.cluster.hosts) > 0
        return self.cluster.set_endpoints(endpoints) and (had_hosts or len(endpoints) > 0)

    # -- what kinds differ in

    def answers(self, resolution: Resolution) -> bool:
        """Whether the hosts are to be as it says."""
        raise NotImplementedError

    def ttl_s(self, addresses: list[DnsAddress]) -> int:
        """How long this answer, which is not empty, holds."""
        raise NotImplementedError

    def hosts_of(self, target: DnsTarget) -> list[EndpointConfig]:
        """The hosts of a name that has addresses."""
        raise NotImplementedError


class DnsTarget(Timer):
    """One endpoint whose address is a name. It is its own timer for the next resolution."""

    def __init__(self, parent: DnsDiscovery, endpoint: EndpointConfig) -> None:
        super().__init__()
        self.endpoint = endpoint
        self.addresses: list[DnsAddress] = []
        self._parent = parent
        self._query: DnsQuery | None = None

    def resolve(self) -> None:
        self._query = self._parent.query(self)

    def on_resolution(self, resolution: Resolution) -> None:
        self._query = None
        self._parent.on_answer(self, resolution)

    def on_timer(self) -> None:
        self.resolve()

    def stop(self) -> None:
        self.disarm()
        query, self._query = self._query, None
        if query is not None:
            query.cancel()

    def host_at(self, address: DnsAddress) -> EndpointConfig:
        """The endpoint with an address that its name has."""
        own = self.endpoint
        return own.at(Address(address.ip, own.address.port), own.hostname or own.dns_name)
