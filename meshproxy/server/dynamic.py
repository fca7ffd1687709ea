"""What control planes have said: of every resource the version in force, and the one that was refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from meshproxy.config.fields import NotYet
from meshproxy.xds.resources import ResourceUpdate


class TakenVersion:
    """A version of a resource that is in force, or warms. `data` is its message, serialised, as it came; `checked` what
    workers get of it, without what cannot be done; `not_yet` says what that is."""

    def __init__(self, update: ResourceUpdate, message: Any, not_yet: list[NotYet]) -> None:
        self.version = update.version
        self.data = update.data
        self.checked: bytes = update.data if message == update.message else message.SerializeToString()
        self.not_yet = not_yet
        self.at: float = time.time()


class Refusal:
    """A version of a resource that is not taken: what it was (b"": nobody can tell), when it came, and why not."""

    def __init__(self, version: str, data: bytes, because: str) -> None:
        self.version = version
        self.data = data
        self.because = because
        self.at: float = time.time()


class ResourceRecord:
    """One resource by its name: the version that was taken, the one before it (in force while that warms), and one that
    came later and is refused."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.taken: TakenVersion | None = None
        self.before: TakenVersion | None = None
        self.refusal: Refusal | None = None

    def take(self, taken: TakenVersion, *, warms: bool) -> None:
        """A version that `warms` leaves the one in force for a while."""
        if warms and self.before is None:
            self.before = self.taken
        self.taken, self.refusal = taken, None

    def is_taken(self, update: ResourceUpdate) -> bool:
        """Whether the same is in force already; it has another version then."""
        if self.taken is None or self.taken.data != update.data:
            return False
        self.taken.version, self.refusal = update.version, None
        return True


class DynamicResources:
    """The records, by source and type. `versions` are those of the last response that was taken, by type."""

    def __init__(self) -> None:
        self._records: dict[tuple[bytes, str], dict[str, ResourceRecord]] = {}
        self.versions: dict[str, str] = {}

    def of(self, source: bytes, type_url: str) -> dict[str, ResourceRecord]:
        """By name; the dict is the one that changes are made in."""
        return self._records.setdefault((source, type_url), {})

    def record(self, source: bytes, type_url: str, name: str) -> ResourceRecord:
        """The one of this name, new where there is none."""
        return self.of(source, type_url).setdefault(name, ResourceRecord(name))

    def forget_before(self, type_url: str, names: list[str]) -> None:
        """These have nothing in force any more but what was taken."""
        for (_, kind), records in self._records.items():
            for name in names if kind == type_url else ():
                if name in records:
                    records[name].before = None

    def all(self) -> Iterator[tuple[str, ResourceRecord]]:
        """With their types."""
        for (_, type_url), records in self._records.items():
            for record in records.values():
                yield type_url, record

    def of_type(self, type_url: str) -> Iterator[ResourceRecord]:
        """From all sources."""
        return (record for kind, record in self.all() if kind == type_url)

    def sources_of(self, type_url: str) -> list[tuple[bytes, dict[str, TakenVersion]]]:
        """Each source of a type, with what was taken of it, by name."""
        return [
            (source, {name: record.taken for name, record in records.items() if record.taken is not None})
            for (source, kind), records in self._records.items()
            if kind == type_url
        ]
