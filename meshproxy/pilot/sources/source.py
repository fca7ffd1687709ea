"""Where documents come from: the one interface of a directory and of etcd."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from meshproxy.errors import MeshProxyError
from meshproxy.pilot.documents.document import Identity, RawDocument
from meshproxy.pilot.documents.problems import Problem


class SourceError(MeshProxyError):
    """A source cannot be read or written at all."""


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All documents that a source has. `unreadable` are parts (files) of it that could not be read, each with the
    reason: what they held before stays in force."""

    revision: str
    documents: tuple[RawDocument, ...]
    unreadable: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Write:
    """One document to be stored, or deleted where `text` is None; `was` is its text as it was read, None for a new one:
    the store refuses when it has changed since."""

    identity: Identity
    text: str | None
    was: str | None = None


class RuleSource(Protocol):
    """Read and watched by a pilot; written by `meshproxy rules`."""

    @property
    def name(self) -> str:
        """For messages: the directory, or etcd's address."""

    async def read(self) -> RuleSet:
        """What is there now. Raises SourceError when it cannot be read at all."""

    def watch(self) -> AsyncIterator[RuleSet]:
        """What is there, then what is there after each change. It never ends, and outlives a source that is gone for a
        while; the caller closes it (`aclose`)."""

    async def write(self, writes: list[Write]) -> None:
        """All or, where the source can, none. Raises SourceError."""

    async def close(self) -> None:
        """Give back connections."""
