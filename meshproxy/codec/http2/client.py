"""The upstream's end of an HTTP/2 connection: requests out, responses in."""

from __future__ import annotations

from typing import Final

from mypy_extensions import mypyc_attr

from meshproxy.codec.content_length import NO_LENGTH
from meshproxy.codec.headers import UPGRADE, HeaderMap
from meshproxy.codec.http2 import constants as h2
from meshproxy.codec.http2 import details
from meshproxy.codec.http2.connection import Http2Connection
from meshproxy.codec.http2.failures import Http2Error
from meshproxy.codec.http2.messages import (
    LearntHeads,
    Message,
    Refused,
    clean,
    read_response,
    to_extended_connect,
    to_switched,
)
from meshproxy.codec.http2.settings import Http2Settings
from meshproxy.codec.http2.states import CLOSED, HALF_CLOSED_REMOTE
from meshproxy.codec.http2.stats import Http2Stats
from meshproxy.codec.http2.stream import Http2Stream
from meshproxy.codec.stream import StreamDecoder, StreamEncoder
from meshproxy.errors import RESET_PROTOCOL_ERROR, RESET_REMOTE_REFUSED, ProtocolError


@mypyc_attr(allow_interpreted_subclasses=True)
class Http2ClientCallbacks:
    """What the codec tells the connection pool."""

    def on_send_pending(self) -> None:
        """The output went from empty to something: fetch it with `data_to_send()` before the turn ends."""
        raise NotImplementedError

    def on_stream_closed(self) -> None:
        """One stream is over, both ways or by a reset from either side.

        Where the peer ended it, its decoder is told after this call; where a response is whole, before.
        """
        raise NotImplementedError

    def on_max_streams(self) -> None:
        """`max_streams` has changed: the peer's SETTINGS came."""

    def on_goaway(self, error_code: int) -> None:
        """The peer takes no further streams (`max_streams` is 0 from now on). Those that it has not looked at are
        reset with RESET_REMOTE_REFUSED after this call; the others go on."""
        raise NotImplementedError

    def on_protocol_error(self, error: ProtocolError) -> None:
        """The upstream broke the protocol: a GOAWAY is in the output; close when it is sent.

        The decoders of all streams are told `on_reset(RESET_PROTOCOL_ERROR)` after this call.
        """
        raise NotImplementedError

    def on_ping_ack(self) -> None:
        """The peer has answered a `ping()`."""


class _Nobody(Http2ClientCallbacks):
    """Hears what is said of a connection that is gone."""

    def on_send_pending(self) -> None:
        return

    def on_stream_closed(self) -> None:
        return


_NOBODY: Final = _Nobody()


class Http2ClientConnection(Http2Connection):
    """Many requests at once. The preface and SETTINGS are in the output from the beginning."""

    def __init__(self, callbacks: Http2ClientCallbacks, settings: Http2Settings, stats: Http2Stats) -> None:
        super().__init__(settings, stats, is_server=False)
        self._callbacks = callbacks
        self.max_streams: int = settings.max_concurrent_streams  # how many may be open: ours, or fewer by the peer
        self.streams_open: int = 0
        self.ended_by: int = 0  # RESET_*, where something has cut the stream short that `on_stream_closed` is about
        self.going_away: bool = False  # no further streams
        self._next_id: int = 1
        self._learnt: Final = LearntHeads()
        self.write(h2.PREFACE)
        self.start()

    def forget_callbacks(self) -> None:
        self._callbacks = _NOBODY

    # -- requests

    def new_stream(self, decoder: StreamDecoder) -> StreamEncoder:
        """Begin a request; there are fewer than `max_streams`. Its HEADERS go out with `send_headers`."""
        stream = RequestStream(self)
        stream.decoder = decoder
        self.streams_open += 1
        return stream

    def take_id(self, stream: Http2Stream) -> bool:
        """Give the stream its identifier, and open it; False: there are none left (section 5.1.1)."""
        if self._next_id > h2.LARGEST_STREAM_ID:
            return False
        stream.id = self._next_id
        self._next_id += 2
        self.open_stream(stream)
        if self._next_id > h2.LARGEST_STREAM_ID:
            self._go_away(h2.NO_ERROR)
        return True

    def on_reset_received(self, stream: Http2Stream, code: int) -> None:
        if code == h2.NO_ERROR and stream.state == HALF_CLOSED_REMOTE and stream.decoder is not None:
            self.close_stream(stream)  # the response is whole, and waits to be read: it must not be lost (section 8.1)
        else:
            super().on_reset_received(stream, code)

    def on_stream_gone(self, stream: Http2Stream) -> None:
        self.streams_open -= 1
        self.ended_by = stream.ended_by
        self._callbacks.on_stream_closed()

    def on_never_sent(self) -> None:
        """A stream ends that has sent nothing."""
        self.streams_open -= 1
        self.ended_by = 0
        self._callbacks.on_stream_closed()

    # -- responses

    def on_identifier(self, stream_id: int) -> None:
        raise Http2Error(h2.PROTOCOL_ERROR, "a stream that the server has opened")

    def on_head(self, stream_id: int, end: bool, wire: int, block: bytes) -> None:
        self.on_identifier(stream_id)

    def on_stream_head(self, stream: Http2Stream, end: bool, wire: int, block: bytes) -> None:
        stream.wire_received += wire
        stream.fields_received += wire
        if stream.head_received:
            self.take_trailers(stream, end, block)
            return
        message = self._learnt.find(self.decoder.version, block)
        if message is None:
            message = self._read_response(stream, block)
            if message is None:
                return
        assert isinstance(stream, RequestStream)
        stream.receive_head(message, end)

    def _read_response(self, stream: Http2Stream, block: bytes) -> Message | None:
        decoder = self.decoder
        self.read_block(block)
        if decoder.too_large:
            self.too_large(stream, decoder.too_many)
            return None
        read = read_response(decoder.fields, decoder.known, decoder.invalid, decoder.sensitive)
        if isinstance(read, Refused):
            self.malformed(stream.id, read.reason, read.details)
            return None
        self._learnt.learn(decoder.version, block, read)
        return read

    def is_idle(self, stream_id: int) -> bool:
        return stream_id >= self._next_id or not stream_id & 1

    # -- the connection

    def on_setting(self, identifier: int, value: int) -> None:
        if identifier == h2.MAX_CONCURRENT_STREAMS and not self.going_away:
            self.max_streams = min(value, self.settings.max_concurrent_streams)
        elif identifier == h2.ENABLE_PUSH and value:
            raise Http2Error(h2.PROTOCOL_ERROR, "a server that would be pushed to")

    def on_settings_received(self) -> None:
        self._callbacks.on_max_streams()

    def on_goaway(self, last_stream_id: int, error_code: int) -> None:
        self._go_away(error_code)
        for stream in [each for each in self.streams.values() if each.id > last_stream_id]:
            self.end_stream(stream, RESET_REMOTE_REFUSED, details.GOAWAY)

    def _go_away(self, error_code: int) -> None:
        self.going_away = True
        self.max_streams = 0
        self._callbacks.on_goaway(error_code)

    def on_ping_ack(self) -> None:
        self._callbacks.on_ping_ack()

    def on_broken(self, error: Http2Error) -> None:
        self.going_away = True
        self.max_streams = 0
        self._callbacks.on_protocol_error(error)

    def on_send_pending(self) -> None:
        self._callbacks.on_send_pending()


