"""A client of etcd (v3 API): calls, watches, and one endpoint after the other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from meshproxy.api import etcd_pb2 as api
from meshproxy.pilot.sources.source import SourceError

T = TypeVar("T")

_TIMEOUT_S: Final = 5.0
_BACKOFF_S: Final = (0.1, 5.0)
_WATCH: Final = "/etcdserverpb.Watch/Watch"
# A member without a leader ends a watch that asks for one, instead of being silent.
_HAS_LEADER: Final = (("hasleader", "true"),)
# A peer that is gone without a word is found out.
_CHANNEL: Final = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
)


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """`endpoints` are host:port. With `ca`, or with `tls`, connections are secured; `certificate` and `key` are the
    client's own (paths of PEM files)."""

    endpoints: tuple[str, ...]
    prefix: str = "/meshproxy/rules"
    tls: bool = False
    ca: str = ""
    certificate: str = ""
    key: str = ""


def parse_endpoints(text: str) -> tuple[tuple[str, ...], bool]:
    """`host:port,…` or `https://host:port,…`: the endpoints, and whether they ask for TLS. Raises SourceError."""
    found, secure = [], set()
    for each in text.split(","):
        scheme, separator, rest = each.strip().rpartition("://")
        if separator and scheme not in ("http", "https"):
            raise SourceError(f"{each}: an endpoint of etcd is host:port, http://… or https://…")
        address = rest.rstrip("/")
        if not address.rpartition(":")[2].isdecimal():
            raise SourceError(f"{each}: an endpoint of etcd needs a port")
        found.append(address)
        secure.add(scheme == "https")
    if len(secure) > 1:
        raise SourceError(f"{text}: either all endpoints of etcd are https, or none")
    return tuple(found), secure.pop()


def below(prefix: str) -> tuple[bytes, bytes]:
    """All keys below the prefix: etcd's range ends before the second."""
    return f"{prefix}/".encode(), f"{prefix}0".encode()  # "0" is next to "/"


class Backoff:
    """Longer and longer, until something works."""

    def __init__(self) -> None:
        self._pause_s = _BACKOFF_S[0]

    def reset(self) -> None:
        self._pause_s = _BACKOFF_S[0]

    async def wait(self) -> None:
        await asyncio.sleep(self._pause_s * random.uniform(0.5, 1.0))
        self._pause_s = min(2 * self._pause_s, _BACKOFF_S[1])


class EtcdClient:
    """It is used by one event loop."""

    def __init__(self, settings: EtcdSettings) -> None:
        self.name = "etcd " + ",".join(settings.endpoints)
        self._settings = settings
        self._channel: Any = None
        self._endpoint = 0  # the index of the one in use

    @property
    def address(self) -> str:
        """For messages: the endpoint in use."""
        return f"etcd {self._settings.endpoints[self._endpoint]}"

    async def anywhere(self, action: Callable[[], Awaitable[T]]) -> T:
        """Do it at the endpoint in use, else at the others. Raises SourceError with the last reason."""
        for attempt in range(len(self._settings.endpoints)):
            try:
                return await action()
            except SourceError:
                if attempt + 1 == len(self._settings.endpoints):
                    raise
                await self.move_on()
        raise SourceError("there is no endpoint of etcd")

    async def move_on(self) -> None:
        """Use the next endpoint, on a new connection."""
        await self.close()
        self._endpoint = (self._endpoint + 1) % len(self._settings.endpoints)

    async def call(self, path: str, request: Any, answer: type[T]) -> T:
        """One call, at the endpoint in use. Raises SourceError."""
        method = self._open().unary_unary(
            path,
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,  # type: ignore[attr-defined]
        )
        try:
            response: T = await method(request, timeout=_TIMEOUT_S)
        except _grpc().aio.AioRpcError as error:
            raise self._failure(error) from None
        return response

    def _open(self) -> Any:
        if self._channel is None:
            aio, settings = _grpc().aio, self._settings
            address = settings.endpoints[self._endpoint]
            if settings.tls or settings.ca:
                self._channel = aio.secure_channel(address, _credentials(settings), options=_CHANNEL)
            else:
                self._channel = aio.insecure_channel(address, options=_CHANNEL)
        return self._channel

    def _failure(self, error: Any) -> SourceError:
        return SourceError(f"{self.address}: {error.code().name}: {error.details()}")

    async def watched(self, begin: bytes, end: bytes, revision: int) -> AsyncGenerator[api.WatchResponse, None]:
        """What a watch of the keys from `begin` to `end` says, from `revision` on. Raises SourceError when it ends."""
        create = api.WatchCreateRequest(key=begin, range_end=end, start_revision=revision, progress_notify=True)
        grpc = _grpc()
        call = self._open().stream_stream(
            _WATCH,
            request_serializer=api.WatchRequest.SerializeToString,
            response_deserializer=api.WatchResponse.FromString,
        )(metadata=_HAS_LEADER)
        try:
            await call.write(api.WatchRequest(create_request=create))
            while True:
                response = await call.read()
                if response is grpc.aio.EOF:
                    raise SourceError(f"{self.address}: the watch ended")
                if response.canceled and not response.compact_revision:
                    raise SourceError(f"{self.address}: {response.cancel_reason or 'the watch was cancelled'}")
                yield response
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from None
        except asyncio.InvalidStateError:
            raise SourceError(f"{self.address}: the watch ended") from None
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close the connection."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()


def _grpc() -> Any:
    try:
        import grpc
    except ImportError:
        raise SourceError("etcd needs the package grpcio: pip install 'meshproxy[grpc]'") from None
    import grpc.aio

    return grpc


def _credentials(settings: EtcdSettings) -> Any:
    return _grpc().ssl_channel_credentials(
        _file(settings.ca), private_key=_file(settings.key), certificate_chain=_file(settings.certificate)
    )


def _file(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes() if path else None
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from None
