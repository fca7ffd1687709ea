"""gRPC streams of a thousand messages, one after the other on each connection. A program, started by bench.load.

    python -m bench.grpc_calls PORT SECONDS CONNECTIONS answers|echo

`answers`: one message asks for a thousand, as many as come at once. `echo`: a thousand messages, each of which leaves
when the one before is answered. The server is bench.grpc_server; every answer is compared, and the status must be 0.
One line of JSON: how many messages were answered, in how many seconds, and the latencies in µs: of whole streams, or of
each message that is echoed.
"""

from __future__ import annotations

import gc
import json
import select
import socket
import sys
import time
from typing import Final

from hpack import Decoder

from bench.grpc_server import MESSAGE_BYTES, message
from bench.http2 import DATA, END_STREAM, HEADERS, Connection, Frame, RepeatedHead, frame

MESSAGES: Final = 1000
_ANSWERS: Final = b"".join(message(number) for number in range(MESSAGES))
_HEAD: Final = (
    (":method", "POST"),
    (":path", "/bench.Messages/Exchange"),
    (":scheme", "http"),
    (":authority", "bench.test"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
    ("user-agent", "bench"),
)
_GRACE_S: Final = 30.0


class Caller:
    """A connection with one call at a time. `took_us` is empty until the first answer."""

    def __init__(self, port: int, *, echoes: bool) -> None:
        connected = socket.create_connection(("127.0.0.1", port), timeout=_GRACE_S)
        self._connection = Connection(connected, is_client=True)
        self._head = RepeatedHead(_HEAD)
        self._decoder = Decoder()
        self._asks = [message(1)] * MESSAGES if echoes else [message(MESSAGES)]
        self._stream = -1
        self._sent = 0
        self._began = 0.0
        self._answer = bytearray()
        self._fields: list[tuple[str, str]] = []
        self.took_us: list[float] = []

    def fileno(self) -> int:
        """For select."""
        return self._connection.fileno()

    def begin(self) -> None:
        """The next call."""
        self._stream += 2
        self._sent = 0
        self._answer = bytearray()
        self._fields = []
        self._send_message(self._head.frame(self._stream, 0))

    def _send_message(self, before: bytes = b"") -> None:
        asks = self._asks[self._sent]
        self._sent += 1
        flags = END_STREAM if self._sent == len(self._asks) else 0
        self._began = time.perf_counter()
        self._connection.socket.sendall(before + frame(DATA, flags, self._stream, asks))

    def receive(self) -> bool:
        """Whether the call is done. Raises RuntimeError when it is not as it should be."""
        is_done = False
        for found in self._connection.receive():
            is_done |= self._take(found)
        return is_done

    def _take(self, found: Frame) -> bool:
        if found.kind == HEADERS:
            self._fields += [(str(name), str(value)) for name, value in self._decoder.decode(found.payload)]
        else:
            self._answer += found.payload
        if len(self._asks) > 1 and len(self._answer) == self._sent * MESSAGE_BYTES and found.kind == DATA:
            self._note()
            if self._sent < len(self._asks):
                self._send_message()
        if found.ends:
            self._check()
            if len(self._asks) == 1:
                self._note()
        return found.ends

    def _note(self) -> None:
        self.took_us.append((time.perf_counter() - self._began) * 1e6)

    def _check(self) -> None:
        if (":status", "200") not in self._fields or ("grpc-status", "0") not in self._fields:
            raise RuntimeError(f"a call ended with {self._fields}")
        if self._answer != _ANSWERS:
            raise RuntimeError(f"a call was answered with {len(self._answer)} bytes, and not with what it asked for")


def measure(callers: list[Caller], seconds: int) -> tuple[int, float]:
    """Calls until the time is over and the last is done: how many messages were answered, in how many seconds."""
    began = time.perf_counter()
    done = 0
    active = list(callers)
    for caller in active:
        caller.begin()
    while active:
        ready = select.select(active, (), (), _GRACE_S)[0]
        if not ready:
            raise RuntimeError("no answer in time")
        for caller in ready:
            if not caller.receive():
                continue
            done += MESSAGES
            if time.perf_counter() < began + seconds:
                caller.begin()
            else:
                active.remove(caller)
    return done, time.perf_counter() - began


def main(port: int, seconds: int, connections: int, *, echoes: bool) -> None:
    callers = [Caller(port, echoes=echoes) for _ in range(connections)]
    gc.disable()  # it would be measured as the proxy's latency
    messages, took_s = measure(callers, seconds)
    latencies = [took for caller in callers for took in caller.took_us]
    print(json.dumps({"messages": messages, "seconds": took_s, "took_us": latencies}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), echoes=sys.argv[4] == "echo")
