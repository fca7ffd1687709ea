"""Connection pools: the connections to one host, for routes of one priority.

A request takes the connection that came free last, so that the others may time out; where none can take it, it waits,
within the circuit breaker's limit, for one that connects or comes free. The rules and the stats are those of Envoy's
pools. What a connection can take is its own business: one stream, or many.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import mypyc_attr

from meshproxy.codec.http2.stats import Http2Stats
from meshproxy.codec.stream import StreamDecoder, StreamEncoder
from meshproxy.errors import RESET_OVERFLOW
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.upstream.config import AUTO, HTTP1, HTTP2, ClusterConfig
from meshproxy.upstream.connection import CONNECTING, READY, UpstreamConnection
from meshproxy.upstream.connection_counts import ConnectionCounts
from meshproxy.upstream.demand import ConnectionDemand
from meshproxy.upstream.host import Host
from meshproxy.upstream.http1_connection import Http1UpstreamConnection
from meshproxy.upstream.http2_connection import Http2UpstreamConnection
from meshproxy.upstream.keyed_pools import KeyedPools
from meshproxy.upstream.negotiated_connection import NegotiatedConnection
from meshproxy.upstream.outlier import LOCAL_ORIGIN_CONNECT_SUCCESS
from meshproxy.upstream.resource_limit import Breakers
from meshproxy.upstream.stats import ClusterStats

_CREATE_AT_ONCE: Final = 3  # connections opened on one occasion, at most (as Envoy)


@mypyc_attr(allow_interpreted_subclasses=True)
class PooledStream(StreamDecoder):
    """Who asks for a connection, and decodes the response that comes on it.

    Told, once, what became of its asking; perhaps before `new_stream` returns.
    """

    def on_pool_ready(self, encoder: StreamEncoder, connection: UpstreamConnection, host: Host) -> None:
        """The stream is open: send on `encoder`."""
        raise NotImplementedError

    def on_pool_failure(self, reason: int, details: str, host: Host) -> None:
        """There is no stream: RESET_OVERFLOW, RESET_CONNECT_FAILURE or RESET_CONNECT_TIMEOUT."""
        raise NotImplementedError


class PendingStream:
    """A request that waits for a connection."""

    def __init__(self, pool: ConnectionPool, stream: PooledStream) -> None:
        self._pool = pool
        self.stream = stream

    def cancel(self) -> None:
        """Wait no longer; the stream hears nothing. No-op once it has been told."""
        self._pool.cancel_pending(self)


class ConnectionPool:
    """The connections to one host. Its limits are the cluster's, which it shares with the other hosts' pools."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        host: Host,
        config: ClusterConfig,
        stats: ClusterStats,
        http2_stats: Http2Stats,
        breakers: Breakers,
    ) -> None:
        self.dispatcher = dispatcher
        self.host = host
        self.config = config
        self.stats = stats
        self.http2_stats = http2_stats
        self.breakers = breakers
        self.protocol: int = config.protocol
        self.negotiated: int = AUTO  # with that protocol: what the last connection agreed on
        self.demand: ConnectionDemand | None = None  # of those that share it; None: anybody
        self.priority: int = 0  # of its routes; for `keyed`
        self.keyed: KeyedPools | None = None  # who keeps it while it has connections; None: its host, for good
        self.draining: bool = False
        self._preconnects: bool = config.preconnect_ratio > 1.0
        self._counted: bool = False  # among the cluster's pools: it has connections, or requests that wait
        self._ready: list[UpstreamConnection] = []  # that can take a stream; the one that came free last is at the end
        self._connections: dict[UpstreamConnection, None] = {}  # all that are not closed
        self._expected: int = 0  # how many streams those will take that are on their way
        self._pending: dict[PendingStream, None] = {}  # in order of their arrival

    def new_stream(self, stream: PooledStream) -> PendingStream | None:
        """Open a stream; None when it has been told already, else what can be cancelled."""
        if self._ready:
            self._attach(stream)
            if self._preconnects:
                self._create_connections()
            return None
        stats = self.stats
        if not self.breakers.pending.try_acquire():
            stats.upstream_rq_pending_overflow += 1
            stream.on_pool_failure(RESET_OVERFLOW, "", self.host)
            return None
        if not self._counted:
            self._begin_to_count()
        stats.upstream_rq_pending_total += 1
        stats.upstream_rq_pending_active += 1
        self.host.stats.rq_pending_active += 1
        pending = PendingStream(self, stream)
        self._pending[pending] = None
        self._create_connections()
        return pending

    def drain(self) -> None:
        """Take no further part: idle connections close at once, the others when their streams are done.

        Requests that wait already are still served.
        """
        self.draining = True
        self._close_idle()

    def close(self) -> None:
        """Close every connection at once; their streams are reset."""
        self.draining = True
        for connection in list(self._connections):
            connection.abort()

    @property
    def idle(self) -> bool:
        """Nobody uses it, or waits for it."""
        if self._pending:
            return False
        for connection in self._connections:  # noqa: SIM110  a generator would be a closure here
            if connection.streams:
                return False
        return True

    @property
    def has_pending(self) -> bool:
        """Whether requests wait."""
        return bool(self._pending)

    def _begin_to_count(self) -> None:
        self._counted = True
        self.breakers.pools.acquire()
        if self.keyed is not None:
            self.keyed.keep(self)

    def _check_unused(self) -> None:
        """Without connections, and requests that wait for one, it counts no more."""
        if self._counted and not self._connections and not self._pending:
            self._counted = False
            self.breakers.pools.release()
            if self.keyed is not None:
                self.keyed.forget(self)

    @property
    def connections(self) -> list[UpstreamConnection]:
        return list(self._connections)

    # -- requests that wait

    def cancel_pending(self, pending: PendingStream) -> None:
        if pending in self._pending:
            self._remove_pending(pending)
            self.stats.upstream_rq_cancelled += 1
            if self.draining:
                self._close_idle()

    def _remove_pending(self, pending: PendingStream) -> None:
        del self._pending[pending]
        self.breakers.pending.release()
        self.stats.upstream_rq_pending_active -= 1
        self.host.stats.rq_pending_active -= 1

    def _serve_pending(self) -> None:
        while self._ready and self._pending:
            pending = next(iter(self._pending))
            self._remove_pending(pending)
            self._attach(pending.stream)
        if self._pending:
            self._create_connections()

    def _fail_pending(self, reason: int, details: str) -> None:
        """Tell all that wait, so that they may try another host. Those that come meanwhile are not meant."""
        waiting = list(self._pending)
        for pending in waiting:
            if pending in self._pending:  # a callback may cancel others
                self._remove_pending(pending)
                self.stats.upstream_rq_pending_failure_eject += 1
                pending.stream.on_pool_failure(reason, details, self.host)

    # -- connections

    def _create_connections(self) -> None:
        for _ in range(_CREATE_AT_ONCE):
            if not self._try_create_connection():
                return

    def _try_create_connection(self) -> bool:
        """One more connection, when more requests wait than those will take that are on their way, or by the policy
        for preconnecting; False: look no further.

        A pool without any connection gets one even beyond the limit, or its requests would wait for ever.
        """
        if len(self._pending) <= self._expected and not (self._preconnects and self._falls_short()):
            return False
        allowed = self._may_create()
        if not allowed:
            self.stats.upstream_cx_overflow += 1
        if allowed or not self._connections:
            self.breakers.connections.acquire()
            connection = self._new_connection()
            self._expected += connection.expected
            self._connections[connection] = None
            connection.connect()
        return allowed

    def _new_connection(self) -> UpstreamConnection:
        counts = ConnectionCounts(self.host, self.stats)
        if self.protocol == HTTP2:
            return Http2UpstreamConnection(self, counts)
        if self.protocol == AUTO:
            return NegotiatedConnection(self, counts)
        return Http1UpstreamConnection(self, counts)

    def _falls_short(self) -> bool:
        """Whether there is room for fewer streams than the policy wants for each request. Nothing is made ahead to a
        host that is not healthy."""
        if not self.host.healthy:
            return False
        if self.protocol == HTTP1:
            active = len(self._connections) - len(self._ready) - self._expected
            return (len(self._pending) + active) * self.config.preconnect_ratio > len(self._connections)
        active, room = 0, self._expected
        for connection in self._connections:
            active += connection.streams
            if connection.state == READY:
                room += connection.unused
        return (len(self._pending) + active) * self.config.preconnect_ratio > active + room

    def _may_create(self) -> bool:
        breakers = self.breakers
        per_host = breakers.max_connections_per_host
        return breakers.connections.can_acquire() and (per_host == 0 or self.host.stats.cx_active < per_host)

    def _attach(self, stream: PooledStream) -> None:
        """Open a stream on the connection that came free last."""
        host = self.host
        stats = self.stats
        if not self.breakers.requests.try_acquire():
            stats.upstream_rq_active_overflow += 1
            stream.on_pool_failure(RESET_OVERFLOW, "", host)
            return
        connection = self._ready[-1]
        host_stats = host.stats
        host_stats.rq_total += 1
        host_stats.rq_active += 1
        stats.upstream_rq_total += 1
        stats.upstream_rq_active += 1
        if host.outlier.split:
            host.outlier.put_local_origin(LOCAL_ORIGIN_CONNECT_SUCCESS)
        encoder = connection.begin(stream)
        if connection.state != READY:
            self._ready.pop()
        stream.on_pool_ready(encoder, connection, host)

    def _close_idle(self) -> None:
        for connection in self._ready.copy():
            connection.close()  # if it is idle
        if not self._pending and self._expected:
            for connection in list(self._connections):
                if connection.state == CONNECTING:
                    connection.give_up()

    # -- what connections report

    def on_connected(self, connection: UpstreamConnection, expected: int) -> None:
        """It is ready for some streams, and will perhaps be for as many more as are `expected`."""
        self.expect(connection, expected)
        self.on_ready(connection)

    def expect(self, connection: UpstreamConnection, expected: int) -> None:
        """So many more streams than it can take now it will perhaps take later."""
        self._expected += expected - connection.expected
        connection.expected = expected

    def on_negotiated(self, connection: UpstreamConnection, version: UpstreamConnection) -> None:
        """What it speaks is known now: `version` takes its place."""
        del self._connections[connection]
        self._connections[version] = None
        self._expected += version.expected - connection.expected
        self.negotiated = version.protocol

    def on_ready(self, connection: UpstreamConnection) -> None:
        """The connection can take a stream, which it could not before."""
        self._ready.append(connection)
        if self._pending:
            self._serve_pending()
        if self.draining:
            self._close_idle()

    def withdraw(self, connection: UpstreamConnection) -> None:
        """A ready connection can take no stream any more."""
        self._ready.remove(connection)

    def on_stream_done(self) -> None:
        """A stream ended, however it did."""
        self.breakers.requests.release()
        self.host.stats.rq_active -= 1
        self.stats.upstream_rq_active -= 1

    def on_connect_failed(self, connection: UpstreamConnection, reason: int, details: str) -> None:
        self.on_gone(connection, CONNECTING)
        self._fail_pending(reason, details)

    def on_gone(self, connection: UpstreamConnection, state: int) -> None:
        """A connection that was in `state` is closed."""
        del self._connections[connection]
        self.breakers.connections.release()
        if state == READY:
            self._ready.remove(connection)
        self.expect(connection, 0)
        self._check_unused()

    def replace(self) -> None:
        """Open connections for those that still wait, now that one is closed, or takes fewer streams than thought."""
        if self._pending:
            self._create_connections()
        self._check_unused()
