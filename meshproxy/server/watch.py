"""Watching a file: by looking at it, so that renames, symbolic links and network file systems all count."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

_INTERVAL_S: Final = 0.5


class FileWatch:
    """Calls back when the file behind `path` is another one, or was written, and has been quiet for one interval."""

    def __init__(self, path: Path, on_change: Callable[[], None]) -> None:
        self._path = path
        self._on_change = on_change
        self._seen = self._look()

    def _look(self) -> tuple[int, int, int] | None:
        try:
            status = os.stat(self._path)
        except OSError:
            return None  # between an unlink and a rename; a file that stays away changes nothing
        return status.st_ino, status.st_mtime_ns, status.st_size

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
