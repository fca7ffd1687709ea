"""Long work in slices: the event loop turns in between, so that traffic waits a few milliseconds at most."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from time import monotonic
from typing import Final

SLICE_S: Final = 0.002


async def in_slices(steps: Iterator[None]) -> None:
    """Run steps to their end, for 2 ms at a time."""
    until = monotonic() + SLICE_S
    for _ in steps:
        if monotonic() >= until:
            await asyncio.sleep(0)
            until = monotonic() + SLICE_S
