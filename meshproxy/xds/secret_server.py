"""SDS as a server, over a gRPC server of `rpc.server`: as Istio's agent serves it (`StreamSecrets` alone), and by
`DeltaSecrets` where that is wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from meshproxy.codec import grpc
from meshproxy.observe.log import component_logger
from meshproxy.rpc.server.call import Handler, Handlers, Peer, RpcFailure, ServerCall
from meshproxy.xds.secret_streams import DeltaSecrets, SecretStream, SecretValue, StateOfTheWorldSecrets

_SERVICE: Final = "/envoy.service.secret.v3.SecretDiscoveryService"
STREAM_SECRETS: Final = f"{_SERVICE}/StreamSecrets"
_MAX_STREAMS: Final = 256  # of one peer


class Secrets(Protocol):
    """What one caller may have."""

    def want(self, names: frozenset[str]) -> None:
        """These are what it asks for now."""

    def get(self, name: str) -> SecretValue | None:
        """As it is now; None where there is none, yet or ever."""

    def watch(self, on_change: Callable[[], None]) -> None:
        """Be told, in the event loop, when `get` may answer something else."""

    def close(self) -> None:
        """The caller is gone."""


class SecretSource(Protocol):
    """Where secrets come from."""

    async def open(self, call: ServerCall) -> Secrets:
        """For one stream. Raises RpcFailure for a caller that may have nothing."""


class SecretStats:
    """`streams` is a gauge."""

    def __init__(self) -> None:
        self.streams = 0
        self.pushes = 0
        self.refusals = 0  # NACKs
        self.streams_refused = 0  # one peer had too many


class SecretServer:
    """The service's methods."""

    def __init__(self, source: SecretSource, stats: SecretStats) -> None:
        self._source = source
        self._stats = stats
        self._log = component_logger("sds")
        self._streams: dict[str, int] = {}  # by peer

    async def stream_secrets(self, call: ServerCall) -> None:
        await self._serve(call, StateOfTheWorldSecrets())

    async def delta_secrets(self, call: ServerCall) -> None:
        await self._serve(call, DeltaSecrets())

    async def _serve(self, call: ServerCall, stream: SecretStream) -> None:
        with self._counted(_peer_key(call.peer)):
            secrets = await self._source.open(call)
            try:
                await self._push(call, stream, secrets)
            finally:
                secrets.close()

    async def _push(self, call: ServerCall, stream: SecretStream, secrets: Secrets) -> None:
        """Send what there is to send, until the caller has no more to say."""
        woken = asyncio.Event()
        secrets.watch(woken.set)
        reading = asyncio.ensure_future(self._read(call, stream, secrets, woken))
        try:
            while not reading.done():
                response = stream.next(secrets.get)
                if response is None:
                    await woken.wait()
                    woken.clear()
                else:
                    self._stats.pushes += 1
                    await call.send(response)
            await reading
        finally:
            reading.cancel()
            await asyncio.wait([reading])

    async def _read(self, call: ServerCall, stream: SecretStream, secrets: Secrets, woken: asyncio.Event) -> None:
        try:
            while (request := await call.receive()) is not None:
                refusals, names = stream.refusals, stream.names
                stream.receive(request)
                if stream.refusals != refusals:
                    self._stats.refusals += 1
                    self._log.warning("%s refuses its secrets: %r", _peer_key(call.peer), stream.refusal)
                if stream.names != names:
                    secrets.want(stream.names)
                woken.set()
        finally:
            woken.set()

    @contextmanager
    def _counted(self, peer: str) -> Iterator[None]:
        """One stream more of a peer. Raises RpcFailure where it has too many."""
        number = self._streams.get(peer, 0)
        if number >= _MAX_STREAMS:
            self._stats.streams_refused += 1
            raise RpcFailure(grpc.RESOURCE_EXHAUSTED, "too many streams")
        self._streams[peer] = number + 1
        self._stats.streams += 1
        try:
            yield
        finally:
            self._stats.streams -= 1
            left = self._streams.pop(peer) - 1
            if left:
                self._streams[peer] = left


def secret_handlers(source: SecretSource, *, delta: bool = False, stats: SecretStats | None = None) -> Handlers:
    """`FetchSecrets`, and `DeltaSecrets` without `delta`, are not implemented, which is what callers are told."""
    server = SecretServer(source, stats or SecretStats())
    handlers: dict[str, Handler] = {STREAM_SECRETS: server.stream_secrets}
    if delta:
        handlers[f"{_SERVICE}/DeltaSecrets"] = server.delta_secrets
    return handlers


def _peer_key(peer: Peer) -> str:
    """Whom streams are counted for: an identity, a user of this machine, or an address without its port."""
    if peer.uris:
        return peer.uris[0]
    if peer.credentials is not None:
        return f"uid {peer.credentials.uid}"
    return peer.address.rpartition(":")[0]
