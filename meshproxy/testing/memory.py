"""Connections that are in memory: an event loop that makes them in place of sockets."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

ProtocolFactory = Callable[[], asyncio.BaseProtocol]


class MemoryTransport(asyncio.Transport):
    """One end of a connection. What it writes arrives at the other end in a later turn of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: Any, local: int, remote: int) -> None:
        super().__init__({"sockname": ("127.0.0.1", local), "peername": ("127.0.0.1", remote)})
        self._loop = loop
        self._protocol = protocol
        self._closing = False
        self._lost = False
        self._paused = False
        self._waiting: list[bytes | None] = []  # None: the end of the other end's data
        self.other: MemoryTransport | None = None

    def write(self, data: Any) -> None:
        if not self._closing and self.other is not None:
            self._loop.call_soon(self.other.receive, bytes(data))

    def write_eof(self) -> None:
        if self.other is not None:
            self._loop.call_soon(self.other.receive, None)

    def can_write_eof(self) -> bool:
        return True

    def receive(self, data: bytes | None) -> None:
        """Data of the other end, or its end."""
        if self._lost:
            return
        if self._paused:
            self._waiting.append(data)
        elif data is not None:
            self._protocol.data_received(data)
        elif not self._protocol.eof_received():
            self.close()

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        waiting, self._waiting = self._waiting, []
        for data in waiting:
            self._loop.call_soon(self.receive, data)

    def is_reading(self) -> bool:
        return not self._paused

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self.write_eof()
            self._loop.call_soon(self._lose, None)

    def abort(self) -> None:
        self._closing = True
        self._loop.call_soon(self._lose, None)
        if self.other is not None:
            self._loop.call_soon(self.other._lose, ConnectionResetError("the other end has reset the connection"))

    def _lose(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = self._closing = True
            self._protocol.connection_lost(error)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """What is written is gone at once."""

    def get_write_buffer_size(self) -> int:
        return 0


def connect_pair(loop: asyncio.AbstractEventLoop, near: Any, far: Any, port: int) -> None:
    """Connect two protocols; `near` is at an ephemeral port, `far` at `port`."""
    one = MemoryTransport(loop, near, 50_000, port)
    other = MemoryTransport(loop, far, port, 50_000)
    one.other, other.other = other, one
    far.connection_made(other)
    near.connection_made(one)


class MemoryLoop(asyncio.BaseEventLoop):
    """The running loop, but for connections: they go to who listens here, by port, and are in memory."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:  # the base has nothing that is used here
        self._loop = loop
        self._listening: dict[int, ProtocolFactory] = {}
        self._connecting: dict[socket.socket, int] = {}

    def __del__(self) -> None:
        """There is nothing to close."""

    def listen(self, factory: ProtocolFactory) -> int:
        """Give each connection a protocol; returns the port."""
        port = 10_000 + len(self._listening)
        self._listening[port] = factory
        return port

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        port = address[1]
        if port not in self._listening:
            raise ConnectionRefusedError(111, "Connection refused")
        self._connecting[sock] = port

    async def create_connection(self, factory: Any, *_: Any, **options: Any) -> Any:  # type: ignore[override]
        sock = options["sock"]
        port = self._connecting.pop(sock)
        os.close(sock.detach())  # it was never connected
        protocol = factory()
        connect_pair(self._loop, protocol, self._listening[port](), port)
        return None, protocol

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        return self._loop.call_soon(callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        return self._loop.call_later(delay, callback, *args, context=context)

    def create_task(self, coro: Any, **options: Any) -> Any:
        return self._loop.create_task(coro, **options)

    def create_future(self) -> asyncio.Future[Any]:
        return self._loop.create_future()

    def time(self) -> float:
        return self._loop.time()

    def get_debug(self) -> bool:
        return self._loop.get_debug()

    def is_running(self) -> bool:
        return self._loop.is_running()

    def call_exception_handler(self, context: Any) -> None:
        self._loop.call_exception_handler(context)
