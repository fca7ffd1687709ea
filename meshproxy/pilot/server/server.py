"""The pilot's gRPC server: aggregated and per-type discovery streams, CSDS, and its ports."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import grpc
import grpc.aio

from meshproxy.codec import grpc as codes
from meshproxy.errors import ConfigError
from meshproxy.pilot.server import status
from meshproxy.pilot.server.kinds import stream_methods
from meshproxy.pilot.server.own_calls import stream_handler
from meshproxy.pilot.server.streams import Streams
from meshproxy.pilot.server.tls import PortTls
from meshproxy.rpc.server.call import Handlers, RpcFailure, ServerCall
from meshproxy.rpc.server.google import add_handlers, add_method

MAX_REQUEST_BYTES: Final = 16 * 1024 * 1024
MAX_STREAMS_OF_CONNECTION: Final = 100
_MOST_PENDING: Final = 100_000
_KEEPALIVE_MS: Final = 30_000
# Between the GOAWAY of a connection that is old enough and the end of its stream, which would never end by itself.
_GOAWAY_MS: Final = 500
_HEALTH_CHECK: Final = "/grpc.health.v1.Health/Check"
_CHECK_S: Final = 5.0  # that a caller has to ask
_SERVING: Final = b"\x08\x01"  # HealthCheckResponse{status: SERVING}
_NOT_SERVING: Final = b"\x08\x02"
# Streams end within this share of the time that there is: the rest is for those that end by themselves.
_SPREAD: Final = 0.8

Handler = Callable[[Any, Any], Awaitable[Any]]


class DiscoveryServer:
    """Serves `streams` on the ports that are added, and with `csds` says to everybody what each client was sent.
    `ready`: whether the rules are loaded."""

    def __init__(self, streams: Streams, max_connection_age_s: float = 0.0, *, csds: bool = False) -> None:
        self.streams = streams
        self.ready = False
        self._server = grpc.aio.server(options=_options(max_connection_age_s))
        self._handlers = self._stream_handlers()
        if csds:
            self._handlers |= self._status_handlers()

    def serve_too(self, handlers: Handlers, *, certificates: bool) -> None:
        """Before it starts: these methods on the same ports, in the place of those that are there. `certificates`:
        whether those of callers count."""
        for path in handlers:
            self._handlers.pop(path, None)
        add_handlers(self._server, handlers, certificates=certificates)

    def own_handlers(self) -> Handlers:
        """The streams, for a server of our own."""
        handlers = {
            path: stream_handler(self.streams, type_url, delta=delta)
            for path, (delta, type_url) in stream_methods().items()
        }
        handlers[_HEALTH_CHECK] = self._check_own
        return handlers

    def listen(self, address: str, tls: PortTls | None = None) -> str:
        """Add a port: `host:port` (port 0: any free one) or `unix:PATH`. Returns the address. Raises ConfigError."""
        try:
            if tls is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, tls.credentials())
        except RuntimeError:
            raise ConfigError(address, "nobody can listen on this address") from None
        return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"

    async def start(self) -> None:
        """Serve."""
        for path, handler in self._handlers.items():
            add_method(self._server, path, handler)
        self.streams.snapshots.start()
        self.streams.start()
        await self._server.start()

    async def stop(self, drain_s: float = 0.0) -> None:
        """Listen no more, send each client away at a moment of its own, and end with the last, or when time is up."""
        self.ready = False
        stopping = asyncio.ensure_future(self._server.stop(drain_s))
        if drain_s > 0.0:
            await self.streams.send_away(drain_s * _SPREAD)
        await stopping
        await self.streams.close()
        await self.streams.snapshots.close()

    def _stream_handlers(self) -> dict[str, Any]:
        handlers: dict[str, Any] = {
            path: grpc.stream_stream_rpc_method_handler(self._stream(type_url, delta=delta))
            for path, (delta, type_url) in stream_methods().items()
        }
        handlers[_HEALTH_CHECK] = grpc.unary_unary_rpc_method_handler(self._check)
        return handlers

    def _status_handlers(self) -> dict[str, Any]:
        return {
            f"/{status.SERVICE}/FetchClientStatus": grpc.unary_unary_rpc_method_handler(self._fetch_status),
            f"/{status.SERVICE}/StreamClientStatus": grpc.stream_stream_rpc_method_handler(self._stream_status),
        }

    def _stream(self, type_url: str, *, delta: bool) -> Handler:
        async def serve(_requests: Any, context: Any) -> None:
            await self.streams.serve(context, type_url, delta=delta)

        return serve

    async def _fetch_status(self, request: bytes, context: Any) -> bytes:
        try:
            return await status.client_status(request, self.streams.clients)
        except status.StatusError as error:
            await context.abort(error.code, error.details)
            raise

    async def _stream_status(self, _requests: Any, context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(await self._fetch_status(request, context))

    async def _check(self, _request: bytes, _context: Any) -> bytes:
        return _SERVING if self.ready else _NOT_SERVING

    async def _check_own(self, call: ServerCall) -> None:
        """Anybody may ask, but not take long over it."""
        try:
            async with asyncio.timeout(_CHECK_S):
                await call.receive()
        except TimeoutError:
            raise RpcFailure(codes.DEADLINE_EXCEEDED, "nothing was asked for") from None
        await call.send(_SERVING if self.ready else _NOT_SERVING)


def _options(max_connection_age_s: float) -> Iterable[tuple[str, int]]:
    options = [
        ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
        ("grpc.max_concurrent_streams", MAX_STREAMS_OF_CONNECTION),
        # All proxies of a mesh may come back at once, when another pilot has ended; gRPC cancels calls beyond 1,000
        # that wait to be taken up.
        ("grpc.server.max_pending_requests", _MOST_PENDING),
        ("grpc.server.max_pending_requests_hard_limit", _MOST_PENDING),
        # A client that is gone without a word is noticed; one that asks whether we are there may do so.
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ]
    if max_connection_age_s > 0.0:
        age_ms = int(max_connection_age_s * 1000)
        options += [("grpc.max_connection_age_ms", age_ms), ("grpc.max_connection_age_grace_ms", _GOAWAY_MS)]
    return options
