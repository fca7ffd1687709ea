"""A listener at work: it accepts, finds the filter chain, and knows every connection of each chain."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Sequence
from typing import Any, Protocol

from meshproxy.clock import monotonic
from meshproxy.config.context import BuildContext
from meshproxy.config.runtime import RuntimeInt
from meshproxy.filters.listener_filter import CLOSE, CONTINUE, AcceptedSocket, ListenerFilterRun
from meshproxy.http.network_filter import ActiveConnection, ConnectionOwner
from meshproxy.net.address import Address
from meshproxy.net.cells import Counter
from meshproxy.net.connection import Connection, ConnectionHandler
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.net.timers import CallTimer, Timer
from meshproxy.net.transport_socket import TransportSocket
from meshproxy.observe import response_flags as flags
from meshproxy.observe.stream_info import ConnectionInfo, StreamInfo
from meshproxy.server.listener_config import FilterChainConfig, ListenerConfig
from meshproxy.server.stats import ListenerStats
from meshproxy.upstream.manager import ClusterManager

_log = logging.getLogger("meshproxy.connection")

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

    __slots__ = ("began", "connection", "handshake_timeout", "info")

    def __init__(self, connection: Connection, info: ConnectionInfo) -> None:
        self.connection = connection
        self.info = info
        self.handshake_timeout: HandshakeTimeout | None = None
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

    def accept(self, connection: Connection, info: ConnectionInfo, data: bytes) -> None:
        """A new connection, of which listener filters have read `data`."""
        listener, config = self.listener, self.config
        listener.stats.downstream_cx_total += 1
        listener.stats.downstream_cx_active += 1
        info.listener_name = listener.config.name
        info.filter_chain_name = config.name
        for index, gate in enumerate(config.gates):
            if not gate.admit(connection, info):
                for passed in config.gates[:index]:
                    passed.leave()
                listener.on_connection_done(self, Accepted(connection, info))
                return
        if config.transport is not None:
            info.transport_socket = config.transport.new()
        try:
            active = config.terminal.accept(listener.dispatcher, listener.clusters, self, connection, info)
        except Exception as error:  # noqa: BLE001  a bug in one filter must not end the process
            self._on_bug(connection, info, error)
            return
        accepted = self.connections[active] = Accepted(connection, info)
        transport_socket = info.transport_socket
        for connection_filter in config.filters:
            transport_socket = connection_filter.new(connection, info, transport_socket)
        if transport_socket is not None:
            self._secure(transport_socket, accepted)
        if data:
            connection.receive(data)

    def _on_bug(self, connection: Connection, info: ConnectionInfo, error: Exception) -> None:
        """The terminal filter raised: the connection never was the chain's, and nobody speaks on it."""
        _log.error("connection %d: its filter chain %r cannot take it", connection.id, self.config.name, exc_info=error)
        connection.set_handler(_Unclaimed(self.listener))
        connection.abort()
        for gate in self.config.gates:
            gate.leave()
        self.listener.on_connection_done(self, Accepted(connection, info))

    def _secure(self, transport_socket: TransportSocket, accepted: Accepted) -> None:
        connection = accepted.connection
        connection.start_transport_socket(transport_socket)
        if self.config.handshake_timeout_ms > 0.0:
            timeout = accepted.handshake_timeout = HandshakeTimeout(connection, accepted.info, self.listener.stats)
            self.listener.dispatcher.timers.arm(timeout, self.config.handshake_timeout_ms)

    def adopt(self, new: FilterChainConfig, listener: ListenerConfig) -> None:
        """Go on with what differs in nothing that open connections could notice."""
        self.config.terminal.adopt(new.terminal)
        self.config.transport = new.transport
        self.config.filters = new.filters
        self.context = listener.context
        self.access_logs = listener.access_logs

    def on_connection_done(self, connection: ActiveConnection) -> None:
        for gate in self.config.gates:
            gate.leave()
        self.listener.on_connection_done(self, self.connections.pop(connection))

    def start_drain(self, over_s: float = 0.0) -> None:
        """Every connection ends with an answer that it begins from now on: it asks `closes_now` then.

        `over_s` above 0: of the answers at a moment, that share ends its connection which has passed of these seconds.
        One whose answer is on its way already may be used once more, since its client was not told. HTTP/2 needs no
        answer for that: those connections are told now, or by and by.
        """
        if self._drain_began == 0.0:
            self._drain_began = monotonic()
            self._drain_over_s = over_s
        self._drain_over_s = min(self._drain_over_s, over_s)
        self.draining = True
        for connection in list(self.connections):
            connection.start_drain(self._drain_over_s * 1000.0 * random.random())

    def fail_health_checks(self, fail: bool) -> None:
        """While they fail, every answer ends its connection; those that were told to end still do afterwards."""
        self.failing = fail
        self.draining = fail or self._drain_began != 0.0

    def closes_now(self) -> bool:
        if self.failing or self._drain_over_s <= 0.0:
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


