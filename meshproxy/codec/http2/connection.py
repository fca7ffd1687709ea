"""What both ends of an HTTP/2 connection share: frames in and out, flow control, and the limits on what a peer may do.

No I/O. `receive_data` never raises: what breaks a rule is answered by RST_STREAM or GOAWAY (RFC 9113 section 5.4).
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from meshproxy.codec.connection import CodecConnection
from meshproxy.codec.headers import HeaderMap
from meshproxy.codec.http2 import constants as h2
from meshproxy.codec.http2 import details
from meshproxy.codec.http2.frames import (
    SETTINGS_ACK,
    data_header,
    goaway_frame,
    headers_frames,
    ping_frame,
    rst_stream_frame,
    settings_frame,
    window_update_frame,
)
from meshproxy.codec.http2.hpack_decoder import HpackDecoder
from meshproxy.codec.http2.hpack_encoder import HpackEncoder
from meshproxy.codec.http2.messages import check_trailers
from meshproxy.codec.http2.settings import Http2Settings
from meshproxy.codec.http2.states import (
    CLOSED,
    CONNECTION_CLOSED_ERROR,
    CONNECTION_PROTOCOL_ERROR,
    FORGOTTEN,
    IDLE,
    IGNORED,
    RECEIVED,
    STREAM_ERROR,
    TAKEN,
)
from meshproxy.codec.http2.stats import Http2Stats
from meshproxy.codec.http2.stream import Http2Stream
from meshproxy.errors import RESET_LOCAL, RESET_PROTOCOL_ERROR, RESET_REMOTE, RESET_REMOTE_REFUSED, ProtocolError

_LONG: Final = Struct(">L").unpack_from
_SETTING: Final = Struct(">HL").unpack_from
_STREAM_BITS: Final = 0x7FFFFFFF
_PUMP_BYTES: Final = 256 * 1024  # of waiting data that go out at once; the rest when these have been fetched
_REMEMBERED_RESETS: Final = 1024
_BLOCK_SLACK: Final = 2  # a compressed block may be so many times as long as the list that it may make
_PING: Final = b"meshping"

# `receive_data` awaits …
_PREFACE: Final = 0
_FIRST_SETTINGS: Final = 1
_FRAMES: Final = 2
_DEAD: Final = 3  # … nothing, ever


class Http2Error(ProtocolError):
    """A connection error: `code` is what GOAWAY says."""

    def __init__(self, code: int, reason: str, error_details: str = details.CODEC_ERROR) -> None:
        super().__init__(400, error_details, reason)
        self.code: Final = code


class Http2Flood(Http2Error):
    """Nothing is wrong with the frames but their number, which Envoy does not count as a protocol error."""

    def __init__(self, reason: str, error_details: str) -> None:
        super().__init__(h2.ENHANCE_YOUR_CALM, reason, error_details)


class Http2Connection(CodecConnection):
    """Base of the server's and the client's connection."""

    def __init__(self, settings: Http2Settings, stats: Http2Stats, is_server: bool) -> None:
        super().__init__()
        self.settings: Final = settings
        self.stats: Final = stats
        self.streams: dict[int, Http2Stream] = {}
        self.should_close: bool = False  # the peer broke the protocol: close when the output is sent
        self.backed_up: bool = False  # the socket takes no more for now
        self.encoder: Final = HpackEncoder(settings.hpack_table_bytes)
        self.decoder: Final = HpackDecoder(
            settings.hpack_table_bytes, settings.max_headers_bytes, settings.max_headers_count
        )
        self.peer_settings_received: bool = False
        self.peer_allows_connect: bool = False
        self.initial_send_window: int = h2.DEFAULT_WINDOW_BYTES
        # A peer that has not acknowledged our SETTINGS may still go by the default.
        self.initial_receive_window: int = max(h2.DEFAULT_WINDOW_BYTES, settings.stream_window_bytes)
        self._is_server: Final = is_server
        self._awaits: int = _PREFACE if is_server else _FIRST_SETTINGS
        self._buffer: bytes = b""
        self._settings_unacknowledged: bool = True
        self._max_send_frame: int = h2.DEFAULT_FRAME_BYTES
        # flow control
        self._send_window: int = h2.DEFAULT_WINDOW_BYTES
        self._receive_window: int = max(h2.DEFAULT_WINDOW_BYTES, settings.connection_window_bytes)
        self._unacknowledged: int = 0
        self._update_at: Final = self._receive_window // 2
        self._stream_update_at: Final = settings.stream_window_bytes // 2
        self._ready: dict[Http2Stream, None] = {}  # that have data to send, and a window for it; in turn
        # streams that are no more
        self.last_peer_id: int = 0  # the highest that the peer has opened
        self.last_taken_id: int = h2.LARGEST_STREAM_ID  # what comes of those above is passed over: we have said GOAWAY
        self._resets: dict[int, None] = {}  # of streams that we have reset, the last ones,
        self._resets_before: int = 0  # and up to which they are not remembered
        # a field block that goes on
        self._block_parts: list[bytes] | None = None
        self._block_bytes: int = 0
        self._block_stream: int = 0
        self._block_flags: int = 0
        # floods
        self._opened: int = 0
        self._empty_frames: int = 0
        self._priority_frames: int = 0
        self._window_updates: int = 0
        self._data_frames_sent: int = 0
        self._outbound_frames: int = 0  # that have not been written to the socket, as far as we know
        self._outbound_control_frames: int = 0

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

    def on_goaway(self, last_stream_id: int, error_code: int) -> None:
        raise NotImplementedError

    def on_ping_ack(self) -> None:
        raise NotImplementedError

    def on_setting(self, identifier: int, value: int) -> None:
        """A setting of the peer that concerns only one role."""

    def on_settings_received(self) -> None:
        """All the settings of a frame have been taken."""

    def on_broken(self, error: Http2Error) -> None:
        """A connection error: GOAWAY is in the output."""
        raise NotImplementedError

    def on_stream_gone(self, stream: Http2Stream) -> None:
        """The stream is closed, and no longer among `streams`."""

    # -- bytes in

    @property
    def buffered_bytes(self) -> int:
        return len(self._buffer)

    @property
    def reading_wanted(self) -> bool:
        return True  # windows bound what may come

    def receive_data(self, data: bytes) -> None:
        if self._awaits == _DEAD:
            return
        if self._buffer:
            data = self._buffer + data
        try:
            at = self._read(data)
        except Http2Error as error:
            self.fail(error)
            return
        self._buffer = data[at:] if at < len(data) and self._awaits != _DEAD else b""

    def receive_eof(self) -> None:
        """The peer sends no more; its streams end with the connection, which is the owner's to close."""

    def _read(self, data: bytes) -> int:
        """Take all whole frames; where they end."""
        at = 0
        size = len(data)
        if self._awaits == _PREFACE:
            at = self._read_preface(data)
            if not at:
                return 0
        max_frame = self.settings.max_frame_bytes
        while size - at >= h2.FRAME_HEADER_BYTES:
            length = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            if length > max_frame:
                raise Http2Error(h2.FRAME_SIZE_ERROR, "a frame over SETTINGS_MAX_FRAME_SIZE")
            frame_type = data[at + 3]
            begin = at + h2.FRAME_HEADER_BYTES
            end = begin + length
            if end > size:
                break
            stream_id = (data[at + 5] & 0x7F) << 24 | data[at + 6] << 16 | data[at + 7] << 8 | data[at + 8]
            self._on_frame(frame_type, data[at + 4], stream_id, data, begin, end)
            at = end
            if self._awaits == _DEAD:
                break
        return at

    def _read_preface(self, data: bytes) -> int:
        preface = h2.PREFACE
        if data.startswith(preface):
            self._awaits = _FIRST_SETTINGS
            return len(preface)
        if not preface.startswith(data):
            raise Http2Error(h2.PROTOCOL_ERROR, "not HTTP/2's preface")
        return 0

    def _on_frame(self, frame_type: int, flags: int, stream_id: int, data: bytes, at: int, end: int) -> None:
        if self._block_parts is not None and frame_type != h2.CONTINUATION:
            raise Http2Error(h2.PROTOCOL_ERROR, "a field block was not continued")
        if self._awaits == _FIRST_SETTINGS:
            if frame_type != h2.SETTINGS or flags & h2.ACK:
                raise Http2Error(h2.PROTOCOL_ERROR, "the first frame is no SETTINGS")
            self._awaits = _FRAMES
        if frame_type == h2.DATA:
            self._on_data(flags, stream_id, data, at, end)
        elif frame_type == h2.HEADERS:
            self._on_headers(flags, stream_id, data, at, end)
        elif frame_type == h2.WINDOW_UPDATE:
            self._on_window_update(stream_id, data, at, end)
        elif frame_type == h2.RST_STREAM:
            self._on_rst_stream(stream_id, data, at, end)
        elif frame_type == h2.SETTINGS:
            self._on_settings(flags, stream_id, data, at, end)
        elif frame_type == h2.PING:
            self._on_ping(flags, stream_id, data, at, end)
        elif frame_type == h2.CONTINUATION:
            self._on_continuation(flags, stream_id, data, at, end)
        elif frame_type == h2.PRIORITY:
            self._on_priority(stream_id, data, at, end)
        elif frame_type == h2.GOAWAY:
            self._on_goaway(stream_id, data, at, end)
        elif frame_type == h2.PUSH_PROMISE:
            raise Http2Error(h2.PROTOCOL_ERROR, "a push that nobody allowed")
        # others are extensions, which are ignored (section 5.5)

    def _meaning(self, stream_id: int, frame_type: int) -> int:
        """What a frame on a stream that is not open means."""
        if self.is_idle(stream_id):
            return RECEIVED[IDLE][frame_type]
        if stream_id in self._resets or stream_id <= self._resets_before or stream_id > self.last_taken_id:
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

    # -- DATA

    def _on_data(self, flags: int, stream_id: int, data: bytes, at: int, end: int) -> None:
        length = end - at
        if stream_id == 0:
            raise Http2Error(h2.PROTOCOL_ERROR, "DATA on stream 0")
        self._receive_window -= length
        if self._receive_window < 0:
            raise Http2Error(h2.FLOW_CONTROL_ERROR, "more DATA than the connection's window")
        begin = at
        if flags & h2.PADDED:
            if not length or data[at] >= length:
                raise Http2Error(h2.PROTOCOL_ERROR, "more padding than payload")
            begin = at + 1
            end -= data[at]
        is_last = flags & h2.END_STREAM != 0
        if begin == end and not is_last:
            self._count_empty()
        else:
            self._empty_frames = 0
        stream = self.streams.get(stream_id)
        meaning = self._meaning(stream_id, h2.DATA) if stream is None else RECEIVED[stream.state][h2.DATA]
        if meaning != TAKEN:
            self._return_to_window(length)
            self._refuse(meaning, stream_id)
            return
        assert stream is not None
        self._receive_on(stream, data[begin:end] if begin or end < len(data) else data, length, is_last)

    def _receive_on(self, stream: Http2Stream, content: bytes, length: int, is_last: bool) -> None:
        if not stream.head_received:
            self._return_to_window(length)
            self.malformed(stream.id, "DATA before HEADERS")
            return
        stream.wire_received += length + h2.FRAME_HEADER_BYTES
        stream.receive_window -= length
        if stream.receive_window < 0:
            self._return_to_window(length)
            self.stream_error(stream.id, h2.FLOW_CONTROL_ERROR, "")
            return
        if stream.body_left >= 0 and not self._count_body(stream, len(content), is_last):
            self._return_to_window(length)
            return
        if is_last:
            stream.on_end_received()
        stream.count_received(length)
        if content or is_last:
            stream.receive_data(content, is_last)
        if is_last and stream.state == CLOSED:
            self.close_stream(stream)

    def _count_body(self, stream: Http2Stream, size: int, is_last: bool) -> bool:
        """Whether the body can still be as long as content-length says (section 8.1.1). If not, that ends the stream,
        never the connection, as in Envoy."""
        stream.body_left -= size
        if stream.body_left < 0 or (is_last and stream.body_left):
            self.stream_error(stream.id, h2.PROTOCOL_ERROR, details.REMOTE_RESET)
            return False
        return True

    def _count_empty(self) -> None:
        self._empty_frames += 1
        if self._empty_frames > self.settings.max_empty_frames:
            self.stats.inbound_empty_frames_flood += 1
            raise Http2Flood("too many empty frames", details.EMPTY_FRAMES_FLOOD)

    def acknowledge(self, stream: Http2Stream) -> None:
        """What came on the stream has been read: give it back to both windows."""
        self._return_to_window(stream.take_withheld())
        size = stream.take_unacknowledged(self._stream_update_at)
        if size:
            self.write_frame(window_update_frame(stream.id, size))

    def _return_to_window(self, size: int) -> None:
        self._unacknowledged += size
        if self._unacknowledged >= self._update_at and self._awaits != _DEAD:
            self._receive_window += self._unacknowledged
            self.write_frame(window_update_frame(0, self._unacknowledged))
            self._unacknowledged = 0

    # -- HEADERS and CONTINUATION

    def _on_headers(self, flags: int, stream_id: int, data: bytes, at: int, end: int) -> None:
        if stream_id == 0:
            raise Http2Error(h2.PROTOCOL_ERROR, "HEADERS on stream 0")
        wire = end - at + h2.FRAME_HEADER_BYTES
        if flags & h2.PADDED:
            if at == end:
                raise Http2Error(h2.FRAME_SIZE_ERROR, "HEADERS without the length of their padding")
            padding = data[at]
            at += 1
            end -= padding
        if flags & h2.PRIORITY_FLAG:
            at += 5
            if at > end:
                raise Http2Error(h2.FRAME_SIZE_ERROR, "HEADERS without their priority")
            if self._depends_on_itself(stream_id, data, at - 5):
                self._block_flags = -1
        if at > end:
            raise Http2Error(h2.PROTOCOL_ERROR, "more padding than payload")
        block = data[at:end]
        if flags & h2.END_HEADERS:
            self._on_block(flags, stream_id, wire, block)
            return
        if not block:
            self._count_empty()
        self._block_parts = [block]
        self._block_bytes = wire
        self._block_stream = stream_id
        self._block_flags = self._block_flags if self._block_flags < 0 else flags

    def _on_continuation(self, flags: int, stream_id: int, data: bytes, at: int, end: int) -> None:
        parts = self._block_parts
        if parts is None or stream_id != self._block_stream:
            raise Http2Error(h2.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        if at == end and not flags & h2.END_HEADERS:
            self._count_empty()
        parts.append(data[at:end])
        self._block_bytes += end - at + h2.FRAME_HEADER_BYTES
        if self._block_bytes > _BLOCK_SLACK * self.settings.max_headers_bytes + h2.DEFAULT_FRAME_BYTES:
            self.stats.header_overflow += 1
            raise Http2Error(h2.ENHANCE_YOUR_CALM, "a field block without end", details.CONTINUATION_FLOOD)
        if flags & h2.END_HEADERS:
            self._block_parts = None
            self._on_block(self._block_flags, stream_id, self._block_bytes, b"".join(parts))

    def _on_block(self, flags: int, stream_id: int, wire: int, block: bytes) -> None:
        if self._block_flags < 0:
            self._block_flags = 0
            if self.is_idle(stream_id):
                self.on_identifier(stream_id)
            self.read_block(block)
            self.stream_error(stream_id, h2.PROTOCOL_ERROR, details.MESSAGING)
            return
        stream = self.streams.get(stream_id)
        self.field_bytes_received += len(block)
        is_last = flags & h2.END_STREAM != 0
        if stream is not None:
            meaning = RECEIVED[stream.state][h2.HEADERS]
            if meaning == TAKEN:
                self.on_stream_head(stream, is_last, wire, block)
                return
        else:
            meaning = self._meaning(stream_id, h2.HEADERS)
            if meaning == TAKEN:
                self.on_head(stream_id, is_last, wire, block)
                return
        self.read_block(block)  # whatever becomes of it, the table goes on with it (section 4.3)
        if meaning == IGNORED:
            self.stats.headers_cb_no_stream += 1
        self._refuse(meaning, stream_id)

    # -- the other frames

    def _depends_on_itself(self, stream_id: int, data: bytes, at: int) -> bool:
        """RFC 7540 section 5.3.1: a stream cannot depend on itself. Priorities are ignored otherwise (RFC 9113)."""
        dependency: int = _LONG(data, at)[0]
        return dependency & _STREAM_BITS == stream_id

    def _on_priority(self, stream_id: int, data: bytes, at: int, end: int) -> None:
        if stream_id == 0:
            raise Http2Error(h2.PROTOCOL_ERROR, "PRIORITY on stream 0")
        if end - at != 5:
            self.stream_error(stream_id, h2.FRAME_SIZE_ERROR, "")
            return
        self._priority_frames += 1
        if self._priority_frames > self.settings.max_priority_frames_per_stream * (1 + self._opened):
            self.stats.inbound_priority_frames_flood += 1
            raise Http2Flood("too many PRIORITY frames", details.PRIORITY_FLOOD)
        if self._depends_on_itself(stream_id, data, at):
            self.stream_error(stream_id, h2.PROTOCOL_ERROR, "")

    def _on_rst_stream(self, stream_id: int, data: bytes, at: int, end: int) -> None:
        if stream_id == 0:
            raise Http2Error(h2.PROTOCOL_ERROR, "RST_STREAM on stream 0")
        if end - at != 4:
            raise Http2Error(h2.FRAME_SIZE_ERROR, "RST_STREAM of another size than 4")
        stream = self.streams.get(stream_id)
        if stream is None:
            self._refuse(self._meaning(stream_id, h2.RST_STREAM), stream_id)
            return
        code: int = _LONG(data, at)[0]
        stream.wire_received += h2.FRAME_HEADER_BYTES + 4
        self.stats.rx_reset += 1
        self.on_reset_received(stream, code)

    def on_reset_received(self, stream: Http2Stream, code: int) -> None:
        if code == h2.REFUSED_STREAM:
            self.end_stream(stream, RESET_REMOTE_REFUSED, details.REMOTE_REFUSE)
        elif code == h2.PROTOCOL_ERROR:
            self.end_stream(stream, RESET_PROTOCOL_ERROR, details.REMOTE_RESET)
        else:
            self.end_stream(stream, RESET_REMOTE, details.REMOTE_RESET)

    def end_stream(self, stream: Http2Stream, reason: int, error_details: str) -> None:
        """The stream is gone, and its decoder learns it."""
        stream.ended_by = reason
        self.close_stream(stream)
        stream.fail(reason, error_details)

    def _on_settings(self, flags: int, stream_id: int, data: bytes, at: int, end: int) -> None:
        if stream_id:
            raise Http2Error(h2.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & h2.ACK:
            if at != end:
                raise Http2Error(h2.FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS with a payload")
            self._on_settings_acknowledged()
            return
        if (end - at) % 6:
            raise Http2Error(h2.FRAME_SIZE_ERROR, "SETTINGS of a size that is no multiple of 6")
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
            self._set_initial_window(window)
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
            self._max_send_frame = min(value, self.settings.max_frame_bytes)
        elif identifier == h2.ENABLE_PUSH and value > 1:
            raise Http2Error(h2.PROTOCOL_ERROR, "SETTINGS_ENABLE_PUSH is 0 or 1")
        elif identifier == h2.ENABLE_CONNECT_PROTOCOL:
            if value > 1 or (self.peer_allows_connect and not value):
                raise Http2Error(h2.PROTOCOL_ERROR, "SETTINGS_ENABLE_CONNECT_PROTOCOL is 1, or 0 at first")
            self.peer_allows_connect = value == 1
        else:
            self.on_setting(identifier, value)

    def _set_initial_window(self, value: int) -> None:
        """Of all streams, those that are open too (section 6.9.2)."""
        change = value - self.initial_send_window
        self.initial_send_window = value
        for stream in self.streams.values():
            if not stream.widen(change):
                raise Http2Error(h2.FLOW_CONTROL_ERROR, "a stream's window is over 2^31-1")
            self.on_waiting(stream, 0)

    def _on_settings_acknowledged(self) -> None:
        if not self._settings_unacknowledged:
            return
        self._settings_unacknowledged = False
        self.decoder.settings_acknowledged()
        change = self.settings.stream_window_bytes - self.initial_receive_window
        if change:
            self.initial_receive_window = self.settings.stream_window_bytes
            for stream in self.streams.values():
                stream.receive_window += change

    def _on_ping(self, flags: int, stream_id: int, data: bytes, at: int, end: int) -> None:
        if stream_id:
            raise Http2Error(h2.PROTOCOL_ERROR, "PING on a stream")
        if end - at != 8:
            raise Http2Error(h2.FRAME_SIZE_ERROR, "PING of another size than 8")
        if not flags & h2.ACK:
            self.write_control(ping_frame(data[at:end], ack=True))
        elif data[at:end] == _PING:
            self.on_ping_ack()

    def _on_goaway(self, stream_id: int, data: bytes, at: int, end: int) -> None:
        if stream_id:
            raise Http2Error(h2.PROTOCOL_ERROR, "GOAWAY on a stream")
        if end - at < 8:
            raise Http2Error(h2.FRAME_SIZE_ERROR, "GOAWAY of less than 8 bytes")
        last: int = _LONG(data, at)[0]
        code: int = _LONG(data, at + 4)[0]
        self.on_goaway(last & _STREAM_BITS, code)

    def _on_window_update(self, stream_id: int, data: bytes, at: int, end: int) -> None:
        if end - at != 4:
            raise Http2Error(h2.FRAME_SIZE_ERROR, "WINDOW_UPDATE of another size than 4")
        settings = self.settings
        self._window_updates += 1
        allowed = settings.max_window_updates_per_data_frame * self._data_frames_sent
        if self._window_updates > 5 + 2 * (self._opened + allowed):  # Envoy's formula
            self.stats.inbound_window_update_frames_flood += 1
            raise Http2Flood("too many WINDOW_UPDATE frames", details.WINDOW_UPDATE_FLOOD)
        value: int = _LONG(data, at)[0]
        increment = value & _STREAM_BITS
        if stream_id == 0:
            self._widen(increment)
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

    def _widen(self, increment: int) -> None:
        if increment == 0:
            raise Http2Error(h2.PROTOCOL_ERROR, "WINDOW_UPDATE of nothing")
        self._send_window += increment
        if self._send_window > h2.LARGEST_WINDOW_BYTES:
            raise Http2Error(h2.FLOW_CONTROL_ERROR, "the connection's window is over 2^31-1")
        self.pump()

    # -- bytes out

    def write_frame(self, frame: bytes) -> None:
        """Append a frame to the output."""
        self._outbound_frames += 1
        if self._outbound_frames > self.settings.max_outbound_frames and not self.should_close:
            self.stats.outbound_flood += 1
            self.fail(Http2Flood("too many frames wait", details.OUTBOUND_FRAMES_FLOOD))
            return
        self.write(frame)

    def write_control(self, frame: bytes) -> None:
        """Append a frame that a peer can provoke (Envoy: SETTINGS and PING acknowledgements, RST_STREAM)."""
        self._outbound_control_frames += 1
        if self._outbound_control_frames > self.settings.max_outbound_control_frames and not self.should_close:
            self.stats.outbound_control_flood += 1
            error = Http2Flood("too many answers wait", details.OUTBOUND_CONTROL_FLOOD)
            self.fail(error)
            return
        self.write_frame(frame)

    def on_output_written(self) -> None:
        """The socket has taken all that it was given."""
        self._outbound_frames = self._outbound_control_frames = 0

    def data_to_send(self) -> bytes | list[bytes]:
        output = super().data_to_send()
        if self._ready:
            self.pump()
        return output

    def send_block(self, stream: Http2Stream, headers: HeaderMap, end: bool) -> None:
        """Send a field block: a head, or trailers."""
        block = self.encoder.encode(headers.fields, headers.sensitive)
        self.field_bytes_sent += len(block)
        frames = headers_frames(block, end, stream.id, self._max_send_frame)
        stream.wire_sent += len(frames)
        stream.fields_sent += len(block)
        self.write_frame(frames)

    def write_trailers(self, stream: Http2Stream, trailers: HeaderMap) -> None:
        if not trailers.fields:  # a filter took them all: the data ends the message, as in Envoy
            self.write_data(stream, b"", True)
            return
        self.send_block(stream, trailers, True)
        stream.on_end_sent()

    def has_room(self, size: int) -> bool:
        """Whether so much data may go out now, before that of other streams."""
        return size <= self._send_window and not self._ready and not self.backed_up

    def write_data(self, stream: Http2Stream, data: bytes, end: bool) -> None:
        """Send data for which there is room in both windows."""
        size = len(data)
        stream.send_window -= size
        self._send_window -= size
        most = self._max_send_frame
        frames = 1
        if size <= most:
            self.write_frame(data_header(size, end, stream.id) + data)
        else:
            parts: list[bytes | memoryview] = []
            view = memoryview(data)
            for at in range(0, size, most):
                part = view[at : at + most]
                parts.append(data_header(len(part), end and at + most >= size, stream.id))
                parts.append(part)
            frames = len(parts) // 2
            self.write_frame(b"".join(parts))
            self._outbound_frames += frames - 1
        self._data_frames_sent += frames
        stream.wire_sent += size + frames * h2.FRAME_HEADER_BYTES
        if end:
            stream.on_end_sent()

    def on_waiting(self, stream: Http2Stream, size: int) -> None:
        """`size` bytes more wait on the stream, or its window has changed."""
        self.stats.pending_send_bytes += size
        if stream.is_waiting and (stream.send_window > 0 or (not stream.waiting_bytes and stream.send_window == 0)):
            self._ready[stream] = None

    def pump(self) -> None:
        """Send what waits, a frame of each stream in turn, as far as the windows and the socket go."""
        ready = self._ready
        left = _PUMP_BYTES
        while ready and left > 0 and self._send_window > 0 and not self.backed_up:
            stream = next(iter(ready))
            del ready[stream]
            sent = stream.send_waiting(min(self._send_window, self._max_send_frame))
            self.stats.pending_send_bytes -= sent
            left -= sent
            if stream.is_waiting and stream.send_window > 0:
                ready[stream] = None

    def on_above_write_watermark(self) -> None:
        """The socket takes no more for now: data waits in its streams, which are told."""
        self.backed_up = True
        for stream in list(self.streams.values()):
            stream.on_backed_up()

    def on_below_write_watermark(self) -> None:
        """The socket takes more again."""
        self.backed_up = False
        self.pump()
        for stream in list(self.streams.values()):
            stream.on_taken()

    def ping(self) -> None:
        """Ask for a sign of life: `on_ping_ack`."""
        self.write_frame(ping_frame(_PING, ack=False))

    # -- ends

    def send_goaway(self, last_stream_id: int, code: int) -> None:
        self.write(goaway_frame(last_stream_id, code))

    def malformed(self, stream_id: int, reason: str, error_details: str = details.MESSAGING) -> None:
        """A message that breaks the rules of section 8: the end of its stream, or by default of the connection, as
        Envoy has it."""
        self.stats.rx_messaging_error += 1
        if self.settings.stream_error_on_invalid_message:
            self.stream_error(stream_id, h2.PROTOCOL_ERROR, error_details)
            return
        stream = self.streams.get(stream_id)
        if stream is not None:
            self.end_stream(stream, RESET_PROTOCOL_ERROR, error_details)
        raise Http2Error(h2.PROTOCOL_ERROR, reason)

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
            self.too_large(stream)
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

    def too_large(self, stream: Http2Stream) -> None:
        """Its head, or its trailers, are over a limit: the stream's end, as in Envoy."""
        too_many = self.decoder.too_many
        if too_many:
            self.stats.header_overflow += 1
        else:
            self.stats.header_list_size_too_large += 1
        stream.ended_by = RESET_REMOTE
        self.reset_stream(stream, h2.INTERNAL_ERROR)
        stream.fail(RESET_REMOTE, details.TOO_MANY_HEADERS if too_many else details.HEADERS_TOO_LARGE)

    def stream_error(self, stream_id: int, code: int, error_details: str) -> None:
        """The peer's fault ends one stream (section 5.4.2)."""
        stream = self.streams.get(stream_id)
        if stream is None:
            self.write_reset(stream_id, code)
            return
        self.reset_stream(stream, code)
        stream.fail(RESET_PROTOCOL_ERROR, error_details)

    def reset_stream(self, stream: Http2Stream, code: int) -> None:
        """End the stream from our side."""
        if not stream.ended_by:
            stream.ended_by = RESET_LOCAL
        if stream.id:
            self.write_reset(stream.id, code)
        self.close_stream(stream)

    def write_reset(self, stream_id: int, code: int) -> None:
        self.stats.tx_reset += 1
        resets = self._resets
        resets[stream_id] = None
        if len(resets) > _REMEMBERED_RESETS:
            oldest = next(iter(resets))
            del resets[oldest]
            self._resets_before = max(self._resets_before, oldest)
        self.write_control(rst_stream_frame(stream_id, code))

    def close_stream(self, stream: Http2Stream) -> None:
        """Both ends are done with it."""
        if self.streams.pop(stream.id, None) is None:
            return
        stream.state = CLOSED
        self._ready.pop(stream, None)
        self.stats.pending_send_bytes -= stream.forget()
        self.stats.streams_active -= 1
        self._return_to_window(stream.take_withheld())
        self.on_stream_gone(stream)

    def fail(self, error: Http2Error) -> None:
        """A connection error: say GOAWAY, and read no more."""
        if self._awaits == _DEAD:
            return
        self.stop_reading()
        self.should_close = True
        self.send_goaway(self.last_peer_id, error.code)
        self.on_broken(error)
        self.close_streams(RESET_PROTOCOL_ERROR, error.details)

    def stop_reading(self) -> None:
        """The owner closes: what still comes, even with what is being read, is not looked at."""
        self._awaits = _DEAD
        self._buffer = b""
        self._block_parts = None

    def close_streams(self, reason: int, error_details: str = "") -> None:
        """The connection is gone: every stream's decoder is told."""
        for stream in list(self.streams.values()):
            self.end_stream(stream, reason, error_details)

    def open_stream(self, stream: Http2Stream) -> None:
        """Count it in."""
        self.streams[stream.id] = stream
        self._opened += 1
        self.stats.streams_active += 1
