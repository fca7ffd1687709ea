"""From bytes to frames (RFC 9113 sections 3.4, 4 and 6): cut out, checked for their form, handed on without padding.

What a frame means where it comes is not looked at here (`connection.py`).
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from meshproxy.codec.connection import PASS_ON_BYTES, CodecConnection
from meshproxy.codec.http2 import constants as h2
from meshproxy.codec.http2 import details
from meshproxy.codec.http2.failures import Http2Error
from meshproxy.codec.http2.floods import InboundFloods
from meshproxy.codec.http2.settings import Http2Settings
from meshproxy.codec.http2.stats import Http2Stats

_LONG: Final = Struct(">L").unpack_from
_STREAM_BITS: Final = 0x7FFFFFFF
_BLOCK_FRAMES: Final = 513  # HEADERS and its CONTINUATIONs: Envoy's bound
_BLOCK_SLACK: Final = 2  # a compressed block may be so many times as long as the list that it may make

# What is awaited.
_PREFACE: Final = 0
_FIRST_SETTINGS: Final = 1
_FRAMES: Final = 2


class FrameSink(CodecConnection):
    """Whom a FrameReader tells. Any of these may raise Http2Error."""

    def on_data_frame(self, stream_id: int, content: bytes, length: int, end: bool) -> None:
        """`length` is of the whole payload, which is what flow control counts."""
        raise NotImplementedError

    def on_block(self, stream_id: int, end: bool, wire: int, block: bytes, depends_on_itself: bool) -> None:
        """HEADERS with all their CONTINUATION, `wire` bytes of frames."""
        raise NotImplementedError

    def on_priority(self, stream_id: int, error_code: int) -> None:
        """It means nothing, if there is no error in it."""
        raise NotImplementedError

    def on_rst_stream(self, stream_id: int, error_code: int) -> None:
        raise NotImplementedError

    def on_settings(self, data: bytes, at: int, end: int) -> None:
        """The entries, of six bytes each."""
        raise NotImplementedError

    def on_settings_acknowledged(self) -> None:
        raise NotImplementedError

    def on_ping(self, opaque: bytes) -> None:
        raise NotImplementedError

    def on_ping_answered(self, opaque: bytes) -> None:
        raise NotImplementedError

    def on_goaway(self, last_stream_id: int, error_code: int) -> None:
        raise NotImplementedError

    def on_window_update(self, stream_id: int, increment: int) -> None:
        raise NotImplementedError


class FrameReader:
    """Of one connection. `held_bytes` of it are bounded by a frame, or by a field block that goes on."""

    def __init__(self, settings: Http2Settings, stats: Http2Stats, floods: InboundFloods, is_server: bool) -> None:
        self.stopped: bool = False  # what still comes is not looked at
        self._settings: Final = settings
        self._stats: Final = stats
        self._floods: Final = floods
        self._awaits: int = _PREFACE if is_server else _FIRST_SETTINGS
        self._buffer: bytes = b""
        # a field block that goes on
        self._block_parts: list[bytes] | None = None
        self._block_wire: int = 0
        self._block_stream: int = 0
        self._block_ends: bool = False
        self._depends_on_itself: bool = False

    @property
    def held_bytes(self) -> int:
        """Received bytes that nobody has been told of."""
        return len(self._buffer) + (self._block_wire if self._block_parts is not None else 0)

    @property
    def amid_head(self) -> bool:
        """Whether a field block has begun and not ended: until then nothing else can come."""
        held = self._buffer
        return self._block_parts is not None or (len(held) > 3 and held[3] == h2.HEADERS and self._awaits == _FRAMES)

    def stop(self) -> None:
        """Look at nothing more, even of what is being read."""
        self.stopped = True
        self._buffer = b""
        self._block_parts = None

    def feed(self, sink: FrameSink, data: bytes) -> None:
        """Take what came, in any split. Raises Http2Error."""
        at = 0
        if self._buffer:
            at = self._lacking()
            if 0 < at < len(data) and len(data) >= PASS_ON_BYTES:
                self._read(sink, self._buffer + data[:at], 0)
            else:
                data = self._buffer + data
                at = 0
        at = self._read(sink, data, at)
        self._buffer = data[at:] if at < len(data) and not self.stopped else b""

    def _lacking(self) -> int:
        """How much the frame lacks that has begun; 0 if that is not known. Bulk data arrives in large reads that end
        within a frame: it alone is put together."""
        held = self._buffer
        if len(held) < h2.FRAME_HEADER_BYTES or self._awaits == _PREFACE:
            return 0
        return h2.FRAME_HEADER_BYTES + (held[0] << 16 | held[1] << 8 | held[2]) - len(held)

    def _read(self, sink: FrameSink, data: bytes, at: int) -> int:
        """Take all whole frames from `at` on; where they end."""
        size = len(data)
        if self._awaits == _PREFACE:
            at = self._read_preface(data)
            if not at:
                return 0
        max_frame = self._settings.max_frame_bytes
        while size - at >= h2.FRAME_HEADER_BYTES and not self.stopped:
            length = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            if length > max_frame:
                raise Http2Error(h2.FRAME_SIZE_ERROR, "a frame over SETTINGS_MAX_FRAME_SIZE")
            frame_type = data[at + 3]
            begin = at + h2.FRAME_HEADER_BYTES
            end = begin + length
            if end > size:
                break
            stream_id = (data[at + 5] & 0x7F) << 24 | data[at + 6] << 16 | data[at + 7] << 8 | data[at + 8]
            if self._awaits == _FIRST_SETTINGS:
                self._check_first(frame_type, data[at + 4])
            self._on_frame(sink, frame_type, data[at + 4], stream_id, data, begin, end)
            at = end
        return at

    def _read_preface(self, data: bytes) -> int:
        preface = h2.PREFACE
        if data.startswith(preface):
            self._awaits = _FIRST_SETTINGS
            return len(preface)
        if not preface.startswith(data):
            raise Http2Error(h2.PROTOCOL_ERROR, "not HTTP/2's preface")
        return 0

    def _check_first(self, frame_type: int, flags: int) -> None:
        if frame_type != h2.SETTINGS or flags & h2.ACK:
            raise Http2Error(h2.PROTOCOL_ERROR, "the first frame is no SETTINGS")
        self._awaits = _FRAMES

    def _on_frame(
        self, sink: FrameSink, frame_type: int, flags: int, stream_id: int, data: bytes, at: int, end: int
    ) -> None:
        if self._block_parts is not None and frame_type != h2.CONTINUATION:
            raise Http2Error(h2.PROTOCOL_ERROR, "a field block was not continued")
        if frame_type == h2.DATA:
            self._on_data(sink, flags, stream_id, data, at, end)
        elif frame_type == h2.HEADERS:
            self._on_headers(sink, flags, stream_id, data, at, end)
        elif frame_type == h2.WINDOW_UPDATE:
            self._on_window_update(sink, stream_id, data, at, end)
        elif frame_type == h2.RST_STREAM:
            self._on_rst_stream(sink, stream_id, data, at, end)
        elif frame_type == h2.SETTINGS:
            self._on_settings(sink, flags, stream_id, data, at, end)
        elif frame_type == h2.PING:
            self._on_ping(sink, flags, stream_id, data, at, end)
        elif frame_type == h2.CONTINUATION:
            self._on_continuation(sink, flags, stream_id, data, at, end)
        elif frame_type == h2.PRIORITY:
            self._on_priority(sink, stream_id, data, at, end)
        elif frame_type == h2.GOAWAY:
            self._on_goaway(sink, stream_id, data, at, end)
        elif frame_type == h2.PUSH_PROMISE:
            raise Http2Error(h2.PROTOCOL_ERROR, "a push that nobody allowed")
        # others are extensions, which are ignored (section 5.5)

    # -- DATA (section 6.1)

    def _on_data(self, sink: FrameSink, flags: int, stream_id: int, data: bytes, at: int, end: int) -> None:
        if stream_id == 0:
            raise Http2Error(h2.PROTOCOL_ERROR, "DATA on stream 0")
        length = end - at
        if flags & h2.PADDED:
            if not length or data[at] >= length:
                raise Http2Error(h2.PROTOCOL_ERROR, "more padding than payload")
            end -= data[at]
            at += 1
        is_last = flags & h2.END_STREAM != 0
        if at == end and not is_last:
            self._floods.on_empty_frame()
        else:
            self._floods.empty_frames = 0
        sink.on_data_frame(stream_id, data[at:end], length, is_last)

    # -- HEADERS and CONTINUATION (sections 6.2 and 6.10)

    def _on_headers(self, sink: FrameSink, flags: int, stream_id: int, data: bytes, at: int, end: int) -> None:
        if stream_id == 0:
            raise Http2Error(h2.PROTOCOL_ERROR, "HEADERS on stream 0")
        wire = end - at + h2.FRAME_HEADER_BYTES
        if flags & h2.PADDED:
            if at == end:
                raise Http2Error(h2.FRAME_SIZE_ERROR, "HEADERS without the length of their padding")
            end -= data[at]
            at += 1
        depends_on_itself = False
        if flags & h2.PRIORITY_FLAG:
            if at + 5 > end:
                raise Http2Error(h2.FRAME_SIZE_ERROR, "HEADERS without their priority")
            depends_on_itself = _depends_on(stream_id, data, at)
            at += 5
        if at > end:
            raise Http2Error(h2.PROTOCOL_ERROR, "more padding than payload")
        is_last = flags & h2.END_STREAM != 0
        if flags & h2.END_HEADERS:
            sink.on_block(stream_id, is_last, wire, data[at:end], depends_on_itself)
            return
        if at == end:
            self._floods.on_empty_frame()
        self._block_parts = [data[at:end]]
        self._block_wire = wire
        self._block_stream = stream_id
        self._block_ends = is_last
        self._depends_on_itself = depends_on_itself

    def _on_continuation(self, sink: FrameSink, flags: int, stream_id: int, data: bytes, at: int, end: int) -> None:
        parts = self._block_parts
        if parts is None or stream_id != self._block_stream:
            raise Http2Error(h2.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        if at == end and not flags & h2.END_HEADERS:
            self._floods.on_empty_frame()
        parts.append(data[at:end])
        self._block_wire += end - at + h2.FRAME_HEADER_BYTES
        limit = _BLOCK_SLACK * self._settings.max_headers_bytes + h2.DEFAULT_FRAME_BYTES
        if len(parts) > _BLOCK_FRAMES or self._block_wire > limit:
            self._stats.header_overflow += 1
            raise Http2Error(h2.ENHANCE_YOUR_CALM, "a field block without end", details.CONTINUATION_FLOOD)
        if flags & h2.END_HEADERS:
            self._block_parts = None
            sink.on_block(stream_id, self._block_ends, self._block_wire, b"".join(parts), self._depends_on_itself)

    # -- the other frames

    def _on_priority(self, sink: FrameSink, stream_id: int, data: bytes, at: int, end: int) -> None:
        if stream_id == 0:
            raise Http2Error(h2.PROTOCOL_ERROR, "PRIORITY on stream 0")
        self._floods.on_priority()
        if end - at != 5:
            sink.on_priority(stream_id, h2.FRAME_SIZE_ERROR)
        else:
            sink.on_priority(stream_id, h2.PROTOCOL_ERROR if _depends_on(stream_id, data, at) else h2.NO_ERROR)

    def _on_rst_stream(self, sink: FrameSink, stream_id: int, data: bytes, at: int, end: int) -> None:
        if stream_id == 0:
            raise Http2Error(h2.PROTOCOL_ERROR, "RST_STREAM on stream 0")
        if end - at != 4:
            raise Http2Error(h2.FRAME_SIZE_ERROR, "RST_STREAM of another size than 4")
        sink.on_rst_stream(stream_id, _long(data, at))

    def _on_settings(self, sink: FrameSink, flags: int, stream_id: int, data: bytes, at: int, end: int) -> None:
        if stream_id:
            raise Http2Error(h2.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & h2.ACK:
            if at != end:
                raise Http2Error(h2.FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS with a payload")
            sink.on_settings_acknowledged()
        elif (end - at) % 6:
            raise Http2Error(h2.FRAME_SIZE_ERROR, "SETTINGS of a size that is no multiple of 6")
        else:
            sink.on_settings(data, at, end)

    def _on_ping(self, sink: FrameSink, flags: int, stream_id: int, data: bytes, at: int, end: int) -> None:
        if stream_id:
            raise Http2Error(h2.PROTOCOL_ERROR, "PING on a stream")
        if end - at != 8:
            raise Http2Error(h2.FRAME_SIZE_ERROR, "PING of another size than 8")
        if flags & h2.ACK:
            sink.on_ping_answered(data[at:end])
        else:
            sink.on_ping(data[at:end])

    def _on_goaway(self, sink: FrameSink, stream_id: int, data: bytes, at: int, end: int) -> None:
        if stream_id:
            raise Http2Error(h2.PROTOCOL_ERROR, "GOAWAY on a stream")
        if end - at < 8:
            raise Http2Error(h2.FRAME_SIZE_ERROR, "GOAWAY of less than 8 bytes")
        sink.on_goaway(_long(data, at) & _STREAM_BITS, _long(data, at + 4))

    def _on_window_update(self, sink: FrameSink, stream_id: int, data: bytes, at: int, end: int) -> None:
        if end - at != 4:
            raise Http2Error(h2.FRAME_SIZE_ERROR, "WINDOW_UPDATE of another size than 4")
        self._floods.on_window_update()
        sink.on_window_update(stream_id, _long(data, at) & _STREAM_BITS)


def _long(data: bytes, at: int) -> int:
    value: int = _LONG(data, at)[0]
    return value


def _depends_on(stream_id: int, data: bytes, at: int) -> bool:
    """RFC 7540 section 5.3.1: a stream cannot depend on itself. Priorities are ignored otherwise (RFC 9113)."""
    return _long(data, at) & _STREAM_BITS == stream_id