class ListenerDirectory(Protocol):
    """Finds the listener that a connection is handed to."""

    def listener_at(self, address: Address) -> ActiveListener | None:
        """The one with exactly this address, else one with its port on all addresses."""
        ...


class HandshakeTimeout(Timer):
    """Closes a connection whose transport socket is not established in time."""

    def __init__(self, connection: Connection, info: ConnectionInfo, stats: ListenerStats) -> None:
        super().__init__()
        self._connection = connection
        self._info = info
        self._stats = stats

    def on_timer(self) -> None:
        if self._connection.connected and not self._connection.established:
            self._stats.downstream_cx_transport_socket_connect_timeout += 1
            self._info.termination_details = "transport socket timeout was reached"
            self._connection.abort()


class ActiveListener:
    """One listener of this worker: its sockets, its current chain, and chains that drain."""

    def __init__(
        self,
        config: ListenerConfig,
        dispatcher: Dispatcher,
        clusters: ClusterManager,
        count: ConnectionCount,
        own_count: Counter,
        directory: ListenerDirectory,
    ) -> None:
        self.config = config
        self.directory = directory
        self.dispatcher = dispatcher
        self.clusters = clusters
        self.stats = config.context.scope(config.stat_prefix, ListenerStats)
        self.current_chains: list[ActiveFilterChain] = []  # in the order of the configuration, the default one last
        self._failing: bool = False  # as `ConnectionOwner.failing`
        self._default: ActiveFilterChain | None = None
        self._only: ActiveFilterChain | None = None  # the one that gets every connection, where nothing is to be asked
        self._set_chains(config)
        self.draining_chains: list[ActiveFilterChain] = []
        self._count = count
        self._own_count = own_count  # of this listener, in all workers
        self._limit = config.context.runtime.integer(
            f"envoy.resource_limits.listener.{config.name}.connection_limit", _UNLIMITED
        )
        self._servers: list[asyncio.AbstractServer] = []
        self._sockets: list[socket.socket] = []
        self._is_closed: bool = False

    async def start(self, sockets: list[socket.socket]) -> None:
        """Accept on `sockets`; they stay the caller's."""
        loop = self.dispatcher.loop
        factory: Any = self.new_connection
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
        """Its last connection is gone. Listener and chains know each other: they part, so that all are freed now."""
        self._is_closed = True
        self.config.context.close()
        self.current_chains = []
        self._default = self._only = None

    @property
    def accepting(self) -> bool:
        return bool(self._servers)

    def update(self, config: ListenerConfig, drain_over_s: float) -> bool:
        """Go on with a new configuration on the same sockets.

        A chain that is the same but for its routes and its certificates stays, with its connections; any other drains
        (`drain_over_s` as in `ActiveFilterChain.start_drain`), and new connections get the new ones. True when one
        drains.
        """
        old, old_context = self.current_chains, self.config.context
        self.stats = config.context.scope(config.stat_prefix, ListenerStats)
        self.config = config
        self._set_chains(config, old)
        gone = [chain for chain in old if chain not in self.current_chains]
        for chain in gone:
            chain.start_drain(drain_over_s)
            if chain.connections:
                self.draining_chains.append(chain)
        self._release(old_context)
        return bool(gone)

    def _set_chains(self, config: ListenerConfig, old: Sequence[ActiveFilterChain] = ()) -> None:
        kept = {chain.config.fingerprint: chain for chain in old}
        self.current_chains = []
        for new in config.all_chains():
            chain = kept.pop(new.fingerprint, None)
            if chain is None:
                chain = ActiveFilterChain(self, new, config.context)
                if self._failing:
                    chain.fail_health_checks(True)
            else:
                chain.adopt(new, config)
            self.current_chains.append(chain)
        self._default = self.current_chains[-1] if config.default_chain is not None else None
        single = len(self.current_chains) == 1 and not config.listener_filters and not config.hands_off
        self._only = self.current_chains[0] if single and config.matches_everything() else None

    def _release(self, context: BuildContext) -> None:
        """Close a context that no chain was built with any more."""
        if context is self.config.context or any(chain.context is context for chain in self.draining_chains):
            return
        context.close()

    def start_drain(self, over_s: float = 0.0) -> None:
        """Connections end with their next answer, or by and by; new ones are still accepted, and drain as well."""
        for chain in self.current_chains:
            chain.start_drain(over_s)

    def fail_health_checks(self, fail: bool) -> None:
        """As `ActiveFilterChain.fail_health_checks`, for all chains, those to come as well."""
        self._failing = fail
        for chain in self.current_chains:
            chain.fail_health_checks(fail)

    def chains(self) -> list[ActiveFilterChain]:
        return [*self.current_chains, *self.draining_chains]

    def connections(self) -> int:
        return sum(len(chain.connections) for chain in self.chains())

    # -- connections

    def new_connection(self) -> Connection:
        """The protocol of a connection that is about to be accepted."""
        return Connection(self.dispatcher, _Unclaimed(self), self.config.buffer_limit_bytes)

    def accept(self, connection: Connection) -> None:
        if self._is_closed:
            heir = self._heir(connection)
            if heir is None:
                connection.abort()
            else:
                heir.accept(connection)
            return
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
        only = self._only
        if only is not None:
            only.accept(connection, ConnectionInfo(connection.id, connection.remote, connection.local), b"")
            return
        sock = connection.get_extra_info("socket")
        self.inspect(connection, AcceptedSocket(sock, connection.remote, connection.local), b"")

    def inspect(self, connection: Connection, accepted: AcceptedSocket, data: bytes) -> None:
        """Let the listener filters look at a connection, of which others may have read `data`."""
        inspection = Inspection(self, connection, ListenerFilterRun(self.config.listener_filters, accepted, data))
        connection.set_handler(inspection)
        inspection.start()

    def assign(self, connection: Connection, accepted: AcceptedSocket, data: bytes) -> None:
        """The listener filters are done: hand the connection over to a filter chain, or to the listener of its
        original destination."""
        if self._is_closed:
            self.uncount()
            heir = self._heir(connection)
            if heir is None:
                connection.abort()
            else:
                heir.take_over(connection, accepted, data)
            return
        if self.config.hands_off and accepted.local_restored:
            other = self.directory.listener_at(accepted.local)
            if other is not None and other is not self:
                self.uncount()
                other.take_over(connection, accepted, data)
                return
        matcher = self.config.matcher
        index = None if matcher is None else matcher.find(accepted)
        chain = self._default if index is None else self.current_chains[index]
        info = connection_info(connection, accepted)
        if chain is None:
            self.stats.no_filter_chain_match += 1
            info.response_flags |= flags.NO_ROUTE_FOUND
            self.refuse(connection, info, "filter_chain_not_found")
            return
        chain.accept(connection, info, data)

    def _heir(self, connection: Connection) -> ActiveListener | None:
        """Who serves our address now: what was on its way to us when we were closed is for it. None for nobody."""
        found = self.directory.listener_at(connection.local)
        return None if found is self else found

    def take_over(self, connection: Connection, accepted: AcceptedSocket, data: bytes) -> None:
        """A connection that another listener accepted, whose original destination is ours."""
        self._count.add(1)
        self._own_count.add(1)
        self.inspect(connection, accepted, data)

    def refuse(self, connection: Connection, info: ConnectionInfo, details: str = "") -> None:
        """Close a connection that has no filter chain; `details` are for its log."""
        self.uncount()
        if self.config.access_logs:
            info.listener_name = self.config.name
            record = _record(Accepted(connection, info), monotonic())
            record.response_code_details = details
            for log in self.config.access_logs:
                log.log(record)
        connection.set_handler(_Unclaimed(self))
        connection.close()

    def uncount(self) -> None:
        """A connection that counts for the limits is gone."""
        self._count.add(-1)
        self._own_count.add(-1)

    def on_connection_done(self, chain: ActiveFilterChain, accepted: Accepted) -> None:
        now = monotonic()
        self.uncount()
        self.stats.downstream_cx_active -= 1
        self.stats.downstream_cx_destroy += 1
        self.stats.downstream_cx_length_ms.record(int((now - accepted.began) * 1000.0))
        if accepted.handshake_timeout is not None:
            accepted.handshake_timeout.disarm()  # else it kept the connection's memory until it is over
        transport_socket = accepted.info.transport_socket
        if transport_socket is not None and transport_socket.failure:
            accepted.info.transport_failure_reason = transport_socket.failure
        if chain.access_logs:
            record = _record(accepted, now)
            for log in chain.access_logs:
                log.log(record)
        if chain.draining and not chain.connections and chain in self.draining_chains:
            self.draining_chains.remove(chain)
            self._release(chain.context)


