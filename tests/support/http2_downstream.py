"""An HTTP/2 downstream that sends the frames it is told to, right or wrong, and keeps what comes."""

import contextlib
import socket
import ssl
import struct
from types import TracebackType
from typing import Self

from tests.support.http2_wire import MAX_WINDOW, PREFACE, WIDE, Http2Wire, ping, settings, window_update
from tests.support.wire import ConnectionEnded

BARRIER = b"\xffbarrier"
OPENING = PREFACE + settings(*WIDE) + window_update(0, MAX_WINDOW - 65535)


class Http2Downstream(Http2Wire):
    """One connection to a proxy; every wait is bounded by `timeout_s` and raises TimeoutError."""

    def __init__(
        self,
        port: int,
        *,
        opening: bytes = OPENING,
        timeout_s: float = 5.0,
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        sock = socket.create_connection((host, port), timeout=timeout_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().__init__(tls.wrap_socket(sock, server_hostname="localhost") if tls else sock)
        self.local_port: int = self.sock.getsockname()[1]
        if opening:
            self.send(opening)

    @property
    def selected_alpn(self) -> str | None:
        """The protocol that TLS has agreed upon."""
        return self.sock.selected_alpn_protocol() if isinstance(self.sock, ssl.SSLSocket) else None

    def wait_over(self, *streams: int) -> None:
        """Read until these streams are over."""
        self.read_until(lambda: all(stream in self.streams and self.streams[stream].over for stream in streams))

    def wait_parts(self, stream: int, count: int) -> None:
        """Read until so many header sections came on a stream."""
        self.read_until(lambda: stream in self.streams and len(self.streams[stream].parts) >= count)

    def wait_data(self, stream: int, count: int) -> None:
        """Read until so many bytes of data came on a stream."""
        self.read_until(
            lambda: stream in self.streams and sum(len(part.body) for part in self.streams[stream].parts) >= count
        )

    def barrier(self) -> bool:
        """Whether the peer still answers: everything that it has said to what was sent before is read."""
        done = len(self.acknowledged_pings) + 1
        self.send(ping(BARRIER))
        with contextlib.suppress(ConnectionEnded):
            self.read_until(lambda: len(self.acknowledged_pings) >= done)
            return True
        return False

    def wait_end(self) -> str:
        """Read until the peer ends: "closed" or "reset"."""
        with contextlib.suppress(ConnectionEnded):
            while True:
                self.read_frame()
        return self.end

    def half_close(self) -> None:
        """Send FIN and go on reading."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset_connection(self) -> None:
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
