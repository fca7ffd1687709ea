"""Documents in etcd (v3 API), one a key: `PREFIX/group/plural/namespace/name`. Several pilots share one store.

The documents are read at one revision, then watched from the next on; a watch that breaks goes on where it was, at
another endpoint, and what etcd has compacted away meanwhile is read anew.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Final

from meshproxy.api import etcd_pb2 as api
from meshproxy.observe.log import component_logger
from meshproxy.pilot.documents.document import Identity, RawDocument
from meshproxy.pilot.documents.kinds import BY_NAME
from meshproxy.pilot.sources.etcd_client import Backoff, EtcdClient, EtcdSettings, below
from meshproxy.pilot.sources.source import RuleSet, SourceError, Write

_PAGE: Final = 500
_MAX_OPERATIONS: Final = 100  # of a transaction; etcd takes 128


def key_of(prefix: str, identity: Identity) -> str:
    """Where a document is stored."""
    kind = BY_NAME[identity.kind]
    return f"{prefix}/{kind.group or 'core'}/{kind.plural}/{identity.namespace}/{identity.name}"


class EtcdSource:
    """One client; it is used by one event loop."""

    def __init__(self, settings: EtcdSettings) -> None:
        self._client = EtcdClient(settings)
        self.name = self._client.name
        self._prefix = settings.prefix.rstrip("/")
        self._kvs: dict[str, tuple[RawDocument, int]] = {}  # with its mod_revision, by key
        self._revision = 0  # that `_kvs` is of
        self._log = component_logger("pilot")

    async def read(self) -> RuleSet:
        """Everything, at one revision. Raises SourceError when no endpoint answers."""
        await self._client.anywhere(self._read_all)
        return self._rules()

    async def watch(self) -> AsyncIterator[RuleSet]:
        """See RuleSource.watch."""
        backoff = Backoff()
        fresh = False
        while True:
            try:
                if not fresh:
                    await self._client.anywhere(self._read_all)
                    fresh = True
                    yield self._rules()
                async with aclosing(self._client.watched(*below(self._prefix), self._revision + 1)) as responses:
                    async for response in responses:
                        backoff.reset()
                        if response.compact_revision or response.header.revision < self._revision:
                            fresh = False  # history is gone, or this is another history
                            break
                        if self._take(response):
                            yield self._rules()
            except SourceError as error:
                self._log.warning("the rules stay as they are: %s", error)
            await self._client.move_on()
            await backoff.wait()

    async def write(self, writes: list[Write]) -> None:
        """All in one transaction (more than 100 in several): none when one of them was changed by someone else."""
        for start in range(0, len(writes), _MAX_OPERATIONS):
            part = writes[start : start + _MAX_OPERATIONS]
            request = self._transaction(part)

            async def commit(request: api.TxnRequest = request) -> api.TxnResponse:
                return await self._client.call("/etcdserverpb.KV/Txn", request, api.TxnResponse)

            answer = await self._client.anywhere(commit)
            if not answer.succeeded:
                names = ", ".join(str(write.identity) for write in part)
                raise SourceError(f"{self.name}: one of {names} was changed by someone else: run this again")
            self._remember(part, answer.header.revision)

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    # -- what is there

    def _rules(self) -> RuleSet:
        documents = tuple(self._kvs[key][0] for key in sorted(self._kvs))
        return RuleSet(str(self._revision), documents)

    async def _read_all(self) -> None:
        kvs: dict[str, tuple[RawDocument, int]] = {}
        begin, end = below(self._prefix)
        revision = 0
        while True:
            request = api.RangeRequest(key=begin, range_end=end, limit=_PAGE, revision=revision)
            page = await self._client.call("/etcdserverpb.KV/Range", request, api.RangeResponse)
            revision = revision or page.header.revision
            for kv in page.kvs:
                kvs[_text(kv.key)] = _stored(kv)
            if not page.more:
                break
            begin = page.kvs[-1].key + b"\0"
        self._kvs, self._revision = kvs, revision

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


def _stored(kv: api.KeyValue) -> tuple[RawDocument, int]:
    return RawDocument(_text(kv.key), 1, _text(kv.value)), kv.mod_revision


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
