"""What bulk data costs a relay: read and write, against `splice` and `sendfile`, which leave the bytes in the kernel.

    python -m bench.splice [MEBIBYTES]

A sender, a relay and a receiver are a process each, on loopback TCP; printed is the relay's CPU time for each MiB.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Final

_MIB: Final = 1024 * 1024
_ROUNDS: Final = 5

Relay = Callable[[socket.socket, socket.socket], None]


def read_and_write(size: int) -> Relay:
    """Through a buffer of so many bytes."""

    def relay(source: socket.socket, sink: socket.socket) -> None:
        buffer = memoryview(bytearray(size))
        while count := source.recv_into(buffer):
            sink.sendall(buffer[:count])

    return relay


def spliced(size: int) -> Relay:
    """Through a pipe of so many bytes."""

    def relay(source: socket.socket, sink: socket.socket) -> None:
        out, into = os.pipe()
        fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, size)
        while count := os.splice(source.fileno(), into, size):
            while count > 0:
                count -= os.splice(out, sink.fileno(), count)

    return relay


def sent_as_file(source: socket.socket, sink: socket.socket) -> None:
    """The kernel refuses a socket as the source."""
    while os.sendfile(sink.fileno(), source.fileno(), None, _MIB):
        continue


WAYS: Final[dict[str, Relay]] = {
    "read and write, 64 KiB": read_and_write(64 * 1024),
    "read and write, 256 KiB": read_and_write(256 * 1024),
    "splice, pipe of 64 KiB": spliced(64 * 1024),
    "splice, pipe of 1 MiB": spliced(_MIB),
    "sendfile": sent_as_file,
}


def measure(relay: Relay, mebibytes: int) -> float:
    """CPU µs of the relay for each MiB. Raises OSError."""
    with socket.create_server(("127.0.0.1", 0)) as front, socket.create_server(("127.0.0.1", 0)) as back:
        sender = multiprocessing.Process(target=_send, args=(front.getsockname(), mebibytes))
        receiver = multiprocessing.Process(target=_receive, args=(back.getsockname(),))
        sender.start()
        receiver.start()
        source, sink = front.accept()[0], back.accept()[0]
        try:
            with source, sink:
                before = time.process_time()
                relay(source, sink)
                return (time.process_time() - before) * 1e6 / mebibytes
        finally:
            sender.join()
            receiver.join()


def main(mebibytes: int) -> None:
    costs: dict[str, list[str]] = {name: [] for name in WAYS}
    for _ in range(_ROUNDS):
        for name, relay in WAYS.items():
            try:
                costs[name].append(f"{measure(relay, mebibytes):.0f}")
            except OSError as error:
                costs[name].append(error.strerror or str(error))
    for name, each in costs.items():
        print(f"{name:25} {' '.join(each)}")


def _send(address: tuple[str, int], mebibytes: int) -> None:
    data = bytes(_MIB)
    with socket.create_connection(address) as connection:
        try:
            for _ in range(mebibytes):
                connection.sendall(data)
        except ConnectionError:
            return  # the relay gave up


def _receive(address: tuple[str, int]) -> None:
    buffer = bytearray(_MIB)
    with socket.create_connection(address) as connection:
        while connection.recv_into(buffer):
            continue


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 512)
