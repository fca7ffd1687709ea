"""A listener at work: it accepts, finds the filter chain, and knows every connection of each chain."""

from __future__ import annotations

import asyncio
import random
import socket
from typing import Any

from meshproxy.clock import monotonic
from meshproxy.config.context import BuildContext
from meshproxy.config.runtime import RuntimeInt
from meshproxy.http.network_filter import ActiveConnection, ConnectionOwner
from meshproxy.net.cells import Counter
from meshproxy.net.connection import Connection, ConnectionHandler
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.observe.stream_info import ConnectionInfo, StreamInfo
from meshproxy.server.listener_config import FilterChainConfig, ListenerConfig
from meshproxy.server.stats import ListenerStats
from meshproxy.upstream.manager import ClusterManager

_UNLIMITED = 2**63


class ConnectionCount:
    """How many downstream connections there are over all listeners: `active` in this process, `everywhere` in all
    workers."""

    def __init__(self, limit: RuntimeInt) -> None:
        self.active = 0
        self.everywhere = Counter()
        self.limit = limit

    def add(self, number: int) -> None:
        self.active += number
        self.everywhere.add(number)


class Accepted:
    """A downstream connection from its beginning to its end."""

    __slots__ = ("began", "connection", "info")

    def __init__(self, connection: Connection, info: ConnectionInfo) -> None:
        self.connection = connection
        self.info = info
        self.began = monotonic()


class ActiveFilterChain(ConnectionOwner):
    """A filter chain and its connections. `context` holds what the chain was built with: stats, access logs."""

    def __init__(self, listener: ActiveListener, config: FilterChainConfig, context: BuildContext) -> None:
        super().__init__()
        self.listener = listener
        self.config = config
        self.context = context
        self.access_logs = listener.config.access_logs
        self.connections: dict[ActiveConnection, Accepted] = {}
        self._drain_began: float = 0.0  # monotonic seconds; 0.0: it does not drain
        self._drain_over_s: float = 0.0
        self._failing: bool = False  # an operator lets health checks fail

    def on_connection_done(self, connection: ActiveConnection) -> None:
        self.listener.on_connection_done(self, self.connections.pop(connection))

    def start_drain(self, over_s: float = 0.0) -> None:
        """Every connection ends with an answer that it begins from now on: it asks `closes_now` then.

        `over_s` above 0: of the answers at a moment, that share ends its connection which has passed of these seconds.
        One whose answer is on its way already may be used once more, since its client was not told.
        """
        if self._drain_began == 0.0:
            self._drain_began = monotonic()
            self._drain_over_s = over_s
        self._drain_over_s = min(self._drain_over_s, over_s)
        self.draining = True

    def fail_health_checks(self, fail: bool) -> None:
        """While they fail, every answer ends its connection; those that were told to end still do afterwards."""
        self._failing = fail
        self.draining = fail or self._drain_began != 0.0

    def closes_now(self) -> bool:
        if self._failing or self._drain_over_s <= 0.0:
            return True
        return monotonic() - self._drain_began >= self._drain_over_s * random.random()

    def drain_ms(self) -> float:
        """For how long it has been draining."""
        return (monotonic() - self._drain_began) * 1000.0 if self._drain_began else 0.0

    def close_idle(self, idle_ms: float) -> None:
        for connection in list(self.connections):
            connection.close_idle(idle_ms)

    def abort(self) -> None:
        for connection in list(self.connections):
            connection.abort()


