"""A bound on the bytes that are under way to clients: gRPC has a copy of each response until its client has read it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Final, TypeVar

LIMIT_BYTES: Final = 64 * 1024 * 1024
# After this time a write counts no longer, so that slow clients do not hold up the others.
LONGEST_HOLD_S: Final = 1.0
# Writes of any size that are older than that, of all clients: beyond, those that stand longest are given up.
STALLED_BYTES: Final = 256 * 1024 * 1024
T = TypeVar("T")


def longest_stalled(waiting: Mapping[T, tuple[float, int]], from_s: float, limit_bytes: int) -> Iterator[T]:
    """Who has to go, the longest waiting first, so that no more than `limit_bytes` are in writes that have taken more
    than `from_s`. `waiting` has the seconds and bytes of each."""
    stalled = {who: found for who, found in waiting.items() if found[0] > from_s}
    left = sum(size for _, size in stalled.values())
    for who in sorted(stalled, key=lambda each: stalled[each], reverse=True):
        if left <= limit_bytes:
            return
        left -= stalled[who][1]
        yield who


class Throttle:
    """Lets writes through in order, while no more than `limit_bytes` are under way, or one alone that is larger."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES, longest_hold_s: float = LONGEST_HOLD_S) -> None:
        self._limit_bytes = limit_bytes
        self._longest_hold_s = longest_hold_s
        self._taken = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int) -> Hold:
        """Wait for room for so many bytes; give it back with `release`."""
        if self._waiting or not self._has_room(size):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((size, turn))
            try:
                await turn
            except asyncio.CancelledError:
                self._leave(size, turn)
                raise
        else:
            self._taken += size
        return Hold(self, size, self._longest_hold_s)

    def give_back(self, size: int) -> None:
        """So many bytes are no longer under way."""
        self._taken -= size
        self._let_in()

    def _has_room(self, size: int) -> bool:
        return self._taken == 0 or self._taken + size <= self._limit_bytes

    def _let_in(self) -> None:
        while self._waiting and self._has_room(self._waiting[0][0]):
            size, turn = self._waiting.popleft()
            if not turn.done():
                self._taken += size
                turn.set_result(None)

    def _leave(self, size: int, turn: asyncio.Future[None]) -> None:
        if turn.done() and not turn.cancelled():
            self.give_back(size)
        elif (size, turn) in self._waiting:
            self._waiting.remove((size, turn))
            self._let_in()


class Hold:
    """Room that was taken. It is given back once: by `release`, or when it was held for the longest time."""

    def __init__(self, throttle: Throttle, size: int, longest_s: float) -> None:
        self._throttle = throttle
        self._size = size
        self._timer = asyncio.get_running_loop().call_later(longest_s, self.release)

    def release(self) -> None:
        """The bytes have left. A second call does nothing."""
        self._timer.cancel()
        size, self._size = self._size, 0
        if size:
            self._throttle.give_back(size)
