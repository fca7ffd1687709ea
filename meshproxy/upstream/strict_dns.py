"""STRICT_DNS: every address that a name resolves to is a host, and the names are resolved again and again."""

from __future__ import annotations

from collections.abc import Callable

from mypy_extensions import mypyc_attr

from meshproxy.net.address import Address
from meshproxy.net.resolver import DnsQuery, Resolution, Resolver
from meshproxy.net.timers import Timer, TimerWheel
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.config import DnsConfig, EndpointConfig


@mypyc_attr(allow_interpreted_subclasses=True)
class DnsListener:
    """Told when the first answer of any kind is there: the cluster is warm."""

    def on_resolved(self, cluster: Cluster) -> None:
        raise NotImplementedError


class StrictDns:
    """Keeps the hosts of one cluster as DNS says."""

    def __init__(
        self,
        cluster: Cluster,
        resolver: Resolver,
        timers: TimerWheel,
        random_bits: Callable[[int], int],
        listener: DnsListener,
    ) -> None:
        self.cluster = cluster
        self._resolver = resolver
        self._timers = timers
        self._random_bits = random_bits
        self._listener = listener
        self._targets: list[_Target] = []
        self.resolved: bool = False

    def start(self) -> None:
        self.set_endpoints(self.cluster.config.endpoints)

    def stop(self) -> None:
        for target in self._targets:
            target.stop()
        self._targets = []

    def set_endpoints(self, endpoints: list[EndpointConfig]) -> None:
        """Resolve these names from now on. What is known of a name that stays is kept until it is resolved again."""
        known = {target.endpoint.address.text: target for target in self._targets}
        self.stop()
        for endpoint in endpoints:
            target = _Target(self, endpoint)
            before = known.get(endpoint.address.text)
            if before is not None:
                target.addresses = before.addresses
            self._targets.append(target)
        if any(target.addresses for target in self._targets):
            self._apply()
        for target in self._targets:
            target.resolve()
        if not endpoints:
            self._first_answer()

    def query(self, target: _Target) -> DnsQuery:
        self.cluster.stats.update_attempt += 1
        family = self.cluster.config.dns.family
        return self._resolver.resolve(target.endpoint.dns_name, family, target.on_resolution)

    def on_answer(self, target: _Target, resolution: Resolution) -> None:
        stats = self.cluster.stats
        if resolution.error:
            stats.update_failure += 1
        else:
            stats.update_success += 1
            stats.max_host_weight = target.endpoint.weight if resolution.addresses else 1  # as Envoy, of this name only
            target.addresses = resolution.addresses
            if not self._apply():
                stats.update_no_rebuild += 1
        self._timers.arm(target, target.refresh_ms(self.cluster.config.dns, bool(resolution.error), self._random_bits))
        self._first_answer()

    def _first_answer(self) -> None:
        if not self.resolved:
            self.resolved = True
            self._listener.on_resolved(self.cluster)

    def _apply(self) -> bool:
        endpoints: list[EndpointConfig] = []
        for target in self._targets:
            endpoints.extend(target.endpoints())
        return self.cluster.set_endpoints(endpoints)


class _Target(Timer):
    """One endpoint whose address is a name. It is its own timer for the next resolution."""

    def __init__(self, parent: StrictDns, endpoint: EndpointConfig) -> None:
        super().__init__()
        self._parent = parent
        self.endpoint = endpoint
        self.addresses: list[str] = []
        self._query: DnsQuery | None = None
        self._failures: int = 0

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

    def refresh_ms(self, config: DnsConfig, failed: bool, random_bits: Callable[[int], int]) -> float:
        """When to resolve again. Failures with a rate of their own back off exponentially, with full jitter."""
        if not failed:
            self._failures = 0
        elif config.failure_base_ms > 0.0:
            limit = min(config.failure_base_ms * 2.0 ** min(self._failures, 30), config.failure_max_ms)
            self._failures += 1
            return float(random_bits(30) % max(1, int(limit))) + 1.0
        jitter = config.jitter_ms
        return config.refresh_ms + (random_bits(30) % int(jitter) if jitter >= 1.0 else 0.0)

    def endpoints(self) -> list[EndpointConfig]:
        """One for each address."""
        own = self.endpoint
        built: list[EndpointConfig] = []
        for ip in self.addresses:
            endpoint = EndpointConfig(Address(ip, own.address.port), "", own.hostname or own.dns_name)
            endpoint.weight = own.weight
            endpoint.priority = own.priority
            endpoint.locality = own.locality
            endpoint.health_flags = own.health_flags
            endpoint.canary = own.canary
            endpoint.metadata = own.metadata
            built.append(endpoint)
        return built
