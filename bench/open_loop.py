"""Requests at a fixed rate, each timed from the moment it was due. A program, started by bench.load.

    python -m bench.open_loop PORT SECONDS PER_SECOND CONNECTIONS [HEADER ...]

A request leaves when its time has come and a connection is free; while none is, it waits, and the wait counts: a
proxy that stands still for 100 ms is late with every request of these 100 ms. A generator that times from the sending
(`h2load --rps` does, and over HTTP/1.1 it holds back what its connections cannot carry) would see one late request
for each connection. Printed is one line of JSON: each latency in µs.
"""

from __future__ import annotations

import gc
import json
import select
import socket
import sys
import time
from collections import deque
from typing import Final

_HEAD_END: Final = b"\r\n\r\n"
_GRACE_S: Final = 10.0


class Client:
    """One keep-alive connection; `due` is when the request that it carries should have left."""

    __slots__ = ("due", "received", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_GRACE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0
        self.received = b""

    def fileno(self) -> int:
        """For select."""
        return self.socket.fileno()

    def is_answered(self) -> bool:
        """Read what is there; whether the answer is whole. Raises RuntimeError when it is not a 200."""
        data = self.socket.recv(65536)
        if not data:
            raise RuntimeError("a connection was closed")
        self.received += data
        head, found, body = self.received.partition(_HEAD_END)
        if not found or len(body) < content_length(head):
            return False
        if not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"answered {head[:60]!r}")
        self.received = b""
        return True


def content_length(head: bytes) -> int:
    """Every answer here has one. Raises ValueError."""
    begin = head.lower().index(b"\r\ncontent-length:") + len(b"\r\ncontent-length:")
    return int(head[begin:].split(b"\r\n", 1)[0])


def measure(clients: list[Client], request: bytes, count: int, interval_s: float) -> list[float]:
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
            client.due = due
            client.socket.sendall(request)
            sent += 1
        if now > end:
            raise RuntimeError(f"{count - len(took_us)} requests were not answered in time")
        wait_s = begin + sent * interval_s - time.perf_counter() if free and sent < count else 1.0
        for client in select.select(clients, (), (), max(wait_s, 0.0))[0]:
            if client.is_answered():
                took_us.append((time.perf_counter() - client.due) * 1e6)
                free.append(client)
    return took_us


def main(port: int, seconds: int, per_second: int, connections: int, headers: list[str]) -> None:
    lines = ["GET / HTTP/1.1", "host: bench.test", *headers, "", ""]
    clients = [Client(port) for _ in range(connections)]
    gc.disable()  # it would be measured as the proxy's latency
    print(json.dumps(measure(clients, "\r\n".join(lines).encode(), seconds * per_second, 1 / per_second)))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
