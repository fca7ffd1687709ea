"""Documents in the files of a directory: `*.yaml`, `*.yml` and `*.json`, also in directories below it.

It is watched by looking at it, so that renames, symbolic links (Kubernetes swaps that of a mounted ConfigMap) and
network file systems all count. A file that is being written is left alone until it has been quiet for one look.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from meshproxy.observe.log import component_logger
from meshproxy.pilot.documents.document import Identity, RawDocument, parse_document, split_documents
from meshproxy.pilot.documents.problems import Problem
from meshproxy.pilot.sources.source import RuleSet, SourceError, Write

_SUFFIXES: Final = frozenset({".yaml", ".yml", ".json"})
# Between two looks; where one takes long, twenty times as long.
_INTERVAL_S: Final = 0.1
_REST: Final = 20
# Until the second look at a file that has changed: half a file would only be refused, but that is told.
_QUIET_S: Final = 0.03

_Stamp = tuple[int, int, int, int]


class DirectorySource:
    """The documents of a directory, or of one file."""

    def __init__(self, path: str) -> None:
        self.name = path
        self._root = Path(path)
        self._texts: dict[str, tuple[_Stamp, tuple[RawDocument, ...]]] = {}
        self._log = component_logger("pilot")

    async def read(self) -> RuleSet:
        """Raises SourceError when the directory is not there."""
        return await asyncio.to_thread(self._read)

    async def watch(self) -> AsyncIterator[RuleSet]:
        """See RuleSource.watch. A directory that is gone for a while changes nothing."""
        told = await asyncio.to_thread(self._stamps)
        seen: dict[str, _Stamp] | None = told  # None: it cannot be told what is there
        yield await self.read()
        pause = _INTERVAL_S
        while True:
            await asyncio.sleep(pause)
            began = time.monotonic()
            rules = None
            now: dict[str, _Stamp] | None = None
            try:
                now = await asyncio.to_thread(self._stamps)
                took = time.monotonic() - began
                if now == seen and now != told:
                    rules = await self.read()
                    told = now
            except SourceError as error:
                if seen is not None:
                    self._log.warning("the rules stay as they are: %s", error)
                now, took = None, 0.0
            is_new = bool(now) and now not in (seen, told)
            pause = _QUIET_S if is_new else max(_INTERVAL_S, _REST * took)
            seen = now
            if rules is not None:
                yield rules

    async def close(self) -> None:
        """Nothing is held."""

    async def write(self, writes: list[Write]) -> None:
        """Each file is replaced as a whole, one after the other. A new document gets a file of its own."""
        await asyncio.to_thread(self._write, writes)

    # -- reading

    def _read(self) -> RuleSet:
        documents: list[RawDocument] = []
        unreadable: list[Problem] = []
        texts: dict[str, tuple[_Stamp, tuple[RawDocument, ...]]] = {}
        digest = hashlib.blake2b(digest_size=8)
        for path, stamp in sorted(self._stamps().items()):
            known = self._texts.get(path)
            if known is None or known[0] != stamp:
                try:
                    known = (stamp, tuple(split_documents(path, Path(path).read_text("utf-8-sig"))))
                except (OSError, UnicodeDecodeError) as error:
                    unreadable.append(Problem(path, 1, "", f"cannot be read: {_reason(error)}"))
                    continue
            texts[path] = known
            documents += known[1]
            for raw in known[1]:
                digest.update(raw.text.encode())
        self._texts = texts
        return RuleSet(digest.hexdigest(), tuple(documents), tuple(unreadable))

    def _stamps(self) -> dict[str, _Stamp]:
        """The files and what tells one state of them from another. Raises SourceError."""
        try:
            is_file, is_directory = self._root.is_file(), self._root.is_dir()
        except OSError as error:  # of a file system that is not at its best
            raise SourceError(f"{self.name}: {_reason(error)}") from error
        if is_file:
            return {str(self._root): _stamp(str(self._root))}
        if not is_directory:
            raise SourceError(f"{self.name}: there is no such directory")
        found: dict[str, _Stamp] = {}
        visited: set[str] = set()
        for folder, folders, files in os.walk(self._root, onerror=_refuse, followlinks=True):
            real = os.path.realpath(folder)
            folders[:] = [each for each in folders if not each.startswith(".")]
            if real in visited:  # a link that leads back
                folders.clear()
                continue
            visited.add(real)
            for name in files:
                if not name.startswith(".") and os.path.splitext(name)[1] in _SUFFIXES:
                    path = os.path.join(folder, name)
                    found[path] = _stamp(path)
        return found

    # -- writing

    def _write(self, writes: list[Write]) -> None:
        if not self._root.is_dir():
            raise SourceError(f"{self.name}: documents are written to a directory")
        there: dict[Identity, RawDocument] = {}
        for raw in self._read().documents:
            identity = parse_document(raw).identity
            if identity is not None:
                there.setdefault(identity, raw)
        for write in writes:
            known = there.get(write.identity)
            if (known.text if known is not None else None) != write.was:
                raise SourceError(f"{write.identity} was changed by someone else: run this again")
        for path in sorted({there[each.identity].source for each in writes if each.identity in there}):
            _rewrite(path, [(there[each.identity], each) for each in writes if _stands_in(there, each, path)])
        for write in writes:
            if write.identity not in there and write.text is not None:
                _replace_file(str(self._root / _file_name(write.identity)), write.text)


def _stands_in(there: dict[Identity, RawDocument], write: Write, path: str) -> bool:
    raw = there.get(write.identity)
    return raw is not None and raw.source == path


def _rewrite(path: str, writes: list[tuple[RawDocument, Write]]) -> None:
    """Puts new texts where the old ones stand, from the last to the first, so that lines stay where they are."""
    lines = _lines(Path(path).read_text("utf-8-sig"))
    for raw, write in sorted(writes, key=lambda pair: -pair[0].line):
        count = raw.text.count("\n")
        lines[raw.line - 1 : raw.line - 1 + count] = _lines(write.text or "")
    text = "".join(lines)
    if split_documents(path, text):
        _replace_file(path, text)
    else:
        os.unlink(path)


def _lines(text: str) -> list[str]:
    """As they are counted: what else splits lines for Unicode stands within one."""
    return list(io.StringIO(text, newline="\n"))


def _replace_file(path: str, text: str) -> None:
    """As one step: who reads sees the old file or the new one."""
    temporary = f"{os.path.dirname(path)}/.{os.path.basename(path)}.{os.getpid()}"
    try:
        Path(temporary).write_text(text, "utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise SourceError(f"{path}: cannot be written: {_reason(error)}") from None


def _file_name(identity: Identity) -> str:
    return f"{identity.kind.lower()}.{identity.namespace}.{identity.name}.yaml"


def _refuse(error: OSError) -> None:
    """A directory that cannot be listed may hold anything: what was in it must not count as deleted."""
    raise SourceError(f"{error.filename}: cannot be listed: {error.strerror}")


def _stamp(path: str) -> _Stamp:
    """Zeros for a file that cannot be looked at: reading it says why."""
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev)


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else f"not UTF-8 (byte {error.start})"
