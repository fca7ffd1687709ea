"""A cluster while it is in use: its hosts, who of them takes a request, its limits and its numbers."""

from __future__ import annotations

from typing import Final, TypeVar

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.runtime import Fraction, Runtime
from meshproxy.net.cells import Counters
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.observe.http2_stats import Http2Scope
from meshproxy.observe.stats import StatsRegistry, StatsScope, response_names
from meshproxy.observe.stream_info import ClusterInfo
from meshproxy.route.hash_policy import NO_HASH
from meshproxy.upstream.config import HTTP1, ClusterConfig, EndpointConfig
from meshproxy.upstream.hash_tables import HashTables
from meshproxy.upstream.host import EDS_FLAGS, EXCLUDED, FAILED_OUTLIER_CHECK, Host, LbContext
from meshproxy.upstream.load_balancer import LoadBalancer, RandomBits
from meshproxy.upstream.original_dst import OriginalDstBalancer
from meshproxy.upstream.outlier import EjectionListener, OutlierDetector
from meshproxy.upstream.pool import ConnectionPool
from meshproxy.upstream.priority_set import PrioritySet
from meshproxy.upstream.resource_limit import PRIORITY_NAMES, Breakers, BreakerStats, RemainingStats
from meshproxy.upstream.stats import ClusterStats, HostStats, OutlierStats
from meshproxy.upstream.subset import SubsetLoadBalancer

_MOST_NAMED_STATS: Final = 1_000

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
        self.stats = registry.acquire(self._prefix, ClusterStats)
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
        self.needs_context: bool = config.lb.needs_context  # hosts are chosen by facts of the request
        self._balancer: LoadBalancer = self._new_balancer()
        self._inherited: dict[str, list[HostStats]] = {}  # by address, the first at the end
        if previous is not None:
            for address, same in _by_address(previous.hosts).items():
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
        for host in self.hosts:
            self._drain(host)
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
        self._registry.release(self._prefix, ClusterStats)
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

        A host whose address stays keeps its identity: its connections, numbers and ejections. One that goes keeps the
        streams that it has.
        """
        known = _by_address(self.hosts)
        staying = [_take(known, endpoint, True) for endpoint in endpoints]
        hosts: list[Host] = []
        moved: set[int] = set()  # priorities that a host joined or left
        changed = False
        for index, endpoint in enumerate(endpoints):
            host = staying[index] or _take(known, endpoint, False)
            if host is None:
                host = self._new_host(endpoint)
                moved.add(endpoint.priority)
            else:
                self._rematch(endpoint, host)
                if host.priority != endpoint.priority:
                    moved.update((host.priority, endpoint.priority))
            changed = _apply(endpoint, host) or changed
            hosts.append(host)
        removed = [host for left in known.values() for host in left]
        moved.update([host.priority for host in removed])
        if not changed and not moved and self.hosts:
            return False
        self._take_hosts(hosts, removed, len(moved))
        return True

    def add_host(self, endpoint: EndpointConfig) -> Host:
        """One more host, that a request names."""
        host = self._new_host(endpoint)
        self.hosts.append(host)
        if self.detector is not None:
            self.detector.set_hosts(list(self.hosts))
        self.stats.membership_change += 1
        self.stats.membership_total += 1
        self.stats.membership_healthy += 1
        return host

    def remove_hosts(self, gone: list[Host]) -> None:
        """Hosts that no request names any more."""
        leaving = set(gone)
        self._take_hosts([host for host in self.hosts if host not in leaving], gone, 1)

    def sweep_hosts(self) -> None:
        """Time to let go of hosts that nobody uses (ORIGINAL_DST)."""
        if isinstance(self._balancer, OriginalDstBalancer):
            self._balancer.sweep()

    def _rematch(self, endpoint: EndpointConfig, host: Host) -> None:
        """Other metadata may mean another transport socket: then its connections go."""
        if endpoint.metadata == host.metadata and endpoint.locality_metadata == host.locality_metadata:
            return
        host.locality_metadata = endpoint.locality_metadata
        match = self.config.transports.match(endpoint.metadata, endpoint.locality_metadata)
        if match != host.transport_match:
            host.transport_match = match
            self._drain(host)

    def _new_host(self, endpoint: EndpointConfig) -> Host:
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

    def _take_hosts(self, hosts: list[Host], removed: list[Host], changes: int) -> None:
        """`changes` is in how many priorities hosts came or went."""
        self.hosts = hosts
        if self.detector is not None:
            self.detector.set_hosts(hosts)
        self._balancer.update(hosts)
        self._count_members()
        for host in removed:
            self._drain(host)
        if changes:
            self.stats.membership_change += changes
            if self.config.lb.close_connections_on_host_set_change:
                for host in hosts:
                    self._drain(host)

    def _drain(self, host: Host) -> None:
        self._draining = [pool for pool in self._draining if pool.connections]
        self._draining.extend(host.drain_pools())

    def close(self) -> None:
        """Close every connection at once; their streams are reset."""
        for host in self.hosts:
            self._drain(host)
        for pool in self._draining:
            pool.close()

    @property
    def idle(self) -> bool:
        """No connection is left (of a cluster that is retired)."""
        return not any(pool.connections for pool in self._draining)

    def on_ejection_changed(self, host: Host) -> None:
        if host.outlier.ejected:
            host.health_flags |= FAILED_OUTLIER_CHECK
        else:
            host.health_flags &= ~FAILED_OUTLIER_CHECK
        self._balancer.on_health_changed(self.hosts, host)
        self._count_members()

    def _count_members(self) -> None:
        hosts, stats = self.hosts, self.stats
        stats.membership_total = len(hosts)
        stats.membership_healthy = len([host for host in hosts if host.healthy])
        stats.membership_degraded = len([host for host in hosts if host.degraded])
        stats.membership_excluded = len([host for host in hosts if host.health_flags & EXCLUDED])


def _by_address(hosts: list[Host]) -> dict[str, list[Host]]:
    """Hosts by their address, which several may have; the first of them stands at the end."""
    found: dict[str, list[Host]] = {}
    for host in reversed(hosts):
        found.setdefault(host.key, []).append(host)
    return found


def _take(known: dict[str, list[Host]], endpoint: EndpointConfig, same_priority: bool) -> Host | None:
    """Take out the first host that has the endpoint's address (and its priority), if there is one left."""
    hosts = known.get(endpoint.key)
    if hosts:
        for index in range(len(hosts) - 1, -1, -1):
            if not same_priority or hosts[index].priority == endpoint.priority:
                return hosts.pop(index)
    return None


def _apply(endpoint: EndpointConfig, host: Host) -> bool:
    """Give the host what its endpoint says; True when load balancing must hear of it."""
    flags = (host.health_flags & ~EDS_FLAGS) | endpoint.health_flags
    changed = flags != host.health_flags or endpoint.weight != host.weight or endpoint.priority != host.priority
    old, new = host.locality, endpoint.locality
    changed = changed or (new is not old and (new.weight != old.weight or new.key != old.key))
    changed = changed or endpoint.hostname != host.hostname or endpoint.metadata != host.metadata  # keys of hashing
    host.health_flags = flags
    host.weight = endpoint.weight
    host.priority = endpoint.priority
    host.hostname = endpoint.hostname
    host.locality = endpoint.locality
    host.canary = endpoint.canary
    host.metadata = endpoint.metadata
    return changed
