"""A gRPC client on grpcio, for `google_grpc` targets. The first call imports grpcio, and nothing before it does."""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from meshproxy.codec import grpc as codes
from meshproxy.codec.headers import HeaderMap
from meshproxy.config.context import Services
from meshproxy.http.grpc.client import RpcCall, RpcClient, RpcError, RpcResponse, RpcStatus, UnaryDone
from meshproxy.http.grpc.google_target import INSECURE, LOCAL, GoogleTarget
from meshproxy.http.grpc.metadata import Metadata, wire_metadata
from meshproxy.http.grpc.service import GrpcServiceConfig
from meshproxy.net.dispatcher import Dispatcher, Task
from meshproxy.observe.stream_info import StreamInfo

T = TypeVar("T")


class GoogleClient(RpcClient):
    """Makes calls on a channel of its own."""

    def __init__(self, services: Services, config: GrpcServiceConfig, target: GoogleTarget) -> None:
        self._dispatcher = services.dispatcher
        self._config = config
        self._target = target
        self._channel: Any = None
        self._closed: bool = False

    def call(
        self, path: bytes, *, timeout_ms: float = 0.0, metadata: Metadata = (), info: StreamInfo | None = None
    ) -> RpcCall:
        method = self._open().stream_stream(path.decode())
        return GoogleCall(self._dispatcher, method(**self._options(timeout_ms, metadata, info)))

    async def unary(
        self,
        path: bytes,
        message: bytes,
        *,
        timeout_ms: float = 0.0,
        metadata: Metadata = (),
        info: StreamInfo | None = None,
    ) -> RpcResponse:
        method = self._open().unary_unary(path.decode())
        call = method(message, **self._options(timeout_ms, metadata, info))
        answer = await _outcome_of(call, call)
        return RpcResponse(answer, fields_of(await call.initial_metadata()), fields_of(await call.trailing_metadata()))

    def start_unary(
        self,
        path: bytes,
        message: bytes,
        on_done: UnaryDone,
        *,
        timeout_ms: float = 0.0,
        metadata: Metadata = (),
        info: StreamInfo | None = None,
    ) -> Callable[[], None]:
        under_way = _UnaryTask(on_done)
        asked = self.unary(path, message, timeout_ms=timeout_ms, metadata=metadata, info=info)
        task = self._dispatcher.run(asked, f"gRPC {path.decode()}", under_way.on_task_done)
        under_way.task = task
        return under_way.cancel

    def close(self) -> None:
        self._closed = True
        channel, self._channel = self._channel, None
        if channel is not None:
            self._dispatcher.spawn(channel.close(), f"gRPC channel to {self._target.uri}")

    def _open(self) -> Any:
        if self._closed:
            raise RpcError(RpcStatus(codes.CANCELLED, "the client is closed"))
        if self._channel is None:
            self._channel = open_channel(self._target)
        return self._channel

    def _options(self, timeout_ms: float, metadata: Metadata, info: StreamInfo | None) -> dict[str, Any]:
        own = list(metadata)
        names = {name for name, _ in own}
        fields = [field for field in self._config.initial_metadata(info) if field[0] not in names] + own
        fields += [token.field() for token in self._target.tokens]
        pairs = [
            (name.decode(), value if name.endswith(b"-bin") else value.decode("latin-1")) for name, value in fields
        ]
        return {"timeout": (timeout_ms or self._config.timeout_ms) / 1000.0 or None, "metadata": pairs}


def open_channel(target: GoogleTarget) -> Any:
    """A channel of grpc.aio."""
    import grpc

    if target.security == INSECURE:
        return grpc.aio.insecure_channel(target.uri, target.channel_args)
    if target.security == LOCAL:
        kind = grpc.LocalConnectionType.UDS if target.uri.startswith("unix:") else grpc.LocalConnectionType.LOCAL_TCP
        return grpc.aio.secure_channel(target.uri, grpc.local_channel_credentials(kind), target.channel_args)
    credentials = grpc.ssl_channel_credentials(target.root_certs, target.private_key, target.cert_chain)
    return grpc.aio.secure_channel(target.uri, credentials, target.channel_args)


