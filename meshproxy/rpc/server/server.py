"""A gRPC server on our own HTTP/2: on Unix sockets it knows who is at the other end, on TCP it speaks our TLS.

Whoever calls is bounded: in connections, streams, messages and memory, in the time that it may say nothing, and by the
codec's limits on floods.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any, Final

from meshproxy.net.address import Address, address_of
from meshproxy.net.connection import Connection
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.net.sockets import bind_listener
from meshproxy.rpc.server.call import Handlers
from meshproxy.rpc.server.connection import Allow, RpcConnection, Tls
from meshproxy.rpc.server.core import ServerCore, ServerLimits, ServerStats

_LAST_WORDS_S: Final = 1.0  # that the peers have to take what ends their calls


class RpcServer:
    """Serves `handlers` on as many addresses as it is told to listen on."""

    def __init__(self, dispatcher: Dispatcher, handlers: Handlers, limits: ServerLimits | None = None) -> None:
        self._core = ServerCore(dispatcher, handlers, limits or ServerLimits())
        self._servers: list[Any] = []
        self._files: list[tuple[str, tuple[int, int]]] = []  # of Unix sockets: path, and (device, inode)

    @property
    def stats(self) -> ServerStats:
        """What happened so far."""
        return self._core.stats

    async def listen_unix(self, path: str, *, mode: int = 0o600, allow: Allow | None = None) -> str:
        """Listen on a Unix socket, whose file gets `mode`; one that a process left behind is replaced. `@name` is an
        abstract name, which has no mode. Peers that `allow` does not accept are refused before they are read.

        Raises OSError.
        """
        sock = bind_listener(Address("", 0, path), reuse_port=False, mode=mode)
        if not path.startswith("@"):
            found = os.stat(path)
            self._files.append((path, (found.st_dev, found.st_ino)))
        self._servers.append(await self._core.dispatcher.loop.create_unix_server(self._factory(allow, None), sock=sock))
        return path

    async def listen_tcp(self, address: Address, tls: Tls | None = None) -> Address:
        """Listen on TCP; port 0 is any. `tls` is asked at each connection for the context that it gets; without one
        the connection is refused. Raises OSError."""
        sock = bind_listener(address, reuse_port=False)
        bound = address_of(sock.getsockname())
        self._servers.append(await self._core.dispatcher.loop.create_server(self._factory(None, tls), sock=sock))
        return bound

    def _factory(self, allow: Allow | None, tls: Tls | None) -> Any:
        def accept() -> Connection:
            return RpcConnection(self._core, allow).start(tls)

        return accept

    async def close(self, grace_s: float = 1.0) -> None:
        """Listen no more. Calls have `grace_s` to end; then they end with UNAVAILABLE."""
        for server in self._servers:
            server.close()
        self._servers = []
        self._remove_files()
        connections = self._core.connections
        for connection in list(connections):
            connection.drain()
        await self._until_empty(grace_s)
        for connection in list(connections):
            connection.end()
        await self._until_empty(_LAST_WORDS_S)
        for connection in list(connections):
            connection.abort()
        await self._until_empty(_LAST_WORDS_S)

    def _remove_files(self) -> None:
        """Those that are still ours: another process may have replaced them."""
        for path, ours in self._files:
            with contextlib.suppress(OSError):
                found = os.stat(path)
                if (found.st_dev, found.st_ino) == ours:
                    os.unlink(path)
        self._files = []

    async def _until_empty(self, seconds: float) -> None:
        core = self._core
        if not core.connections:
            return
        emptied = core.emptied = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(emptied.wait(), seconds)
