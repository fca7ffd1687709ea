"""A proxy's side of SDS, by grpcio."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse

SDS: Final = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"


class Stream:
    """A proxy's, for one secret."""

    def __init__(self, call: Any, name: str) -> None:
        self._call = call
        self._name = name
        self._nonce = ""

    async def next(self) -> Secret:
        """The next one; the one before it is taken by that."""
        await self._call.write(DiscoveryRequest(resource_names=[self._name], response_nonce=self._nonce))
        response = await self._call.read()
        assert response is not grpc.aio.EOF, await self._call.details()
        self._nonce = response.nonce
        (resource,) = response.resources
        return Secret.FromString(resource.value)


@asynccontextmanager
async def asked(path: str, name: str) -> AsyncIterator[Stream]:
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        call = channel.stream_stream(SDS, DiscoveryRequest.SerializeToString, DiscoveryResponse.FromString)()
        yield Stream(call, name)
        call.cancel()


async def secret(path: str, name: str) -> Secret:
    async with asked(path, name) as stream:
        return await stream.next()