class GoogleCall(RpcCall):
    """A call of grpc.aio, which sends a message when the one before it is taken, and reads one when it is asked to."""

    def __init__(self, dispatcher: Dispatcher, call: Any) -> None:
        self._dispatcher = dispatcher
        self._call = call
        self._status: RpcStatus | None = None
        self._ended: bool = False

    async def send(self, message: bytes) -> bool:
        if self._call.done() or self._ended:
            return False
        try:
            await self._waited(self._call.write(message))
        except RpcError:
            return False
        return True

    def end(self) -> None:
        if not self._ended and not self._call.done():
            self._ended = True
            self._dispatcher.spawn(self._done_writing(), "gRPC half-close")

    async def _done_writing(self) -> None:
        try:
            await self._waited(self._call.done_writing())
        except RpcError as error:
            self._status = error.status

    async def receive(self) -> bytes | None:
        message = None if self._status is not None else await self._waited(self._call.read())
        if isinstance(message, bytes):
            return message
        if self._status is None:
            self._status = await self._waited(_status_of(self._call))
        if self._status.code != codes.OK:
            raise RpcError(self._status)
        return None

    async def headers(self) -> HeaderMap:
        return fields_of(await self._waited(self._call.initial_metadata()))

    @property
    def trailers(self) -> HeaderMap:
        return HeaderMap() if self._status is None else self._status.trailers

    def cancel(self) -> None:
        if not self._call.done():
            self._call.cancel()

    async def _waited(self, waiting: Awaitable[T]) -> T:
        """Wait. Raises RpcError when the call fails meanwhile, and keeps the status."""
        try:
            return await _outcome_of(self._call, waiting)
        except RpcError as error:
            self._status = error.status
            raise


async def _outcome_of(call: Any, waiting: Awaitable[T]) -> T:
    """Wait for something of a call. Raises RpcError when the call fails meanwhile; its cancellation is one, and that of
    the task which waits is not."""
    import grpc

    try:
        return await waiting
    except grpc.aio.AioRpcError as error:
        status = RpcStatus(error.code().value[0], error.details() or "", fields_of(error.trailing_metadata()))
    except asyncio.InvalidStateError:  # it was over before
        status = await _status_of(call)
    except CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        status = RpcStatus(codes.CANCELLED, "the call was given up")
    raise RpcError(status)


async def _status_of(call: Any) -> RpcStatus:
    """Of a call that is over, or has no more messages."""
    code, details = await call.code(), await call.details()
    return RpcStatus(code.value[0], details or "", fields_of(await call.trailing_metadata()))


def fields_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> HeaderMap:
    """Metadata of grpcio, which has bytes for `-bin` names, as they are on the wire."""
    pairs = [(name.encode(), value.encode() if isinstance(value, str) else value) for name, value in metadata or ()]
    return HeaderMap(wire_metadata(pairs))


class _UnaryTask:
    """A unary call in a task of its own."""

    def __init__(self, on_done: UnaryDone) -> None:
        self._on_done: UnaryDone | None = on_done
        self.task: Task[RpcResponse] | None = None

    def cancel(self) -> None:
        self._on_done = None
        if self.task is not None:
            self.task.cancel()

    def on_task_done(self, task: Task[RpcResponse]) -> None:
        on_done, self._on_done, self.task = self._on_done, None, None
        if on_done is None:
            if not task.cancelled():
                task.exception()  # nobody asks any more
            return
        if task.cancelled():
            on_done(RpcError(RpcStatus(codes.CANCELLED, "the proxy stops")))
            return
        error = task.exception()
        if isinstance(error, RpcError):
            on_done(error)
        elif error is not None:
            on_done(RpcError(RpcStatus(codes.UNKNOWN, str(error))))
        else:
            on_done(task.result())
