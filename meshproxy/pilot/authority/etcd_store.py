"""The authority's memory in etcd: `PREFIX/state`, and `PREFIX/issued/END/SERIAL` for the certificates that are out.

Every write is a transaction over the version of the state: two pilots that begin at the same time agree on one root.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Final, TypeVar

from meshproxy.api import etcd_pb2 as api
from meshproxy.observe.log import component_logger
from meshproxy.pilot.authority.settings import AuthorityError
from meshproxy.pilot.authority.store import MAX_STATE_BYTES, ConflictError, Record, Stored
from meshproxy.pilot.sources.etcd_client import Backoff, EtcdClient, EtcdSettings
from meshproxy.pilot.sources.source import SourceError

T = TypeVar("T")

_RANGE: Final = "/etcdserverpb.KV/Range"
_TXN: Final = "/etcdserverpb.KV/Txn"
_PAGE: Final = 500


class EtcdStore:
    """`settings.prefix` is below which its keys are. One client calls, another one watches: who moves on to another
    endpoint closes the connection under all that use it."""

    def __init__(self, settings: EtcdSettings) -> None:
        self._caller = EtcdClient(settings)
        self._watcher = EtcdClient(settings)
        self._calling = asyncio.Lock()
        prefix = settings.prefix.rstrip("/")
        self.name = f"{self._caller.name} {prefix}"
        self._key = f"{prefix}/state".encode()
        self._issued = f"{prefix}/issued/"
        self._log = component_logger("authority")

    async def read(self) -> Stored:
        return await self._anywhere(lambda: self._read(self._caller))

    async def replace(self, text: bytes, was: Stored) -> Stored:
        if len(text) > MAX_STATE_BYTES:
            raise AuthorityError(f"{self.name}: would be larger than {MAX_STATE_BYTES} bytes")
        request = self._transaction(was)
        put = request.success.add().request_put
        put.key, put.value = self._key, text
        return Stored(text, str(await self._commit(request)))

    async def record(self, record: Record, was: Stored) -> None:
        request = self._transaction(was)
        put = request.success.add().request_put
        put.key = f"{self._issued}{_end(record.not_after)}/{record.serial:x}".encode()
        put.value = json.dumps({"issuer": record.issuer, "identity": record.identity}).encode()
        await self._commit(request)

    async def records(self, now: float) -> list[Record]:
        begin, end = f"{self._issued}{_end(now)}".encode(), f"{self._issued[:-1]}0".encode()
        found: list[Record] = []
        while True:
            request = api.RangeRequest(key=begin, range_end=end, limit=_PAGE)
            page = await self._anywhere(
                lambda request=request: self._caller.call(_RANGE, request, api.RangeResponse)  # type: ignore[misc]
            )
            found += [each for each in map(self._record, page.kvs) if each is not None]
            if not page.more:
                return found
            begin = page.kvs[-1].key + b"\0"

    async def forget(self, now: float) -> None:
        request = api.TxnRequest()
        deleted = request.success.add().request_delete_range
        deleted.key, deleted.range_end = self._issued.encode(), f"{self._issued}{_end(now)}".encode()
        await self._commit(request)

    async def watch(self, known: Stored) -> AsyncIterator[Stored]:
        backoff = Backoff()
        client = self._watcher
        while True:
            try:
                found = await client.anywhere(lambda: self._read(client))
                if found.revision != known.revision:
                    known = found
                    yield found
                after = int(known.revision or 0) + 1
                async with aclosing(client.watched(self._key, self._key + b"\0", after)) as responses:
                    async for response in responses:
                        backoff.reset()
                        if response.compact_revision:
                            break
                        for event in response.events:
                            known = _stored(event.kv)
                            yield known
            except SourceError as error:
                self._log.warning("the authority goes on with what it knows: %s", error)
            await client.move_on()
            await backoff.wait()

    async def close(self) -> None:
        await self._caller.close()
        await self._watcher.close()

    async def _read(self, client: EtcdClient) -> Stored:
        answer = await client.call(_RANGE, api.RangeRequest(key=self._key), api.RangeResponse)
        return _stored(answer.kvs[0]) if answer.kvs else Stored(b"", "")

    def _transaction(self, was: Stored) -> api.TxnRequest:
        """That is done where the state is still what it was; 0: where there is none."""
        request = api.TxnRequest()
        request.compare.add(
            result=api.Compare.EQUAL, target=api.Compare.MOD, key=self._key, mod_revision=int(was.revision or 0)
        )
        return request

    async def _commit(self, request: api.TxnRequest) -> int:
        """The revision that it made."""
        answer = await self._anywhere(lambda: self._caller.call(_TXN, request, api.TxnResponse))
        if not answer.succeeded:
            raise ConflictError(f"{self.name}: was changed by someone else: try again")
        return int(answer.header.revision)

    async def _anywhere(self, action: Callable[[], Awaitable[T]]) -> T:
        async with self._calling:
            try:
                return await self._caller.anywhere(action)
            except SourceError as error:
                await self._caller.move_on()  # a new connection: an old one waits ever longer before it tries again
                raise AuthorityError(str(error)) from None

    def _record(self, kv: api.KeyValue) -> Record | None:
        """None for what somebody else put there."""
        end, _, serial = kv.key.decode("utf-8", "replace").removeprefix(self._issued).partition("/")
        try:
            found = json.loads(kv.value)
            return Record(int(serial, 16), found["issuer"], found["identity"], float(int(end, 16)))
        except (ValueError, KeyError, TypeError):
            return None


def _stored(kv: api.KeyValue) -> Stored:
    """A deleted state has no text."""
    return Stored(kv.value, str(kv.mod_revision) if kv.value else "")


def _end(unix_s: float) -> str:
    """Sorted as the times are."""
    return f"{math.floor(unix_s):012x}"
