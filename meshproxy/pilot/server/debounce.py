"""Many changes in a row are one: it is acted upon when it has been quiet for a while, and not later than a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Debounce:
    """Calls `act` with the time (of the loop's clock) of the first change since the last call. `touch` tells of one."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, act: Callable[[float], None], quiet_s: float, most_s: float
    ) -> None:
        self._loop = loop
        self._act = act
        self._quiet_s = quiet_s
        self._most_s = most_s
        self._first = -1.0
        self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def touch(self) -> None:
        """Something has changed."""
        self._last = self._loop.time()
        if self._first < 0.0:
            self._first = self._last
            self._timer = self._loop.call_at(self._due(), self._on_timer)

    def close(self) -> None:
        """Forget what was not acted upon."""
        if self._timer is not None:
            self._timer.cancel()

    def _due(self) -> float:
        return min(self._last + self._quiet_s, self._first + self._most_s)

    def _on_timer(self) -> None:
        if self._due() > self._loop.time() + 0.001:
            self._timer = self._loop.call_at(self._due(), self._on_timer)
            return
        first, self._first = self._first, -1.0
        self._act(first)
