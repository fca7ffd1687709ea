"""Methods of gRPC services with the types of their messages, checked against the descriptors of generated modules.

`EXPORT = UnaryMethod(service, "Export", Request, Response)`, once; then `answer = await EXPORT(client, Request(...))`.
Whoever knows the types only at run time takes a `Stub`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from meshproxy.codec import grpc
from meshproxy.codec.headers import HeaderMap
from meshproxy.http.grpc.client import RpcCall, RpcClient, RpcError, RpcResponse, RpcStatus
from meshproxy.http.grpc.metadata import Metadata
from meshproxy.observe.stream_info import StreamInfo

Req = TypeVar("Req", bound=Message)
Res = TypeVar("Res", bound=Message)


class Method(Generic[Req, Res]):
    """A method of any kind. `streams` says whether requests, and answers, are streams of messages."""

    def __init__(self, service: ServiceDescriptor, name: str, request: type[Req], response: type[Res]) -> None:
        """Raises LookupError for a method that the service has not, TypeError for types that are not the method's."""
        found = service.methods_by_name.get(name)
        if found is None:
            raise LookupError(f"{service.full_name} has no method {name}")
        for given, declared in ((request, found.input_type), (response, found.output_type)):
            if given.DESCRIPTOR.full_name != declared.full_name:
                raise TypeError(
                    f"{service.full_name}.{name} has {declared.full_name}, and not {given.DESCRIPTOR.full_name}"
                )
        self.path = f"/{service.full_name}/{name}".encode()
        self.response = response
        self.streams: tuple[bool, bool] = (found.client_streaming, found.server_streaming)

    def open(
        self,
        client: RpcClient,
        *,
        timeout_ms: float = 0.0,
        metadata: Metadata = (),
        info: StreamInfo | None = None,
    ) -> MethodCall[Req, Res]:
        """Begin a call: see `RpcClient.call`."""
        call = client.call(self.path, timeout_ms=timeout_ms, metadata=metadata, info=info)
        return MethodCall(call, self.response)


class UnaryMethod(Method[Req, Res]):
    """One message for one."""

    def __init__(self, service: ServiceDescriptor, name: str, request: type[Req], response: type[Res]) -> None:
        """Raises what Method does, and TypeError for a method of another kind."""
        super().__init__(service, name, request, response)
        if self.streams != (False, False):
            raise TypeError(f"{service.full_name}.{name} is a method of streams")

    async def __call__(
        self,
        client: RpcClient,
        request: Req,
        *,
        timeout_ms: float = 0.0,
        metadata: Metadata = (),
        info: StreamInfo | None = None,
    ) -> Res:
        """Ask, and wait for the answer. Raises RpcError."""
        response = await client.unary(
            self.path, request.SerializeToString(), timeout_ms=timeout_ms, metadata=metadata, info=info
        )
        return decode(response.message, self.response)

    def start(
        self,
        client: RpcClient,
        request: Req,
        on_done: Callable[[Res | RpcError], object],
        *,
        timeout_ms: float = 0.0,
        metadata: Metadata = (),
        info: StreamInfo | None = None,
    ) -> Callable[[], None]:
        """Ask without a task: see `RpcClient.start_unary`."""
        return client.start_unary(
            self.path,
            request.SerializeToString(),
            _Decoding(self.response, on_done).on_done,
            timeout_ms=timeout_ms,
            metadata=metadata,
            info=info,
        )


class MethodCall(Generic[Req, Res]):
    """An RpcCall of messages that are decoded; the same rules hold, and `async with` is as needful."""

    def __init__(self, call: RpcCall, response: type[Res]) -> None:
        self.raw = call
        self._response = response

    async def send(self, request: Req) -> bool:
        return await self.raw.send(request.SerializeToString())

    def end(self) -> None:
        self.raw.end()

    async def receive(self) -> Res | None:
        message = await self.raw.receive()
        return None if message is None else decode(message, self._response)

    async def result(self) -> Res:
        return decode(await self.raw.result(), self._response)

    async def headers(self) -> HeaderMap:
        return await self.raw.headers()

    @property
    def trailers(self) -> HeaderMap:
        return self.raw.trailers

    def cancel(self) -> None:
        self.raw.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Res:
        message = await self.receive()
        if message is None:
            raise StopAsyncIteration
        return message

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.raw.cancel()


class Stub:
    """All methods of a service, by their names; the types are those of the descriptor."""

    def __init__(self, client: RpcClient, service: ServiceDescriptor) -> None:
        self._client = client
        self._service = service

    async def unary(self, name: str, request: Message, **options: Any) -> Message:
        """Raises RpcError, and what UnaryMethod does. `options` are those of `RpcClient.call`."""
        method: UnaryMethod[Message, Message] = UnaryMethod(self._service, name, *self._types(name))
        return await method(self._client, request, **options)

    def open(self, name: str, **options: Any) -> MethodCall[Message, Message]:
        """Begin a call of any kind. Raises what Method does."""
        method: Method[Message, Message] = Method(self._service, name, *self._types(name))
        return method.open(self._client, **options)

    def _types(self, name: str) -> tuple[type[Message], type[Message]]:
        found = self._service.methods_by_name.get(name)
        if found is None:
            raise LookupError(f"{self._service.full_name} has no method {name}")
        return GetMessageClass(found.input_type), GetMessageClass(found.output_type)


class _Decoding(Generic[Res]):
    """Stands before who waits for an answer."""

    def __init__(self, response: type[Res], on_done: Callable[[Res | RpcError], object]) -> None:
        self._response = response
        self._on_done = on_done

    def on_done(self, outcome: RpcResponse | RpcError) -> None:
        if isinstance(outcome, RpcError):
            self._on_done(outcome)
            return
        try:
            message = decode(outcome.message, self._response)
        except RpcError as error:
            self._on_done(error)
        else:
            self._on_done(message)


def decode(message: bytes, kind: type[Res]) -> Res:
    """Raises RpcError where it is no such message."""
    decoded = kind()
    try:
        decoded.ParseFromString(message)
    except DecodeError:
        raise RpcError(RpcStatus(grpc.INTERNAL, f"the answer is not a {kind.DESCRIPTOR.full_name}")) from None
    return decoded
