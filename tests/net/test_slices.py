"""Long work lets the event loop turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from meshproxy.net.slices import SLICE_S, in_slices


async def test_other_work_gets_its_turn() -> None:
    done: list[str] = []

    def steps() -> Iterator[None]:
        for _ in range(3):
            end = time.monotonic() + SLICE_S * 1.5
            while time.monotonic() < end:
                pass
            done.append("step")
            yield

    async def other() -> None:
        for _ in range(3):
            done.append("other")
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await in_slices(steps())
    await task
    assert done[:4] == ["step", "other", "step", "other"]


async def test_a_step_that_fails_ends_it() -> None:
    def steps() -> Iterator[None]:
        yield
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await in_slices(steps())
