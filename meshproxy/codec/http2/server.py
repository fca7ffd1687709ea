"""The downstream's end of an HTTP/2 connection: requests in, responses out."""

from __future__ import annotations

from typing import Final

from meshproxy.codec.connection import ServerConnectionCallbacks
from meshproxy.codec.headers import UPGRADE, HeaderMap, status_code
from meshproxy.codec.http2 import constants as h2
from meshproxy.codec.http2.connection import Http2Connection
from meshproxy.codec.http2.failures import Http2Error
from meshproxy.codec.http2.messages import (
    LearntHeads,
    Message,
    Refused,
    clean,
    read_request,
    to_opened,
)
from meshproxy.codec.http2.settings import Http2Settings
from meshproxy.codec.http2.states import CLOSED, HALF_CLOSED_LOCAL, HALF_CLOSED_REMOTE
from meshproxy.codec.http2.stats import Http2Stats
from meshproxy.codec.http2.stream import Http2Stream
from meshproxy.errors import RESET_PROTOCOL_ERROR


class _Nobody(ServerConnectionCallbacks):
    """Hears what is said of a connection that is gone."""

    def on_send_pending(self) -> None:
        return


_NOBODY: Final = _Nobody()


class Http2ServerConnection(Http2Connection):
    """Reads requests and sends their responses, many at once. `start` puts SETTINGS into the output."""

    def __init__(self, callbacks: ServerConnectionCallbacks, settings: Http2Settings, stats: Http2Stats) -> None:
        super().__init__(settings, stats, is_server=True)
        self._callbacks = callbacks
        self._last_used_id: int = 0
        self._learnt: Final = LearntHeads()

    def forget_callbacks(self) -> None:
        self._callbacks = _NOBODY

    # -- requests

    def on_identifier(self, stream_id: int) -> None:
        if not stream_id & 1:
            raise Http2Error(h2.PROTOCOL_ERROR, "a client's stream with an even identifier")
        self._last_used_id = stream_id

    def on_head(self, stream_id: int, end: bool, wire: int, block: bytes) -> None:
        self.on_identifier(stream_id)
        message = self._learnt.find(self.decoder.version, block)
        if message is None:
            self.read_block(block)
        if not self._takes(stream_id):
            return
        self.last_peer_id = stream_id
        stream = ResponseStream(self, stream_id)
        stream.wire_received = wire
        stream.fields_received = wire
        if message is None:
            message = self._read_request(stream, block)
            if message is None:
                return
        stream.to_head = message.is_head
        stream.is_tunnel = message.is_connect
        stream.protocol = message.protocol
        stream.head_received = True
        stream.body_left = message.length
        self.open_stream(stream)
        if end:
            stream.state = HALF_CLOSED_REMOTE
        decoder_of_stream = self._callbacks.new_stream(stream)
        if end and message.length > 0:
            stream.decoder = decoder_of_stream
            self.malformed(stream_id, "a content-length, and no content")
        elif stream.state != CLOSED:
            stream.decoder = decoder_of_stream
            decoder_of_stream.on_headers(message.headers(), end)

    def _takes(self, stream_id: int) -> bool:
        """Whether a new stream is taken: not above the last of a GOAWAY, nor beyond the limit."""
        if stream_id > self.last_taken_id:
            return False
        if len(self.streams) >= self.settings.max_concurrent_streams:
            self.last_peer_id = stream_id
            self.stats.stream_refused_errors += 1
            self.write_reset(stream_id, h2.REFUSED_STREAM)
            return False
        return True

    def _read_request(self, stream: ResponseStream, block: bytes) -> Message | None:
        """The request in the block; None where it is refused, which its decoder is told."""
        decoder = self.decoder
        if decoder.too_large:
            self._open_refused(stream)
            self.too_large(stream, decoder.too_many)
            return None
        read = read_request(
            decoder.fields, decoder.known, decoder.invalid, decoder.sensitive, self.settings.allow_connect
        )
        if isinstance(read, Refused):
            self._open_refused(stream)
            self.malformed(stream.id, read.reason, read.details)
            return None
        self._learnt.learn(decoder.version, block, read)
        return read

    def _open_refused(self, stream: ResponseStream) -> None:
        """It counts, and is logged, though it is no request."""
        self.open_stream(stream)
        stream.decoder = self._callbacks.new_stream(stream)

    def on_stream_head(self, stream: Http2Stream, end: bool, wire: int, block: bytes) -> None:
        """Trailers."""
        self.stats.trailers += 1  # Envoy counts those of requests alone
        stream.wire_received += wire
        stream.fields_received += wire
        self.take_trailers(stream, end, block)

    def is_idle(self, stream_id: int) -> bool:
        return stream_id > self._last_used_id or not stream_id & 1

    # -- the connection

    def shutdown_notice(self) -> None:
        """Say that the connection will end, and take what is on its way (section 6.8)."""
        self.send_goaway(h2.LARGEST_STREAM_ID, h2.NO_ERROR)

    def goaway(self) -> None:
        """Take no further stream."""
        if self.last_taken_id == h2.LARGEST_STREAM_ID:
            self.last_taken_id = self.last_peer_id
            self.stats.goaway_sent += 1
            self.send_goaway(self.last_peer_id, h2.NO_ERROR)

    def on_goaway(self, last_stream_id: int, error_code: int) -> None:
        """The client opens no further streams; those that are open go on."""

    def on_stream_gone(self, stream: Http2Stream) -> None:
        self._callbacks.on_stream_closed()

    def on_ping_ack(self) -> None:
        self._callbacks.on_ping_ack()

    def on_broken(self, error: Http2Error) -> None:
        self.close_streams(RESET_PROTOCOL_ERROR, error.details)
        self._callbacks.on_protocol_error(error)

    def on_send_pending(self) -> None:
        self._callbacks.on_send_pending()


class ResponseStream(Http2Stream):
    """Sends a response."""

    def __init__(self, server: Http2ServerConnection, stream_id: int) -> None:
        super().__init__(server, stream_id)
        self.to_head: bool = False
        self.protocol: bytes = b""  # of an extended CONNECT

    def send_informational(self, headers: HeaderMap) -> None:
        if not self.head_sent and self.state < CLOSED:
            clean(headers)
            self.connection.send_block(self, headers, False)

    def send_headers(self, headers: HeaderMap, end: bool) -> None:
        if self.head_sent or self.state >= CLOSED:
            return
        if self.protocol and headers.known & UPGRADE and status_code(headers) == 101:
            to_opened(headers)
        clean(headers)
        self.head_sent = True
        self.ended = end
        self.connection.send_block(self, headers, end)
        if end:
            self.on_end_sent()

    def send_data(self, data: bytes, end: bool) -> None:
        super().send_data(b"" if self.to_head else data, end)

    def on_end_sent(self) -> None:
        """A response that is whole while its request is not: nobody reads the rest of that (section 8.1)."""
        self.decoder = None  # it knows us: a cycle would keep the stream until the collector comes
        super().on_end_sent()
        if self.state == HALF_CLOSED_LOCAL:
            self.connection.reset_stream(self, h2.NO_ERROR)
