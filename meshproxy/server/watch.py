"""Watching a file: by looking at it, so that renames, symbolic links and network file systems all count."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from meshproxy.config.datasource import FileStamp, file_stamp

_INTERVAL_S: Final = 0.5


class FileWatch:
    """Calls back when the file behind `path` is another one, or was written, and has been quiet for one interval."""

    def __init__(self, path: Path, on_change: Callable[[], None]) -> None:
        self._path = path
        self._on_change = on_change
        self._seen = self._look()

    def _look(self) -> FileStamp | None:
        return file_stamp(str(self._path))  # None: between an unlink and a rename; one that stays away changes nothing

    async def run(self) -> None:
        told = self._seen
        while True:
            await asyncio.sleep(_INTERVAL_S)
            now = self._look()
            if now is not None and now == self._seen and now != told:
                told = now
                self._on_change()
            if now is not None:
                self._seen = now


class FilesWatch:
    """Calls back when files hold something else than was read of them, and have been quiet for one interval."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._read: list[tuple[str, FileStamp | None]] = []

    def watch(self, read: Iterable[tuple[str, FileStamp | None]]) -> None:
        """Watch these from now on: each as it was when it was read, which need not be the same for all who did."""
        self._read = sorted(set(read), key=repr)

    def changed(self) -> dict[str, FileStamp]:
        """What the changed ones are now. A file that stays away changes nothing."""
        found = {}
        for name, was in self._read:
            now = file_stamp(name)
            if now is not None and now != was:
                found[name] = now
        return found

    async def run(self) -> None:
        seen: dict[str, FileStamp] = {}
        told: dict[str, FileStamp] = {}
        while True:
            await asyncio.sleep(_INTERVAL_S)
            now = self.changed()
            if now and now == seen and now != told:
                told = now
                self._on_change()
            seen = now
