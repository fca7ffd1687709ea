"""A cluster while it is in use: its hosts, who of them takes a request, its limits and its numbers."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Final, TypeVar

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.runtime import Fraction, Runtime
from meshproxy.net.cells import Counters
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.observe.http2_stats import Http2Scope
from meshproxy.observe.stats import StatsRegistry, StatsScope, response_names
from meshproxy.observe.stream_info import ClusterInfo
from meshproxy.route.hash_policy import NO_HASH
from meshproxy.upstream.background import Background
from meshproxy.upstream.config import HTTP1, MAGLEV, RING_HASH, ClusterConfig, EndpointConfig, LbConfig
from meshproxy.upstream.hash_tables import HashTables
from meshproxy.upstream.host import DEGRADED, EXCLUDED, FAILED_OUTLIER_CHECK, UNHEALTHY, Host, LbContext
from meshproxy.upstream.hosts_update import HostsUpdate, by_address, let_go
from meshproxy.upstream.load_balancer import LoadBalancer, RandomBits
from meshproxy.upstream.original_dst import OriginalDstBalancer
from meshproxy.upstream.outlier import EjectionListener, OutlierDetector
from meshproxy.upstream.pool import ConnectionPool
from meshproxy.upstream.priority_set import PrioritySet
from meshproxy.upstream.resource_limit import PRIORITY_NAMES, Breakers, BreakerStats, RemainingStats
from meshproxy.upstream.stats import ClusterStats, HostStats, OutlierStats
from meshproxy.upstream.subset import SubsetLoadBalancer

_MOST_NAMED_STATS: Final = 1_000
_MANY_HOSTS: Final = 1_000  # more than that, or a large table, are not balanced anew in one go
_LARGE_TABLE: Final = 10_000
_DRAINED: Final = 128  # hosts in a step

S = TypeVar("S", bound=StatsScope)


class Cluster(EjectionListener):
    """One version of a cluster. A change of its endpoints alone happens in place; any other makes a new `Cluster`."""

    def __init__(
        self,
        config: ClusterConfig,
        dispatcher: Dispatcher,
        registry: StatsRegistry,
        runtime: Runtime,
        random_bits: RandomBits,
        previous: Cluster | None,
        counters: Counters | None = None,
    ) -> None:
        self.config = config
        self.name = config.name
        self.observability_name = config.observability_name
        self.info = ClusterInfo(config.name, config.observability_name, config.metadata)
        self._dispatcher = dispatcher
        self._registry = registry
        self._runtime = runtime
        self._prefix = f"cluster.{config.observability_name}."
        self.stats: ClusterStats = registry.acquire(self._prefix, config.stats_kind)
        self._speaks_http2: bool = config.protocol != HTTP1 or config.demands.by_protocol
        self._http2 = registry.acquire(self._prefix + "http2.", Http2Scope) if self._speaks_http2 else Http2Scope()
        self._breakers: list[Breakers] = [] if previous is None else previous._breakers
        if previous is None:
            for priority, thresholds in enumerate(config.thresholds):
                self._breakers.append(Breakers(config.name, priority, thresholds, runtime, counters or Counters()))
        self._acquire_breaker_stats()
        self.hosts: list[Host] = []
        self.hashes: bool = config.lb.takes_hash  # hosts are chosen by a hash of the request
        self.keys_pools: bool = config.demands.any  # not everybody may share a connection
        self._random_bits = random_bits
        self.drop_overload: Fraction | None = config.drop_overload
        self.dropped: int = 0  # requests that were refused for the cluster's sake, since the last load report,
        self.dropped_by_policy: int = 0  # and those of them that `drop_overload` refused
        self.needs_context: bool = config.lb.needs_context  # hosts are chosen by facts of the request
        self._balancer: LoadBalancer = self._new_balancer()
        self._background = Background(dispatcher)
        self._rebuilding: bool = False
        self._health_changes: int = 0
        self._hosts_by_endpoint: dict[EndpointConfig, Host] = {}
        self._inherited: dict[str, list[HostStats]] = {}  # by address, the first at the end
        if previous is not None:
            for address, same in by_address(previous.hosts).items():
                self._inherited[address] = [host.stats for host in same]
        self.detector: OutlierDetector | None = None
        if config.outlier is not None:
            stats = registry.acquire(self._prefix + "outlier_detection.", OutlierStats)
            self.detector = OutlierDetector(config.outlier, stats, dispatcher.timers, self, random_bits)
        self._named_stats: dict[tuple[str, type[StatsScope]], StatsScope] = {}
        self._draining: list[ConnectionPool] = []
        self._retired: bool = False

    def _acquire_breaker_stats(self) -> None:
        for priority, thresholds in enumerate(self.config.thresholds):
            prefix = f"{self._prefix}circuit_breakers.{PRIORITY_NAMES[priority]}."
            self._registry.acquire(prefix, BreakerStats).breakers = self._breakers[priority]
            if thresholds.track_remaining:
                self._registry.acquire(prefix, RemainingStats).breakers = self._breakers[priority]

    def _new_balancer(self) -> LoadBalancer:
        if self.config.original_dst is not None:
            return OriginalDstBalancer(self, self.config.original_dst)
        lb, random_bits = self.config.lb, self._random_bits
        if lb.extension is not None:
            return lb.extension.new(lb, self.stats, random_bits)
        tables = HashTables(lb, random_bits, self._registry, self._prefix, self.stats) if lb.hashes else None
        if lb.subsets is not None:
            return SubsetLoadBalancer(lb, lb.subsets, self.stats, random_bits, tables, self._registry, self._prefix)
        return PrioritySet(lb, self.stats, random_bits, tables, lb.locality_weighted)

    def take_extension(self, newer: ClusterConfig) -> None:
        """The policy is an extension that may have changed: then hosts are chosen by the newer one from now on."""
        old, new = self.config.lb.extension, newer.lb.extension
        if old is None or new is None or old.identity is new.identity:
            return
        self.config.lb = newer.lb
        balancer, self._balancer = self._balancer, self._new_balancer()
        self._balancer.update(self.hosts)
        balancer.close()

    def activate(self) -> None:
        """Traffic comes from now on."""
        for priority, thresholds in enumerate(self.config.thresholds):
            self._breakers[priority].update(thresholds, self._runtime)
        if self.detector is not None:
            self.detector.start()

    def retire(self) -> None:
        """No new traffic comes: connections go when their streams are done."""
        if self._retired:
            return
        self._retired = True
        self._background.stop()
        self._drain(self.hosts)
        if self.detector is not None:
            self.detector.stop()
            self._registry.release(self._prefix + "outlier_detection.", OutlierStats)
        for priority, thresholds in enumerate(self.config.thresholds):
            prefix = f"{self._prefix}circuit_breakers.{PRIORITY_NAMES[priority]}."
            self._registry.release(prefix, BreakerStats)
            if thresholds.track_remaining:
                self._registry.release(prefix, RemainingStats)
        self._balancer.close()
        self.config.take_context(None)
        self._registry.release(self._prefix, self.config.stats_kind)
        if self._speaks_http2:
            self._registry.release(self._prefix + "http2.", Http2Scope)
        for name, kind in self._named_stats:
            self._registry.release(f"{self._prefix}{name}.", kind)
        self._named_stats = {}

    # -- for requests

    def breakers(self, priority: int) -> Breakers:
        """The limits for routes of this priority."""
        return self._breakers[priority]

    def named_stats(self, name: str, kind: type[S], limited: bool = True) -> S | None:
        """Stats under a name of its own. If requests bring the name it is `limited`: None beyond a number of names, as
        they are kept for good."""
        found = self._named_stats.get((name, kind))
        if found is None:
            if self._retired or (limited and len(self._named_stats) >= _MOST_NAMED_STATS):
                return None
            found = self._named_stats[(name, kind)] = self._registry.acquire(f"{self._prefix}{name}.", kind)
        assert isinstance(found, kind)
        return found

    def drops(self, share: Fraction) -> bool:
        """Whether the next request is among those that `drop_overload` refuses."""
        return share.sample(self._random_bits(64))

    def choose_host(self, context: LbContext | None) -> Host | None:
        """The host that takes a request; None when there is none. `needs_context` says when `context` is needed."""
        return self._balancer.choose_host(context)

    def choose_by_hash(self, context: LbContext | None, key: int) -> Host | None:
        """As `choose_host`, for a request with this hash; NO_HASH stands for any."""
        return self._balancer.choose_by_hash(context, key)

    def choose_for_own(self, headers: HeaderMap | None) -> Host | None:
        """For a request that no route sends, but the proxy itself: nothing of a downstream decides."""
        context: LbContext | None = None
        if self.needs_context:
            context = LbContext()
            context.headers = headers
        return self.choose_by_hash(context, NO_HASH) if self.hashes else self.choose_host(context)

    def new_pool(self, host: Host, priority: int) -> ConnectionPool:
        """For `Host.pool`, which keeps it."""
        http2 = self._http2.counts
        return ConnectionPool(self._dispatcher, host, self.config, self.stats, http2, self._breakers[priority])

    def on_response(self, status: int, host: Host, duration_ms: int, internal: bool) -> None:
        """Both of the following, for a response that comes in one piece."""
        self.on_response_headers(status, host, internal, host.canary)
        self.on_response_complete(duration_ms, internal, host.canary)

    def on_response_headers(
        self, status: int, host: Host, internal: bool, canary: bool, undecided: bool = False, quiet: bool = False
    ) -> None:
        """Count an upstream's response that goes downstream: as soon as its head is there, even if it is cut short.

        `canary` is that of the host, or of a response that says so itself. `undecided` is a gRPC call, of which the
        status says later whether the host had success, unless it is an error already. `quiet`: as `charge_response`.
        """
        self.stats.charge_response(status, internal, canary, quiet)
        if status >= 500:
            host.stats.rq_error += 1
        elif not undecided:
            host.stats.rq_success += 1

    def on_response_complete(self, duration_ms: int, internal: bool, canary: bool) -> None:
        """Record how long a whole response took since its request was complete."""
        self.stats.charge_time(duration_ms, internal, canary)

    def count_local_response(self, status: int, host: Host | None, internal: bool, quiet: bool = False) -> None:
        """Count a response that the proxy made for the upstream (a timeout, a reset, no host)."""
        self.stats.charge_response(status, internal, host is not None and host.canary, quiet)
        if host is not None and status >= 500:
            host.stats.rq_error += 1

    def count_retried_response(self, status: int, host: Host, quiet: bool = False) -> None:
        """Count a response (or the 503 that stands for a reset) that is not passed on, as another attempt follows."""
        stats = self.stats
        stats.count("retry.upstream_rq_completed")
        for name in () if quiet else response_names(status):
            stats.count(f"retry.upstream_rq_{name}")

    # -- hosts

    def set_endpoints(self, endpoints: list[EndpointConfig]) -> bool:
        """Take these endpoints as hosts; False when nothing changed. Endpoints that share an address are a host each.

        A host that goes keeps the streams that it has.
        """
        steps = self.update_endpoints(endpoints, False)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return bool(end.value)

    def update_endpoints(self, endpoints: list[EndpointConfig], changed: bool) -> Generator[None, None, bool]:
        """The same in steps; nothing else may change the hosts meanwhile. `changed`: load balancing must hear of it,
        even where all endpoints are the same. Endpoints that are the objects that they were are not looked at."""
        update = HostsUpdate(self, endpoints, self._hosts_by_endpoint)
        yield from update.find()
        known, self._hosts_by_endpoint = self._hosts_by_endpoint, update.by_endpoint
        if self.hosts and not (changed or update.changed or update.moved):
            return False
        yield
        yield from self._take_hosts(update.hosts, update.removed, len(update.moved))
        yield from let_go(known, update.removed)
        return True

    def add_host(self, endpoint: EndpointConfig) -> Host:
        """One more host, that a request names."""
        host = self.new_host(endpoint)
        self.hosts.append(host)
        if self.detector is not None:
            self.detector.set_hosts(list(self.hosts))
        self.stats.membership_change += 1
        self._count_member(host, 1)
        return host

    def remove_hosts(self, gone: list[Host]) -> None:
        """Hosts that no request names any more."""
        leaving = set(gone)
        for _ in self._take_hosts([host for host in self.hosts if host not in leaving], gone, 1):
            pass

    def sweep_hosts(self) -> None:
        """Time to let go of hosts that nobody uses (ORIGINAL_DST)."""
        if isinstance(self._balancer, OriginalDstBalancer):
            self._balancer.sweep()

    def rematch(self, endpoint: EndpointConfig, host: Host) -> None:
        """Other metadata may mean another transport socket: then its connections go."""
        if endpoint.metadata == host.metadata and endpoint.locality_metadata == host.locality_metadata:
            return
        host.locality_metadata = endpoint.locality_metadata
        match = self.config.transports.match(endpoint.metadata, endpoint.locality_metadata)
        if match != host.transport_match:
            host.transport_match = match
            self._drain([host])

    def new_host(self, endpoint: EndpointConfig) -> Host:
        host = Host(endpoint.address, endpoint.hostname, endpoint.priority, endpoint.locality)
        host.metadata = endpoint.metadata
        host.locality_metadata = endpoint.locality_metadata
        host.transport_match = self.config.transports.match(endpoint.metadata, endpoint.locality_metadata)
        if endpoint.more:
            host.key = endpoint.key
            host.more = endpoint.more
            host.addresses = self.config.family_order.sorted([endpoint.address, *endpoint.more])
        inherited = self._inherited.get(endpoint.key)
        if inherited:
            host.stats = inherited.pop()
        return host

    def _take_hosts(self, hosts: list[Host], removed: list[Host], changes: int) -> Iterator[None]:
        """`changes` is in how many priorities hosts came or went."""
        self.hosts = hosts
        self._background.stop()  # what it rebuilds is rebuilt here
        self._rebuilding = True
        if self.detector is not None:
            self.detector.set_hosts(hosts)
            yield
        yield from self._rebuild()
        yield
        self._count_members()
        self.stats.membership_change += changes
        leaving = removed
        if changes and self.config.lb.close_connections_on_host_set_change:
            leaving = removed + hosts
        for start in range(0, len(leaving), _DRAINED):
            self._drain(leaving[start : start + _DRAINED])
            yield

    def _rebuild(self) -> Iterator[None]:
        """Balance anew; once more if a host's health has changed meanwhile."""
        self._rebuilding = True
        changes = -1
        while changes != self._health_changes:
            changes = self._health_changes
            yield from self._balancer.rebuild(self.hosts)
        self._rebuilding = False

    def _drain(self, hosts: list[Host]) -> None:
        self._draining = [pool for pool in self._draining if pool.connections]
        for host in hosts:
            self._draining.extend(host.drain_pools())

    def close(self) -> None:
        """Close every connection at once; their streams are reset."""
        self._drain(self.hosts)
        for pool in self._draining:
            pool.close()

    @property
    def idle(self) -> bool:
        """No connection is left (of a cluster that is retired)."""
        return not any(pool.connections for pool in self._draining)

    def on_ejection_changed(self, host: Host) -> None:
        self._count_member(host, -1)
        if host.outlier.ejected:
            host.health_flags |= FAILED_OUTLIER_CHECK
        else:
            host.health_flags &= ~FAILED_OUTLIER_CHECK
        self._count_member(host, 1)
        self._health_changes += 1
        if self._rebuilding:
            return  # that takes notice
        if len(self.hosts) <= _MANY_HOSTS and not _has_large_table(self.config.lb):
            self._balancer.on_health_changed(self.hosts, host)
        else:
            self._rebuilding = True  # the first step is in the next turn, and more may change in this one
            self._background.start(self._rebuild())

    def _count_members(self) -> None:
        healthy = degraded = excluded = 0
        for host in self.hosts:
            flags = host.health_flags
            if flags & (UNHEALTHY | DEGRADED) == 0:
                healthy += 1
            elif flags & UNHEALTHY == 0:
                degraded += 1
            if flags & EXCLUDED:
                excluded += 1
        stats = self.stats
        stats.membership_total, stats.membership_healthy = len(self.hosts), healthy
        stats.membership_degraded, stats.membership_excluded = degraded, excluded

    def _count_member(self, host: Host, sign: int) -> None:
        stats = self.stats
        stats.membership_total += sign
        if host.healthy:
            stats.membership_healthy += sign
        elif host.degraded:
            stats.membership_degraded += sign
        if host.health_flags & EXCLUDED:
            stats.membership_excluded += sign


def _has_large_table(lb: LbConfig) -> bool:
    if lb.policy == MAGLEV:
        return lb.table_size > _LARGE_TABLE
    return lb.policy == RING_HASH and lb.minimum_ring_size > _LARGE_TABLE
