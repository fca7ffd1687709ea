"""The state in its store, read and changed: what pilots and `meshproxy authority` share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from meshproxy.observe.log import component_logger
from meshproxy.pilot.authority.keys import Seal
from meshproxy.pilot.authority.settings import AuthorityError
from meshproxy.pilot.authority.state import State, salt_of, seal_state, unseal_state
from meshproxy.pilot.authority.store import ConflictError, Store, Stored

_TRIES = 8


@dataclass(frozen=True, slots=True)
class Remembered:
    """A state as it stands in the store, and the seal that it was opened with."""

    stored: Stored
    state: State
    seal: Seal


class Memory:
    """Cryptography and files are for threads: everything here is awaited. Methods raise AuthorityError."""

    def __init__(self, store: Store, passphrase: bytes) -> None:
        self.store = store
        self._passphrase = passphrase
        self._seal: Seal | None = None
        self._log = component_logger("authority")

    async def read(self) -> Remembered | None:
        """None where nothing is stored."""
        stored = await self.store.read()
        return await asyncio.to_thread(self._unseal, stored) if stored.text else None

    async def create(self, make: Callable[[Seal], State]) -> tuple[Remembered, bool]:
        """What `make` says, or what somebody else was first to store; and whether it was us."""
        empty = await self.store.read()
        if not empty.text:
            seal = await asyncio.to_thread(Seal, self._passphrase)
            state = await asyncio.to_thread(make, seal)
            try:
                stored = await self.store.replace(seal_state(state, seal), empty)
            except ConflictError:
                pass  # another pilot began at the same time: its root is the mesh's
            else:
                self._seal = seal
                return Remembered(stored, state, seal), True
        found = await self.read()
        if found is None:
            raise AuthorityError(f"{self.store.name}: was emptied while it was read")
        return found, False

    async def change(self, decide: Callable[[State, Seal], State]) -> tuple[State, Remembered]:
        """Store what is decided over the present state, which is decided anew when somebody else was faster. The state
        before and what is remembered after; the same state where there is nothing to do."""
        for _ in range(_TRIES):
            was = await self.read()
            if was is None:
                raise AuthorityError(f"{self.store.name}: there is no authority: meshproxy authority init")
            state = await asyncio.to_thread(decide, was.state, was.seal)
            if state == was.state:
                return was.state, was
            state = replace(state, version=was.state.version + 1)
            text = await asyncio.to_thread(seal_state, state, was.seal)
            try:
                return was.state, Remembered(await self.store.replace(text, was.stored), state, was.seal)
            except ConflictError:
                continue
        raise ConflictError(f"{self.store.name}: others change it all the time")

    async def watch(self, known: Remembered) -> AsyncIterator[Remembered]:
        """What is there after each change. What cannot be read is logged, and changes nothing."""
        async with aclosing(self.store.watch(known.stored)) as changes:  # type: ignore[type-var]
            async for stored in changes:
                try:
                    yield await asyncio.to_thread(self._unseal, stored)
                except AuthorityError as error:
                    self._log.error("the authority goes on with what it knows: %s", error)

    def _unseal(self, stored: Stored) -> Remembered:
        name = self.store.name
        if not stored.text:
            raise AuthorityError(f"{name}: the state is gone")
        salt = salt_of(stored.text, name)
        if self._seal is None or self._seal.salt != salt:
            self._seal = Seal(self._passphrase, salt)
        return Remembered(stored, unseal_state(stored.text, self._seal, name), self._seal)
