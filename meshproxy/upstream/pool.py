"""Connection pools: the HTTP/1 connections to one host, for routes of one priority.

A request takes the connection that was used last, so that the others may time out; without an idle one it waits, within
the circuit breaker's limit, for one that connects or comes free. The rules and the stats are those of Envoy's pool.
"""

from __future__ import annotations

from typing import Any, Final

from mypy_extensions import mypyc_attr

from meshproxy.clock import monotonic
from meshproxy.codec.connection import output_size
from meshproxy.codec.headers import HeaderMap
from meshproxy.codec.http1.client import ClientConnectionCallbacks, Http1ClientConnection
from meshproxy.codec.stream import StreamDecoder, StreamEncoder
from meshproxy.errors import (
    RESET_LOCAL,
    RESET_OVERFLOW,
    RESET_PROTOCOL_ERROR,
    RESET_TERMINATION,
    ProtocolError,
)
from meshproxy.net.address import Address
from meshproxy.net.connect import ConnectAttempt, ConnectHandler
from meshproxy.net.connection import Connection
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.net.timers import CallTimer
from meshproxy.observe.wire import WireBytes, read_wire
from meshproxy.upstream.config import ClusterConfig
from meshproxy.upstream.connection_counts import ConnectionCounts
from meshproxy.upstream.demand import ConnectionDemand
from meshproxy.upstream.host import Host
from meshproxy.upstream.keyed_pools import KeyedPools
from meshproxy.upstream.open_connection import open_connection
from meshproxy.upstream.outlier import LOCAL_ORIGIN_CONNECT_SUCCESS
from meshproxy.upstream.resource_limit import Breakers
from meshproxy.upstream.stats import ClusterStats

# Where a connection stands.
CONNECTING: Final = 0
READY: Final = 1  # idle
BUSY: Final = 2
CLOSED: Final = 3

_CREATE_AT_ONCE: Final = 3  # connections opened on one occasion, at most (as Envoy)
_UNLIMITED: Final = 1 << 60
_UNTAKEN_MS: Final = 30_000.0  # a connection that is closed is given up when its peer takes nothing for so long


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
        self, dispatcher: Dispatcher, host: Host, config: ClusterConfig, stats: ClusterStats, breakers: Breakers
    ) -> None:
        self.dispatcher = dispatcher
        self.host = host
        self.config = config
        self.stats = stats
        self.breakers = breakers
        self.demand: ConnectionDemand | None = None  # of those that share it; None: anybody
        self.priority: int = 0  # of its routes; for `keyed`
        self.keyed: KeyedPools | None = None  # who keeps it while it has connections; None: its host, for good
        self.draining: bool = False
        self._preconnects: bool = config.preconnect_ratio > 1.0
        self._counted: bool = False  # among the cluster's pools: it has connections, or requests that wait
        self._ready: list[UpstreamConnection] = []  # the one used last is at the end
        self._connections: dict[UpstreamConnection, None] = {}  # all that are not closed
        self._connecting: int = 0
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
        return not self._pending and len(self._ready) + self._connecting == len(self._connections)

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
        """One more connection, when more requests wait than connections are on their way, or by the policy for
        preconnecting; False: look no further.

        A pool without any connection gets one even beyond the limit, or its requests would wait for ever.
        """
        if len(self._pending) <= self._connecting and not (self._preconnects and self._falls_short()):
            return False
        allowed = self._may_create()
        if not allowed:
            self.stats.upstream_cx_overflow += 1
        if allowed or not self._connections:
            self.breakers.connections.acquire()
            self._connecting += 1
            connection = UpstreamConnection(self)
            self._connections[connection] = None
            connection.connect()
        return allowed

    def _falls_short(self) -> bool:
        """Whether there are fewer connections than the policy wants for each request. None are made ahead to a host
        that is not healthy."""
        busy = len(self._connections) - len(self._ready) - self._connecting
        wanted = (len(self._pending) + busy) * self.config.preconnect_ratio
        return self.host.healthy and wanted > len(self._connections)

    def _may_create(self) -> bool:
        breakers = self.breakers
        per_host = breakers.max_connections_per_host
        return breakers.connections.can_acquire() and (per_host == 0 or self.host.stats.cx_active < per_host)

    def _attach(self, stream: PooledStream) -> None:
        """Open a stream on the idle connection that was used last."""
        host = self.host
        stats = self.stats
        if not self.breakers.requests.try_acquire():
            stats.upstream_rq_active_overflow += 1
            stream.on_pool_failure(RESET_OVERFLOW, "", host)
            return
        connection = self._ready.pop()
        host_stats = host.stats
        host_stats.rq_total += 1
        host_stats.rq_active += 1
        stats.upstream_rq_total += 1
        stats.upstream_rq_active += 1
        if host.outlier.split:
            host.outlier.put_local_origin(LOCAL_ORIGIN_CONNECT_SUCCESS)
        encoder = connection.begin(stream)
        stream.on_pool_ready(encoder, connection, host)

    def _close_idle(self) -> None:
        for connection in self._ready.copy():
            connection.close()
        if not self._pending and self._connecting:
            for connection in list(self._connections):
                if connection.state == CONNECTING:
                    connection.give_up()

    # -- what connections report

    def on_connected(self, connection: UpstreamConnection) -> None:
        self._connecting -= 1
        self.on_ready(connection)

    def on_ready(self, connection: UpstreamConnection) -> None:
        """The connection can take a stream."""
        self._ready.append(connection)
        if self._pending:
            self._serve_pending()
        if self.draining:
            self._close_idle()

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
        elif state == CONNECTING:
            self._connecting -= 1
        self._check_unused()

    def replace(self) -> None:
        """Open connections for those that still wait, now that one is closed."""
        if self._pending:
            self._create_connections()
        self._check_unused()


