"""The authority's memory in a directory that only its owner can enter.

`state.json` is the state; `issued/HOUR` hold the certificates that end in that hour, a line each; `lock` is what
writers hold (flock), so that several processes can share the directory.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import math
import os
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from meshproxy.observe.log import component_logger
from meshproxy.pilot.authority.settings import AuthorityError
from meshproxy.pilot.authority.store import MAX_STATE_BYTES, ConflictError, Record, Stored

_HOUR_S: Final = 3600
_LOOK_S: Final = 0.25  # between two looks for a change
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


class DirectoryStore:
    """Raises AuthorityError where others can enter the directory, or read what is in it."""

    def __init__(self, path: str) -> None:
        self.name = path
        self._root = Path(path)
        self._state = self._root / "state.json"
        self._issued = self._root / "issued"
        self._log = component_logger("authority")

    async def read(self) -> Stored:
        return await asyncio.to_thread(self._read)

    async def replace(self, text: bytes, was: Stored) -> Stored:
        return await asyncio.to_thread(self._replace, text, was)

    async def record(self, record: Record, was: Stored) -> None:
        await asyncio.to_thread(self._record, record, was)

    async def records(self, now: float) -> list[Record]:
        return await asyncio.to_thread(self._records, now)

    async def forget(self, now: float) -> None:
        await asyncio.to_thread(self._forget, now)

    async def watch(self, known: Stored) -> AsyncIterator[Stored]:
        """By looking at it, as pilot/sources/directory.py does."""
        is_fine = True
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                found = await asyncio.to_thread(self._look, known)
                is_fine = True
            except AuthorityError as error:
                if is_fine:
                    self._log.warning("the authority goes on with what it knows: %s", error)
                is_fine = False
                continue
            if found is not None:
                known = found
                yield found

    async def close(self) -> None:
        """Nothing is held."""

    # -- the state

    def _look(self, known: Stored) -> Stored | None:
        return None if self._revision() == known.revision else self._read()

    def _read(self) -> Stored:
        """Without a directory there is nothing, and reading makes none."""
        if not os.path.lexists(self._root):
            return Stored(b"", "")
        with self._held(fcntl.LOCK_SH):
            return Stored(_content(self._state), self._revision())

    def _replace(self, text: bytes, was: Stored) -> Stored:
        with self._held(fcntl.LOCK_EX):
            self._expect(was)
            if len(text) > MAX_STATE_BYTES:
                raise AuthorityError(f"{self._state}: would be larger than {MAX_STATE_BYTES} bytes")
            _write(self._state, text)
            return Stored(text, self._revision())

    def _expect(self, was: Stored) -> None:
        if self._revision() != was.revision:
            raise ConflictError(f"{self._state}: was changed by someone else: try again")

    def _revision(self) -> str:
        """Every version is a file of its own."""
        try:
            found = self._state.stat()
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise _failure(self._state, error) from None
        return f"{found.st_ino}.{found.st_mtime_ns}.{found.st_size}"

    # -- what is out

    def _record(self, record: Record, was: Stored) -> None:
        line = {
            "serial": f"{record.serial:x}",
            "issuer": record.issuer,
            "identity": record.identity,
            "not_after": record.not_after,
        }
        path = self._issued / str(math.floor(record.not_after) // _HOUR_S)
        with self._held(fcntl.LOCK_SH):
            self._expect(was)
            # One write at the end of the file: lines of several processes do not mix.
            _append(path, json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def _records(self, now: float) -> list[Record]:
        found: list[Record] = []
        for path in self._files():
            if (int(path.name) + 1) * _HOUR_S > now:
                found += [each for each in map(_record, _content(path).splitlines()) if each is not None]
        return [each for each in found if each.not_after >= now]

    def _forget(self, now: float) -> None:
        for path in self._files():
            if (int(path.name) + 1) * _HOUR_S <= now:
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise _failure(path, error) from None

    def _files(self) -> list[Path]:
        try:
            return sorted(each for each in self._issued.iterdir() if each.name.isdecimal())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _failure(self._issued, error) from None

    # -- the directory

    @contextmanager
    def _held(self, kind: int) -> Iterator[None]:
        """The directory made where it is missing, looked at, and locked."""
        try:
            for path in (self._root, self._issued):
                path.mkdir(mode=0o700, exist_ok=True)
                _refuse_others(path)
            lock = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _failure(self._root, error) from None
        try:
            try:
                fcntl.flock(lock, kind)
            except OSError as error:
                raise _failure(self._root, error) from None
            yield
        finally:
            os.close(lock)


def _refuse_others(path: Path) -> None:
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise AuthorityError(f"{path}: belongs to another user (uid {found.st_uid})")
    if found.st_mode & _OTHERS:
        wanted = "700" if stat.S_ISDIR(found.st_mode) else "600"
        raise AuthorityError(f"{path}: others can read it: chmod {wanted} {path}")


def _content(path: Path) -> bytes:
    """Nothing where there is no such file."""
    try:
        _refuse_others(path)
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise _failure(path, error) from None


def _write(path: Path, text: bytes) -> None:
    """As one step that outlives a loss of power."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.unlink(missing_ok=True)
        _append(temporary, text, sync=True)
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise _failure(path, error) from None


def _append(path: Path, data: bytes, *, sync: bool = False) -> None:
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            written = os.write(file, data)
            if sync:
                os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        raise _failure(path, error) from None
    if written != len(data):
        raise AuthorityError(f"{path}: could not be written as a whole")


def _record(line: bytes) -> Record | None:
    """None for a line that a full disk cut off."""
    try:
        found = json.loads(line)
        return Record(int(found["serial"], 16), found["issuer"], found["identity"], float(found["not_after"]))
    except (ValueError, KeyError, TypeError):
        return None


def _failure(path: Path, error: OSError) -> AuthorityError:
    return AuthorityError(f"{path}: {error.strerror or error}")
