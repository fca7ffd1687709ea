"""One connection of a pool, whatever it speaks: how it is opened, how long it may idle and live, and how it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshproxy.clock import monotonic
from meshproxy.codec.stream import StreamDecoder, StreamEncoder
from meshproxy.errors import RESET_REMOTE_REFUSED
from meshproxy.net.address import Address
from meshproxy.net.connect import ConnectAttempt, ConnectHandler
from meshproxy.net.connection import Connection
from meshproxy.net.timers import CallTimer
from meshproxy.observe.wire import WireBytes
from meshproxy.upstream.config import AUTO, HTTP1, HTTP2
from meshproxy.upstream.connection_counts import ConnectionCounts
from meshproxy.upstream.open_connection import open_connection

if TYPE_CHECKING:
    from meshproxy.upstream.pool import ConnectionPool

# Where a connection stands.
CONNECTING: Final = 0
READY: Final = 1  # it can take a stream
BUSY: Final = 2  # it has as many as it can
DRAINING: Final = 3  # it takes no further one, and goes with the last that it has
CLOSED: Final = 4

_OFFERED: Final[dict[int, tuple[str, ...]]] = {AUTO: ("h2", "http/1.1"), HTTP1: ("http/1.1",), HTTP2: ("h2",)}  # ALPN
UNLIMITED: Final = 1 << 60
UNTAKEN_MS: Final = 30_000.0  # a connection that is closed is given up when its peer takes nothing for so long


class UpstreamConnection(ConnectHandler):
    """Base of the versions' connections.

    `reused` and `stale` are about the stream that began last, or has just ended: whether another came before it, and
    whether the peer ended the connection (or, of HTTP/2, the stream) without having looked at this request.
    """

    def __init__(self, pool: ConnectionPool, counts: ConnectionCounts, protocol: int) -> None:
        self.pool = pool
        self.host = pool.host
        self.protocol = protocol  # HTTP1 or HTTP2; AUTO until it is known
        self.state: int = CONNECTING
        self.unused: int = 1  # how many more streams it can take, once it is connected
        self.expected: int = 1  # how many it is thought to take later, which nobody else needs to
        self.id: int = 0
        self.local: Address | None = None
        self.remote: Address | None = None
        self.tls: Any = None  # facts of the TLS session; None on plaintext
        self.connection: Connection | None = None
        self.reused: bool = False
        self.stale: bool = False
        self.requests: int = 0  # how many streams it has had
        self.stats = pool.stats
        self.counts = counts
        self.remaining: int = pool.config.max_requests_per_connection or UNLIMITED
        self._attempt: ConnectAttempt | None = None
        self._idle_since: float = 0.0
        self._idle_timer: CallTimer | None = None
        self._age_timer: CallTimer | None = None

    # -- opening

    def connect(self) -> None:
        pool = self.pool
        self._attempt = open_connection(
            pool.dispatcher, pool.config, self.host, self, pool.demand, _OFFERED[self.protocol]
        )

    def on_connected(self, connection: Connection) -> None:
        if self.state != CONNECTING:
            connection.abort()
            return
        self.counts.connected()
        self.take_over(connection)

    def take_over(self, connection: Connection) -> None:
        """Speak on an open connection from now on."""
        pool = self.pool
        config = pool.config
        self._attempt = None
        self.connection = connection
        self.id = connection.id
        self.local = connection.local
        self.remote = connection.remote
        if connection.transport_socket is not None:
            self.tls = connection.transport_socket.facts
        if config.max_connection_duration_ms > 0.0:
            self._age_timer = CallTimer(self.on_age_timer)
            pool.dispatcher.timers.arm(self._age_timer, config.max_connection_duration_ms)
        self.state = READY
        self.start_idle()
        pool.on_connected(self, self.expected_later())

    def expected_later(self) -> int:
        """How many streams it is thought to take beyond those that it can take now that it is connected."""
        return 0

    def on_another_attempt(self) -> None:
        self.counts.another_attempt()

    def on_connect_failure(self, reason: int, details: str) -> None:
        if self.state != CONNECTING:
            return
        self.state = CLOSED
        self.counts.connect_failed(reason)
        pool = self.pool
        pool.on_connect_failed(self, reason, details)
        pool.replace()

    def give_up(self) -> None:
        """Nobody waits for it any more."""
        attempt, self._attempt = self._attempt, None
        self.state = CLOSED
        self.count_destroyed(True, False)
        self.pool.on_gone(self, CONNECTING)
        if attempt is not None:
            attempt.cancel()

    # -- streams

    def lost_unseen(self, reason: int) -> bool:
        """Whether a stream that was reset so was not looked at by the peer (`stale`): it may be sent again."""
        return self.stale and (self.protocol == HTTP1 or reason == RESET_REMOTE_REFUSED)

    def begin(self, decoder: StreamDecoder) -> StreamEncoder:
        """Open a stream: the connection is ready, and perhaps is no more after that."""
        raise NotImplementedError

    def end_stream(self, encoder: StreamEncoder) -> None:
        """Close the stream after what is pending has been sent; its decoder hears nothing more. On HTTP/1 the
        connection goes with it."""
        raise NotImplementedError

    def wire_bytes(self, encoder: StreamEncoder) -> WireBytes:
        """What it has carried so far; of the stream that `encoder` sends on, where it has several."""
        raise NotImplementedError

    @property
    def streams(self) -> int:
        """How many are on it."""
        raise NotImplementedError

    def send_pending(self) -> None:
        if self.connection is not None:
            self.connection.send_pending()

    def read_disable(self, disable: bool) -> None:
        if self.connection is not None:
            self.connection.read_disable(disable)

    # -- idleness and age

    def start_idle(self) -> None:
        """The timer is armed once, and looks how long the connection has been idle when it fires."""
        self._idle_since = monotonic()
        if self._idle_timer is None and self.pool.config.idle_timeout_ms > 0.0:
            self._idle_timer = CallTimer(self.on_idle_timer)
            self.pool.dispatcher.timers.arm(self._idle_timer, self.pool.config.idle_timeout_ms)

    def on_idle_timer(self) -> None:
        timer = self._idle_timer
        if timer is None or self.state == CLOSED:
            return
        left_ms = self.pool.config.idle_timeout_ms
        if self.streams == 0:
            left_ms -= (monotonic() - self._idle_since) * 1000.0
            if left_ms <= 0.0:
                self.stats.upstream_cx_idle_timeout += 1
                self.close()
                return
        self.pool.dispatcher.timers.arm(timer, left_ms)

    def on_age_timer(self) -> None:
        """It is as old as it may get."""
        self.stats.upstream_cx_max_duration_reached += 1
        self.drain()

    # -- closing

    def drain(self) -> None:
        """Take no further stream; go when there is none (left)."""
        raise NotImplementedError

    def close(self) -> None:
        """Close an idle connection."""
        if self.state != CLOSED and self.streams == 0:
            self.on_gone(True, False)
            self.close_socket()

    def abort(self) -> None:
        """Close at once; the streams on it are reset."""
        raise NotImplementedError

    def on_gone(self, local: bool, with_stream: bool) -> None:
        """It is closed, by us or by the peer: everything but the socket itself."""
        state = self.state
        self.state = CLOSED
        self.count_destroyed(local, with_stream)
        pool = self.pool
        pool.on_gone(self, state)
        pool.replace()

    def close_socket(self) -> None:
        """What the upstream has not taken of its requests yet still goes out, as long as it takes some of it."""
        connection = self.connection
        if connection is not None:
            connection.close(UNTAKEN_MS if connection.write_buffer_bytes else 0.0)

    def abort_socket(self) -> None:
        if self.connection is not None:
            self.connection.abort()

    def on_socket_gone(self) -> None:
        """No cycle is left but what the codec holds."""
        self.connection = None
        self._idle_timer = self._age_timer = None

    def count_destroyed(self, local: bool, with_stream: bool) -> None:
        if self._idle_timer is not None:
            self._idle_timer.disarm()
        if self._age_timer is not None:
            self._age_timer.disarm()
        self.counts.destroyed(local, with_stream)
        if self.requests:
            self.stats.upstream_rq_per_cx.record(self.requests)
