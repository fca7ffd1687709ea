"""Files of an operator's: read again when they change, so that whoever renews them need not tell us."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

from meshproxy.config.datasource import FileStamp, file_stamp
from meshproxy.errors import ConfigError

T = TypeVar("T")

_MOST_BYTES: Final = 1024 * 1024
_log: Final = logging.getLogger("meshproxy.pilot")


class Followed(Generic[T]):
    """What `read` makes of files, and anew when one of them has changed. Where it raises ConfigError then, what it made
    before stays in force; at first that is raised."""

    def __init__(self, names: tuple[str, ...], read: Callable[[], T]) -> None:
        self._names = names
        self._read = read
        self._stamps = self._look()
        self._found = read()

    def get(self) -> T:
        """The same object as long as nothing changes."""
        stamps = self._look()
        if stamps != self._stamps:
            self._stamps = stamps
            try:
                self._found = self._read()
            except ConfigError as error:
                _log.warning("%s; what it held before stays in force", error)
        return self._found

    def _look(self) -> list[FileStamp | None]:
        return [file_stamp(name) for name in self._names]


def read_file(name: str) -> bytes:
    """Raises ConfigError for one that cannot be read, or is too large."""
    try:
        with Path(name).open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(name, error.strerror or str(error)) from None
    if len(data) > _MOST_BYTES:
        raise ConfigError(name, f"more than {_MOST_BYTES} bytes")
    return data
