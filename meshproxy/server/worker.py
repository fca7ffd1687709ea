"""The data plane of one process: listeners, clusters, runtime and stats, and the verbs that change them.

Whatever changes goes the same way, whether a file or a control plane says so: it is built beside what runs, it warms
until all that it waits for is there, and only then it takes the place of the old one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Generator, Iterator
from typing import Any, Final, TypeVar

from envoy.config.cluster.v3.cluster_pb2 import Cluster as ClusterMessage
from envoy.config.listener.v3.listener_pb2 import Listener as ListenerMessage

from meshproxy.config.context import Services
from meshproxy.config.datasource import FileStamp, ReadFile
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.runtime import Runtime
from meshproxy.config.runtime_layers import RuntimeDiscoveries
from meshproxy.config.token_buckets import TokenBuckets
from meshproxy.net.address import Address
from meshproxy.net.cells import Counters
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.net.slices import in_slices
from meshproxy.observe.stats import StatsRegistry
from meshproxy.rpc.clients import open_rpc_client
from meshproxy.server.certificate_drain import CertificateDrain
from meshproxy.server.listener import ActiveFilterChain, ActiveListener, ConnectionCount
from meshproxy.server.listener_config import ListenerConfig
from meshproxy.server.resources import CLUSTERS, LISTENERS, Kind, Resource, ResourceBuilder, ResourceFactory, Resources
from meshproxy.server.stats import ListenerManagerStats
from meshproxy.server.subscriptions import Delivery, Reasons, WorkerSubscriptions
from meshproxy.server.warming import CLUSTER, LISTENER, WarmingListener
from meshproxy.tls.certs import Certified
from meshproxy.upstream.manager import ClusterManager

T = TypeVar("T")

_log: Final = logging.getLogger("meshproxy.config")
_UNLIMITED: Final = 2**63
ALL_CONNECTIONS: Final = "downstream_connections"  # the name of a count
_INBOUND: Final = 1  # core.v3.TrafficDirection


def listener_counter(name: str) -> str:
    """The name of the count of a listener's connections."""
    return f"listener.{name}"


