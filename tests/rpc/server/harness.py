"""A server of ours on the loop of the test, with one method for each thing that a method can do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from meshproxy.net.address import Address
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.rpc.server.call import Credentials, RpcFailure, ServerCall
from meshproxy.rpc.server.connection import Allow, Tls
from meshproxy.rpc.server.core import ServerLimits
from meshproxy.rpc.server.server import RpcServer

DEADLINE_S = 20.0


class Methods:
    """Of service `test.Test`; `events` are what happened to the calls."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self._happened = asyncio.Event()
        self.released = asyncio.Event()
        names = ("echo", "fail", "fail_later", "broken", "metadata", "who", "wait", "many", "hold", "stubborn")
        self.handlers = {f"/test.Test/{name}": getattr(self, name) for name in names}

    def tell(self, event: str) -> None:
        self.events.append(event)
        self._happened.set()

    async def until(self, *events: str) -> None:
        """Wait until exactly these have happened."""
        async with asyncio.timeout(DEADLINE_S):
            while self.events != list(events):
                self._happened.clear()
                await self._happened.wait()

    async def echo(self, call: ServerCall) -> None:
        while (message := await call.receive()) is not None:
            await call.send(message)

    async def fail(self, call: ServerCall) -> None:
        raise RpcFailure(5, "100 % süß\n")

    async def fail_later(self, call: ServerCall) -> None:
        await call.send(b"first")
        raise RpcFailure(15, "lost")

    async def broken(self, call: ServerCall) -> None:
        raise ValueError("a secret of the server")

    async def metadata(self, call: ServerCall) -> None:
        await call.send(json.dumps({name: list(values) for name, values in call.metadata.items()}).encode())

    async def who(self, call: ServerCall) -> None:
        peer = call.peer
        found = {"address": peer.address, "uris": peer.uris, "encrypted": peer.is_encrypted, "serial": peer.serial}
        if peer.credentials is not None:
            found |= {"pid": peer.credentials.pid, "uid": peer.credentials.uid, "gid": peer.credentials.gid}
        await call.send(json.dumps(found).encode())

    async def wait(self, call: ServerCall) -> None:
        """Never ends by itself."""
        self.tell("waits")
        try:
            await call.receive()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.tell("cancelled")
            raise

    async def many(self, call: ServerCall) -> None:
        """As many messages, of that many bytes, as it is asked for: `10 1000`."""
        number, size = map(int, (await call.receive() or b"").split())
        for count in range(number):
            await call.send(b"x" * size)
            self.events[:] = [str(count + 1)]

    async def hold(self, call: ServerCall) -> None:
        """Reads nothing before `released`, then says how much there was."""
        self.tell("holds")
        await self.released.wait()
        size = 0
        while (message := await call.receive()) is not None:
            size += len(message)
        await call.send(str(size).encode())

    async def stubborn(self, call: ServerCall) -> None:
        """Sends until it is cancelled."""
        while True:
            await call.send(b"x" * 60_000)


class Serving:
    """What a test has of a server."""

    def __init__(self, server: RpcServer, methods: Methods, target: str) -> None:
        self.server = server
        self.methods = methods
        self.target = target  # as grpcio has it

    @asynccontextmanager
    async def channel(self, credentials: Any = None) -> AsyncIterator[Any]:
        options = (("grpc.use_local_subchannel_pool", 1),)
        if credentials is None:
            channel = grpc.aio.insecure_channel(self.target, options)
        else:
            channel = grpc.aio.secure_channel(self.target, credentials, options)
        async with channel:
            yield channel


@asynccontextmanager
async def serving(
    folder: Path,
    *,
    limits: ServerLimits | None = None,
    allow: Allow | None = None,
    tcp: bool = False,
    tls: Tls | None = None,
) -> AsyncIterator[Serving]:
    """On a Unix socket in `folder`, or on TCP; it is drained for nothing at the end."""
    dispatcher = Dispatcher(asyncio.get_running_loop())
    methods = Methods()
    server = RpcServer(dispatcher, methods.handlers, limits)
    if tcp or tls is not None:
        target = (await server.listen_tcp(Address("127.0.0.1", 0), tls)).text
    else:
        target = "unix:" + await server.listen_unix(str(folder / "s"), allow=allow)
    try:
        async with asyncio.timeout(3 * DEADLINE_S):
            yield Serving(server, methods, target)
    finally:
        await server.close(0.0)
        await dispatcher.close()


def nobody(_: Credentials) -> bool:
    return False


async def ask(channel: Any, method: str, message: bytes = b"", **options: Any) -> Any:
    """A unary call's answer; grpcio's AioRpcError where it fails."""
    return await channel.unary_unary(f"/test.Test/{method}")(message, timeout=DEADLINE_S, **options)
