"""The cluster manager: what configuration and xDS add, change and remove; requests look clusters up by name.

A cluster whose hosts are not known yet is *warming*: requests see it (or its new version) when it is warm.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from typing import Any, Final

from mypy_extensions import mypyc_attr

from meshproxy.config.runtime import Runtime
from meshproxy.config.subscription import InitManager
from meshproxy.net.cells import Counters
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.net.resolver import Resolvers
from meshproxy.observe.stats import StatsRegistry
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.config import LOGICAL_DNS, STRICT_DNS, ClusterConfig, EdsConfig
from meshproxy.upstream.discovery import Discovery, DiscoveryListener
from meshproxy.upstream.dns_discovery import DnsDiscovery
from meshproxy.upstream.eds import EdsDiscovery
from meshproxy.upstream.load_balancer import RandomBits
from meshproxy.upstream.load_report import report_load
from meshproxy.upstream.logical_dns import LogicalDns
from meshproxy.upstream.original_dst_discovery import OriginalDst
from meshproxy.upstream.stats import CaresStats, ClusterManagerStats
from meshproxy.upstream.status import cluster_status
from meshproxy.upstream.strict_dns import StrictDns

# What a request for a cluster is told.
FOUND: Final = 0
MISSING: Final = 1
TIMED_OUT: Final = 2


@mypyc_attr(allow_interpreted_subclasses=True)
class ClusterRequest:
    """Somebody waits for a cluster."""

    def cancel(self) -> None:
        """Nobody is told any more. A second call does nothing."""
        raise NotImplementedError


class ClusterManager:
    """All clusters of one process."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        registry: StatsRegistry,
        runtime: Runtime,
        resolvers: Resolvers | None = None,
        random_bits: RandomBits | None = None,
        counters: Counters | None = None,
    ) -> None:
        self._dispatcher = dispatcher
        self._registry = registry
        self._runtime = runtime
        self._resolvers: Resolvers = Resolvers(dispatcher) if resolvers is None else resolvers
        self._random_bits: RandomBits = random.Random().getrandbits if random_bits is None else random_bits
        self._counters: Counters = Counters() if counters is None else counters
        self._active: dict[str, Cluster] = {}
        self._warming: dict[str, Cluster] = {}
        self._discoveries: dict[Cluster, Discovery] = {}
        self._targets: dict[Cluster, InitManager] = {}
        self._newer: dict[Cluster, _Newer] = {}
        self._draining: list[Cluster] = []
        self._on_demand: Any = None  # OnDemandClusters, once somebody has asked for one
        self._waiters: list[Any] = []  # futures that wait for all clusters to be warm
        self.stats = registry.acquire("cluster_manager.", ClusterManagerStats)
        registry.acquire("dns.cares.", CaresStats).counts = self._resolvers.counts

    def get(self, name: str) -> Cluster | None:
        """The cluster that takes traffic under this name."""
        return self._active.get(name)

    def clusters(self) -> list[Cluster]:
        """Those that take traffic."""
        return list(self._active.values())

    def warming(self) -> list[Cluster]:
        return list(self._warming.values())

    def status(self) -> list[dict[str, Any]]:
        """What `/clusters` shows, in plain values: see `status.cluster_status`."""
        return [cluster_status(cluster) for cluster in self._active.values()]

    def request_cluster(self, name: str, config: Any, callback: Callable[[int], None]) -> ClusterRequest | None:
        """Ask for a cluster that is not there, as an `on_demand.OnDemandConfig` says; None when nobody can be asked, or
        too many wait. The callback is told FOUND, MISSING or TIMED_OUT: once, and never from within this call."""
        if self._on_demand is None:
            from meshproxy.upstream.on_demand import OnDemandClusters  # which imports this module

            self._on_demand = OnDemandClusters(self, self._dispatcher.timers, self._registry)
        request: ClusterRequest | None = self._on_demand.request(name, config, callback)
        return request

    def report_loads(self, names: list[str] | None, by_endpoint: bool) -> Generator[None, None, list[dict[str, Any]]]:
        """What these clusters (None: all) had to do since the last report, in steps: see `load_report.report_load`."""
        reports: list[dict[str, Any]] = []
        for name in list(self._active) if names is None else names:
            cluster = self._active.get(name)
            if cluster is not None:
                report = yield from report_load(cluster, by_endpoint)
                reports.append(report)
        return reports

    # -- changes

    def add_or_update(self, config: ClusterConfig) -> None:
        """Add the cluster, or change the one of its name.

        When only its endpoints, certificates or a balancer in Python changed, hosts that stay keep their connections.
        Any other change drains all connections of the old version; its streams end there.
        """
        name = config.name
        current = self._active.get(name)
        if current is None:
            self.stats.cluster_added += 0 if name in self._warming else 1
        else:
            self.stats.cluster_modified += 1
        self._stop_warming(name)
        if current is not None and current.config.fingerprint == config.fingerprint:
            self._update_in_place(current, config)
        else:
            self._add(config, current)
        self._count()

    def _update_in_place(self, cluster: Cluster, config: ClusterConfig) -> None:
        """Once all is there that the newer build waits for."""
        self._forget_newer(cluster)
        newer = self._newer[cluster] = _Newer(self, cluster, config)
        InitManager(config.init_targets).start(newer.on_targets_ready)

    def _forget_newer(self, cluster: Cluster) -> None:
        newer = self._newer.pop(cluster, None)
        if newer is not None:
            newer.config.take_context(None)

    def take_newer(self, newer: _Newer) -> None:
        """A newer build of a cluster is ready."""
        cluster, config = newer.cluster, newer.config
        if self._newer.get(cluster) is not newer:
            return
        del self._newer[cluster]
        cluster.config.endpoints = config.endpoints
        cluster.config.transports = config.transports  # its certificates may be new
        cluster.take_extension(config)
        cluster.config.take_context(config.context)
        self._discoveries[cluster].set_endpoints(config.endpoints)

    def _add(self, config: ClusterConfig, previous: Cluster | None) -> None:
        cluster = Cluster(
            config, self._dispatcher, self._registry, self._runtime, self._random_bits, previous, self._counters
        )
        self._warming[config.name] = cluster
        targets = self._targets[cluster] = InitManager(config.init_targets)
        warming = _Warming(self, cluster)
        discovery = self._discoveries[cluster] = self._new_discovery(cluster, warming)
        targets.start(warming.on_targets_ready)
        discovery.start()

    def _new_discovery(self, cluster: Cluster, listener: DiscoveryListener) -> Discovery:
        config = cluster.config
        if config.original_dst is not None:
            return OriginalDst(cluster, listener, self._dispatcher.timers, config.original_dst)
        if config.eds is not None:
            return self._new_eds(cluster, listener, config.eds)
        if config.discovery not in (STRICT_DNS, LOGICAL_DNS):
            return Discovery(cluster, listener)
        resolver = self._resolvers.acquire(config.dns.resolver)
        timers, random_bits = self._dispatcher.timers, self._random_bits
        if config.discovery == LOGICAL_DNS:
            return LogicalDns(cluster, listener, resolver, timers, random_bits)
        return StrictDns(cluster, listener, resolver, timers, random_bits)

    def _new_eds(self, cluster: Cluster, listener: DiscoveryListener, config: EdsConfig) -> Discovery:
        context = cluster.config.context
        services = None if context is None else context.services
        subscriptions = None if services is None else services.subscriptions
        return EdsDiscovery(cluster, listener, config, subscriptions, self._dispatcher, self._runtime)

    def on_warm(self, cluster: Cluster) -> None:
        """It has hosts, or knows that it has none, and all else that it waits for."""
        if self._warming.get(cluster.name) is cluster:
            del self._warming[cluster.name]
            self._activate(cluster)
            self._count()

    def _activate(self, cluster: Cluster) -> None:
        old = self._active.get(cluster.name)
        self._active[cluster.name] = cluster
        cluster.activate()
        if old is not None:
            self._retire(old)
        if self._on_demand is not None:
            self._on_demand.on_active(cluster.name)

    def remove(self, name: str) -> None:
        """Requests find it no more; those that it has end there."""
        self._stop_warming(name)
        cluster = self._active.pop(name, None)
        if cluster is not None:
            self.stats.cluster_removed += 1
            self._retire(cluster)
        self._count()

    def _stop_warming(self, name: str) -> None:
        cluster = self._warming.pop(name, None)
        if cluster is not None:
            self._retire(cluster)

    def _retire(self, cluster: Cluster) -> None:
        discovery = self._discoveries.pop(cluster)
        discovery.stop()
        del self._targets[cluster]
        self._forget_newer(cluster)
        if isinstance(discovery, DnsDiscovery):
            self._resolvers.release(cluster.config.dns.resolver)
        cluster.retire()
        self._draining = [old for old in self._draining if not old.idle]
        self._draining.append(cluster)

    def _count(self) -> None:
        self.stats.active_clusters = len(self._active)
        self.stats.warming_clusters = len(self._warming)
        if not self._warming:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    # -- waiting

    async def warmed(self) -> None:
        """Return when no cluster is warming."""
        if self._warming:
            waiter = self._dispatcher.loop.create_future()
            self._waiters.append(waiter)
            await waiter

    def unready(self, cluster: Cluster) -> list[str]:
        """The names of what a cluster that is warming waits for."""
        names = [target.name for target in self._targets[cluster].unready()]
        return names if self._discoveries[cluster].is_ready else [*names, f"endpoints of {cluster.name}"]

    async def close(self) -> None:
        """End everything: streams that there still are, are reset."""
        if self._on_demand is not None:
            self._on_demand.close()
        for name in list(self._warming):
            self._stop_warming(name)
        for cluster in list(self._active.values()):
            self.remove(cluster.name)
        for cluster in self._draining:
            cluster.close()
        self._draining = []
        closed = self._dispatcher.loop.create_future()
        self._dispatcher.post(_Resolve(closed).call)
        await closed  # the sockets close in the next turn of the loop


class _Warming(DiscoveryListener):
    """A cluster that waits for its hosts, and for the targets of its build."""

    def __init__(self, manager: ClusterManager, cluster: Cluster) -> None:
        self._manager = manager
        self._cluster = cluster
        self._left: int = 2

    def on_ready(self, cluster: Cluster) -> None:
        self._one_less()

    def on_targets_ready(self) -> None:
        self._one_less()

    def _one_less(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._manager.on_warm(self._cluster)


class _Newer:
    """A cluster, and the newer build of it, which is to take the place of its own when its targets are ready."""

    def __init__(self, manager: ClusterManager, cluster: Cluster, config: ClusterConfig) -> None:
        self._manager = manager
        self.cluster = cluster
        self.config = config

    def on_targets_ready(self) -> None:
        self._manager.take_newer(self)


class _Resolve:
    def __init__(self, future: Any) -> None:
        self._future = future

    def call(self) -> None:
        if not self._future.done():
            self._future.set_result(None)
