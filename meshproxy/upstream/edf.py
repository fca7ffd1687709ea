"""Weighted order: earliest deadline first."""

from __future__ import annotations

import heapq

Entry = tuple[float, int, int]  # deadline, order of arrival, index


class EdfScheduler:
    """Gives out the index that is due first; of equals, the one that was put in first.

    Every index begins with the deadline 1/weight. One that was given out is put in again with a later deadline, by
    1/weight each time: so indices come in proportion to their weights, evenly spread.
    """

    def __init__(self, weights: list[float]) -> None:
        self._order: int = len(weights)
        self._entries: list[Entry] = [(1.0 / weights[i], i, i) for i in range(len(weights))]
        heapq.heapify(self._entries)

    @property
    def index(self) -> int:
        """Which is due."""
        return self._entries[0][2]

    @property
    def deadline(self) -> float:
        """When it is due."""
        return self._entries[0][0]

    def put_again(self, deadline: float) -> None:
        """The index that is due was given out, and is due again at `deadline`."""
        self._order += 1
        heapq.heapreplace(self._entries, (deadline, self._order, self._entries[0][2]))


class WeightedOrder:
    """Indices in proportion to weights that never change."""

    def __init__(self, weights: list[float]) -> None:
        self._weights = weights
        self._turns: list[int] = [1] * len(weights)
        self._edf = EdfScheduler(weights)

    def next(self) -> int:
        edf = self._edf
        index = edf.index
        turns = self._turns[index] + 1
        self._turns[index] = turns
        edf.put_again(turns / self._weights[index])  # not a sum: equal deadlines must stay equal
        return index
