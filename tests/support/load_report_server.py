"""A server of load reports (LRS), by grpcio, in the test's loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import grpc
from envoy.service.load_stats.v3.lrs_pb2 import LoadStatsRequest, LoadStatsResponse


class LoadReportServer(grpc.GenericRpcHandler):
    """Remembers what it is told, and says what it is told to say."""

    def __init__(self) -> None:
        self.port = 0
        self.requests: list[LoadStatsRequest] = []
        self.outgoing: asyncio.Queue[LoadStatsResponse | None] = asyncio.Queue()

    @classmethod
    @asynccontextmanager
    async def start(cls) -> AsyncIterator[Self]:
        """Serve on a free port."""
        handler = cls()
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((handler,))
        handler.port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield handler
        finally:
            await server.stop(None)

    def service(self, details: Any) -> Any:
        assert details.method == "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats"
        return grpc.stream_stream_rpc_method_handler(self.serve)

    async def serve(self, requests: Any, context: Any) -> None:
        reader = asyncio.create_task(self._read(context))
        while (response := await self.outgoing.get()) is not None:
            await context.write(response.SerializeToString())
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)

    async def _read(self, context: Any) -> None:
        while (data := await context.read()) is not grpc.aio.EOF:
            self.requests.append(LoadStatsRequest.FromString(data))
        self.outgoing.put_nowait(None)

    def cut(self) -> None:
        """End the stream."""
        self.outgoing.put_nowait(None)

    def ask(self, *clusters: str, interval_s: int = 10, **fields: Any) -> None:
        response = LoadStatsResponse(clusters=clusters, **fields)
        response.load_reporting_interval.seconds = interval_s
        self.outgoing.put_nowait(response)
