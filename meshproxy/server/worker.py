"""The data plane of one process: listeners, clusters, runtime and stats, and the verbs that change them."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from typing import Any, Final

from meshproxy.config.context import Services
from meshproxy.config.datasource import FileStamp, ReadFile
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.runtime import Runtime
from meshproxy.config.token_buckets import TokenBuckets
from meshproxy.net.address import Address
from meshproxy.net.cells import Counters
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.observe.stats import StatsRegistry
from meshproxy.rpc.clients import open_rpc_client
from meshproxy.server.listener import ActiveFilterChain, ActiveListener, ConnectionCount
from meshproxy.server.resources import ResourceBuilder, Resources
from meshproxy.server.slices import in_slices
from meshproxy.server.stats import ListenerManagerStats
from meshproxy.tls.context import TlsContext
from meshproxy.upstream.manager import ClusterManager

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
    ) -> None:
        self.dispatcher = dispatcher
        self._drain_over_s = drain_over_s  # of a gradual drain; 0: connections are told to close at once
        self._failing = False  # as `ConnectionOwner.failing`
        self.stats = StatsRegistry()
        self.runtime = Runtime(stats=self.stats)
        self._counters = counters or Counters()
        self._token_buckets = token_buckets or TokenBuckets()
        self.clusters = ClusterManager(dispatcher, self.stats, self.runtime, counters=self._counters)
        self.listeners: dict[str, ActiveListener] = {}
        self.draining_listeners: list[ActiveListener] = []
        self.manager_stats = self.stats.acquire("listener_manager.", ListenerManagerStats)
        self._count = ConnectionCount(self.runtime.integer("overload.global_downstream_max_connections", _UNLIMITED))
        self._resources: Resources | None = None
        self._prepared: Resources | None = None

    # -- configuration

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
        self._counters.take_columns(columns)
        self._count.everywhere = self._counters.counter(ALL_CONNECTIONS)
        builder = ResourceBuilder(
            bootstrap,
            self._resources,
            self.runtime,
            self.stats,
            errors,
            ticket_seed=ticket_seed,
            given_files=given_files,
            services=Services(self.dispatcher, self.clusters, open_rpc_client),
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
            self._prepared = resources

    def built_bytes(self) -> int:
        """How much of what is prepared is new: the size of its messages."""
        return 0 if self._prepared is None else self._prepared.built_bytes()

    def abandon(self) -> None:
        """Forget what was prepared."""
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            prepared.discard()

    async def commit(self, sockets: dict[str, list[socket.socket]]) -> None:
        """Swap in what was prepared: clusters before the listeners that use them, removals last.

        `sockets` has the listening sockets of every listener that is to accept on other ones than before.
        """
        resources, self._prepared = self._prepared, None
        assert resources is not None
        old = self._resources
        self._resources = resources
        self.runtime.replace_layers(resources.layers)
        await in_slices(self._set_clusters(resources))
        await self.clusters.warmed()
        for name, listener in resources.listeners.items():
            if listener.built is not None:
                await self._set_listener(name, listener.built, sockets.get(name))
        if old is not None:
            for name in old.listeners.keys() - resources.listeners.keys():
                self._remove_listener(name)
            for name in old.clusters.keys() - resources.clusters.keys():
                self.clusters.remove(name)
        for resource in resources.each():
            if resource.context is not None:
                resource.context.take_effect()
        self._count_listeners()

    def _set_clusters(self, resources: Resources) -> Iterator[None]:
        for cluster in resources.clusters.values():
            if cluster.built is not None:
                self.clusters.add_or_update(cluster.built)
                yield

    async def listen(self, sockets: dict[str, list[socket.socket]]) -> None:
        """Accept on these, by listener."""
        for name, given in sockets.items():
            await self.listeners[name].start(given)

    async def _set_listener(self, name: str, config: Any, sockets: list[socket.socket] | None) -> None:
        stats = self.manager_stats
        running = self.listeners.get(name)
        if running is not None and sockets is None:
            stats.listener_modified += 1
            stats.listener_in_place_updated += 1
            running.update(config, self._drain_over_s)
            return
        listener = ActiveListener(
            config, self.dispatcher, self.clusters, self._count, self._counters.counter(listener_counter(name)), self
        )
        listener.fail_health_checks(self._failing)
        await listener.start(sockets or [])
        self.listeners[name] = listener
        stats.listener_create_success += 1
        if running is None:
            stats.listener_added += 1
        else:
            stats.listener_modified += 1
            self._drain_listener(running)

    @property
    def resources(self) -> Resources:
        """The running configuration."""
        return self._resources or Resources()

    def watched_files(self) -> list[tuple[str, FileStamp | None]]:
        """The files that the running configuration was built of, as they were then."""
        return [(name, was) for name, (was, _) in self.files()]

    def files(self) -> list[tuple[str, ReadFile]]:
        """The same with what they held."""
        found = [] if self._resources is None else self._resources.each()
        return [entry for resource in found for entry in resource.files.items()]

    def tls_contexts(self) -> list[TlsContext]:
        """Of the running configuration."""
        found = [] if self._resources is None else self._resources.each()
        return [context for resource in found for context in resource.tls]

    def listener_at(self, address: Address) -> ActiveListener | None:
        """The listener with this address; else one with its port on all addresses."""
        wildcard = Address("::" if ":" in address.ip else "0.0.0.0", address.port)
        for wanted in (address, wildcard):
            for listener in self.listeners.values():
                if wanted in listener.config.addresses:
                    return listener
        return None

    def _remove_listener(self, name: str) -> None:
        self.manager_stats.listener_removed += 1
        self._drain_listener(self.listeners.pop(name))

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
        stats.total_listeners_draining = len(self.draining_listeners)
        stats.total_filter_chains_draining = sum(len(one.draining_chains) for one in self.listeners.values())

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
        for listener in self.listeners.values():
            if not inbound_only or listener.config.direction == _INBOUND:
                listener.start_drain(over_s)

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
        self.stop_accepting()
        self.abort()
        await self.clusters.close()
