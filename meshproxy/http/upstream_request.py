"""One attempt: a request on one connection to one host, from the pool to its last byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshproxy.clock import monotonic
from meshproxy.codec.headers import HeaderMap, status_code
from meshproxy.codec.stream import StreamEncoder
from meshproxy.errors import RESET_LOCAL
from meshproxy.http import failed_attempt
from meshproxy.http.tcp_tunnel import TcpTunnel
from meshproxy.http.timeouts import RequestTimeouts
from meshproxy.http.tracing.span import AttemptSpan
from meshproxy.http.waiting_body import WaitingBody
from meshproxy.net.connection import Connection
from meshproxy.net.timers import CallTimer
from meshproxy.observe import response_flags as flags
from meshproxy.observe.stream_info import UpstreamInfo
from meshproxy.observe.wire import WireBytes
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.config import HTTP2
from meshproxy.upstream.connection import UpstreamConnection
from meshproxy.upstream.host import Host
from meshproxy.upstream.pool import ConnectionPool, PendingStream, PooledStream

if TYPE_CHECKING:
    from meshproxy.http.router import Router

# Where the attempt stands.
WAITING: Final = 0  # for a connection
SENDING: Final = 1  # on a connection
ENDED: Final = 2  # nothing of it reaches the router any more

_NO_BYTES: Final = WireBytes()


class UpstreamRequest(PooledStream):
    """Decodes the response for the router; before there is a connection it keeps what the router sends."""

    def __init__(self, router: Router, cluster: Cluster, host: Host, priority: int) -> None:
        self.router = router
        self.cluster = cluster
        self.host = host
        self.priority = priority
        self.pool: ConnectionPool | None = None  # None: the host's own
        self.state: int = WAITING
        self.status: int = 0
        self.started: bool = False  # some of the request is on the wire
        self.reused: bool = False  # on a connection that served before
        self.stale: bool = False  # the peer ended it without having looked at it, see UpstreamConnection
        self.multiplexed: bool = False  # on a connection that others are on
        self.headers_received: bool = False
        self.retried: bool = False  # another attempt was made beside it
        self.timed_out: bool = False  # … as its per-try timeout was over
        self.span: AttemptSpan | None = None  # where attempts are traced
        self._headers: HeaderMap | None = None
        self._end: bool = False
        self._encoder: StreamEncoder | None = None
        self._connection: UpstreamConnection | None = None
        self._wire: WireBytes | None = None  # what the connection had had when the attempt began, if it is measured
        self._pending: PendingStream | None = None
        self._tunnel: TcpTunnel | None = None  # in place of a pool's connection
        self._waiting: WaitingBody | None = None
        self._trailers: HeaderMap | None = None
        self._read_disabled: int = 0
        self._downstream_paused: int = 0
        self._timeouts: RequestTimeouts | None = None
        self._per_try: CallTimer | None = None
        self._idle: CallTimer | None = None
        self._max_duration: CallTimer | None = None

    # -- from the router

    def start(self, headers: HeaderMap, end: bool, timeouts: RequestTimeouts) -> None:
        self._headers = headers
        self._end = end
        self._timeouts = timeouts
        pool = self.pool
        if pool is None:
            pool = self.host.pool(self.cluster, self.priority)
        self.multiplexed = pool.protocol == HTTP2
        self._pending = pool.new_stream(self)

    def start_tunnel(self, headers: HeaderMap, preface: bytes, timeouts: RequestTimeouts) -> None:
        """As `start`, on a raw connection that begins with `preface`: nothing of the head is sent."""
        self._headers = headers
        self._timeouts = timeouts
        self._tunnel = TcpTunnel(self.router.stream.dispatcher, self.cluster, self.host, self, preface)
        self._tunnel.open()

    def send_data(self, data: bytes, end: bool) -> None:
        self._end = end
        encoder = self._encoder
        if encoder is None:
            if data:
                self._wait(data)
        else:
            encoder.send_data(data, end)
            self._on_sent(end)

    def _wait(self, data: bytes) -> None:
        """Until there is a connection: more than a buffer holds is not taken from the downstream."""
        if self._waiting is None:
            self._waiting = WaitingBody()
        if self._waiting.add(data, self.router.stream.manager.buffer_limit_bytes):
            self.on_above_write_watermark()

    def send_trailers(self, trailers: HeaderMap) -> None:
        self._end = True
        if self._encoder is None:
            self._trailers = trailers
        else:
            self._encoder.send_trailers(trailers)
            self._on_sent(True)

    def read_disable(self, disable: bool) -> None:
        if self._encoder is not None:
            self._encoder.read_disable(disable)
            if self.multiplexed:
                self._count_paused(disable)
        else:
            self._read_disabled += 1 if disable else -1

    def _count_paused(self, disable: bool) -> None:
        """Of HTTP/2 each stream counts (of HTTP/1 the connection does)."""
        stats = self.cluster.stats
        if disable:
            stats.upstream_flow_control_paused_reading_total += 1
        else:
            stats.upstream_flow_control_resumed_reading_total += 1

    def arm_per_try(self, timeout_ms: float) -> None:
        """The request is complete: from here on counts the time of a try."""
        if self._per_try is None and self.state != ENDED and not self.headers_received:
            self._per_try = CallTimer(self.on_per_try_timeout)
            self.router.stream.manager.timers.arm(self._per_try, timeout_ms)

    def on_final(self) -> None:
        """The router takes this response: from here on its whole time is what counts."""
        if self._per_try is not None:
            self._per_try.disarm()

    def abandon(self, complete: bool) -> None:
        """The router makes another attempt instead of taking this response (`complete`: all of it is here)."""
        if complete:
            self.finish(self._end)
        else:
            self.abort()

    def abort(self) -> None:
        """Reset what is under way; the router hears nothing more."""
        if self.state == ENDED:
            return
        encoder, pending = self._encoder, self._pending
        if self.span is not None:
            self.span.on_canceled()
        self._stop()
        if encoder is not None:
            encoder.reset(RESET_LOCAL)
        elif pending is not None:
            pending.cancel()
        elif self._tunnel is not None:
            self._tunnel.close()

    def cancel(self) -> None:
        """The downstream is gone, or answered otherwise."""
        self.abort()

    def finish(self, request_complete: bool) -> None:
        """The response is whole. Without the whole request the connection is of no more use."""
        encoder = self._encoder
        self._stop()
        if not request_complete and encoder is not None:
            encoder.reset(RESET_LOCAL)

    def _stop(self) -> None:
        self.state = ENDED
        if self._wire is not None:
            self._measure(self._wire)
        if self.router.config.upstream_log:
            self._write_log()
        if self.span is not None:
            self.span.finish(self, self.router.stream.info)
        if self._per_try is not None:
            self._per_try.disarm()
            self._per_try = None
        if self._idle is not None:
            self._idle.disarm()
            self._idle = None
        if self._max_duration is not None:
            self._max_duration.disarm()
            self._max_duration = None
        self._release_downstream()

    def _measure(self, before: WireBytes) -> None:
        """Add what this attempt had on the wire to what those before it had."""
        info = self.router.stream.info.upstream
        if info is None:
            return
        if info.wire is None:
            info.wire = WireBytes()
        if self._connection is not None and self._encoder is not None:
            now = self._connection.wire_bytes(self._encoder)
        elif self._tunnel is not None:
            now = WireBytes()
            now.add(self._tunnel.wire, _NO_BYTES)
        else:
            return
        info.wire.add(now, before)
        self._wire = now

    def measure(self) -> None:
        """For a record of a stream that goes on: tell what it has had on the wire so far."""
        if self._wire is not None and self.state == SENDING:
            self._measure(self._wire)

    def _write_log(self) -> None:
        info = self.router.stream.info
        info.log_type = "UpstreamEnd"
        for upstream_log in self.router.config.upstream_log:
            upstream_log.log(info)
        info.log_type = "NotSet"

    # -- from the pool

    def on_pool_failure(self, reason: int, details: str, host: Host) -> None:
        info = self.router.stream.info.upstream
        if info is not None:  # as in Envoy, logs name the host that could not be reached
            self._tell_host(info)
            info.local = None
            info.remote = None
        self.on_reset(reason, details)

    def on_pool_ready(self, encoder: StreamEncoder, connection: UpstreamConnection, host: Host) -> None:
        self._pending = None
        self._connection = connection
        self.reused = connection.reused
        self.multiplexed = connection.protocol == HTTP2
        info = self.router.stream.info.upstream
        assert info is not None
        self._tell_connection(info, connection)
        if self.router.config.measures:
            self._wire = connection.wire_bytes(encoder)
        self._begin(encoder, info)

    def on_tunnel_ready(self, encoder: StreamEncoder, connection: Connection) -> None:
        """As `on_pool_ready`."""
        info = self.router.stream.info.upstream
        assert info is not None
        self._tell_host(info)
        info.local = connection.local
        info.remote = connection.remote
        info.connection_id = connection.id
        if connection.transport_socket is not None:
            info.tls = connection.transport_socket.facts
        if self.router.config.measures:
            self._wire = WireBytes()
        self._begin(encoder, info)

    def _begin(self, encoder: StreamEncoder, info: UpstreamInfo) -> None:
        """Send what there is of the request."""
        self._encoder = encoder
        self.state = SENDING
        self.started = True
        stream = self.router.stream
        headers = self._headers
        assert headers is not None
        info.first_byte_sent = info.pool_ready = monotonic()
        if self.router.counts is not None:
            self.router.counts.on_attempt()
        for _ in range(self._read_disabled):
            encoder.read_disable(True)
        timeouts = self._timeouts
        if timeouts is not None and timeouts.per_try_idle_ms > 0.0:
            self._idle = CallTimer(self.on_per_try_idle_timeout)
            self._touch()
        if timeouts is not None and timeouts.max_duration_ms > 0.0:
            self._max_duration = CallTimer(self.on_max_duration)
            stream.manager.timers.arm(self._max_duration, timeouts.max_duration_ms)
        waiting, trailers, end = self._waiting, self._trailers, self._end
        encoder.send_headers(headers, end and waiting is None and trailers is None)
        if waiting is not None:
            self._waiting = None
            encoder.send_data(waiting.take(), end and trailers is None)
            self._on_sent(False)
        if trailers is not None:
            encoder.send_trailers(trailers)
        if end:
            self._on_sent(True)
        if waiting is not None and waiting.full:
            self.on_below_write_watermark()

    def _tell_host(self, info: UpstreamInfo) -> None:
        info.host = self.host.address
        info.host_name = self.host.hostname
        info.host_metadata = self.host.metadata

    def _tell_connection(self, info: UpstreamInfo, connection: UpstreamConnection) -> None:
        self._tell_host(info)
        info.local = connection.local
        info.remote = connection.remote
        info.tls = connection.tls
        info.connection_id = connection.id
        info.protocol = connection.protocol

    def on_chosen(self) -> None:
        """Of several attempts it is this one's response that counts: logs tell its host."""
        info = self.router.stream.info.upstream
        if info is not None and self._connection is not None:
            self._tell_connection(info, self._connection)

    def _on_sent(self, end: bool) -> None:
        if end:
            info = self.router.stream.info.upstream
            if info is not None:
                info.last_byte_sent = monotonic()
        self._touch()

    # -- from the upstream codec

    def on_informational(self, headers: HeaderMap) -> None:
        self._touch()
        self.router.on_upstream_informational(self, headers)

    def on_headers(self, headers: HeaderMap, end: bool) -> None:
        self.headers_received = True
        self.status = status_code(headers)
        if self.span is not None:
            self.span.on_response(headers)
        info = self.router.stream.info.upstream
        if info is not None:
            info.first_byte_received = monotonic()
            if end:
                info.last_byte_received = info.first_byte_received
        self._touch()
        self.router.on_upstream_headers(self, headers, end)

    def on_data(self, data: bytes, end: bool) -> None:
        if self.state == ENDED:
            return
        if end:
            info = self.router.stream.info.upstream
            if info is not None:
                info.last_byte_received = monotonic()
        self._touch()
        self.router.on_upstream_data(self, data, end)

    def on_trailers(self, trailers: HeaderMap) -> None:
        if self.state == ENDED:
            return
        if self.span is not None:
            self.span.on_response(trailers)
        info = self.router.stream.info.upstream
        if info is not None:
            info.last_byte_received = monotonic()
        self.router.on_upstream_trailers(self, trailers)

    def on_reset(self, reason: int, details: str) -> None:
        """The connection, the peer or the pool ended the attempt."""
        if self.state == ENDED:
            return
        connection = self._connection
        if connection is not None:
            self.stale = connection.lost_unseen(reason)
            if self.multiplexed:
                details = ""  # it is one stream's, and the codec's: no failure of the transport
        if self.span is not None:
            self.span.on_reset(reason)
        self._stop()
        failed_attempt.on_attempt_reset(self.router, self, reason, details)

    def on_above_write_watermark(self) -> None:
        self._downstream_paused += 1
        if self.multiplexed:
            self.cluster.stats.upstream_flow_control_backed_up_total += 1
        self.router.stream.read_disable_request(True)

    def on_below_write_watermark(self) -> None:
        if self._downstream_paused > 0:
            self._downstream_paused -= 1
            if self.multiplexed:
                self.cluster.stats.upstream_flow_control_drained_total += 1
            self.router.stream.read_disable_request(False)

    def _release_downstream(self) -> None:
        while self._downstream_paused > 0:
            self.on_below_write_watermark()

    # -- timeouts

    def _touch(self) -> None:
        idle, timeouts = self._idle, self._timeouts
        if idle is not None and timeouts is not None and self.state == SENDING:
            self.router.stream.manager.timers.arm(idle, timeouts.per_try_idle_ms)

    def on_per_try_timeout(self) -> None:
        if self.span is not None:
            self.span.flags |= flags.UPSTREAM_REQUEST_TIMEOUT
        failed_attempt.on_per_try_timeout(self.router, self, False)

    def on_per_try_idle_timeout(self) -> None:
        failed_attempt.on_per_try_timeout(self.router, self, True)

    def on_max_duration(self) -> None:
        failed_attempt.on_max_duration(self.router, self)
