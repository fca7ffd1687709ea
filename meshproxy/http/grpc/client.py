"""What a gRPC client is to those who call by it: filters, exporters, the xDS client.

Two kinds implement it, in `meshproxy.rpc`: one on our own clusters, one on grpcio. `open_client` makes the one that a
configuration asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from mypy_extensions import mypyc_attr

from meshproxy.codec import grpc
from meshproxy.codec.headers import HeaderMap
from meshproxy.config.context import Services
from meshproxy.errors import MeshProxyError
from meshproxy.http.grpc.metadata import Metadata, binary_value
from meshproxy.http.grpc.service import GrpcServiceConfig
from meshproxy.observe.stream_info import StreamInfo


class RpcStatus:
    """How a call ended. `trailers` are what the peer said at the end, as they came."""

    def __init__(self, code: int, message: str = "", trailers: HeaderMap | None = None) -> None:
        self.code = code  # one of `codec.grpc`
        self.message = message
        self.trailers = HeaderMap() if trailers is None else trailers

    @property
    def details(self) -> bytes:
        """The serialised google.rpc.Status that says more; b"" without one."""
        return binary_value(self.trailers, b"grpc-status-details-bin") or b""

    def __str__(self) -> str:
        known = 0 <= self.code < len(grpc.SNAKE_NAMES)
        name = grpc.SNAKE_NAMES[self.code] if known else str(self.code)
        return f"{name}: {self.message}" if self.message else name


class RpcError(MeshProxyError):
    """The call did not end with OK."""

    def __init__(self, status: RpcStatus) -> None:
        super().__init__(str(status))
        self.status = status
        self.code = status.code


class RpcResponse:
    """The answer to a unary call; of `headers` and `trailers`, `binary_value` decodes those whose values are bytes."""

    def __init__(self, message: bytes, headers: HeaderMap, trailers: HeaderMap) -> None:
        self.message = message
        self.headers = headers
        self.trailers = trailers


UnaryDone = Callable[["RpcResponse | RpcError"], object]


@mypyc_attr(allow_interpreted_subclasses=True)
class RpcCall:
    """A call of any kind, for one task that sends and one that receives; they may be the same.

    `async with` it: what the block leaves unfinished is cancelled, and the server told.
    """

    async def send(self, message: bytes) -> bool:
        """Send a message, as soon as there is room for it; False when the call is over: `receive` tells how."""
        raise NotImplementedError

    def end(self) -> None:
        """There are no more messages of ours."""
        raise NotImplementedError

    async def receive(self) -> bytes | None:
        """The peer's next message; None at the end of a call that went well.

        Raises RpcError at the end of one that did not.
        """
        raise NotImplementedError

    async def headers(self) -> HeaderMap:
        """The peer's first metadata, when they are there; empty where it has sent nothing but trailers.

        Raises RpcError where there will be none.
        """
        raise NotImplementedError

    @property
    def trailers(self) -> HeaderMap:
        """The peer's last metadata; empty before the end."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Give the call up: the peer is told, and who waits gets CANCELLED. No-op once it is over."""
        raise NotImplementedError

    async def result(self) -> bytes:
        """Send no more, and take the one message of the answer. Raises RpcError, also where it is not one."""
        self.end()
        message = await self.receive()
        if message is None:
            raise RpcError(RpcStatus(grpc.INTERNAL, "the answer has no message", self.trailers))
        if await self.receive() is not None:
            self.cancel()
            raise RpcError(RpcStatus(grpc.INTERNAL, "the answer has several messages"))
        return message

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        message = await self.receive()
        if message is None:
            raise StopAsyncIteration
        return message

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()


@mypyc_attr(allow_interpreted_subclasses=True)
class RpcClient:
    """Calls the methods of one server, as its GrpcService says. `path` is `/package.Service/Method`.

    `timeout_ms` bounds a whole call, and the server is told; 0 stands for the configuration's, which may be none.
    `metadata` come after the configuration's own, and in the place of those of the same name; `info` is of the stream
    on whose behalf the call is made, which the configuration's may tell of.
    """

    def call(
        self, path: bytes, *, timeout_ms: float = 0.0, metadata: Metadata = (), info: StreamInfo | None = None
    ) -> RpcCall:
        """Begin a call of any kind."""
        raise NotImplementedError

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
        """Ask with one message for one, without a task; `on_done` is told once, perhaps before this returns.

        What is returned gives the call up: then `on_done` is not told, unless it has been.
        """
        raise NotImplementedError

    async def unary(
        self,
        path: bytes,
        message: bytes,
        *,
        timeout_ms: float = 0.0,
        metadata: Metadata = (),
        info: StreamInfo | None = None,
    ) -> RpcResponse:
        """Ask with one message for one. Raises RpcError. Where the task is cancelled, so is the call."""
        async with self.call(path, timeout_ms=timeout_ms, metadata=metadata, info=info) as call:
            await call.send(message)
            answer = await call.result()
            return RpcResponse(answer, await call.headers(), call.trailers)

    def close(self) -> None:
        """Cancel what is under way; calls that come after that fail."""
        raise NotImplementedError


def open_client(services: Services, config: GrpcServiceConfig) -> RpcClient:
    """The client for a service. Who opens it closes it."""
    client = services.open_rpc_client(services, config)
    assert isinstance(client, RpcClient)
    return client
