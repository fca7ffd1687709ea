"""How streams and connections end: by their messages, by a reset of either side, by an error (RFC 9113 section 5.4)."""

from __future__ import annotations

from typing import Final

from meshproxy.codec.http2 import constants as h2
from meshproxy.codec.http2 import details
from meshproxy.codec.http2.failures import Http2Error
from meshproxy.codec.http2.frame_reader import FrameReader
from meshproxy.codec.http2.frames import goaway_frame, rst_stream_frame, window_update_frame
from meshproxy.codec.http2.sending import Sending
from meshproxy.codec.http2.settings import Http2Settings
from meshproxy.codec.http2.states import CLOSED
from meshproxy.codec.http2.stats import Http2Stats
from meshproxy.codec.http2.stream import Http2Stream
from meshproxy.errors import RESET_LOCAL, RESET_PROTOCOL_ERROR, RESET_REMOTE, RESET_REMOTE_REFUSED

_REMEMBERED_RESETS: Final = 1024


class SentResets:
    """Streams that we have reset: what the peer sent before it heard of that may still come (section 5.1)."""

    def __init__(self) -> None:
        self._last: dict[int, None] = {}
        self._before: int = 0  # up to which all that have been forgotten are taken to be such

    def add(self, stream_id: int) -> None:
        self._last[stream_id] = None
        if len(self._last) > _REMEMBERED_RESETS:
            oldest = next(iter(self._last))
            del self._last[oldest]
            self._before = max(self._before, oldest)

    def has(self, stream_id: int) -> bool:
        return stream_id in self._last or stream_id <= self._before

    def __len__(self) -> int:
        return len(self._last)


class Endings(Sending):
    """A connection whose streams begin, end, and give back to the connection's window what they have held."""

    def __init__(self, settings: Http2Settings, stats: Http2Stats, is_server: bool) -> None:
        super().__init__(settings, stats)
        self.reader: Final = FrameReader(settings, stats, self.floods, is_server)
        self.sent_resets: Final = SentResets()
        self.last_peer_id: int = 0  # the highest that the peer has opened
        # A peer that has not acknowledged our SETTINGS may still go by the default.
        self.initial_receive_window: int = max(h2.DEFAULT_WINDOW_BYTES, settings.stream_window_bytes)
        self.receive_window: int = max(h2.DEFAULT_WINDOW_BYTES, settings.connection_window_bytes)
        self.unacknowledged: int = 0  # bytes of that window that are free again, which the peer is yet to be told
        self._stream_update_at: Final = settings.stream_window_bytes // 2

    # -- what the two ends do differently

    def on_broken(self, error: Http2Error) -> None:
        """A connection error: GOAWAY is in the output."""
        raise NotImplementedError

    def on_stream_gone(self, stream: Http2Stream) -> None:
        """The stream is closed, and no longer among `streams`."""

    # -- our windows (section 6.9)

    def acknowledge(self, stream: Http2Stream) -> None:
        """What came on the stream has been read: give it back to both windows."""
        self.return_to_window(stream.take_withheld())
        size = stream.take_unacknowledged(self._stream_update_at)
        if size:
            self.write_frame(window_update_frame(stream.id, size))

    def return_to_window(self, size: int) -> None:
        """So much of the connection's is free again, which the peer is told when it is as much as the peer has left:
        half a window at a time, less where streams that are not read hold some of it."""
        self.unacknowledged += size
        if 0 < self.unacknowledged >= self.receive_window and not self.reader.stopped:
            self.receive_window += self.unacknowledged
            self.write_frame(window_update_frame(0, self.unacknowledged))
            self.unacknowledged = 0

    # -- streams

    def open_stream(self, stream: Http2Stream) -> None:
        """Count it in."""
        self.streams[stream.id] = stream
        self.floods.opened += 1
        self.stats.streams_active += 1

    def close_stream(self, stream: Http2Stream) -> None:
        """Both ends are done with it."""
        if self.streams.pop(stream.id, None) is None:
            return
        stream.state = CLOSED
        self.forget_waiting(stream)
        self.stats.streams_active -= 1
        self.return_to_window(stream.take_withheld())
        self.on_stream_gone(stream)

    def end_stream(self, stream: Http2Stream, reason: int, error_details: str) -> None:
        """The stream is gone, and its decoder learns it."""
        stream.ended_by = reason
        self.close_stream(stream)
        stream.fail(reason, error_details)

    def on_reset_received(self, stream: Http2Stream, code: int) -> None:
        if code == h2.REFUSED_STREAM:
            self.end_stream(stream, RESET_REMOTE_REFUSED, details.REMOTE_REFUSE)
        elif code == h2.PROTOCOL_ERROR:
            self.end_stream(stream, RESET_PROTOCOL_ERROR, details.REMOTE_RESET)
        else:
            self.end_stream(stream, RESET_REMOTE, details.REMOTE_RESET)

    def reset_stream(self, stream: Http2Stream, code: int) -> None:
        """End the stream from our side."""
        if not stream.ended_by:
            stream.ended_by = RESET_LOCAL
        if stream.id:
            self.write_reset(stream.id, code)
        self.close_stream(stream)

    def write_reset(self, stream_id: int, code: int) -> None:
        self.stats.tx_reset += 1
        self.sent_resets.add(stream_id)
        self.write_control(rst_stream_frame(stream_id, code))

    def stream_error(self, stream_id: int, code: int, error_details: str) -> None:
        """The peer's fault ends one stream (section 5.4.2)."""
        stream = self.streams.get(stream_id)
        if stream is None:
            self.write_reset(stream_id, code)
            return
        self.reset_stream(stream, code)
        stream.fail(RESET_PROTOCOL_ERROR, error_details)

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

    def too_large(self, stream: Http2Stream, too_many: bool) -> None:
        """Its head, or its trailers, are over a limit: the stream's end, as in Envoy."""
        if too_many:
            self.stats.header_overflow += 1
        else:
            self.stats.header_list_size_too_large += 1
        stream.ended_by = RESET_REMOTE
        self.reset_stream(stream, h2.INTERNAL_ERROR)
        stream.fail(RESET_REMOTE, details.TOO_MANY_HEADERS if too_many else details.HEADERS_TOO_LARGE)

    # -- the connection

    def send_goaway(self, last_stream_id: int, code: int) -> None:
        self.write(goaway_frame(last_stream_id, code))

    def fail(self, error: Http2Error) -> None:
        """A connection error: say GOAWAY, and read no more."""
        if self.reader.stopped:
            return
        self.stop_reading()
        self.should_close = True
        self.send_goaway(self.last_peer_id, error.code)
        self.on_broken(error)
        self.close_streams(RESET_PROTOCOL_ERROR, error.details)

    def stop_reading(self) -> None:
        """The owner closes: what still comes, even with what is being read, is not looked at."""
        self.reader.stop()

    def close_streams(self, reason: int, error_details: str = "") -> None:
        """The connection is gone: every stream's decoder is told."""
        self.backed_up = False
        self.tell_outbound()
        for stream in list(self.streams.values()):
            self.end_stream(stream, reason, error_details)