class ActiveListener:
    """One listener of this worker: its sockets, its current chain, and chains that drain."""

    def __init__(
        self,
        config: ListenerConfig,
        dispatcher: Dispatcher,
        clusters: ClusterManager,
        count: ConnectionCount,
        own_count: Counter,
    ) -> None:
        self.config = config
        self.dispatcher = dispatcher
        self.clusters = clusters
        self.stats = config.context.scope(config.stat_prefix, ListenerStats)
        self.chain = ActiveFilterChain(self, _only_chain(config), config.context)
        self.draining_chains: list[ActiveFilterChain] = []
        self._count = count
        self._own_count = own_count  # of this listener, in all workers
        self._limit = config.context.runtime.integer(
            f"envoy.resource_limits.listener.{config.name}.connection_limit", _UNLIMITED
        )
        self._servers: list[asyncio.AbstractServer] = []
        self._sockets: list[socket.socket] = []

    async def start(self, sockets: list[socket.socket]) -> None:
        """Accept on `sockets`; they stay the caller's."""
        loop = self.dispatcher.loop
        factory: Any = self._new_connection
        for given in sockets:
            own = given.dup()
            self._sockets.append(own)
            backlog = self.config.socket.backlog
            if own.family == socket.AF_UNIX:
                server: Any = await loop.create_unix_server(factory, sock=own, backlog=backlog)
            else:
                server = await loop.create_server(factory, sock=own, backlog=backlog)
            self._servers.append(server)

    def stop_accepting(self) -> None:
        for server in self._servers:
            server.close()
        self._servers = []
        self._sockets = []

    def close(self) -> None:
        """Its last connection is gone. Listener and chain know each other: they part, so that both are freed now."""
        self.chain.context.close()
        del self.chain

    @property
    def accepting(self) -> bool:
        return bool(self._servers)

    def update(self, config: ListenerConfig, drain_over_s: float) -> bool:
        """Go on with a new configuration on the same sockets.

        A chain that is the same but for its routes stays, with its connections; else it drains (`drain_over_s` as in
        `ActiveFilterChain.start_drain`), and new connections get the new one. True when it drains.
        """
        new = _only_chain(config)
        old = self.chain
        self.stats = config.context.scope(config.stat_prefix, ListenerStats)
        self.config = config
        if new.fingerprint == old.config.fingerprint:
            old.config.terminal.adopt(new.terminal)
            old.context.close()
            old.context = config.context
            old.access_logs = config.access_logs
            return False
        self.chain = ActiveFilterChain(self, new, config.context)
        self._drain_chain(old, drain_over_s)
        return True

    def _drain_chain(self, chain: ActiveFilterChain, drain_over_s: float) -> None:
        chain.start_drain(drain_over_s)
        if chain.connections:
            self.draining_chains.append(chain)
        else:
            chain.context.close()

    def start_drain(self, over_s: float = 0.0) -> None:
        """Connections end with their next answer, or by and by; new ones are still accepted, and drain as well."""
        self.chain.start_drain(over_s)

    def chains(self) -> list[ActiveFilterChain]:
        return [self.chain, *self.draining_chains]

    def connections(self) -> int:
        return sum(len(chain.connections) for chain in self.chains())

    # -- connections

    def _new_connection(self) -> Connection:
        return Connection(self.dispatcher, _Unclaimed(self), self.config.buffer_limit_bytes)

    def accept(self, connection: Connection) -> None:
        stats = self.stats
        count = self._count
        if self._own_count.total() >= self._limit.value:
            stats.downstream_cx_overflow += 1
            connection.abort()
            return
        if count.everywhere.total() >= count.limit.value and not self.config.ignore_global_limit:
            stats.downstream_global_cx_overflow += 1
            connection.abort()
            return
        count.add(1)
        self._own_count.add(1)
        stats.downstream_cx_total += 1
        stats.downstream_cx_active += 1
        chain = self.chain
        info = ConnectionInfo(connection.id, connection.remote, connection.local)
        info.listener_name = self.config.name
        info.filter_chain_name = chain.config.name
        info.listener_direction = self.config.direction
        active = chain.config.terminal.accept(self.dispatcher, self.clusters, chain, connection, info)
        chain.connections[active] = Accepted(connection, info)

    def on_connection_done(self, chain: ActiveFilterChain, accepted: Accepted) -> None:
        now = monotonic()
        self._count.add(-1)
        self._own_count.add(-1)
        self.stats.downstream_cx_active -= 1
        self.stats.downstream_cx_destroy += 1
        self.stats.downstream_cx_length_ms.record(int((now - accepted.began) * 1000.0))
        if chain.access_logs:
            record = _record(accepted, now)
            for log in chain.access_logs:
                log.log(record)
        if chain.draining and not chain.connections and chain in self.draining_chains:
            self.draining_chains.remove(chain)
            chain.context.close()


def _only_chain(config: ListenerConfig) -> FilterChainConfig:
    chain = config.chains[0] if config.chains else config.default_chain
    assert chain is not None
    return chain


def _record(accepted: Accepted, end: float) -> StreamInfo:
    """The connection as an access log of the listener sees it: all of its bytes, and nothing of its streams."""
    info = accepted.info
    record = StreamInfo(info, accepted.began)
    record.end = end
    record.protocol = info.protocol
    record.response_flags = info.response_flags
    record.bytes_received = accepted.connection.bytes_received
    record.bytes_sent = accepted.connection.bytes_sent
    return record


class _Unclaimed(ConnectionHandler):
    """A connection that no filter chain has yet."""

    def __init__(self, listener: ActiveListener) -> None:
        self._listener = listener

    def on_connected(self, connection: Connection) -> None:
        self._listener.accept(connection)

    def on_data(self, data: bytes) -> None:
        """Nothing comes before `on_connected` has put another handler in place, unless the connection was refused."""
