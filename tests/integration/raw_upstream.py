"""An upstream whose every byte the test itself reads and writes, on a thread that may block."""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Self

from tests.support.wire import Message, WireReader


class RawUpstream:
    """A listening socket, TCP or Unix; `accept` gives its next connection. Every wait ends after `timeout_s`."""

    def __init__(self, path: str = "", timeout_s: float = 10.0) -> None:
        self._timeout_s = timeout_s
        self._connections: list[socket.socket] = []
        if path:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(path)
            self._listener.listen(16)
            self.port = 0
        else:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.port = int(self._listener.getsockname()[1])
        self._listener.settimeout(timeout_s)

    def accept(self, receive_buffer_bytes: int = 0) -> WireReader:
        """The next connection; with a small receive buffer, little fits between a sender and a reader that waits."""
        if receive_buffer_bytes:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        connection, _ = self._listener.accept()
        connection.settimeout(self._timeout_s)
        self._connections.append(connection)
        return WireReader(connection)

    def accept_request(self) -> tuple[WireReader, Message]:
        """The next connection, and the head of its first request."""
        reader = self.accept()
        return reader, reader.read_head()

    def hang_up(self) -> None:
        """End all connections that were accepted."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._listener.close()
        self.hang_up()
