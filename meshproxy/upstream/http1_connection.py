"""A pool's connection that speaks HTTP/1: one stream at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshproxy.codec.connection import output_size
from meshproxy.codec.headers import HeaderMap
from meshproxy.codec.http1.client import ClientConnectionCallbacks, Http1ClientConnection
from meshproxy.codec.stream import StreamDecoder, StreamEncoder
from meshproxy.errors import RESET_LOCAL, RESET_PROTOCOL_ERROR, RESET_TERMINATION, ProtocolError
from meshproxy.observe.wire import WireBytes, read_wire
from meshproxy.upstream.config import HTTP1
from meshproxy.upstream.connection import BUSY, CLOSED, CONNECTING, READY, UpstreamConnection
from meshproxy.upstream.connection_counts import ConnectionCounts

if TYPE_CHECKING:
    from meshproxy.upstream.pool import ConnectionPool


class Http1UpstreamConnection(UpstreamConnection):
    """It is ready as long as it is idle."""

    def __init__(self, pool: ConnectionPool, counts: ConnectionCounts) -> None:
        super().__init__(pool, counts, HTTP1)
        self.stats.upstream_cx_http1_total += 1
        self._codec = Http1ClientConnection(_CodecEvents(self), pool.config.http1)
        self._decoder: StreamDecoder | None = None  # of the present stream
        self._response_begun: bool = False
        self._reading_paused: bool = False
        self._backed_up: bool = False  # more than the limit waits to be sent
        self._expired: bool = False  # it goes after its present stream

    # -- streams

    def begin(self, decoder: StreamDecoder) -> StreamEncoder:
        self.state = BUSY
        self.reused = self.requests > 0
        self.stale = False
        self.requests += 1
        self._response_begun = False
        self._decoder = decoder
        self.remaining -= 1
        if self.remaining == 0:
            self.stats.upstream_cx_max_requests += 1
        return self._codec.new_stream(decoder)

    @property
    def streams(self) -> int:
        return 1 if self.state == BUSY else 0

    def on_stream_complete(self, reusable: bool) -> None:
        if self.state != BUSY:
            return
        self._decoder = None
        pool = self.pool
        pool.on_stream_done()
        # Backed up, it was answered before it took the request: the next one would wait for the rest of that.
        if not reusable or self.remaining == 0 or self._expired or self._backed_up or pool.draining:
            codec = self._codec
            if codec.has_surplus:
                self.stats.upstream_cx_protocol_error += 1
            self.on_gone(not codec.peer_closed, False)
            self.close_socket()
            return
        self.state = READY
        self.start_idle()
        pool.on_ready(self)

    def on_abort(self) -> None:
        """The stream was reset from our side: the connection goes with it."""
        if self.state == BUSY:
            self._end_stream()
            self.on_gone(True, True)
            self.abort_socket()

    def on_protocol_error(self) -> None:
        if self.state == CLOSED:
            return
        self.stats.upstream_cx_protocol_error += 1
        busy = self.state == BUSY
        if busy:
            self._end_stream()
        self.on_gone(True, busy)
        self.abort_socket()

    def _end_stream(self) -> None:
        self._decoder = None
        self.pool.on_stream_done()

    def end_stream(self, encoder: StreamEncoder) -> None:
        if self.state == BUSY:
            self._end_stream()
            self.on_gone(True, True)
            self.close_socket()

    def wire_bytes(self, encoder: StreamEncoder) -> WireBytes:
        return WireBytes() if self.connection is None else read_wire(self.connection, self._codec)

    # -- from the socket

    def on_data(self, data: bytes) -> None:
        self.stats.upstream_cx_rx_bytes_total += len(data)
        self._response_begun = True
        codec = self._codec
        codec.receive_data(data)
        if not codec.reading_wanted and self.state == BUSY and not self._reading_paused:
            self._reading_paused = True
            self.stats.upstream_flow_control_paused_reading_total += 1
            self.read_disable(True)

    def on_reading_wanted(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self.stats.upstream_flow_control_resumed_reading_total += 1
            self.read_disable(False)

    def on_eof(self) -> None:
        """The peer closes. A response that ends with the connection is complete by it; any other is cut short."""
        if self.state == BUSY:
            self._note_stale()
            codec = self._codec
            if codec.decoder is not None:
                codec.decoder = _LastDecoder(self, codec.decoder)
            codec.receive_eof()
        elif self.state == READY:
            self.on_gone(False, False)
            self.close_socket()

    def on_cut_short(self, reason: int) -> None:
        """The end of the connection was not that of the response."""
        if reason == RESET_PROTOCOL_ERROR:
            self.stats.upstream_cx_protocol_error += 1
        if self.state == BUSY:
            self._end_stream()
            self.on_gone(False, True)
            self.close_socket()

    def on_close(self, error: str) -> None:
        """The socket is gone: reset by the peer, or closed by us before."""
        if self.state == READY:
            self.on_gone(False, False)
        elif self.state == BUSY:
            self._note_stale()
            decoder = self._decoder
            self._end_stream()
            self.on_gone(False, True)
            encoder = self._codec.encoder
            if encoder is not None:
                encoder.reset(RESET_LOCAL)
            if decoder is not None:
                decoder.on_reset(RESET_TERMINATION, "")
        self.on_socket_gone()
        self._codec.forget_callbacks()  # no cycle is left: all is freed now

    def _note_stale(self) -> None:
        self.stale = self.reused and not self._response_begun

    def data_to_send(self) -> bytes | list[bytes]:
        data = self._codec.data_to_send()
        self.stats.upstream_cx_tx_bytes_total += output_size(data)
        return data

    def on_above_write_watermark(self) -> None:
        self._backed_up = True
        self.stats.upstream_flow_control_backed_up_total += 1
        if self._decoder is not None:
            self._decoder.on_above_write_watermark()

    def on_below_write_watermark(self) -> None:
        self._backed_up = False
        self.stats.upstream_flow_control_drained_total += 1
        if self._decoder is not None:
            self._decoder.on_below_write_watermark()

    # -- closing

    def drain(self) -> None:
        self._expired = True
        if self.state == READY:
            self.close()

    def abort(self) -> None:
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

    def count_destroyed(self, local: bool, with_stream: bool) -> None:
        super().count_destroyed(local, with_stream)
        self.stats.upstream_cx_close_notify += self._codec.peer_closes


class _CodecEvents(ClientConnectionCallbacks):
    """What the codec tells its connection."""

    def __init__(self, connection: Http1UpstreamConnection) -> None:
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

    def __init__(self, connection: Http1UpstreamConnection, decoder: StreamDecoder) -> None:
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
