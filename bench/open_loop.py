"""Requests at a fixed rate, each timed from the moment it was due. A program, started by bench.load.

    python -m bench.open_loop PORT SECONDS PER_SECOND CONNECTIONS http1|http2 [HEADER ...]

A request leaves when its time has come and a connection is free; while none is, it waits, and the wait counts: a
proxy that stands still for 100 ms is late with every request of these 100 ms. A generator that times from the sending
(`h2load --rps` does, and over HTTP/1.1 it holds back what its connections cannot carry) would see one late request
for each connection. Over HTTP/2 every connection carries many; `h2load --rps` would send those of 10 ms, of all its
connections, at once. Printed is one line of JSON: each latency in µs.
"""

from __future__ import annotations

import gc
import json
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

from bench.http2 import END_STREAM, HEADERS, Connection, RepeatedHead, is_200

_HEAD_END: Final = b"\r\n\r\n"
_GRACE_S: Final = 10.0
_MOST_STREAMS: Final = 100


class Client(Protocol):
    """A connection. `has_room` is whether another request may leave."""

    @property
    def has_room(self) -> bool: ...

    def fileno(self) -> int:
        """For select."""
        ...

    def send(self, due: float) -> None:
        """A request that should have left at `due`."""
        ...

    def receive(self) -> list[float]:
        """Read what is there; when each of the requests that are answered now was due. Raises RuntimeError when an
        answer is not a 200."""
        ...


class Http1Client:
    """One request at a time, on a connection that stays."""

    __slots__ = ("_due", "_received", "_request", "_socket", "has_room")

    def __init__(self, port: int, headers: Sequence[str]) -> None:
        self._socket = _connect(port)
        self._request = "\r\n".join(["GET / HTTP/1.1", "host: bench.test", *headers, "", ""]).encode()
        self._due = 0.0
        self._received = b""
        self.has_room = True

    def fileno(self) -> int:
        """See Client."""
        return self._socket.fileno()

    def send(self, due: float) -> None:
        """See Client."""
        self._due, self.has_room = due, False
        self._socket.sendall(self._request)

    def receive(self) -> list[float]:
        """See Client."""
        data = self._socket.recv(65536)
        if not data:
            raise RuntimeError("a connection was closed")
        self._received += data
        head, found, body = self._received.partition(_HEAD_END)
        if not found or len(body) < content_length(head):
            return []
        if not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"answered {head[:60]!r}")
        self._received, self.has_room = b"", True
        return [self._due]


class Http2Client:
    """Many requests at a time."""

    __slots__ = ("_connection", "_dues", "_head", "_next_stream")

    def __init__(self, port: int, headers: Sequence[str]) -> None:
        pairs = [(name, value) for name, _, value in (header.partition(": ") for header in headers)]
        start = [(":method", "GET"), (":path", "/"), (":scheme", "http"), (":authority", "bench.test")]
        self._head = RepeatedHead([*start, *pairs])
        self._connection = Connection(_connect(port), is_client=True)
        self._dues: dict[int, float] = {}  # by stream
        self._next_stream = 1

    @property
    def has_room(self) -> bool:
        """See Client."""
        return len(self._dues) < _MOST_STREAMS

    def fileno(self) -> int:
        """See Client."""
        return self._connection.fileno()

    def send(self, due: float) -> None:
        """See Client."""
        self._connection.socket.sendall(self._head.frame(self._next_stream, END_STREAM))
        self._dues[self._next_stream] = due
        self._next_stream += 2

    def receive(self) -> list[float]:
        """See Client."""
        answered = []
        for frame in self._connection.receive():
            if frame.kind == HEADERS and not is_200(frame.payload):
                raise RuntimeError(f"answered something else than 200: {frame.payload!r}")
            if frame.ends:
                answered.append(self._dues.pop(frame.stream))
        return answered


def content_length(head: bytes) -> int:
    """Every answer here has one. Raises ValueError."""
    begin = head.lower().index(b"\r\ncontent-length:") + len(b"\r\ncontent-length:")
    return int(head[begin:].split(b"\r\n", 1)[0])


def measure(clients: Sequence[Client], count: int, interval_s: float) -> list[float]:
    """Send `count` requests, one each `interval_s`; their latencies in µs. Raises RuntimeError."""
    free = deque(clients)
    took_us: list[float] = []
    begin = time.perf_counter() + 0.01
    sent = 0
    end = begin + count * interval_s + _GRACE_S
    while len(took_us) < count:
        now = time.perf_counter()
        while free and sent < count and (due := begin + sent * interval_s) <= now:
            client = free.popleft()
            client.send(due)
            sent += 1
            if client.has_room:
                free.append(client)
        if now > end:
            raise RuntimeError(f"{count - len(took_us)} requests were not answered in time")
        wait_s = begin + sent * interval_s - time.perf_counter() if free and sent < count else 1.0
        for client in select.select(clients, (), (), max(wait_s, 0.0))[0]:
            was_full = not client.has_room
            answered = client.receive()
            now = time.perf_counter()
            took_us += [(now - due) * 1e6 for due in answered]
            if was_full and client.has_room:
                free.append(client)
    return took_us


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=_GRACE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def main(port: int, seconds: int, per_second: int, connections: int, protocol: str, headers: Sequence[str]) -> None:
    make = Http2Client if protocol == "http2" else Http1Client
    clients: list[Client] = [make(port, headers) for _ in range(connections)]
    gc.disable()  # it would be measured as the proxy's latency
    print(json.dumps(measure(clients, seconds * per_second, 1 / per_second)))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], sys.argv[6:])