class RequestStream(Http2Stream):
    """Sends a request."""

    def __init__(self, client: Http2ClientConnection) -> None:
        super().__init__(client, 0)
        self._client: Final = client
        self._is_head: bool = False
        self._is_connect: bool = False
        self._protocol: bytes = b""

    def send_informational(self, headers: HeaderMap) -> None:
        """Requests have none."""

    def send_headers(self, headers: HeaderMap, end: bool) -> None:
        if self.head_sent or self.state >= CLOSED:
            return
        method = headers.get(b":method")
        if method == b"CONNECT":  # section 8.5
            headers = headers.copy()  # another attempt, and the log, want it as it was
            headers.remove(b":scheme")
            headers.remove(b":path")
        elif headers.known & UPGRADE:
            headers = headers.copy()
            self._prepare_tunnel(headers)
            if self.state >= CLOSED:
                return
        clean(headers)
        if not self._client.take_id(self):
            self._end_unsent(RESET_REMOTE_REFUSED)
            return
        self._is_head = method == b"HEAD"
        self._is_connect = method == b"CONNECT"
        self.head_sent = True
        self.ended = end
        self.connection.send_block(self, headers, end)
        if end:
            self.on_end_sent()

    def _prepare_tunnel(self, headers: HeaderMap) -> None:
        self._protocol = to_extended_connect(headers)
        if self._protocol and self._client.peer_settings_received and not self._client.peer_allows_connect:
            self._end_unsent(RESET_PROTOCOL_ERROR)

    def _end_unsent(self, reason: int) -> None:
        self.state = CLOSED
        self._client.on_never_sent()
        self.fail(reason, "")

    def receive_head(self, message: Message, end: bool) -> None:
        status = message.status
        if status < 200:
            if end:
                self.connection.malformed(self.id, "an interim response that ends its stream")
            elif self.decoder is not None:
                self.decoder.on_informational(message.headers())
            return
        self.head_received = True
        if message.length != NO_LENGTH and not (self._is_head or status == 304):
            if end and message.length:
                self.connection.malformed(self.id, "a content-length, and no content")
                return
            self.body_left = message.length
        elif self._is_head or status in (204, 304):
            self.body_left = 0
        headers = message.headers()
        if self._protocol and status == 200:
            to_switched(headers, self._protocol)
            self.is_tunnel = True
        elif self._is_connect and status < 300:
            self.is_tunnel = True
        if end:
            self.on_end_received()
        decoder = self.decoder
        if decoder is not None:
            if end:
                self.on_end_delivered()
            decoder.on_headers(headers, end)
        if end and self.state == CLOSED:
            self.connection.close_stream(self)

    def on_end_delivered(self) -> None:
        """The response is whole: its decoder hears nothing more."""
        self.decoder = None

    def reset(self, reason: int) -> None:
        if not self.id:
            if self.state < CLOSED:
                self.state = CLOSED
                self.decoder = None
                self._client.on_never_sent()
            return
        super().reset(reason)
