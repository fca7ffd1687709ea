"""xDS streams on our own gRPC server: a call of it in the shape of a grpcio context, which `streams.py` knows."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio

from meshproxy.pilot.server.streams import Streams
from meshproxy.rpc.server.call import Handler, RpcFailure, ServerCall


class OwnContext:
    """What `streams.py` uses of a context. `abort` ends the call from whichever task it is called."""

    def __init__(self, call: ServerCall) -> None:
        self.call = call
        self.failure: RpcFailure | None = None
        self._task = asyncio.current_task()

    def peer(self) -> str:
        return self.call.peer.address

    async def read(self) -> Any:
        message = await self.call.receive()
        return grpc.aio.EOF if message is None else message

    async def write(self, message: bytes) -> None:
        await self.call.send(message)

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.failure = RpcFailure(code.value[0], details)
        if self._task is None or asyncio.current_task() is self._task:
            raise self.failure
        self._task.cancel()


def stream_handler(streams: Streams, type_url: str, *, delta: bool) -> Handler:
    """Of one method."""

    async def serve(call: ServerCall) -> None:
        context = OwnContext(call)
        try:
            await streams.serve(context, type_url, delta=delta)
        except asyncio.CancelledError:
            if context.failure is None:
                raise
            raise context.failure from None

    return serve
