"""HTTP/2 as far as the benchmark's own clients and servers need it: frames, and what a connection answers by itself.

Only what every proxy here sends is understood; anything else is an error, and the measurement then counts for nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from hpack import Encoder

# RFC 9113 section 6.
DATA: Final = 0
HEADERS: Final = 1
_PRIORITY: Final = 2
_RST_STREAM: Final = 3
_SETTINGS: Final = 4
_PING: Final = 6
_GOAWAY: Final = 7
_WINDOW_UPDATE: Final = 8
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
_ACK: Final = 0x1
_PADDED: Final = 0x8
_INITIAL_WINDOW_SIZE: Final = 4  # the setting

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD_BYTES: Final = 9
_READ_BYTES: Final = 65_536
_FIRST_WINDOW: Final = 65_535
_LARGEST_WINDOW: Final = 2**31 - 1
_STATUS_200: Final = 0x88  # RFC 7541 appendix A: index 8

Fields = Sequence[tuple[str, str]]


class Frame(NamedTuple):
    """One that carries a message: DATA or HEADERS."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def ends(self) -> bool:
        """Whether it is its message's last."""
        return self.flags & END_STREAM != 0


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """RFC 9113 section 4.1."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _setting(name: int, value: int) -> bytes:
    return name.to_bytes(2, "big") + value.to_bytes(4, "big")


# Windows so large that nobody waits for us: a stream's by the setting, the connection's by an update.
_GREETING: Final = frame(_SETTINGS, 0, 0, _setting(_INITIAL_WINDOW_SIZE, _LARGEST_WINDOW)) + frame(
    _WINDOW_UPDATE, 0, 0, (_LARGEST_WINDOW - _FIRST_WINDOW).to_bytes(4, "big")
)


class Connection:
    """One side of a connection on a blocking socket. SETTINGS and PING are answered, windows are kept.

    `window` is what may still be sent on the whole connection, `stream_window` what each stream begins with.
    """

    __slots__ = ("_consumed", "_received", "socket", "stream_window", "window")

    def __init__(self, connected: socket.socket, *, is_client: bool) -> None:
        self.socket = connected
        self.window = self.stream_window = _FIRST_WINDOW
        self._received = bytearray()
        self._consumed = 0
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.sendall(PREFACE + _GREETING if is_client else _GREETING)
        if not is_client and connected.recv(len(PREFACE), socket.MSG_WAITALL) != PREFACE:
            raise RuntimeError("the client did not begin with the preface of HTTP/2")

    def fileno(self) -> int:
        """For select."""
        return self.socket.fileno()

    def receive(self) -> Iterator[Frame]:
        """Read what is there. Raises ConnectionError at its end, RuntimeError for a reset or what is not understood."""
        data = self.socket.recv(_READ_BYTES)
        if not data:
            raise ConnectionError("a connection was closed")
        self._received += data
        position, end = 0, len(self._received)
        while end - position >= _HEAD_BYTES:
            size = int.from_bytes(self._received[position : position + 3], "big")
            begin = position + _HEAD_BYTES
            if end < begin + size:
                break
            kind, flags = self._received[position + 3], self._received[position + 4]
            stream = int.from_bytes(self._received[position + 5 : begin], "big")
            found = Frame(kind, flags, stream, bytes(self._received[begin : begin + size]))
            position = begin + size
            if kind in {DATA, HEADERS}:
                yield self._checked(found)
            else:
                self._control(found)
        del self._received[:position]

    def _checked(self, found: Frame) -> Frame:
        if found.flags & _PADDED or (found.kind == HEADERS and not found.flags & END_HEADERS):
            raise RuntimeError(f"a frame with padding, or a head in several: flags {found.flags:#x}")
        if found.kind == DATA:
            self._consumed += len(found.payload)
            if self._consumed > _LARGEST_WINDOW // 2:
                self.socket.sendall(frame(_WINDOW_UPDATE, 0, 0, self._consumed.to_bytes(4, "big")))
                self._consumed = 0
        return found

    def _control(self, found: Frame) -> None:
        if found.kind == _SETTINGS and not found.flags & _ACK:
            self._take_settings(found.payload)
            self.socket.sendall(frame(_SETTINGS, _ACK, 0))
        elif found.kind == _PING and not found.flags & _ACK:
            self.socket.sendall(frame(_PING, _ACK, 0, found.payload))
        elif found.kind == _WINDOW_UPDATE:
            if found.stream == 0:
                self.window += int.from_bytes(found.payload, "big")
        elif found.kind not in {_SETTINGS, _PING, _PRIORITY}:
            name = {_RST_STREAM: "RST_STREAM", _GOAWAY: "GOAWAY"}.get(found.kind, f"a frame of type {found.kind}")
            raise RuntimeError(f"received {name}: {found.payload!r}")

    def _take_settings(self, payload: bytes) -> None:
        for at in range(0, len(payload), 6):
            if int.from_bytes(payload[at : at + 2], "big") == _INITIAL_WINDOW_SIZE:
                self.stream_window = int.from_bytes(payload[at + 2 : at + 6], "big")


class RepeatedHead:
    """A head that is sent again and again: the first time on a connection the peer learns its fields, later they are
    indices into its table."""

    __slots__ = ("_again", "_first")

    def __init__(self, fields: Fields) -> None:
        encoder = Encoder()
        self._first = encoder.encode(fields)
        self._again = encoder.encode(fields)

    def frame(self, stream: int, flags: int) -> bytes:
        """For a client whose every request has this head: its first stream is 1."""
        return frame(HEADERS, flags | END_HEADERS, stream, self._first if stream == 1 else self._again)


def is_200(block: bytes) -> bool:
    """Whether a response's head has that status, as every encoder here writes it: the entry of the static table, first
    of all but a change of the table's size."""
    return block[0] == _STATUS_200 or (block[0] & 0xE0 == 0x20 and _STATUS_200 in block[1:6])
