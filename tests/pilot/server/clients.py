"""A pilot's server in the test's loop, and clients of it by grpcio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
from envoy.service.discovery.v3 import discovery_pb2 as discovery

from meshproxy.pilot.server.identity import identified
from meshproxy.pilot.server.metrics import Metrics
from meshproxy.pilot.server.server import DiscoveryServer
from meshproxy.pilot.server.snapshots import Snapshots
from meshproxy.pilot.server.streams import Streams
from tests.pilot.server.support import FixedBuilder, ask, ask_delta, fixed_proxy

DEADLINE_S = 20.0
ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/"
_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]


class Pilot:
    """A server whose mesh is a mapping of namespaces to snapshots."""

    def __init__(
        self, builder: Any = None, deadline_s: float = 30.0, max_connection_age_s: float = 0.0, *, csds: bool = False
    ) -> None:
        self.builder = builder or FixedBuilder()
        self.metrics = Metrics()
        self.snapshots = Snapshots(self.builder, self.metrics)
        self.streams = Streams(self.snapshots, identified(fixed_proxy, required=True), self.metrics, deadline_s)
        self.server = DiscoveryServer(self.streams, max_connection_age_s, csds=csds)
        self.target = ""

    def set(self, mesh: Any) -> None:
        """From now on, these are served."""
        self.snapshots.update(mesh)

    def count(self, name: str, **labels: str) -> float:
        """The value of a metric."""
        return self.metrics.registry.get_sample_value(f"meshproxy_pilot_{name}", labels) or 0.0


@asynccontextmanager
async def pilot(address: str = "127.0.0.1:0", mesh: Any = None, **options: Any) -> AsyncIterator[Pilot]:
    """One that listens on `address`."""
    made = Pilot(**options)
    made.target = made.server.listen(address)
    await made.server.start()
    if mesh is not None:
        made.set(mesh)
    try:
        yield made
    finally:
        await made.server.stop()


class Client:
    """One stream. It says who it is with its first request."""

    def __init__(self, channel: Any, method: str) -> None:
        self.is_delta = "/Delta" in method
        self._call = channel.stream_stream(method)()
        self._node: Any = None

    async def ask(self, type_url: str, *names: str, **more: Any) -> None:
        """Send a request."""
        wish = ask_delta if self.is_delta else ask
        await self.send(wish(type_url, *names, **more).SerializeToString())

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        async with asyncio.timeout(DEADLINE_S):
            await self._call.write(data)

    async def next(self) -> Any:
        """The next response. Raises AioRpcError when the stream has ended."""
        kind = discovery.DeltaDiscoveryResponse if self.is_delta else discovery.DiscoveryResponse
        async with asyncio.timeout(DEADLINE_S):
            data = await self._call.read()
        if data is grpc.aio.EOF:
            raise grpc.aio.AioRpcError(await self._call.code(), None, None, details=await self._call.details())
        return kind.FromString(data)

    async def ack(self, response: Any, *names: str, error: str = "") -> None:
        """Take a response, or refuse it; `names` are those that state of the world asks for."""
        await self.ask(response.type_url, *names, nonce=response.nonce, error=error)

    async def ended(self) -> Any:
        """How the server ended the stream."""
        try:
            response = await self.next()
        except grpc.aio.AioRpcError as error:
            return error
        raise AssertionError(f"the stream goes on: {response}")

    def cancel(self) -> None:
        """Go."""
        self._call.cancel()


@asynccontextmanager
async def client(target: str, method: str = "StreamAggregatedResources") -> AsyncIterator[Client]:
    """A stream on a connection of its own. `method` is one of ADS, or a whole path."""
    path = method if method.startswith("/") else ADS + method
    async with grpc.aio.insecure_channel(target, options=_OPTIONS) as channel:
        made = Client(channel, path)
        try:
            yield made
        finally:
            made.cancel()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what other tasks bring about."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.005)
