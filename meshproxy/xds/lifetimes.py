"""Resources that last for a while only: `Resource.ttl`, renewed by updates and heartbeats."""

from __future__ import annotations

import heapq


class Lifetimes:
    """Until when each name lasts, in seconds of the monotonic clock. Names that last for ever are not here."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []  # what was renewed since stands there twice

    def set(self, name: str, ttl_ms: int, now: float) -> None:
        """It lasts `ttl_ms` from now on; 0: for ever."""
        if ttl_ms == 0:
            self._until.pop(name, None)
            return
        until = now + ttl_ms / 1000.0
        self._until[name] = until
        heapq.heappush(self._heap, (until, name))
        if len(self._heap) > 4 * len(self._until) + 16:
            self._heap = [(until, name) for name, until in self._until.items()]
            heapq.heapify(self._heap)

    def forget(self, name: str) -> None:
        """It is gone already."""
        self._until.pop(name, None)

    def next(self) -> float | None:
        """When the next one ends."""
        heap = self._heap
        while heap and self._until.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def take_expired(self, now: float) -> list[str]:
        """Those whose time is over; they are forgotten."""
        expired = []
        while (until := self.next()) is not None and until <= now:
            name = heapq.heappop(self._heap)[1]
            del self._until[name]
            expired.append(name)
        return expired
