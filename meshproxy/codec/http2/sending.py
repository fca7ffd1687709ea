"""What leaves a connection: frames, and data as far as the peer's windows and the socket go (RFC 9113 section 5.2)."""

from __future__ import annotations

from typing import Final

from meshproxy.codec.connection import PASS_ON_BYTES
from meshproxy.codec.headers import HeaderMap
from meshproxy.codec.http2 import constants as h2
from meshproxy.codec.http2 import details
from meshproxy.codec.http2.failures import Http2Error, Http2Flood
from meshproxy.codec.http2.floods import InboundFloods
from meshproxy.codec.http2.frame_reader import FrameSink
from meshproxy.codec.http2.frames import data_header, headers_frames
from meshproxy.codec.http2.hpack_encoder import HpackEncoder
from meshproxy.codec.http2.settings import Http2Settings
from meshproxy.codec.http2.stats import Http2Stats
from meshproxy.codec.http2.stream import Http2Stream

_PUMP_BYTES: Final = 256 * 1024  # of waiting data that go out at once; the rest when these have been fetched


class Sending(FrameSink):
    """The sending half of a connection."""

    def __init__(self, settings: Http2Settings, stats: Http2Stats) -> None:
        super().__init__()
        self.settings: Final = settings
        self.stats: Final = stats
        self.floods: Final = InboundFloods(settings, stats)
        self.encoder: Final = HpackEncoder(settings.hpack_table_bytes)
        self.streams: dict[int, Http2Stream] = {}
        self.should_close: bool = False  # the peer broke the protocol: close when the output is sent
        self.backed_up: bool = False  # the socket takes no more for now
        self.initial_send_window: int = h2.DEFAULT_WINDOW_BYTES
        self.max_send_frame: int = h2.DEFAULT_FRAME_BYTES
        self._send_window: int = h2.DEFAULT_WINDOW_BYTES
        self._ready: dict[Http2Stream, None] = {}  # that have data to send, and a window for it; in turn
        self._outbound_frames: int = 0  # that have not been written to the socket, as far as we know
        self._outbound_control_frames: int = 0
        self._told_frames: int = 0  # of them, to the gauges
        self._told_control_frames: int = 0

    def fail(self, error: Http2Error) -> None:
        """A connection error."""
        raise NotImplementedError

    # -- frames

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
            self.fail(Http2Flood("too many answers wait", details.OUTBOUND_CONTROL_FLOOD))
            return
        self.write_frame(frame)

    def on_output_written(self) -> None:
        """The socket has taken all that it was given."""
        self._outbound_frames = self._outbound_control_frames = 0

    def data_to_send(self) -> bytes | list[bytes]:
        output = super().data_to_send()
        if self._ready:
            self.pump()
        if self.backed_up:
            self.tell_outbound()
        return output

    def tell_outbound(self) -> None:
        """Set the gauges of frames that wait, of sockets that take no more: elsewhere they wait for an instant."""
        stats = self.stats
        frames = self._outbound_frames if self.backed_up else 0
        control_frames = self._outbound_control_frames if self.backed_up else 0
        stats.outbound_frames_active += frames - self._told_frames
        stats.outbound_control_frames_active += control_frames - self._told_control_frames
        self._told_frames = frames
        self._told_control_frames = control_frames

    def send_block(self, stream: Http2Stream, headers: HeaderMap, end: bool) -> None:
        """Send a field block: a head, or trailers."""
        block = self.encoder.encode(headers.fields, headers.sensitive)
        self.field_bytes_sent += len(block)
        frames = headers_frames(block, end, stream.id, self.max_send_frame)
        stream.wire_sent += len(frames)
        stream.fields_sent += len(frames)
        self.write_frame(frames)

    def write_trailers(self, stream: Http2Stream, trailers: HeaderMap) -> None:
        self.send_block(stream, trailers, True)
        stream.on_end_sent()

    def write_data(self, stream: Http2Stream, data: bytes, end: bool) -> None:
        """Send data for which there is room in both windows."""
        size = len(data)
        stream.send_window -= size
        self._send_window -= size
        most = self.max_send_frame
        frames = 1
        if size < PASS_ON_BYTES:
            self.write_frame(data_header(size, end, stream.id) + data)
        elif size <= most:
            self.write_frame(data_header(size, end, stream.id))
            if not self.should_close:  # else there was one frame too many
                self.write(data)
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
        self.floods.data_frames_sent += frames
        stream.wire_sent += size + frames * h2.FRAME_HEADER_BYTES
        if end:
            stream.on_end_sent()

    # -- windows, and who sends next

    def has_room(self, size: int) -> bool:
        """Whether so much data may go out now, before that of other streams."""
        return size <= self._send_window and not self._ready and not self.backed_up

    def on_waiting(self, stream: Http2Stream, size: int) -> None:
        """`size` bytes more wait on the stream, or its window has changed."""
        self.stats.pending_send_bytes += size
        if stream.is_waiting and (stream.send_window > 0 or (not stream.waiting_bytes and stream.send_window == 0)):
            self._ready[stream] = None

    def forget_waiting(self, stream: Http2Stream) -> None:
        """What waits on the stream is not sent any more."""
        self._ready.pop(stream, None)
        self.stats.pending_send_bytes -= stream.forget()

    def pump(self) -> None:
        """Send what waits, a frame of each stream in turn, as far as the windows and the socket go."""
        ready = self._ready
        left = _PUMP_BYTES
        while ready and left > 0 and self._send_window > 0 and not self.backed_up:
            stream = next(iter(ready))
            del ready[stream]
            sent = stream.send_waiting(min(self._send_window, self.max_send_frame))
            self.stats.pending_send_bytes -= sent
            left -= sent
            if stream.is_waiting and stream.send_window > 0:
                ready[stream] = None

    def widen(self, increment: int) -> None:
        """The peer takes so many bytes more on the connection."""
        if increment == 0:
            raise Http2Error(h2.PROTOCOL_ERROR, "WINDOW_UPDATE of nothing")
        self._send_window += increment
        if self._send_window > h2.LARGEST_WINDOW_BYTES:
            raise Http2Error(h2.FLOW_CONTROL_ERROR, "the connection's window is over 2^31-1")
        self.pump()

    def set_initial_send_window(self, value: int) -> None:
        """Of all streams, those that are open too (section 6.9.2)."""
        change = value - self.initial_send_window
        self.initial_send_window = value
        for stream in self.streams.values():
            if not stream.widen(change):
                raise Http2Error(h2.FLOW_CONTROL_ERROR, "a stream's window is over 2^31-1")
            self.on_waiting(stream, 0)

    def on_above_write_watermark(self) -> None:
        """The socket takes no more for now: data waits in its streams, which are told."""
        self.backed_up = True
        self.tell_outbound()
        for stream in list(self.streams.values()):
            stream.on_backed_up()

    def on_below_write_watermark(self) -> None:
        """The socket takes more again."""
        self.backed_up = False
        self.tell_outbound()
        self.pump()
        for stream in list(self.streams.values()):
            stream.on_taken()