class UpstreamConnection(ConnectHandler):
    """One connection of a pool.

    `reused` and `stale` are about its present (or just ended) stream: whether another came before it, and whether the
    peer closed the reused connection before it sent any byte for this one, so that it cannot have meant this request.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self.pool = pool
        self.host = pool.host
        self.state: int = CONNECTING
        self.id: int = 0
        self.local: Address | None = None
        self.remote: Address | None = None
        self.tls: Any = None  # facts of the TLS session; None on plaintext
        self.connection: Connection | None = None
        self.reused: bool = False
        self.stale: bool = False
        self.requests: int = 0  # how many streams it has had
        self._remaining: int = pool.config.max_requests_per_connection or _UNLIMITED
        self._stats = pool.stats
        self._codec = Http1ClientConnection(_CodecEvents(self), pool.config.http1)
        self._decoder: StreamDecoder | None = None  # of the present stream
        self._response_begun: bool = False
        self._reading_paused: bool = False
        self._backed_up: bool = False  # more than the limit waits to be sent
        self._expired: bool = False  # old enough to go after its present stream
        self._attempt: ConnectAttempt | None = None
        self._idle_since: float = 0.0
        self._idle_timer: CallTimer | None = None
        self._age_timer: CallTimer | None = None
        self._counts = ConnectionCounts(pool.host, pool.stats)

    # -- opening

    def connect(self) -> None:
        pool = self.pool
        self._stats.upstream_cx_http1_total += 1
        self._attempt = open_connection(pool.dispatcher, pool.config, self.host, self, pool.demand)

    def on_connected(self, connection: Connection) -> None:
        if self.state != CONNECTING:
            connection.abort()
            return
        pool = self.pool
        config = pool.config
        self._attempt = None
        self.connection = connection
        self.id = connection.id
        self.local = connection.local
        self.remote = connection.remote
        if connection.transport_socket is not None:
            self.tls = connection.transport_socket.facts
        self._counts.connected()
        if config.max_connection_duration_ms > 0.0:
            self._age_timer = CallTimer(self.on_age_timer)
            pool.dispatcher.timers.arm(self._age_timer, config.max_connection_duration_ms)
        self.state = READY
        self._start_idle(monotonic())
        pool.on_connected(self)

    def on_another_attempt(self) -> None:
        self._counts.another_attempt()

    def on_connect_failure(self, reason: int, details: str) -> None:
        if self.state != CONNECTING:
            return
        self.state = CLOSED
        self._counts.connect_failed(reason)
        pool = self.pool
        pool.on_connect_failed(self, reason, details)
        pool.replace()

    def give_up(self) -> None:
        """Nobody waits for it any more."""
        attempt, self._attempt = self._attempt, None
        self.state = CLOSED
        self._count_destroyed(True, False)
        self.pool.on_gone(self, CONNECTING)
        if attempt is not None:
            attempt.cancel()

    # -- streams

    def begin(self, decoder: StreamDecoder) -> StreamEncoder:
        """Open a stream: the connection is idle."""
        self.state = BUSY
        self.reused = self.requests > 0
        self.stale = False
        self.requests += 1
        self._response_begun = False
        self._decoder = decoder
        self._remaining -= 1
        if self._remaining == 0:
            self._stats.upstream_cx_max_requests += 1
        return self._codec.new_stream(decoder)

    def on_stream_complete(self, reusable: bool) -> None:
        if self.state != BUSY:
            return
        self._decoder = None
        pool = self.pool
        pool.on_stream_done()
        # Backed up, it was answered before it took the request: the next one would wait for the rest of that.
        if not reusable or self._remaining == 0 or self._expired or self._backed_up or pool.draining:
            codec = self._codec
            if codec.has_surplus:
                self._stats.upstream_cx_protocol_error += 1
            self._closed(not codec.peer_closed, False)
            self._close_socket()
            return
        self.state = READY
        self._start_idle(monotonic())
        pool.on_ready(self)

    def on_abort(self) -> None:
        """The stream was reset from our side: on HTTP/1 the connection goes with it."""
        if self.state == BUSY:
            self._end_stream()
            self._closed(True, True)
            self._abort_socket()

    def on_protocol_error(self) -> None:
        if self.state == CLOSED:
            return
        self._stats.upstream_cx_protocol_error += 1
        busy = self.state == BUSY
        if busy:
            self._end_stream()
        self._closed(True, busy)
        self._abort_socket()

    def _end_stream(self) -> None:
        self._decoder = None
        self.pool.on_stream_done()

    # -- from the socket

    def on_data(self, data: bytes) -> None:
        self._stats.upstream_cx_rx_bytes_total += len(data)
        self._response_begun = True
        codec = self._codec
        codec.receive_data(data)
        if not codec.reading_wanted and self.state == BUSY and not self._reading_paused:
            self._reading_paused = True
            self._stats.upstream_flow_control_paused_reading_total += 1
            self._read_disable(True)

    def on_reading_wanted(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self._stats.upstream_flow_control_resumed_reading_total += 1
            self._read_disable(False)

    def on_eof(self) -> None:
        """The peer closes. A response that ends with the connection is complete by it; any other is cut short."""
        if self.state == BUSY:
            self._note_stale()
            codec = self._codec
            if codec.decoder is not None:
                codec.decoder = _LastDecoder(self, codec.decoder)
            codec.receive_eof()
        elif self.state == READY:
            self._closed(False, False)
            self._close_socket()

    def on_cut_short(self, reason: int) -> None:
        """The end of the connection was not that of the response."""
        if reason == RESET_PROTOCOL_ERROR:
            self._stats.upstream_cx_protocol_error += 1
        if self.state == BUSY:
            self._end_stream()
            self._closed(False, True)
            self._close_socket()

    def on_close(self, error: str) -> None:
        """The socket is gone: reset by the peer, or closed by us before."""
        if self.state == READY:
            self._closed(False, False)
        elif self.state == BUSY:
            self._note_stale()
            decoder = self._decoder
            self._end_stream()
            self._closed(False, True)
            encoder = self._codec.encoder
            if encoder is not None:
                encoder.reset(RESET_LOCAL)
            if decoder is not None:
                decoder.on_reset(RESET_TERMINATION, "")
        self.connection = None
        self._idle_timer = self._age_timer = None
        self._codec.forget_callbacks()  # no cycle is left: all is freed now

    def _note_stale(self) -> None:
        self.stale = self.reused and not self._response_begun

    def data_to_send(self) -> bytes | list[bytes]:
        data = self._codec.data_to_send()
        self._stats.upstream_cx_tx_bytes_total += output_size(data)
        return data

    def send_pending(self) -> None:
        if self.connection is not None:
            self.connection.send_pending()

    def wire_bytes(self) -> WireBytes:
        """What it has carried so far."""
        return WireBytes() if self.connection is None else read_wire(self.connection, self._codec)

    def on_above_write_watermark(self) -> None:
        self._backed_up = True
        self._stats.upstream_flow_control_backed_up_total += 1
        if self._decoder is not None:
            self._decoder.on_above_write_watermark()

    def on_below_write_watermark(self) -> None:
        self._backed_up = False
        self._stats.upstream_flow_control_drained_total += 1
        if self._decoder is not None:
            self._decoder.on_below_write_watermark()

    def _read_disable(self, disable: bool) -> None:
        if self.connection is not None:
            self.connection.read_disable(disable)

    # -- idleness and age

    def _start_idle(self, now: float) -> None:
        """The timer is armed once, and looks how long the connection has been idle when it fires."""
        self._idle_since = now
        if self._idle_timer is None and self.pool.config.idle_timeout_ms > 0.0:
            self._idle_timer = CallTimer(self.on_idle_timer)
            self.pool.dispatcher.timers.arm(self._idle_timer, self.pool.config.idle_timeout_ms)

    def on_idle_timer(self) -> None:
        timer = self._idle_timer
        if timer is None or self.state == CLOSED:
            return
        left_ms = self.pool.config.idle_timeout_ms
        if self.state == READY:
            left_ms -= (monotonic() - self._idle_since) * 1000.0
            if left_ms <= 0.0:
                self._stats.upstream_cx_idle_timeout += 1
                self.close()
                return
        self.pool.dispatcher.timers.arm(timer, left_ms)

    def on_age_timer(self) -> None:
        self._stats.upstream_cx_max_duration_reached += 1
        self._expired = True
        if self.state == READY:
            self.close()

    # -- closing

    def close(self) -> None:
        """Close an idle connection."""
        if self.state == READY:
            self._closed(True, False)
            self._close_socket()

    def end_stream(self) -> None:
        """Close after what is pending has been sent; the stream on it hears nothing more."""
        if self.state == BUSY:
            self._end_stream()
            self._closed(True, True)
            self._close_socket()

    def abort(self) -> None:
        """Close at once; a stream on it is reset."""
        if self.state == CONNECTING:
            self.give_up()
        elif self.state == READY:
            self.close()
        elif self.state == BUSY:
            decoder, encoder = self._decoder, self._codec.encoder
            if encoder is not None:
                encoder.reset(RESET_LOCAL)
            if decoder is not None:
                decoder.on_reset(RESET_TERMINATION, "")

    def _closed(self, local: bool, with_stream: bool) -> None:
        """Everything but the socket itself."""
        state = self.state
        self.state = CLOSED
        self._count_destroyed(local, with_stream)
        pool = self.pool
        pool.on_gone(self, state)
        pool.replace()

    def _close_socket(self) -> None:
        """What the upstream has not taken of its request yet still goes out, as long as it takes some of it."""
        connection = self.connection
        if connection is not None:
            connection.close(_UNTAKEN_MS if connection.write_buffer_bytes else 0.0)

    def _abort_socket(self) -> None:
        if self.connection is not None:
            self.connection.abort()

    def _count_destroyed(self, local: bool, with_stream: bool) -> None:
        if self._idle_timer is not None:
            self._idle_timer.disarm()
        if self._age_timer is not None:
            self._age_timer.disarm()
        self._counts.destroyed(local, with_stream)
        stats = self._stats
        if self.requests:
            stats.upstream_rq_per_cx.record(self.requests)
        stats.upstream_cx_close_notify += self._codec.peer_closes


class _CodecEvents(ClientConnectionCallbacks):
    """What the codec tells its connection."""

    def __init__(self, connection: UpstreamConnection) -> None:
        self._connection = connection

    def on_stream_complete(self, reusable: bool) -> None:
        self._connection.on_stream_complete(reusable)

    def on_send_pending(self) -> None:
        self._connection.send_pending()

    def on_protocol_error(self, error: ProtocolError) -> None:
        self._connection.on_protocol_error()

    def on_abort(self) -> None:
        self._connection.on_abort()

    def on_reading_wanted(self) -> None:
        self._connection.on_reading_wanted()


class _LastDecoder(StreamDecoder):
    """Stands before the decoder of a stream whose peer has closed: the connection is done before the stream is reset.

    The reset may come later, when what was received is still held back.
    """

    def __init__(self, connection: UpstreamConnection, decoder: StreamDecoder) -> None:
        self._connection = connection
        self._decoder = decoder

    def on_headers(self, headers: HeaderMap, end: bool) -> None:
        self._decoder.on_headers(headers, end)

    def on_informational(self, headers: HeaderMap) -> None:
        self._decoder.on_informational(headers)

    def on_data(self, data: bytes, end: bool) -> None:
        self._decoder.on_data(data, end)

    def on_trailers(self, trailers: HeaderMap) -> None:
        self._decoder.on_trailers(trailers)

    def on_reset(self, reason: int, details: str) -> None:
        self._connection.on_cut_short(reason)
        self._decoder.on_reset(reason, details)
