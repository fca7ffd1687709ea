"""Weighted order: earliest deadline first."""

from __future__ import annotations

import heapq

Entry = tuple[float, int, int]  # deadline, order of arrival, index


class EdfScheduler:
    """Gives out indices in proportion to their weights, evenly spread.

    An index that is given out is due again after 1/weight; the one due first comes next, and of equals the one that was
    put in first. Weights may change from pick to pick.
    """

    def __init__(self, weights: list[float]) -> None:
        self._order: int = len(weights)
        self._entries: list[Entry] = [(1.0 / weights[i], i, i) for i in range(len(weights))]
        heapq.heapify(self._entries)

    def peek(self) -> int:
        """The index that is due; `take` gives it out."""
        return self._entries[0][2]

    def take(self, weight: float) -> None:
        """The index that is due has been given out; it is due again by `weight`."""
        deadline, _, index = self._entries[0]
        self._order += 1
        heapq.heapreplace(self._entries, (deadline + 1.0 / weight, self._order, index))