def connection_info(connection: Connection, accepted: AcceptedSocket) -> ConnectionInfo:
    """What the listener filters found out, for all that comes after them."""
    info = ConnectionInfo(connection.id, accepted.remote, accepted.local)
    info.direct_remote = accepted.direct_remote
    info.direct_local = accepted.direct_local
    info.requested_server_name = accepted.server_name
    info.ja3 = accepted.ja3
    info.ja4 = accepted.ja4
    info.transport_failure_reason = accepted.transport_failure_reason
    info.dynamic_metadata = accepted.dynamic_metadata
    info.filter_state = accepted.filter_state
    info.proxy_header = accepted.proxy_header
    info.local_restored = accepted.local_restored
    return info


def _record(accepted: Accepted, end: float) -> StreamInfo:
    """The connection as an access log of the listener sees it: all of its bytes, and nothing of its streams."""
    info = accepted.info
    record = StreamInfo(info, accepted.began)
    record.end = end
    record.protocol = info.protocol
    record.response_flags = info.response_flags
    record.connection_termination_details = info.termination_details
    record.dynamic_metadata = info.dynamic_metadata
    record.filter_state = info.filter_state
    record.bytes_received = accepted.connection.bytes_received
    record.bytes_sent = accepted.connection.bytes_sent
    return record


