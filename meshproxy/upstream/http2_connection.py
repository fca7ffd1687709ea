"""A pool's connection that speaks HTTP/2: as many streams at once as both sides allow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshproxy.clock import monotonic
from meshproxy.codec.connection import output_size
from meshproxy.codec.http2.client import Http2ClientCallbacks, Http2ClientConnection
from meshproxy.codec.http2.stream import Http2Stream
from meshproxy.codec.stream import StreamDecoder, StreamEncoder
from meshproxy.errors import RESET_LOCAL, RESET_PROTOCOL_ERROR, RESET_REMOTE, RESET_TERMINATION, ProtocolError
from meshproxy.net.connection import Connection
from meshproxy.net.keepalive import Keepalive, PingSender
from meshproxy.observe.wire import WireBytes
from meshproxy.upstream.config import HTTP2
from meshproxy.upstream.connection import BUSY, CLOSED, CONNECTING, DRAINING, READY, UpstreamConnection
from meshproxy.upstream.connection_counts import ConnectionCounts

if TYPE_CHECKING:
    from meshproxy.upstream.pool import ConnectionPool

_MOST_BEFORE_SETTINGS: Final = 100


class Http2UpstreamConnection(UpstreamConnection):
    """It is thought to take as many streams as the configuration allows, until the peer's SETTINGS have a say; but only
    so many begin before as any peer should take (RFC 9113 section 6.5.2): a peer refuses those that are too many."""

    def __init__(self, pool: ConnectionPool, counts: ConnectionCounts) -> None:
        super().__init__(pool, counts, HTTP2)
        self.stats.upstream_cx_http2_total += 1
        self._http2_stats = pool.http2_stats
        self._codec = Http2ClientConnection(_CodecEvents(self), pool.config.http2, pool.http2_stats)
        self.expected = min(self._codec.max_streams, self.remaining)
        self._count_unused()
        self._keepalive: Keepalive | None = None

    def take_over(self, connection: Connection) -> None:
        settings = self.pool.config.http2_keepalive
        if settings is not None:
            self._keepalive = Keepalive(
                _Pings(self),
                self.pool.dispatcher.timers,
                settings.interval_ms,
                settings.timeout_ms,
                settings.jitter_percent,
                settings.idle_interval_ms,
            )
            self._keepalive.start(monotonic())
        connection.send_pending()  # the preface and SETTINGS
        super().take_over(connection)

    # -- streams

    def send_gathered(self) -> None:
        """The codec has output; what other downstream connections have for it meanwhile leaves in the same write."""
        connection = self.connection
        if connection is None:
            return
        if self._codec.streams_open > 1:
            connection.send_gathered()
        else:
            connection.send_pending()

    def begin(self, decoder: StreamDecoder) -> StreamEncoder:
        codec = self._codec
        if self._keepalive is not None:
            self._keepalive.on_new_stream(monotonic())
        self.reused = self.requests > 0
        self.requests += 1
        self.remaining -= 1
        encoder = codec.new_stream(decoder)
        self._count_unused()
        if self.remaining == 0:
            self.stats.upstream_cx_max_requests += 1
            self.state = DRAINING
        elif self.unused <= 0:
            self.state = BUSY
        return encoder

    @property
    def streams(self) -> int:
        return self._codec.streams_open

    def _count_unused(self) -> None:
        codec = self._codec
        most = codec.max_streams if codec.peer_settings_received else min(codec.max_streams, _MOST_BEFORE_SETTINGS)
        self.unused = min(most - codec.streams_open, self.remaining)

    def expected_later(self) -> int:
        return max(0, self.expected - self.unused)

    def on_stream_closed(self) -> None:
        pool = self.pool
        pool.on_stream_done()
        if self._codec.ended_by:
            self._count_reset(self._codec.ended_by)
        state = self.state
        if state == CLOSED:
            return
        self._count_unused()
        idle = self._codec.streams_open == 0
        if idle:
            self.start_idle()
        if state == BUSY and self.unused > 0:
            self.state = READY
            pool.on_ready(self)
        elif idle and (state == DRAINING or (pool.draining and not pool.has_pending)):
            self.close()

    def _count_reset(self, reason: int) -> None:
        if reason in (RESET_LOCAL, RESET_PROTOCOL_ERROR):
            self.stats.upstream_rq_tx_reset += 1
        elif reason == RESET_REMOTE:
            self.stats.upstream_rq_rx_reset += 1
        elif reason == RESET_TERMINATION:
            self.stats.upstream_rq_pending_failure_eject += 1

    def on_max_streams(self) -> None:
        """The peer says how many streams it takes: perhaps fewer than there are."""
        self._count_unused()
        if self.state == READY and self.unused <= 0:
            self.pool.withdraw(self)
            self.state = BUSY
        elif self.state == BUSY and self.unused > 0:
            self.state = READY
            self.pool.on_ready(self)
        self._expect_no_more()

    def _expect_no_more(self) -> None:
        """It takes what it takes now: who hoped for more may want another connection."""
        if self.expected:
            self.pool.expect(self, 0)
            self.pool.replace()

    def on_goaway(self) -> None:
        """The peer takes no further streams; what it has not looked at is reset in this same turn."""
        if self.state == CLOSED:
            return
        self.stats.upstream_cx_close_notify += 1
        self.stale = True
        self.drain()

    def on_protocol_error(self) -> None:
        """The codec resets all streams when this returns."""
        if self.state != CLOSED:
            self.stats.upstream_cx_protocol_error += 1
            self.on_gone(True, False)
            self.close_socket()

    def end_stream(self, encoder: StreamEncoder) -> None:
        encoder.reset(RESET_LOCAL)

    def wire_bytes(self, encoder: StreamEncoder) -> WireBytes:
        wire = WireBytes()
        if isinstance(encoder, Http2Stream):
            wire.received = encoder.wire_received
            wire.sent = encoder.wire_sent
            wire.fields_received = encoder.fields_received
            wire.fields_sent = encoder.fields_sent
        return wire

    # -- from the socket

    def on_data(self, data: bytes) -> None:
        self.stats.upstream_cx_rx_bytes_total += len(data)
        if self._keepalive is not None:
            self._keepalive.on_data(monotonic())
        self._codec.receive_data(data)
        self.stale = False

    def on_eof(self) -> None:
        if self.state != CLOSED:
            self._lose_streams(False)
            self.close_socket()

    def on_close(self, error: str) -> None:
        """The socket is gone: reset by the peer, or closed by us before."""
        if self.state != CLOSED:
            self._lose_streams(False)
        self.on_socket_gone()
        self._keepalive = None
        self._codec.forget_callbacks()  # no cycle is left: all is freed now

    def _lose_streams(self, local: bool) -> None:
        """The connection ends under its streams. They may be tried again at once: not on this one."""
        codec = self._codec
        self.on_gone(local, codec.streams_open > 0)
        codec.close_streams(RESET_TERMINATION)

    def data_to_send(self) -> bytes | list[bytes]:
        connection, codec = self.connection, self._codec
        if connection is not None and not connection.write_buffer_bytes:
            codec.on_output_written()
        data = codec.data_to_send()
        self.stats.upstream_cx_tx_bytes_total += output_size(data)
        return data

    def on_above_write_watermark(self) -> None:
        self._codec.on_above_write_watermark()

    def on_below_write_watermark(self) -> None:
        self._codec.on_below_write_watermark()

    # -- keep-alive

    def ping(self) -> None:
        self._codec.ping()

    def on_ping_ack(self) -> None:
        if self._keepalive is not None:
            self._keepalive.on_ack()

    def on_ping_timeout(self) -> None:
        if self.state != CLOSED:
            self._http2_stats.keepalive_timeout += 1
            self._lose_streams(True)
            self.close_socket()

    # -- closing

    def drain(self) -> None:
        if self.state == READY:
            self.pool.withdraw(self)
        self.state = DRAINING
        self.unused = 0
        self._expect_no_more()
        self.close()

    def abort(self) -> None:
        if self.state == CONNECTING:
            self.give_up()
        elif self.state != CLOSED:
            self._lose_streams(True)
            self.close_socket()

    def count_destroyed(self, local: bool, with_stream: bool) -> None:
        super().count_destroyed(local, with_stream)
        if self._keepalive is not None:
            self._keepalive.stop()


class _CodecEvents(Http2ClientCallbacks):
    """What the codec tells its connection."""

    def __init__(self, connection: Http2UpstreamConnection) -> None:
        self._connection = connection

    def on_send_pending(self) -> None:
        self._connection.send_gathered()

    def on_stream_closed(self) -> None:
        self._connection.on_stream_closed()

    def on_max_streams(self) -> None:
        self._connection.on_max_streams()

    def on_goaway(self, error_code: int) -> None:
        self._connection.on_goaway()

    def on_protocol_error(self, error: ProtocolError) -> None:
        self._connection.on_protocol_error()

    def on_ping_ack(self) -> None:
        self._connection.on_ping_ack()


class _Pings(PingSender):
    """What keeps the connection under watch."""

    def __init__(self, connection: Http2UpstreamConnection) -> None:
        self._connection = connection

    def send_ping(self) -> None:
        self._connection.ping()

    def on_ping_timeout(self) -> None:
        self._connection.on_ping_timeout()
