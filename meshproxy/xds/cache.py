"""The last resources that were taken, in a file: what a proxy begins with when it starts and no control plane is there.

No secret ever stands in it: neither resources of that type, nor any that has one inside. The file is written anew once
a second at most, in slices and by an atomic rename, and is the owner's alone. It begins with a line that says what it
is, the node that it is of, and a hash of the rest: whatever is not as we wrote it is told and passed over.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import struct
from collections.abc import Generator, Iterator
from pathlib import Path
from time import monotonic as clock
from typing import Any, Final

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryResponse
from google.protobuf.message import DecodeError

from meshproxy.config.messages import find_message, type_name
from meshproxy.config.subscription import ENDPOINT_TYPE, SECRET_TYPE
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.net.slices import in_slices
from meshproxy.xds.pacing import pause
from meshproxy.xds.resources import ResourceUpdate, type_rank
from meshproxy.xds.sensitive import secret_in

_log: Final = logging.getLogger("meshproxy.xds")

_MAGIC: Final = b"meshproxy xDS cache 1\n"
_LENGTH: Final = struct.Struct(">I")
_INTERVAL_S: Final = 1.0
_IDLE_SHARE: Final = 10  # of the time that writing takes: so long it rests at least
_PER_RECORD: Final = 32  # resources
_RECORD_BYTES: Final = 256 * 1024  # about: a record ends with the resource that exceeds it

# The key of a source, and a type.
_Group = tuple[bytes, str]
CachedResources = tuple[bytes, str, list[ResourceUpdate]]


class _Held:
    """A resource that is in force. `writable` is None until it was looked at."""

    __slots__ = ("aliases", "data", "version", "writable")

    def __init__(self, update: ResourceUpdate) -> None:
        self.version = update.version
        self.data = update.data
        self.aliases = update.aliases
        self.writable: bool | None = None


class ResourceCache:
    """`node` tells whose resources they are: with another one, those of a file are not taken."""

    def __init__(self, dispatcher: Dispatcher, path: Path, node: str) -> None:
        self._dispatcher = dispatcher
        self._path = path
        self._node = node
        self._groups: dict[_Group, dict[str, _Held]] = {}
        self._changed = False
        self._task: asyncio.Task[Any] | None = None
        self._rest_s = 0.0  # after a write, before the next one
        self._writing = asyncio.Lock()
        self._withheld: set[str] = set()  # names that were told already
        self._failure = ""

    # -- what is in force

    def update(self, source: bytes, type_url: str, taken: list[ResourceUpdate], removed: list[str]) -> None:
        """These are in force now, and those no longer. One that has a time to live is not kept: it would be over."""
        if type_url == SECRET_TYPE:
            return
        group = self._groups.setdefault((source, type_url), {})
        for each in taken:
            if each.ttl_ms:
                group.pop(each.name, None)
            else:
                group[each.name] = _Held(each)
        for name in removed:
            group.pop(name, None)
        self._changed = True
        if self._task is None:
            self._task = self._dispatcher.spawn(self._write_on(), "xDS cache")

    async def close(self) -> None:
        """Write what is not written yet."""
        async with self._writing:
            task, self._task = self._task, None
            if task is not None:
                task.cancel()
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)
        if self._changed:
            await self._write()

    # -- writing

    async def _write_on(self) -> None:
        try:
            while self._changed:
                await pause(self._dispatcher, max(_INTERVAL_S, self._rest_s) * 1000.0)
                began = clock()
                await self._write()
                self._rest_s = (clock() - began) * _IDLE_SHARE
        finally:
            if asyncio.current_task() is self._task:
                self._task = None

    async def _write(self) -> None:
        async with self._writing:
            self._changed = False
            parts: list[bytes] = []
            await in_slices(self._records(parts))
            reason = ""
            try:
                await asyncio.to_thread(_replace, self._path, _head(self._node), parts)
            except OSError as error:
                reason = error.strerror or str(error)
            if reason and reason != self._failure:
                _log.warning("cannot write the cache %s: %s", self._path, reason)
            self._failure = reason

    def _records(self, parts: list[bytes]) -> Iterator[None]:
        for (source, type_url), held in list(self._groups.items()):
            record, size = DeltaDiscoveryResponse(type_url=type_url, nonce=source.hex()), 0
            for name, each in list(held.items()):
                if each.writable is None:
                    each.writable = yield from self._may_be_written(type_url, name, each.data)
                if each.writable:
                    added = record.resources.add(name=name, version=each.version, aliases=each.aliases)
                    added.resource.type_url, added.resource.value = type_url, each.data
                    size += len(each.data)
                if len(record.resources) == _PER_RECORD or size > _RECORD_BYTES:
                    parts += _framed(record.SerializeToString())
                    del record.resources[:]
                    size = 0
                    yield
            if record.resources:
                parts += _framed(record.SerializeToString())
            yield

    def _may_be_written(self, type_url: str, name: str, data: bytes) -> Generator[None, None, bool]:
        kind = None if type_url == ENDPOINT_TYPE else find_message(type_name(type_url))
        found = None if kind is None else (yield from secret_in(kind, data))
        if found is not None and name not in self._withheld:
            self._withheld.add(name)
            _log.warning("%s %r is not cached, it has a secret in it: %s", type_name(type_url), name, found)
        return found is None

    # -- reading

    def load(self) -> list[CachedResources]:
        """What the file has, by source and type, in the order in which it is to be taken; nothing where it is not ours,
        or not whole."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            _log.warning("cannot read the cache %s: %s", self._path, error.strerror or error)
            return []
        try:
            groups = _parse(data, _head(self._node))
        except (ValueError, DecodeError) as error:
            _log.warning("the cache %s is not taken: %s", self._path, error)
            return []
        for source, type_url, updates in groups:
            held = self._groups.setdefault((source, type_url), {})
            held.update({each.name: _Held(each) for each in updates})
        return sorted(groups, key=lambda group: type_rank(group[1]))


def _head(node: str) -> bytes:
    return _MAGIC + hashlib.blake2b(node.encode(), digest_size=16).digest()


def _framed(record: bytes) -> list[bytes]:
    return [_LENGTH.pack(len(record)), record]


def _replace(path: Path, head: bytes, parts: list[bytes]) -> None:
    """In a thread. The file is complete before it has its name."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    beside = path.with_name(path.name + ".new")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(head + digest.digest())
        file.writelines(parts)
        file.flush()
        os.fsync(descriptor)
    beside.replace(path)


def _parse(data: bytes, head: bytes) -> list[CachedResources]:
    """Raises ValueError and DecodeError for what is not as `_replace` wrote it."""
    start = len(head) + 16
    if not data.startswith(_MAGIC):
        raise ValueError("it is none of ours, or of another version")
    if not data.startswith(head):
        raise ValueError("it is of another node")
    if hashlib.blake2b(data[start:], digest_size=16).digest() != data[len(head) : start]:
        raise ValueError("it is damaged")
    groups: dict[_Group, list[ResourceUpdate]] = {}
    while start < len(data):
        (length,) = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size + length
        record = DeltaDiscoveryResponse.FromString(data[start - length : start])
        groups.setdefault((bytes.fromhex(record.nonce), record.type_url), []).extend(_updates(record))
    return [(source, type_url, updates) for (source, type_url), updates in groups.items()]


def _updates(record: Any) -> list[ResourceUpdate]:
    kind = find_message(type_name(record.type_url))
    if kind is None:
        raise ValueError(f"{record.type_url} is not known")
    return [
        ResourceUpdate(
            each.name, each.version, each.resource.value, kind.FromString(each.resource.value), tuple(each.aliases)
        )
        for each in record.resources
    ]
