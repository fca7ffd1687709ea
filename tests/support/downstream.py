"""A raw HTTP/1.1 downstream: sends the bytes it is told to and reads responses."""

import socket
import struct
from types import TracebackType
from typing import Self

from tests.support.wire import ConnectionEnded, Message, WireReader


class RawDownstream:
    """One connection to a proxy; every wait is bounded by `timeout_s` and raises TimeoutError."""

    def __init__(self, port: int, host: str = "127.0.0.1", timeout_s: float = 5.0) -> None:
        self.sock = socket.create_connection((host, port), timeout=timeout_s)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.local_port: int = self.sock.getsockname()[1]
        self.reader = WireReader(self.sock)

    def send(self, data: bytes) -> bool:
        """Send everything; False when the peer has closed already."""
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def receive(self, method: bytes = b"GET") -> Message:
        """The next response, interim ones too; `method` because HEAD and CONNECT change the framing.

        Raises ConnectionEnded when the peer ends before a complete head.
        """
        message = self.reader.read_head()
        if not has_no_body(method, message.status):
            self.reader.read_body(message, to_end=True)
        return message

    def wait_end(self) -> str:
        """Discard what comes until the peer ends: "closed" or "reset"."""
        return "reset" if self.reader.read_to_end()[1] else "closed"

    def half_close(self) -> None:
        """Send FIN and go on reading."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """Close with FIN."""
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def has_no_body(method: bytes, status: int) -> bool:
    """RFC 9112 §6.3: these end at the blank line whatever their headers say."""
    return method == b"HEAD" or status < 200 or status in (204, 304)


def exchange(port: int, request: bytes, timeout_s: float = 5.0) -> Message:
    """Send one raw request on a connection of its own and read the final response."""
    with RawDownstream(port, timeout_s=timeout_s) as downstream:
        downstream.send(request)
        while (message := downstream.receive(request.split(b" ", 1)[0])).status < 200:
            pass
        return message


__all__ = ["ConnectionEnded", "RawDownstream", "exchange", "has_no_body"]