class Inspection(ConnectionHandler):
    """A connection in the hands of the listener filters."""

    def __init__(self, listener: ActiveListener, connection: Connection, run: ListenerFilterRun) -> None:
        self._listener = listener
        self._connection = connection
        self._run = run
        self._timer: CallTimer | None = None
        self._done = False

    def start(self) -> None:
        self._listener.stats.downstream_pre_cx_active += 1
        self._go_on(self._run.start())
        timeout_ms = self._listener.config.listener_filters_timeout_ms
        if not self._done and timeout_ms > 0.0:
            self._timer = CallTimer(self.on_timeout)
            self._listener.dispatcher.timers.arm(self._timer, timeout_ms)

    def on_data(self, data: bytes) -> None:
        self._go_on(self._run.receive(data))

    def on_eof(self) -> None:
        self._listener.stats.downstream_listener_filter_remote_close += 1
        self._refuse()

    def on_close(self, error: str) -> None:
        if not self._done:
            self._listener.stats.downstream_listener_filter_error += 1
            self._refuse()

    def on_timeout(self) -> None:
        listener = self._listener
        listener.stats.downstream_pre_cx_timeout += 1
        if listener.config.continues_on_timeout:
            self._assign()
        else:
            self._refuse()

    def _go_on(self, verdict: int) -> None:
        if verdict == CONTINUE:
            self._assign()
        elif verdict == CLOSE:
            self._refuse()

    def _end(self) -> None:
        self._done = True
        self._listener.stats.downstream_pre_cx_active -= 1
        if self._timer is not None:
            self._timer.disarm()
            self._timer = None  # it knows us: no cycle is left

    def _assign(self) -> None:
        self._end()
        self._listener.assign(self._connection, self._run.accepted, self._run.data)

    def _refuse(self) -> None:
        self._end()
        self._listener.refuse(self._connection, connection_info(self._connection, self._run.accepted))


class _Unclaimed(ConnectionHandler):
    """A connection that no filter chain has yet."""

    def __init__(self, listener: ActiveListener) -> None:
        self._listener = listener

    def on_connected(self, connection: Connection) -> None:
        self._listener.accept(connection)

    def on_data(self, data: bytes) -> None:
        """Nothing comes before `on_connected` has put another handler in place, unless the connection was refused."""
