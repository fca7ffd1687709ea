"""Where an authority keeps what it remembers: the interface of a directory and of etcd."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from meshproxy.pilot.authority.settings import AuthorityError

MAX_STATE_BYTES = 1 << 20  # less than etcd takes


class ConflictError(AuthorityError):
    """Somebody else has changed the state: read it, and decide anew."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The state as it is stored (`state.seal_state`), and what tells it from others; empty: there is none yet."""

    text: bytes
    revision: str


@dataclass(frozen=True, slots=True)
class Record:
    """A certificate that is out. It is kept until that has ended, so that an identity can be revoked by its name."""

    serial: int
    issuer: str
    identity: str
    not_after: float


class Store(Protocol):
    """All but `name` raise AuthorityError when the store cannot be reached, or is damaged."""

    @property
    def name(self) -> str:
        """For messages: a path, or etcd's addresses."""

    async def read(self) -> Stored:
        """What is there now."""

    async def replace(self, text: bytes, was: Stored) -> Stored:
        """Store it, where what is stored is still `was`; else raises ConflictError."""

    async def record(self, record: Record, was: Stored) -> None:
        """Remember a certificate, where the state is still `was`; else raises ConflictError: who signs cannot have
        missed that its issuer was retired, or an identity barred."""

    async def records(self, now: float) -> list[Record]:
        """All that have not ended."""

    async def forget(self, now: float) -> None:
        """Those that have."""

    def watch(self, known: Stored) -> AsyncIterator[Stored]:
        """What is there after each change since `known`. It never ends, and outlives a store that is gone for a
        while; the caller closes it (`aclose`)."""

    async def close(self) -> None:
        """Give back connections."""
