"""Documents in etcd (v3 API), one a key: `PREFIX/group/plural/namespace/name`. Several pilots share one store.

The documents are read at one revision, then watched from the next on; a watch that breaks goes on where it was, at
another endpoint, and what etcd has compacted away meanwhile is read anew.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from meshproxy.api import etcd_pb2 as api
from meshproxy.observe.log import component_logger
from meshproxy.pilot.documents.document import Identity, RawDocument
from meshproxy.pilot.documents.kinds import BY_NAME
from meshproxy.pilot.sources.source import RuleSet, SourceError, Write

T = TypeVar("T")

_TIMEOUT_S: Final = 5.0
_PAGE: Final = 500
_MAX_OPERATIONS: Final = 100  # of a transaction; etcd takes 128
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


def key_of(prefix: str, identity: Identity) -> str:
    """Where a document is stored."""
    kind = BY_NAME[identity.kind]
    return f"{prefix}/{kind.group or 'core'}/{kind.plural}/{identity.namespace}/{identity.name}"


class EtcdSource:
    """One client; it is used by one event loop."""

    def __init__(self, settings: EtcdSettings) -> None:
        self.name = "etcd " + ",".join(settings.endpoints)
        self._settings = settings
        self._prefix = settings.prefix.rstrip("/")
        self._channel: Any = None
        self._endpoint = 0  # the index of the one in use
        self._kvs: dict[str, tuple[RawDocument, int]] = {}  # with its mod_revision, by key
        self._revision = 0  # that `_kvs` is of
        self._log = component_logger("pilot")

    async def read(self) -> RuleSet:
        """Everything, at one revision. Raises SourceError when no endpoint answers."""
        await self._anywhere(self._read_all)
        return self._rules()

    async def watch(self) -> AsyncIterator[RuleSet]:
        """See RuleSource.watch."""
        pause = _BACKOFF_S[0]
        fresh = False
        while True:
            try:
                if not fresh:
                    await self._anywhere(self._read_all)
                    fresh = True
                    yield self._rules()
                async with aclosing(self._watched()) as responses:
                    async for response in responses:
                        pause = _BACKOFF_S[0]
                        if response.compact_revision or response.header.revision < self._revision:
                            fresh = False  # history is gone, or this is another history
                            break
                        if self._take(response):
                            yield self._rules()
            except SourceError as error:
                self._log.warning("the rules stay as they are: %s", error)
            await self._move_on()
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _BACKOFF_S[1])

    async def write(self, writes: list[Write]) -> None:
        """All in one transaction (more than 100 in several): none when one of them was changed by someone else."""
        for start in range(0, len(writes), _MAX_OPERATIONS):
            part = writes[start : start + _MAX_OPERATIONS]
            request = self._transaction(part)

            async def commit(request: api.TxnRequest = request) -> api.TxnResponse:
                return await self._call("/etcdserverpb.KV/Txn", request, api.TxnResponse)

            answer = await self._anywhere(commit)
            if not answer.succeeded:
                names = ", ".join(str(write.identity) for write in part)
                raise SourceError(f"{self.name}: one of {names} was changed by someone else: run this again")
            self._remember(part, answer.header.revision)

    async def close(self) -> None:
        """Close the connection."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    # -- what is there

    def _rules(self) -> RuleSet:
        documents = tuple(self._kvs[key][0] for key in sorted(self._kvs))
        return RuleSet(str(self._revision), documents)

    async def _read_all(self) -> None:
        kvs: dict[str, tuple[RawDocument, int]] = {}
        begin, end = _range(self._prefix)
        revision = 0
        while True:
            request = api.RangeRequest(key=begin, range_end=end, limit=_PAGE, revision=revision)
            page = await self._call("/etcdserverpb.KV/Range", request, api.RangeResponse)
            revision = revision or page.header.revision
            for kv in page.kvs:
                kvs[_text(kv.key)] = _stored(kv)
            if not page.more:
                break
            begin = page.kvs[-1].key + b"\0"
        self._kvs, self._revision = kvs, revision

    async def _watched(self) -> AsyncGenerator[api.WatchResponse, None]:
        """What a watch from the next revision on says. Raises SourceError when it ends."""
        begin, end = _range(self._prefix)
        create = api.WatchCreateRequest(
            key=begin, range_end=end, start_revision=self._revision + 1, progress_notify=True
        )
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
                    raise SourceError(f"{self._address}: the watch ended")
                if response.canceled and not response.compact_revision:
                    raise SourceError(f"{self._address}: {response.cancel_reason or 'the watch was cancelled'}")
                yield response
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from None
        except asyncio.InvalidStateError:
            raise SourceError(f"{self._address}: the watch ended") from None
        finally:
            call.cancel()

    def _take(self, response: api.WatchResponse) -> bool:
        """Whether something changed."""
        for event in response.events:
            key = _text(event.kv.key)
            if event.type == api.Event.DELETE:
                self._kvs.pop(key, None)
            else:
                self._kvs[key] = _stored(event.kv)
            self._revision = max(self._revision, event.kv.mod_revision)
        if not response.events and not response.created:  # all before that revision has come
            self._revision = max(self._revision, response.header.revision)
        return bool(response.events)

    def _transaction(self, writes: list[Write]) -> api.TxnRequest:
        request = api.TxnRequest()
        for write in writes:
            key = key_of(self._prefix, write.identity)
            known, revision = self._kvs.get(key, (None, 0))
            if (known.text if known is not None else None) != write.was:
                raise SourceError(f"{write.identity} was changed by someone else: run this again")
            request.compare.add(
                result=api.Compare.EQUAL, target=api.Compare.MOD, key=key.encode(), mod_revision=revision
            )
            if write.text is None:
                request.success.add().request_delete_range.key = key.encode()
            else:
                put = request.success.add().request_put
                put.key, put.value = key.encode(), write.text.encode()
        return request

    def _remember(self, writes: list[Write], revision: int) -> None:
        """What was written, so that it can be written again."""
        for write in writes:
            key = key_of(self._prefix, write.identity)
            if write.text is None:
                self._kvs.pop(key, None)
            else:
                self._kvs[key] = (RawDocument(key, 1, write.text), revision)

    # -- the connection

    @property
    def _address(self) -> str:
        return f"etcd {self._settings.endpoints[self._endpoint]}"

    async def _anywhere(self, action: Callable[[], Awaitable[T]]) -> T:
        """Do it at the endpoint in use, else at the others. Raises SourceError with the last reason."""
        for attempt in range(len(self._settings.endpoints)):
            try:
                return await action()
            except SourceError:
                if attempt + 1 == len(self._settings.endpoints):
                    raise
                await self._move_on()
        raise SourceError("there is no endpoint of etcd")

    async def _move_on(self) -> None:
        """Use the next endpoint, on a new connection."""
        await self.close()
        self._endpoint = (self._endpoint + 1) % len(self._settings.endpoints)

    async def _call(self, path: str, request: Any, answer: type[T]) -> T:
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
        return SourceError(f"{self._address}: {error.code().name}: {error.details()}")


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


def _range(prefix: str) -> tuple[bytes, bytes]:
    """All keys below the prefix: etcd's range ends before the second."""
    return f"{prefix}/".encode(), f"{prefix}0".encode()  # "0" is next to "/"


def _stored(kv: api.KeyValue) -> tuple[RawDocument, int]:
    return RawDocument(_text(kv.key), 1, _text(kv.value)), kv.mod_revision


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
