"""Our transport socket on a real socket, in a thread: for peers that are programs."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from meshproxy.tls.context import TlsContext
from meshproxy.tls.engine import TlsEvents
from tests.tls.harness import Socket

DEADLINE_S = 10.0


class RelayedServer:
    """Accepts one connection after another; `answer` says what goes back for the plain bytes of a connection so far."""

    def __init__(self, context: TlsContext, answer: Callable[[bytes], bytes] = lambda _: b"") -> None:
        self.context = context
        self.answer = answer
        self.events: TlsEvents | None = None  # instead of a record of each connection's
        self.sockets: list[Socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._established = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def socket(self) -> Socket:
        """Of the latest connection."""
        return self.sockets[-1]

    def wait_established(self) -> None:
        assert self._established.wait(DEADLINE_S)

    def join(self) -> None:
        """Wait for the end of the latest connection."""
        assert self._ended.wait(DEADLINE_S)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(DEADLINE_S)
                self._ended.clear()
                relay(connection, self.start(), self.answer, self._established)
                self._ended.set()

    def start(self) -> Socket:
        sock = Socket(self.context)
        if self.events is not None:
            sock.tls._events = self.events
        self.sockets.append(sock)
        return sock

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(DEADLINE_S)


def relay(
    connection: socket.socket,
    sock: Socket,
    answer: Callable[[bytes], bytes],
    established: threading.Event,
    is_done: Callable[[bytes], bool] = lambda _: False,
) -> None:
    """Until either side ends, or what was received is all."""
    try:
        connection.sendall(sock.take_output())
        while not (sock.failure or sock.at_end or is_done(sock.text)) and (data := connection.recv(65536)):
            sock.take(data)
            if sock.established:
                established.set()
                sock.send(answer(sock.text))
            connection.sendall(sock.take_output())
        sock.receive_eof()
        sock.shut()
        connection.sendall(sock.take_output())
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        return  # the peer may go at any time


def connect(port: int, context: TlsContext, request: bytes, name: str = "", expected: str = "") -> Socket:
    """One connection of ours as a client: `request` goes out when it is established, and one HTTP response is read."""
    sock = Socket(context, name, expected)
    with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as connection:
        is_sent = False

        def say(_: bytes) -> bytes:
            nonlocal is_sent
            if is_sent:
                return b""
            is_sent = True
            return request

        relay(connection, sock, say, threading.Event(), is_response)
    return sock


def is_response(received: bytes) -> bool:
    """Whether it is a whole HTTP response of a known length."""
    head, end, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    return bool(end) and length is not None and len(body) >= int(length[1])
