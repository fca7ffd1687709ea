"""One stream of a connection: what arrives on it and cannot be delivered yet, and what cannot be sent yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshproxy.codec.content_length import NO_LENGTH
from meshproxy.codec.headers import HeaderMap
from meshproxy.codec.http2.constants import INTERNAL_ERROR, LARGEST_WINDOW_BYTES, PROTOCOL_ERROR, REFUSED_STREAM
from meshproxy.codec.http2.states import CLOSED, END_RECEIVED, END_SENT, HALF_CLOSED_REMOTE, OPEN
from meshproxy.codec.stream import StreamDecoder, StreamEncoder
from meshproxy.errors import RESET_PROTOCOL_ERROR, RESET_REMOTE_REFUSED

if TYPE_CHECKING:
    from meshproxy.codec.http2.connection import Http2Connection


_PIECE_BYTES: Final = 1024


def add_piece(pieces: list[bytes], data: bytes) -> None:
    """Append `data`, joined with the last piece where both are small: tiny frames take no more memory than their
    bytes."""
    if pieces and len(pieces[-1]) + len(data) <= _PIECE_BYTES:
        pieces[-1] += data
    else:
        pieces.append(data)


class Http2Stream(StreamEncoder):
    """Sends one message, and keeps the books of both. What `send_headers` does is the role's."""

    def __init__(self, connection: Http2Connection, stream_id: int) -> None:
        self.connection: Final = connection
        self.id: int = stream_id  # 0: a client's, whose headers have not been sent
        self.state: int = OPEN
        self.decoder: StreamDecoder | None = None
        self.ended_by: int = 0  # RESET_*, where something else than both ends has ended it
        self.send_window: int = connection.initial_send_window
        self.receive_window: int = connection.initial_receive_window
        self.head_received: bool = False
        self.is_tunnel: bool = False  # of CONNECT: no trailers (section 8.5)
        self.body_left: int = NO_LENGTH  # that content-length announced
        # what we send
        self.head_sent: bool = False
        self.ended: bool = False  # we have been given the end of the message, though it may wait
        self.waiting_bytes: int = 0
        self._waiting: list[bytes] | None = None  # data that a window, or the socket, has no room for
        self._waiting_at: int = 0  # how much of the first piece has been sent
        self._waiting_trailers: HeaderMap | None = None
        self._above: bool = False  # more waits than should: the decoder knows
        self._backed_up: bool = False  # the socket takes no more: the decoder knows
        # what we receive
        self._read_disabled: int = 0
        self._delivering: bool = False
        self._held: list[bytes] | None = None  # data that came while reading was disabled
        self._held_end: bool = False
        self._held_trailers: HeaderMap | None = None
        self._unacknowledged: int = 0  # bytes that the stream's window has not got back
        self._withheld: int = 0  # … nor the connection's, as nobody reads the stream
        # bytes on the wire, frame headers included
        self.wire_received: int = 0
        self.wire_sent: int = 0
        self.fields_received: int = 0
        self.fields_sent: int = 0

    # -- what arrives

    def receive_data(self, data: bytes, end: bool) -> None:
        """A DATA frame's content."""
        if self.decoder is None:
            return
        if self._read_disabled or self._held is not None or self._delivering:
            if self._held is None:
                self._held = []
            if data or end:
                add_piece(self._held, data)
            self._held_end = end
        else:
            self._deliver(data, end)

    def _deliver(self, data: bytes, end: bool) -> None:
        decoder = self.decoder
        if decoder is not None:
            if end:
                self.on_end_delivered()
            decoder.on_data(data, end)

    def receive_trailers(self, trailers: HeaderMap) -> None:
        if self._read_disabled or self._held is not None or self._delivering:
            self._held_trailers = trailers
            if self._held is None:
                self._held = []
        elif self.decoder is not None:
            decoder = self.decoder
            self.on_end_delivered()
            decoder.on_trailers(trailers)

    def read_disable(self, disable: bool) -> None:
        if disable:
            self._read_disabled += 1
        elif self._read_disabled:
            self._read_disabled -= 1
            if not self._read_disabled:
                if self._held is not None and not self._delivering:
                    self._deliver_held()
                if not self._read_disabled:
                    self.connection.acknowledge(self)

    def _deliver_held(self) -> None:
        self._delivering = True
        at = 0
        while self._held is not None and at < len(self._held) and not self._read_disabled:
            data = self._held[at]
            at += 1
            self._deliver(data, self._held_end and at == len(self._held))
        self._delivering = False
        if self._held is not None:
            del self._held[:at]
        if self._read_disabled or self._held is None:
            return
        self._held = None
        trailers = self._held_trailers
        if trailers is not None:
            self._held_trailers = None
            self.receive_trailers(trailers)

    def count_received(self, size: int) -> None:
        """`size` bytes of flow-controlled payload came; they go back to the windows when the stream is read."""
        self._unacknowledged += size
        self._withheld += size
        if not self._read_disabled:
            self.connection.acknowledge(self)

    def take_withheld(self) -> int:
        """What the connection's window has not got back of this stream."""
        withheld, self._withheld = self._withheld, 0
        return withheld

    def take_unacknowledged(self, least: int) -> int:
        """What the stream's own window has not got back, once it is worth a frame."""
        size = self._unacknowledged
        if size < least or self.state >= HALF_CLOSED_REMOTE:
            return 0
        self._unacknowledged = 0
        self.receive_window += size
        return size

    def on_end_received(self) -> None:
        self.state = END_RECEIVED[self.state]

    def on_end_delivered(self) -> None:
        """The decoder is about to be told the end."""

    # -- what is sent

    def send_data(self, data: bytes, end: bool) -> None:
        if self.ended or not self.head_sent:
            return
        if end:
            self.ended = True
        size = len(data)
        connection = self.connection
        # An empty frame needs no window, but a negative one holds up every frame of data (section 6.9.2).
        if self._waiting is None and size <= self.send_window and (size == 0 or connection.has_room(size)):
            if size or end:
                connection.write_data(self, data, end)
        elif size or end:
            self._wait(data)
            connection.pump()

    def send_trailers(self, trailers: HeaderMap) -> None:
        if self.ended or not self.head_sent:
            return
        if not trailers.fields:  # a filter took them all: the data ends the message, as in Envoy
            self.send_data(b"", True)
            return
        self.ended = True
        if self._waiting is None:
            self.connection.write_trailers(self, trailers)
        else:
            self._waiting_trailers = trailers

    def _wait(self, data: bytes) -> None:
        if self._waiting is None:
            self._waiting = []
        if data:
            add_piece(self._waiting, data)
            self.waiting_bytes += len(data)
        self.connection.on_waiting(self, len(data))
        if not self._above and self.waiting_bytes > self.connection.settings.buffer_limit_bytes:
            self._above = True
            if self.decoder is not None:
                self.decoder.on_above_write_watermark()

    @property
    def is_waiting(self) -> bool:
        """Whether it has something that could not be sent yet."""
        return self._waiting is not None

    def send_waiting(self, limit: int) -> int:
        """Send up to `limit` bytes of what waits, as far as the stream's window goes, in one frame; how many."""
        waiting = self._waiting
        if waiting is None:
            return 0
        size = min(limit, self.send_window, self.waiting_bytes)
        if size < 0 or (size == 0 and self.waiting_bytes):
            return 0
        data = self._take(waiting, size)
        last = not self.waiting_bytes
        if last:
            self._waiting = None
        trailers = self._waiting_trailers if last else None
        if size or (last and self.ended and trailers is None):
            self.connection.write_data(self, data, last and self.ended and trailers is None)
        if trailers is not None:
            self._waiting_trailers = None
            self.connection.write_trailers(self, trailers)
        if self._above and self.waiting_bytes * 2 <= self.connection.settings.buffer_limit_bytes:
            self._above = False
            if self.decoder is not None:
                self.decoder.on_below_write_watermark()
        return size

    def _take(self, waiting: list[bytes], size: int) -> bytes:
        """The first `size` bytes of what waits."""
        self.waiting_bytes -= size
        parts: list[bytes] = []
        while size > 0:
            first = waiting[0]
            at = self._waiting_at
            piece = first[at : at + size]
            size -= len(piece)
            parts.append(piece)
            if at + len(piece) == len(first):
                del waiting[0]
                self._waiting_at = 0
            else:
                self._waiting_at = at + len(piece)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def on_end_sent(self) -> None:
        """The end of our message is in the output."""
        self.state = END_SENT[self.state]
        if self.state == CLOSED:
            self.connection.close_stream(self)

    def on_backed_up(self) -> None:
        """The socket takes no more for now."""
        if not self._backed_up and self.decoder is not None:
            self._backed_up = True
            self.decoder.on_above_write_watermark()

    def on_taken(self) -> None:
        """The socket takes more again."""
        if self._backed_up and self.decoder is not None:
            self._backed_up = False
            self.decoder.on_below_write_watermark()

    def widen(self, increment: int) -> bool:
        """The peer takes so many bytes more (fewer, if below 0); False: more than a window can be."""
        self.send_window += increment
        return self.send_window <= LARGEST_WINDOW_BYTES

    # -- the end

    def reset(self, reason: int) -> None:
        if self.state < CLOSED:
            self.decoder = None
            self.connection.reset_stream(self, self.error_code(reason))

    def error_code(self, reason: int) -> int:
        """What RST_STREAM says of a `reason` (as Envoy)."""
        if reason == RESET_REMOTE_REFUSED:
            return REFUSED_STREAM
        return PROTOCOL_ERROR if reason == RESET_PROTOCOL_ERROR else INTERNAL_ERROR

    def fail(self, reason: int, details: str) -> None:
        """The stream is gone, and its decoder learns it."""
        decoder, self.decoder = self.decoder, None
        if decoder is not None:
            decoder.on_reset(reason, details)

    def forget(self) -> int:
        """Drop what waits to be sent, and what nobody will hear; how many bytes could not be sent."""
        self.ended = True
        self._waiting = None
        self._waiting_trailers = None
        if self.decoder is None:  # else it hears the rest when reading goes on
            self._held = None
            self._held_trailers = None
        unsent, self.waiting_bytes = self.waiting_bytes, 0
        return unsent
