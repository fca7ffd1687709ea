"""A gRPC server for streams: each message says in its first four bytes how many messages answer it. A program.

    python -m bench.grpc_server

It prints the port that it listens on. Every answer is a DATA frame of its own, since that is how servers send them; the
status, in the trailers, is 0. It is quick because it knows little: any method will do, and heads are not decoded.
"""

from __future__ import annotations

import selectors
import socket
from collections import deque
from typing import Final

from hpack import Encoder

from bench.http2 import DATA, END_HEADERS, END_STREAM, HEADERS, Connection, Frame, frame

PREFIX_BYTES: Final = 5  # not compressed, and the length
MESSAGE_BYTES: Final = PREFIX_BYTES + 64
_PREFIX: Final = b"\0" + (64).to_bytes(4, "big")
_REST: Final = (b"0123456789abcdef" * 4)[4:]


def message(number: int) -> bytes:
    """With its prefix: what stands in the first four bytes is how many answers are wanted, or which answer it is."""
    return _PREFIX + number.to_bytes(4, "big") + _REST


class Call:
    """A stream: what of its messages has arrived, and how many were answered."""

    __slots__ = ("answered", "received")

    def __init__(self) -> None:
        self.answered = 0
        self.received = b""

    def wanted(self, data: bytes) -> int:
        """How many more answers the messages that are whole now ask for; proxies may cut them as they like."""
        self.received += data
        found = 0
        while len(self.received) >= MESSAGE_BYTES:
            found += int.from_bytes(self.received[PREFIX_BYTES : PREFIX_BYTES + 4], "big")
            self.received = self.received[MESSAGE_BYTES:]
        return found


class Server:
    """One connection, and its calls."""

    __slots__ = ("_calls", "_connection", "_encoder", "_waiting")

    def __init__(self, accepted: socket.socket) -> None:
        self._connection = Connection(accepted, is_client=False)
        self._calls: dict[int, Call] = {}
        self._encoder = Encoder()
        self._waiting: deque[tuple[int, bytes]] = deque()  # for so much of the connection's window

    def receive(self) -> None:
        """Read what is there, and answer. Raises ConnectionError, RuntimeError."""
        for found in self._connection.receive():
            self._take(found)
        while self._waiting and self._waiting[0][0] <= self._connection.window:
            size, data = self._waiting.popleft()
            self._connection.window -= size
            self._connection.socket.sendall(data)

    def _take(self, found: Frame) -> None:
        if found.kind == HEADERS:
            self._calls[found.stream] = Call()
            self._send_head(found.stream, END_HEADERS, (":status", "200"), ("content-type", "application/grpc"))
        else:
            self._answer(found.stream, self._calls[found.stream], found.payload)
        if found.ends:
            del self._calls[found.stream]
            self._send_head(found.stream, END_HEADERS | END_STREAM, ("grpc-status", "0"))

    def _answer(self, stream: int, call: Call, data: bytes) -> None:
        first = call.answered
        call.answered += call.wanted(data)
        if call.answered * MESSAGE_BYTES > self._connection.stream_window:
            raise RuntimeError("the window of a stream is smaller than its answer")
        frames = [frame(DATA, 0, stream, message(number)) for number in range(first, call.answered)]
        if frames:
            self._waiting.append((len(frames) * MESSAGE_BYTES, b"".join(frames)))

    def _send_head(self, stream: int, flags: int, *fields: tuple[str, str]) -> None:
        self._waiting.append((0, frame(HEADERS, flags, stream, self._encoder.encode(fields))))


def main() -> None:
    """Until a signal ends the process."""
    with selectors.DefaultSelector() as selector, socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        selector.register(listener, selectors.EVENT_READ)
        print(listener.getsockname()[1], flush=True)
        while True:
            for key, _ in selector.select():
                if key.data is None:
                    accepted = listener.accept()[0]
                    selector.register(accepted, selectors.EVENT_READ, Server(accepted))
                    continue
                try:
                    key.data.receive()
                except OSError:  # it is over
                    selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]  # it is a socket


if __name__ == "__main__":
    main()
