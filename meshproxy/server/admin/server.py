"""The admin's listener: accepts connections on its address, a bounded number at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Sequence
from typing import Any, Final

from meshproxy.net.address import Address, address_of
from meshproxy.net.connect import SocketOption
from meshproxy.net.connection import Connection, ConnectionHandler
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.net.sockets import bind_listener
from meshproxy.observe.access_log import AccessLog
from meshproxy.server.admin.connection import AdminConnection, Handle

MAX_CONNECTIONS: Final = 256
WRITE_BUFFER_BYTES: Final = 64 * 1024
CLOSE_TIMEOUT_S: Final = 1.0
_BACKLOG: Final = 128
_log: Final = logging.getLogger("meshproxy.admin")


class AdminServer:
    """Serves `handle` (`AdminHandlers.handle`) over HTTP/1.1 on the dispatcher's event loop."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        handle: Handle,
        max_connections: int = MAX_CONNECTIONS,
        access_logs: Sequence[AccessLog] = (),
    ) -> None:
        self._access_logs = access_logs
        self._dispatcher = dispatcher
        self._handle = handle
        self._max_connections = max_connections
        self._server: asyncio.Server | None = None
        self._connections: set[AdminConnection] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.address = Address("", 0, "-")

    async def start(self, address: Address, options: tuple[SocketOption, ...] = (), mode: int = 0) -> None:
        """Listen on `address` (port 0: any free one); `self.address` is the bound one. Raises OSError."""
        sock = bind_listener(address, reuse_port=False, options=options, mode=mode)
        self.address = address if address.path else address_of(sock.getsockname())
        factory: Any = self._new_connection
        loop = self._dispatcher.loop
        if sock.family == socket.AF_UNIX:
            self._server = await loop.create_unix_server(factory, sock=sock, backlog=_BACKLOG)
        else:
            self._server = await loop.create_server(factory, sock=sock, backlog=_BACKLOG)

    async def close(self) -> None:
        """Stop listening; answers under way have `CLOSE_TIMEOUT_S` to be finished, then their connections end."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.shut_down()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._idle.wait()
        for connection in list(self._connections):
            connection.abort()
        if self._server is not None:
            await self._server.wait_closed()  # it waits for the connections too
            self._server = None

    def _new_connection(self) -> Connection:
        if len(self._connections) >= self._max_connections:
            _log.warning("connection refused: %d are open", len(self._connections))
            return Connection(self._dispatcher, _Refusal(), 0)
        admin = AdminConnection(self._dispatcher, self._handle, self._on_end, self._access_logs)
        self._connections.add(admin)
        self._idle.clear()
        return Connection(self._dispatcher, admin, WRITE_BUFFER_BYTES)

    def _on_end(self, connection: AdminConnection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._idle.set()


class _Refusal(ConnectionHandler):
    """Closes a connection that is one too many."""

    def on_connected(self, connection: Connection) -> None:
        connection.close()

    def on_data(self, data: bytes) -> None:
        """Nothing is read."""

    def on_eof(self) -> None:
        """It is closed already."""