class Worker:
    """Everything that a request meets.

    `prepare` builds a configuration beside the running one, `commit` swaps it in.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        drain_over_s: float = 0.0,
        counters: Counters | None = None,
        token_buckets: TokenBuckets | None = None,
        *,
        first: bool = True,
    ) -> None:
        """`first`: what all workers count alike is counted here."""
        self.dispatcher = dispatcher
        self._drain_over_s = drain_over_s  # of a gradual drain; 0: connections are told to close at once
        self._failing = False  # as `ConnectionOwner.failing`
        self._drains_all = False
        self._drains_inbound = False
        self.stats = StatsRegistry()
        self.runtime = Runtime(stats=self.stats)
        self._counters = counters or Counters()
        self._token_buckets = token_buckets or TokenBuckets()
        self.clusters = ClusterManager(dispatcher, self.stats, self.runtime, counters=self._counters)
        self.subscriptions = WorkerSubscriptions(dispatcher, counts=first)
        self.services = Services(dispatcher, self.clusters, open_rpc_client, self.subscriptions)
        self.listeners: dict[str, ActiveListener] = {}
        self.warming_listeners: dict[str, WarmingListener] = {}
        self.draining_listeners: list[ActiveListener] = []
        self.manager_stats = self.stats.acquire("listener_manager.", ListenerManagerStats)
        self._count = ConnectionCount(self.runtime.integer("overload.global_downstream_max_connections", _UNLIMITED))
        self._serving = False  # from `serve` on, listeners accept as soon as they are warm
        self._factory: ResourceFactory | None = None  # as the bootstrap in force has it
        self._resources: Resources | None = None
        self._replaced: Resources | None = None  # between `commit_clusters` and `commit_listeners`
        self._prepared: Resources | None = None
        self._prepared_factory: ResourceFactory | None = None
        self.dynamic = Resources()  # what a control plane said: the versions that are in force, or warm
        self._prepared_listeners: dict[str, Resource[ListenerConfig]] = {}
        self._layers = RuntimeDiscoveries(self.runtime, self.subscriptions, self.stats)
        self._certificate_drain = CertificateDrain(self)
        self._waiting_layers: int = 0  # of the runtime, that a control plane has not filled yet
        self._waiters: list[asyncio.Future[None]] = []  # for layers, or for listeners to be warm

    # -- what the bootstrap says

    async def prepare(
        self,
        bootstrap: Any,
        columns: dict[str, int],
        errors: ConfigErrors,
        ticket_seed: bytes = b"",
        given_files: dict[str, ReadFile] | None = None,
    ) -> None:
        """Build what `bootstrap` changes; with errors, what runs stays as it is. `columns` are those of the counts that
        workers share, `ticket_seed` makes the keys of their TLS session tickets; `given_files` stand for those on the
        disk."""
        self.abandon()
        self.take_columns(columns)
        builder = ResourceBuilder(
            bootstrap,
            self._resources,
            self.runtime,
            self.stats,
            errors,
            ticket_seed=ticket_seed,
            given_files=given_files,
            services=self.services,
            token_buckets=self._token_buckets,
        )
        try:
            await in_slices(builder.steps())
        except BaseException:
            builder.resources.discard()
            raise
        resources = builder.resources
        if errors:
            resources.discard()
            self.manager_stats.listener_create_failure += 1
        else:
            self._prepared, self._prepared_factory = resources, builder.factory

    def take_columns(self, columns: dict[str, int]) -> None:
        """Where the counts that workers share are, by name."""
        self._counters.take_columns(columns)
        self._count.everywhere = self._counters.counter(ALL_CONNECTIONS)

    def built_bytes(self) -> int:
        """How much of what is prepared is new: the size of its messages."""
        return 0 if self._prepared is None else self._prepared.built_bytes()

    def abandon(self) -> None:
        """Forget what was prepared."""
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            prepared.discard()

    async def commit(self, sockets: dict[str, list[socket.socket]]) -> None:
        """Swap in what was prepared, at once: where nobody waits for a control plane."""
        await self.commit_clusters()
        await self.clusters.warmed()
        await self.commit_listeners(sockets)
        await self.serve({})

    async def commit_clusters(self) -> None:
        """Swap in what was prepared, but for the listeners: those come last, removals after them."""
        resources, self._prepared = self._prepared, None
        assert resources is not None
        self._replaced, self._resources = self._resources, resources
        self.runtime.replace_layers(resources.layers)
        self._factory = self._prepared_factory
        for name in resources.clusters:
            self.dynamic.clusters.pop(name, None)  # the bootstrap's own come first
        for name in resources.listeners:
            self.dynamic.listeners.pop(name, None)
        await in_slices(self._set_clusters(resources))
        # After the clusters: one of them reaches the control plane.
        for target in self._layers.follow(resources.layers):
            self._waiting_layers += 1
            target.start(self._on_layer)

    async def commit_listeners(self, sockets: dict[str, list[socket.socket]]) -> None:
        """The rest of it. `sockets` has the listening sockets of every listener that is to accept on other ones than
        before."""
        resources = self.resources
        old, self._replaced = self._replaced, None
        for listener in resources.listeners.values():
            if listener.built is not None:
                await self._warm_listener(listener, sockets.get(listener.name))
        if old is not None:
            for name in old.listeners.keys() - resources.listeners.keys():
                self._remove_listener(name)
            for name in old.clusters.keys() - resources.clusters.keys():
                self.clusters.remove(name)
        for cluster in resources.clusters.values():
            cluster.take_effect()
        self._count_listeners()
        self._certificate_drain.configure(resources.certificate_drain)

    def _set_clusters(self, resources: Resources) -> Iterator[None]:
        for cluster in resources.clusters.values():
            if cluster.built is not None:
                self.clusters.add_or_update(cluster.built)
                yield

    async def serve(self, sockets: dict[str, list[socket.socket]]) -> None:
        """From now on listeners accept as soon as they are warm. Those that are do it now, on `sockets` where a worker
        that is replaced leaves some to this one."""
        self._serving = True
        if self._factory is not None:
            self._factory.forget_given_files()
        for name, given in sockets.items():
            warming = self.warming_listeners.get(name)
            if warming is not None:
                warming.sockets = given
            elif name in self.listeners:
                await self.listeners[name].start(given)
        for warming in list(self.warming_listeners.values()):
            if warming.ready:
                await self._set_listener(warming)

    # -- what a control plane says

    async def update_clusters(
        self, source: bytes, updates: list[Delivery], removed: list[str], columns: dict[str, int]
    ) -> Reasons:
        """Add, change and remove clusters; what cannot be built stays as it was, for the reasons that are returned."""
        self.take_columns(columns)
        reasons: Reasons = []
        await in_slices(self._update_clusters(source, updates, reasons))
        for name in removed:
            if self.dynamic.clusters.pop(name, None) is not None:
                self.clusters.remove(name)
        return reasons

    def _update_clusters(self, source: bytes, updates: list[Delivery], reasons: Reasons) -> Iterator[None]:
        for name, _, message in updates:
            if name in self.resources.clusters:
                continue  # as in Envoy, the bootstrap's own are not to be changed
            built = yield from self._build_dynamic(CLUSTERS, _message_of(message, ClusterMessage), source, reasons)
            if built is not None and built.built is not None:
                self.dynamic.clusters[name] = built
                self.clusters.add_or_update(built.built)
                built.take_effect()
            yield

    async def prepare_listeners(self, source: bytes, updates: list[Delivery], columns: dict[str, int]) -> Reasons:
        """Build these; `commit_updates` lets them take the place of those that there are."""
        self.take_columns(columns)
        reasons: Reasons = []
        self.abandon_listeners(list(self._prepared_listeners))
        await in_slices(self._prepare_listeners(source, updates, reasons))
        return reasons

    def _prepare_listeners(self, source: bytes, updates: list[Delivery], reasons: Reasons) -> Iterator[None]:
        for name, _, message in updates:
            built = yield from self._build_dynamic(LISTENERS, _message_of(message, ListenerMessage), source, reasons)
            if built is not None:
                self._prepared_listeners[name] = built
            else:
                self.manager_stats.listener_create_failure += 1
            yield

    def abandon_listeners(self, names: list[str]) -> None:
        """Forget that these were prepared."""
        for name in names:
            prepared = self._prepared_listeners.pop(name, None)
            if prepared is not None and prepared.context is not None:
                prepared.context.close()

    async def commit_updates(self, removed: list[str], sockets: dict[str, list[socket.socket]]) -> None:
        """Let the listeners that were prepared warm, and take the place of the old ones; remove others."""
        prepared, self._prepared_listeners = self._prepared_listeners, {}
        for name, resource in prepared.items():
            self.dynamic.listeners[name] = resource
            await self._warm_listener(resource, sockets.get(name))
        for name in removed:
            if self.dynamic.listeners.pop(name, None) is not None:
                self._remove_listener(name)
        self._count_listeners()

    def _build_dynamic(
        self, kind: Kind[T], message: Any, source: bytes, reasons: Reasons
    ) -> Generator[None, None, Resource[T] | None]:
        assert self._factory is not None
        errors = ConfigErrors()
        context = self._factory.context(errors, source)
        name = kind.name_of(message)
        made: T | None = None
        try:
            made = yield from self._factory.steps(kind, message, "", context)
        except Exception as error:  # noqa: BLE001  a bug in one builder must not cost the others
            _log.exception("%s %s cannot be built", kind.field, name)
            errors.add("", f"internal error: {type(error).__name__}: {error}")
        if errors:
            context.close()
            reasons += [(name, error.path, error.reason) for error in errors.sorted()]
            return None
        # /explain reads a listener's message.
        data = message.SerializeToString() if kind is LISTENERS else b""
        return Resource.of(name, "", data, made, context)

    # -- listeners

    async def _warm_listener(self, resource: Resource[ListenerConfig], sockets: list[socket.socket] | None) -> None:
        """Let it wait for what it needs; it takes effect at once where that is nothing."""
        assert resource.built is not None
        before = self.warming_listeners.get(resource.name)
        if sockets is None and before is not None:
            sockets = before.sockets  # which it never came to listen on
        self._stop_warming(resource.name)
        warming = WarmingListener(resource, resource.built, sockets)
        self.warming_listeners[resource.name] = warming
        warming.start(self._on_warm)
        if warming.ready and self._serving:
            await self._set_listener(warming)

    def _on_warm(self, warming: WarmingListener) -> None:
        """Called where it had to wait."""
        if self._serving and self.warming_listeners.get(warming.name) is warming:
            self.dispatcher.spawn(self._set_listener(warming), f"listener {warming.name}")
        else:
            self._wake()

    def _stop_warming(self, name: str) -> None:
        warming = self.warming_listeners.pop(name, None)
        if warming is not None:
            warming.discard()

    async def _set_listener(self, warming: WarmingListener) -> None:
        """It is warm: it takes the place of the one of its name."""
        name = warming.name
        if self.warming_listeners.get(name) is not warming:
            return
        del self.warming_listeners[name]
        stats, config, sockets = self.manager_stats, warming.config, warming.sockets
        running = self.listeners.get(name)
        if running is not None and sockets is None:
            stats.listener_modified += 1
            stats.listener_in_place_updated += 1
            running.update(config, self._drain_over_s)
        else:
            own_count = self._counters.counter(listener_counter(name))
            listener = ActiveListener(config, self.dispatcher, self.clusters, self._count, own_count, self)
            listener.fail_health_checks(self._failing)
            if self._drains(listener):
                listener.start_drain()
            self.listeners[name] = listener
            stats.listener_create_success += 1
            if running is None:
                stats.listener_added += 1
            else:
                stats.listener_modified += 1
                self._drain_listener(running)
            await listener.start(sockets or [])
        warming.resource.take_effect()
        self._count_listeners()
        self._wake()

    async def report_loads(self, names: list[str] | None, by_endpoint: bool) -> list[dict[str, Any]]:
        """What these clusters (None: all) had to do since the last report, for LRS."""
        reports: list[dict[str, Any]] = []
        await in_slices(_into(reports, self.clusters.report_loads(names, by_endpoint)))
        return reports

    # -- waiting

    def _on_layer(self) -> None:
        self._waiting_layers -= 1
        self._wake()

    async def layers_ready(self) -> None:
        """Return when all layers of the runtime are there."""
        while self._waiting_layers:
            await self._next_change()

    async def warmed(self, timeout_s: float) -> bool:
        """Return when no cluster is warming, or the time is over (0.0: never): whether all are warm."""
        return await _within(self.clusters.warmed(), timeout_s)

    async def settled(self, names: list[str]) -> None:
        """Return when none of these listeners is warming any more; before `serve`, when all are ready to."""
        while any(self._awaited(name) for name in names):
            await self._next_change()

    def _awaited(self, name: str) -> bool:
        warming = self.warming_listeners.get(name)
        return warming is not None and (self._serving or not warming.ready)

    async def _next_change(self) -> None:
        """Something that was waited for may be there."""
        waiter = self.dispatcher.loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def unready(self) -> Iterator[tuple[str, str, list[str]]]:
        """What is warming, by its kind and name, and the names of what it waits for, for `/init_dump`."""
        for warming in self.warming_listeners.values():
            yield LISTENER, warming.name, warming.unready()
        for cluster in self.clusters.warming():
            yield CLUSTER, cluster.name, self.clusters.unready(cluster)

    @property
    def resources(self) -> Resources:
        """The running configuration."""
        return self._resources or Resources()

    def watched_files(self) -> list[tuple[str, FileStamp | None]]:
        """The files that the running configuration was built of, as they were then."""
        return [(name, was) for name, (was, _) in self.files()]

    def stale(self) -> Iterator[tuple[str, str]]:
        """Fields and names of dynamic resources whose files have changed."""
        for field, held in (("clusters", self.dynamic.clusters), ("listeners", self.dynamic.listeners)):
            for one in held.values():
                if not one.holds(one.message):
                    yield field, one.name

    def _all_resources(self) -> list[Resource[Any]]:
        return [*self.resources.each(), *self.dynamic.each()]

    def files(self) -> list[tuple[str, ReadFile]]:
        """The same with what they held."""
        return [entry for resource in self._all_resources() for entry in resource.files.items()]

    def tls_contexts(self) -> list[Certified]:
        """Of the running configuration."""
        return [context for resource in self._all_resources() for context in resource.tls]

    def listener_at(self, address: Address) -> ActiveListener | None:
        """The listener with this address; else one with its port on all addresses."""
        wildcard = Address("::" if ":" in address.ip else "0.0.0.0", address.port)
        for wanted in (address, wildcard):
            for listener in self.listeners.values():
                if wanted in listener.config.addresses:
                    return listener
        return None

    def _remove_listener(self, name: str) -> None:
        self._stop_warming(name)
        running = self.listeners.pop(name, None)
        if running is not None:
            self.manager_stats.listener_removed += 1
            self._drain_listener(running)
        self._wake()

    def _drain_listener(self, listener: ActiveListener) -> None:
        listener.stop_accepting()
        listener.start_drain(self._drain_over_s)
        self.draining_listeners.append(listener)

    def _count_listeners(self) -> None:
        gone = [listener for listener in self.draining_listeners if not listener.connections()]
        for listener in gone:
            self.draining_listeners.remove(listener)
            listener.close()
        stats = self.manager_stats
        stats.total_listeners_active = len(self.listeners)
        stats.total_listeners_warming = len(self.warming_listeners)
        stats.total_listeners_draining = len(self.draining_listeners)
        stats.total_filter_chains_draining = sum(len(one.draining_chains) for one in self.listeners.values())

    def draining(self) -> int:
        """How many chains drain, or will when what warms takes their place."""
        return len(self._draining_chains()) + len(self.warming_listeners)

    def close_idle_draining(self, idle_ms: float) -> None:
        """Close what drains and has been idle for so long; called once in a while."""
        for chain in self._draining_chains():
            chain.close_idle(idle_ms)
        self._count_listeners()

    def abort_draining(self, drain_ms: float) -> None:
        """What has been draining for so long ends now."""
        for chain in self._draining_chains():
            if chain.drain_ms() >= drain_ms:
                chain.abort()

    def _draining_chains(self) -> list[ActiveFilterChain]:
        """Chains that a newer configuration replaced or removed."""
        removed = [chain for listener in self.draining_listeners for chain in listener.chains()]
        return removed + [chain for listener in self.listeners.values() for chain in listener.draining_chains]

    # -- the end

    def start_drain(self, inbound_only: bool = False, gradually: bool = False) -> None:
        """Responses say `connection: close` from now on, all or (as `--drain-strategy` says) more and more of them; new
        connections are still served."""
        over_s = self._drain_over_s if gradually else 0.0
        self._drains_all, self._drains_inbound = self._drains_all or not inbound_only, True
        for listener in self.listeners.values():
            if not inbound_only or listener.config.direction == _INBOUND:
                listener.start_drain(over_s)

    def _drains(self, listener: ActiveListener) -> bool:
        """Whether it comes when such as it have been told to drain."""
        return self._drains_all or (self._drains_inbound and listener.config.direction == _INBOUND)

    def fail_health_checks(self, fail: bool) -> None:
        """While they fail, every response says `connection: close`, as with Envoy; those of new listeners too."""
        self._failing = fail
        for listener in self.listeners.values():
            listener.fail_health_checks(fail)

    def stop_accepting(self, inbound_only: bool = False) -> None:
        """Close the listeners."""
        for listener in self.listeners.values():
            if listener.accepting and (not inbound_only or listener.config.direction == _INBOUND):
                listener.stop_accepting()
                self.manager_stats.listener_stopped += 1

    def close_idle(self, idle_ms: float) -> None:
        for listener in (*self.listeners.values(), *self.draining_listeners):
            for chain in listener.chains():
                chain.close_idle(idle_ms)

    def connections(self) -> int:
        """Downstream connections, over all listeners."""
        return self._count.active

    def abort(self) -> None:
        """End every connection."""
        for listener in (*self.listeners.values(), *self.draining_listeners):
            for chain in listener.chains():
                chain.abort()

    async def close(self) -> None:
        """End everything, and wait until it has."""
        self._layers.close()
        self._certificate_drain.close()
        for name in list(self.warming_listeners):
            self._stop_warming(name)
        self.stop_accepting()
        self.abort()
        await self.clusters.close()


def _into(reports: list[dict[str, Any]], steps: Generator[None, None, list[dict[str, Any]]]) -> Iterator[None]:
    reports += yield from steps


async def _within(what: Awaitable[None], timeout_s: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s or None):
            await what
            return True
    return False


def _message_of(message: Any, kind: type[Any]) -> Any:
    """As it was delivered: serialised, or read already."""
    return kind.FromString(message) if isinstance(message, bytes) else message
