"""Long work in slices: the event loop turns in between, so that traffic waits a few milliseconds at most.

A request needs three or four turns of the loop, and in each of them it waits for a slice: so they are short.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from time import monotonic
from typing import Final

SLICE_S: Final = 0.0005


class Slices:
    """The time that one piece of work may take before the loop turns, however many parts it has."""

    def __init__(self) -> None:
        self._until: float = monotonic() + SLICE_S

    async def run(self, steps: Iterator[None]) -> None:
        """Run steps to their end."""
        for _ in steps:
            if monotonic() >= self._until:
                await self.turn()

    async def rest(self) -> None:
        """Between two steps: let the loop turn if it is time."""
        if monotonic() >= self._until:
            await self.turn()

    async def turn(self) -> None:
        """Let the loop turn."""
        await asyncio.sleep(0)
        self._until = monotonic() + SLICE_S


async def in_slices(steps: Iterator[None]) -> None:
    """Run steps to their end, for a slice at a time."""
    await Slices().run(steps)
