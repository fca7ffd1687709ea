"""What both ends of an HTTP/2 connection make of the frames that come (RFC 9113 sections 5.1, 6 and 8.1).

No I/O. `receive_data` never raises: what breaks a rule is answered by RST_STREAM or GOAWAY (section 5.4). Underneath
lie `frame_reader.py`, where bytes become frames, `sending.py`, whose windows decide what goes out, and `endings.py`.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from meshproxy.codec.headers import HeaderMap
from meshproxy.codec.http2 import constants as h2
from meshproxy.codec.http2 import details
from meshproxy.codec.http2.endings import Endings
from meshproxy.codec.http2.failures import Http2Error
from meshproxy.codec.http2.frames import SETTINGS_ACK, ping_frame, settings_frame, window_update_frame
from meshproxy.codec.http2.hpack_decoder import HpackDecoder
from meshproxy.codec.http2.messages import check_trailers
from meshproxy.codec.http2.settings import Http2Settings
from meshproxy.codec.http2.states import (
    CLOSED,
    CONNECTION_CLOSED_ERROR,
    CONNECTION_PROTOCOL_ERROR,
    FORGOTTEN,
    IDLE,
    RECEIVED,
    STREAM_ERROR,
    TAKEN,
)
from meshproxy.codec.http2.stats import Http2Stats
from meshproxy.codec.http2.stream import Http2Stream

_SETTING: Final = Struct(">HL").unpack_from
_PING: Final = b"meshping"


class Http2Connection(Endings):
    """Base of the server's and the client's connection."""

    def __init__(self, settings: Http2Settings, stats: Http2Stats, is_server: bool) -> None:
        super().__init__(settings, stats, is_server)
        self.decoder: Final = HpackDecoder(
            settings.hpack_table_bytes, settings.max_headers_bytes, settings.max_headers_count
        )
        self.peer_settings_received: bool = False
        self.peer_allows_connect: bool = False
        self.last_taken_id: int = h2.LARGEST_STREAM_ID  # what comes of those above is passed over: we have said GOAWAY
        self._is_server: Final = is_server
        self._settings_unacknowledged: bool = True

    def start(self) -> None:
        """Say what we want of the peer, in Envoy's order: the first output."""
        settings = self.settings
        values = [] if self._is_server else [(h2.ENABLE_PUSH, 0)]
        values.extend(settings.extra_settings)
        values.append((h2.HEADER_TABLE_SIZE, settings.hpack_table_bytes))
        values.append((h2.ENABLE_CONNECT_PROTOCOL, int(settings.allow_connect)))
        values.append((h2.MAX_CONCURRENT_STREAMS, settings.max_concurrent_streams))
        values.append((h2.INITIAL_WINDOW_SIZE, settings.stream_window_bytes))
        if settings.max_frame_bytes != h2.DEFAULT_FRAME_BYTES:
            values.append((h2.MAX_FRAME_SIZE, settings.max_frame_bytes))
        self.write_frame(settings_frame(values))
        increment = settings.connection_window_bytes - h2.DEFAULT_WINDOW_BYTES
        if increment > 0:
            self.write_frame(window_update_frame(0, increment))

    def ping(self) -> None:
        """Ask for a sign of life: `on_ping_ack`."""
        self.write_frame(ping_frame(_PING, ack=False))

    # -- what the two ends do differently

    def on_identifier(self, stream_id: int) -> None:
        """HEADERS with an identifier that nobody has used yet: it is no longer idle."""
        raise NotImplementedError

    def on_head(self, stream_id: int, end: bool, wire: int, block: bytes) -> None:
        """The block of a HEADERS frame that no stream is open for: a request, or a push that never was."""
        raise NotImplementedError

    def on_stream_head(self, stream: Http2Stream, end: bool, wire: int, block: bytes) -> None:
        """The block of a HEADERS frame on an open stream: a response, or trailers."""
        raise NotImplementedError

    def is_idle(self, stream_id: int) -> bool:
        """Whether nobody has used that identifier yet."""
        raise NotImplementedError

    def on_ping_ack(self) -> None:
        raise NotImplementedError

    def on_setting(self, identifier: int, value: int) -> None:
        """A setting of the peer that concerns only one role."""

    def on_settings_received(self) -> None:
        """All the settings of a frame have been taken."""

    # -- bytes in

    @property
    def buffered_bytes(self) -> int:
        return self.reader.held_bytes

    @property
    def amid_head(self) -> bool:
        """Whether the fields of a message have begun to arrive, and are not whole."""
        return self.reader.amid_head

    @property
    def reading_wanted(self) -> bool:
        return True  # windows bound what may come

    def receive_data(self, data: bytes) -> None:
        if self.reader.stopped:
            return
        try:
            self.reader.feed(self, data)
        except Http2Error as error:
            self.fail(error)

    def receive_eof(self) -> None:
        """The peer sends no more; its streams end with the connection, which is the owner's to close."""

    # -- frames on streams

    def _meaning(self, stream_id: int, frame_type: int) -> int:
        """What a frame on a stream that is not open means."""
        if self.is_idle(stream_id):
            return RECEIVED[IDLE][frame_type]
        if stream_id > self.last_taken_id or self.sent_resets.has(stream_id):
            return RECEIVED[FORGOTTEN][frame_type]
        return RECEIVED[CLOSED][frame_type]

    def _refuse(self, meaning: int, stream_id: int) -> None:
        """Answer a frame that may not come now."""
        if meaning == CONNECTION_PROTOCOL_ERROR:
            raise Http2Error(h2.PROTOCOL_ERROR, "a frame on an idle stream")
        if meaning == CONNECTION_CLOSED_ERROR:
            raise Http2Error(h2.STREAM_CLOSED, "a frame on a closed stream")
        if meaning == STREAM_ERROR:
            self.stream_error(stream_id, h2.STREAM_CLOSED, "")

    def on_data_frame(self, stream_id: int, content: bytes, length: int, end: bool) -> None:
        self.receive_window -= length
        if self.receive_window < 0:
            raise Http2Error(h2.FLOW_CONTROL_ERROR, "more DATA than the connection's window")
        if self.unacknowledged > self.receive_window:
            self.return_to_window(0)
        stream = self.streams.get(stream_id)
        if stream is None:
            self.return_to_window(length)
            self._refuse(self._meaning(stream_id, h2.DATA), stream_id)
            return
        meaning = RECEIVED[stream.state][h2.DATA]
        if meaning != TAKEN:
            self.return_to_window(length)
            self._refuse(meaning, stream_id)
        elif not self._may_receive(stream, len(content), length, end):
            self.return_to_window(length)
        else:
            if end:
                stream.on_end_received()
            stream.count_received(length)
            if content or end:
                stream.receive_data(content, end)
            if end and stream.state == CLOSED:
                self.close_stream(stream)

    def _may_receive(self, stream: Http2Stream, size: int, length: int, end: bool) -> bool:
        """Whether `size` bytes of content, in a payload of `length`, are in order; if not, the stream has ended."""
        if not stream.head_received:
            self.malformed(stream.id, "DATA before HEADERS")
            return False
        stream.wire_received += length + h2.FRAME_HEADER_BYTES
        stream.receive_window -= length
        if stream.receive_window < 0:
            self.stream_error(stream.id, h2.FLOW_CONTROL_ERROR, "")
            return False
        if stream.body_left >= 0:
            # As long as content-length says (section 8.1.1); else that ends the stream, never the connection, as in
            # Envoy.
            stream.body_left -= size
            if stream.body_left < 0 or (end and stream.body_left):
                self.stream_error(stream.id, h2.PROTOCOL_ERROR, details.REMOTE_RESET)
                return False
        return True

    def on_block(self, stream_id: int, end: bool, wire: int, block: bytes, depends_on_itself: bool) -> None:
        if depends_on_itself:
            if self.is_idle(stream_id):
                self.on_identifier(stream_id)
            self.read_block(block)
            self.stream_error(stream_id, h2.PROTOCOL_ERROR, details.MESSAGING)
            return
        stream = self.streams.get(stream_id)
        self.field_bytes_received += len(block)
        if stream is not None:
            meaning = RECEIVED[stream.state][h2.HEADERS]
            if meaning == TAKEN:
                self.on_stream_head(stream, end, wire, block)
                return
        else:
            meaning = self._meaning(stream_id, h2.HEADERS)
            if meaning == TAKEN:
                self.on_head(stream_id, end, wire, block)
                return
        self.read_block(block)  # whatever becomes of it, the table goes on with it (section 4.3)
        self._refuse(meaning, stream_id)

    def read_block(self, block: bytes) -> None:
        """Decode a field block: `decoder` has what it says."""
        if not self.decoder.decode(block):
            raise Http2Error(h2.COMPRESSION_ERROR, self.decoder.error)

    def take_trailers(self, stream: Http2Stream, end: bool, block: bytes) -> None:
        """The block of trailers (section 8.1)."""
        decoder = self.decoder
        self.read_block(block)
        if stream.is_tunnel:
            self.stream_error(stream.id, h2.PROTOCOL_ERROR, details.MESSAGING)
            return
        if decoder.too_large:
            self.too_large(stream, decoder.too_many)
            return
        refused = check_trailers(decoder.fields, decoder.known, decoder.invalid)
        if refused is not None:
            self.malformed(stream.id, refused.reason, refused.details)
        elif not end or stream.body_left > 0:
            self.malformed(stream.id, "trailers that do not end their stream, or a body shorter than content-length")
        else:
            trailers = HeaderMap(decoder.fields, decoder.known)
            trailers.sensitive = decoder.sensitive
            stream.on_end_received()
            stream.receive_trailers(trailers)
            if stream.state == CLOSED:
                self.close_stream(stream)

    def on_priority(self, stream_id: int, error_code: int) -> None:
        if error_code != h2.NO_ERROR:
            self.stream_error(stream_id, error_code, "")

    def on_rst_stream(self, stream_id: int, error_code: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            self._refuse(self._meaning(stream_id, h2.RST_STREAM), stream_id)
            return
        stream.wire_received += h2.FRAME_HEADER_BYTES + 4
        self.stats.rx_reset += 1
        self.on_reset_received(stream, error_code)

    def on_window_update(self, stream_id: int, increment: int) -> None:
        if stream_id == 0:
            self.widen(increment)
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            self._refuse(self._meaning(stream_id, h2.WINDOW_UPDATE), stream_id)
        elif increment == 0:
            self.stream_error(stream_id, h2.PROTOCOL_ERROR, "")
        elif not stream.widen(increment):
            self.stream_error(stream_id, h2.FLOW_CONTROL_ERROR, "")
        else:
            self.on_waiting(stream, 0)
            self.pump()

    # -- frames of the connection

    def on_settings(self, data: bytes, at: int, end: int) -> None:
        window = -1
        while at < end:
            pair: tuple[int, int] = _SETTING(data, at)
            if pair[0] == h2.INITIAL_WINDOW_SIZE:
                window = pair[1]  # it touches every stream: only the last of a frame is worth that
                if window > h2.LARGEST_WINDOW_BYTES:
                    raise Http2Error(h2.FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE out of range")
            else:
                self._take_setting(pair[0], pair[1])
            at += 6
        if window >= 0:
            self.set_initial_send_window(window)
        self.peer_settings_received = True
        self.write_control(SETTINGS_ACK)
        self.on_settings_received()
        self.pump()

    def _take_setting(self, identifier: int, value: int) -> None:
        if identifier == h2.HEADER_TABLE_SIZE:
            self.encoder.set_peer_table_size(value)
        elif identifier == h2.MAX_FRAME_SIZE:
            if not h2.DEFAULT_FRAME_BYTES <= value <= h2.LARGEST_FRAME_BYTES:
                raise Http2Error(h2.PROTOCOL_ERROR, "SETTINGS_MAX_FRAME_SIZE out of range")
            self.max_send_frame = min(value, self.settings.max_frame_bytes)
        elif identifier == h2.ENABLE_PUSH and value > 1:
            raise Http2Error(h2.PROTOCOL_ERROR, "SETTINGS_ENABLE_PUSH is 0 or 1")
        elif identifier == h2.ENABLE_CONNECT_PROTOCOL:
            if value > 1 or (self.peer_allows_connect and not value):
                raise Http2Error(h2.PROTOCOL_ERROR, "SETTINGS_ENABLE_CONNECT_PROTOCOL is 1, or 0 at first")
            self.peer_allows_connect = value == 1
        else:
            self.on_setting(identifier, value)

    def on_settings_acknowledged(self) -> None:
        if not self._settings_unacknowledged:
            return
        self._settings_unacknowledged = False
        self.decoder.settings_acknowledged()
        change = self.settings.stream_window_bytes - self.initial_receive_window
        if change:
            self.initial_receive_window = self.settings.stream_window_bytes
            for stream in self.streams.values():
                stream.receive_window += change

    def on_ping(self, opaque: bytes) -> None:
        self.write_control(ping_frame(opaque, ack=True))

    def on_ping_answered(self, opaque: bytes) -> None:
        if opaque == _PING:
            self.on_ping_ack()
