"""Either end of an HTTP/2 connection on a blocking socket, with bodies that look like sockets: only what is read of
them goes back to the windows, and nothing is sent beyond those of the peer."""

from __future__ import annotations

import socket
from collections import defaultdict
from typing import Final

from tests.support.http2_wire import (
    ACK,
    DATA,
    END_STREAM,
    MAX_WINDOW,
    SETTINGS,
    WINDOW_UPDATE,
    Fields,
    Http2Wire,
    data,
    headers,
    settings,
    window_update,
)
from tests.support.wire import ConnectionEnded

_DEFAULT_WINDOW: Final = 65535
_FRAME: Final = 16384
_INITIAL_WINDOW_SIZE: Final = 4


class BulkWire(Http2Wire):
    """A connection with books on its windows. `window` is what it lets the peer send on a stream; on the connection
    the peer may send as much as it likes."""

    def __init__(self, sock: socket.socket, preface: bytes = b"", window: int = _DEFAULT_WINDOW) -> None:
        super().__init__(sock)
        self._unsent = b""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.window: Final = window
        self.arrived: dict[int, bytearray] = defaultdict(bytearray)  # of a stream, and not read yet
        self.allowed: dict[int, int] = defaultdict(int)  # that may be sent, beside the initial window; 0 is all streams
        self.allowed[0] = _DEFAULT_WINDOW
        self.initial = _DEFAULT_WINDOW
        self.send(preface + settings((_INITIAL_WINDOW_SIZE, window)) + window_update(0, MAX_WINDOW - _DEFAULT_WINDOW))

    def read_frame(self) -> None:
        """As ever, but a time-out amid a frame loses nothing of it."""
        while len(self.buffer) < 9 or len(self.buffer) < 9 + int.from_bytes(self.buffer[:3], "big"):
            try:
                piece = self.sock.recv(256 * 1024)
            except ConnectionResetError:
                piece = b""
            if not piece:
                raise ConnectionEnded(reset=False, partial=self.buffer)
            self.buffer += piece
        super().read_frame()

    def _note(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            self.arrived[stream] += payload
            self.streams[stream].ended |= flags & END_STREAM != 0
            return
        if kind == WINDOW_UPDATE:
            self.allowed[stream] += int.from_bytes(payload, "big")
        elif kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                if int.from_bytes(payload[at : at + 2], "big") == _INITIAL_WINDOW_SIZE:
                    self.initial = int.from_bytes(payload[at + 2 : at + 6], "big")
        super()._note(kind, flags, stream, payload)

    def room(self, stream: int) -> int:
        """How much may be sent on a stream now."""
        return min(self.initial + self.allowed[stream], self.allowed[0])

    def send_some(self, stream: int, piece: bytes, end: bool = False) -> int:
        """Send a frame of as much as the windows allow. Raises TimeoutError when they, or the socket, do not move, and
        ConnectionResetError when the peer has reset the stream."""
        self.flush()
        while self.room(stream) <= 0:
            self.read_frame()
            if self.was_reset(stream):
                raise ConnectionResetError(self.log[-1])
        size = min(len(piece), self.room(stream), _FRAME)
        self.allowed[stream] -= size
        self.allowed[0] -= size
        self._unsent = data(stream, piece[:size], end=end and size == len(piece))
        try:
            self.flush()
        except TimeoutError:
            return size  # the frame has begun: the rest goes with the next one
        return size

    def send(self, payload: bytes) -> bool:
        """Send everything, behind what is left of the last frame."""
        self.flush()
        return super().send(payload)

    def flush(self) -> None:
        """Send what is left of the last frame."""
        while self._unsent:
            self._unsent = self._unsent[self.sock.send(self._unsent) :]

    def send_all(self, stream: int, body: bytes) -> None:
        """A body, with the end of its message."""
        while body:
            body = body[self.send_some(stream, body, end=True) :]

    def take(self, stream: int, most: int) -> bytes:
        """Read of a stream, and let the peer send as much again; nothing at its end."""
        arrived = self.arrived[stream]
        while not arrived:
            if self.is_over(stream):
                return b""
            self.read_frame()
        taken = bytes(arrived[:most])
        del arrived[:most]
        if self.window < MAX_WINDOW:
            self.send(window_update(stream, len(taken)))
        self.send(window_update(0, len(taken)))
        return taken

    def take_all(self, stream: int) -> bytes:
        """Read a stream to its end."""
        body = b""
        while piece := self.take(stream, 1 << 20):
            body += piece
        return body

    def ask(self, stream: int, fields: Fields, body: bytes = b"") -> None:
        """A request."""
        self.send(headers(stream, fields, end=not body))
        self.send_all(stream, body)

    def is_over(self, stream: int) -> bool:
        """Whether nothing more comes on a stream."""
        return stream in self.streams and self.streams[stream].over

    def was_reset(self, stream: int) -> bool:
        """Whether the peer has reset a stream."""
        return stream in self.streams and self.streams[stream].reset is not None

    def wait_head(self, stream: int) -> None:
        """Read until a stream has its head."""
        self.read_until(lambda: stream in self.streams and bool(self.streams[stream].parts))

    def wait_new(self) -> int:
        """Read until another stream begins; its identifier."""
        known = set(self.streams)
        self.read_until(lambda: len(self.streams) > len(known))
        return next(iter(self.streams.keys() - known))


class Http2Body:
    """The body of one stream."""

    def __init__(self, wire: BulkWire, stream: int) -> None:
        self._wire = wire
        self._stream = stream

    def recv(self, most: int) -> bytes:
        """As a socket's."""
        return self._wire.take(self._stream, most)

    def send(self, piece: bytes) -> int:
        """As a socket's."""
        return self._wire.send_some(self._stream, piece)

    def settimeout(self, seconds: float) -> None:
        """As a socket's."""
        self._wire.sock.settimeout(seconds)
