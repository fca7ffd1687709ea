"""A handler that notes what it hears, and listening ends for it to talk to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from meshproxy.net.connect import ConnectHandler
from meshproxy.net.connection import Connection
from meshproxy.net.dispatcher import Dispatcher


class Speaker(ConnectHandler):
    """Notes events in words; sends what is in `out`."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.received = bytearray()
        self.out: list[bytes] = []
        self.connection: Connection | None = None
        self.raise_in = ""

    def on_connected(self, connection: Connection) -> None:
        self.connection = connection
        self._note("connected")

    def on_connect_failure(self, reason: int, details: str) -> None:
        self._note(f"failed {reason} {details}")

    def on_data(self, data: bytes) -> None:
        self.received += data
        self._note("data")

    def on_eof(self) -> None:
        self._note("eof")

    def on_close(self, error: str) -> None:
        self._note(f"closed {error}".strip())

    def data_to_send(self) -> list[bytes]:
        out, self.out = self.out, []
        if self.raise_in == "data_to_send":
            raise ValueError("on purpose")
        return out

    def on_above_write_watermark(self) -> None:
        self._note("above")

    def on_below_write_watermark(self) -> None:
        self._note("below")

    def _note(self, event: str) -> None:
        self.events.append(event)
        if self.raise_in == event.split(" ")[0]:
            raise ValueError("on purpose")

    def send(self, *data: bytes) -> None:
        """Send at the end of the turn."""
        self.out += data
        assert self.connection is not None
        self.connection.send_pending()


async def until(condition: object, what: str) -> None:
    """Wait until a callable is true."""
    assert callable(condition)
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


@asynccontextmanager
async def connected(buffer_limit_bytes: int = 65536) -> AsyncIterator[tuple[Dispatcher, Speaker, socket.socket]]:
    """A Connection on one end of a socket pair; the other end is a plain non-blocking socket."""
    loop = asyncio.get_running_loop()
    dispatcher = Dispatcher(loop)
    speaker = Speaker()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    connection = Connection(dispatcher, speaker, buffer_limit_bytes)
    factory: Any = connection.as_protocol
    await loop.create_unix_connection(factory, sock=ours)
    try:
        yield dispatcher, speaker, theirs
    finally:
        theirs.close()
        connection.abort()
        await until(lambda: any(event.startswith("closed") for event in speaker.events), "the end")
        await dispatcher.close()


async def receive_exactly(sock: socket.socket, count: int) -> bytes:
    """So many bytes."""
    loop = asyncio.get_running_loop()
    received = bytearray()
    async with asyncio.timeout(10):
        while len(received) < count:
            data = await loop.sock_recv(sock, count - len(received))
            assert data, "the peer ended"
            received += data
    return bytes(received)


async def receive_end(sock: socket.socket) -> bytes:
    """All that comes until the peer ends; raises ConnectionResetError when it does so by a reset."""
    loop = asyncio.get_running_loop()
    received = bytearray()
    async with asyncio.timeout(10):
        while data := await loop.sock_recv(sock, 65536):
            received += data
    return bytes(received)
