"""Bulk data through the proxy: a sender that is held back, a reader that stops, and what memory that takes."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import Final, Protocol

KIB: Final = 1024
MIB: Final = 1024 * KIB
DEADLINE_S: Final = 60
QUIET_S: Final = 0.3  # a sender that cannot send for so long is held back
PIECE: Final = 16 * KIB
PATTERN: Final = os.urandom(MIB)


class Sink(Protocol):
    """A socket, or what looks like one."""

    def recv(self, most: int, /) -> bytes: ...


class Source(Protocol):
    """A socket, or what looks like one."""

    def send(self, data: bytes, /) -> int: ...

    def settimeout(self, seconds: float, /) -> None: ...


def kernel_bytes() -> int:
    """What the kernel may keep for one connection of the proxy's: its receive and its send buffer at their largest."""
    found = (Path(f"/proc/sys/net/ipv4/tcp_{name}mem").read_text().split()[2] for name in "rw")
    return sum(map(int, found))


class Memory:
    """How much the resident memory of a process has grown at most since the object was made."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak is what it is now
        self._before_kib = self._peak_kib()

    def grown_mib(self) -> float:
        return (self._peak_kib() - self._before_kib) / KIB

    def _peak_kib(self) -> int:
        lines = self._status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


class Sender:
    """Sends so many bytes on a socket: a pattern again and again."""

    def __init__(self, sock: Source, total: int, pattern: bytes = PATTERN) -> None:
        self._sock = sock
        self._total = total
        self._pattern = pattern
        self.sent = 0

    def fill(self) -> int:
        """Send until nothing goes any more; returns how much went."""
        self._sock.settimeout(QUIET_S)
        try:
            self._send()
        except TimeoutError:
            return self.sent
        raise AssertionError(f"nothing held the sender back, of {self.sent} bytes")

    def send_until_refused(self) -> None:
        """Send until the receiver's side says that nobody wants it."""
        self._sock.settimeout(DEADLINE_S)
        try:
            self._send()
        except ConnectionError:
            return
        raise AssertionError(f"nobody refused any of {self.sent} bytes")

    def finish(self) -> threading.Thread:
        """Send the rest, on a thread of its own."""
        self._sock.settimeout(DEADLINE_S)
        thread = threading.Thread(target=self._send)
        thread.start()
        return thread

    def _send(self) -> None:
        while self.sent < self._total:
            at = self.sent % len(self._pattern)
            # What could not be sent is offered again just as it was: TLS asks for that.
            self.sent += self._sock.send(self._pattern[at : at + min(PIECE, self._total - self.sent)])


class Reader:
    """Reads the pattern."""

    def __init__(self, sock: Sink, first: bytes = b"") -> None:
        self._sock = sock
        self._found = hashlib.sha256(first)
        self.received = len(first)

    def read(self, until: int) -> None:
        """Up to so many bytes since the beginning."""
        while self.received < until:
            piece = self._sock.recv(min(until - self.received, 256 * KIB))
            assert piece, f"the end came after {self.received} bytes"
            self._found.update(piece)
            self.received += len(piece)

    def is_right(self) -> bool:
        """Whether all came as the pattern was sent."""
        expected = hashlib.sha256()
        for start in range(0, self.received, MIB):
            expected.update(PATTERN[: self.received - start])
        return self._found.digest() == expected.digest()
