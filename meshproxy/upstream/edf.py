"""Weighted order: earliest deadline first."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Final

_STRIDE: Final = 1024  # indices in a step

Entry = tuple[float, int, int]  # deadline, order of arrival, index


class EdfScheduler:
    """Gives out the index that is due first; of equals, the one that was put in first.

    Every index begins with the deadline 1/weight. One that was given out is put in again with a later deadline, by
    1/weight each time: so indices come in proportion to their weights, evenly spread.
    """

    def __init__(self) -> None:
        self._order: int = 0
        self._entries: list[Entry] = []

    def fill(self, weights: list[float]) -> Iterator[None]:
        """Put them all in, in steps."""
        self._order = len(weights)
        for index, weight in enumerate(weights):
            self._entries.append((1.0 / weight, index, index))
            if index % _STRIDE == _STRIDE - 1:
                yield
        yield
        heapq.heapify(self._entries)
        yield

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
        self._edf = EdfScheduler()

    def prepare(self, offset: int) -> Iterator[None]:
        """Begin, `offset` indices ahead."""
        yield from self._edf.fill(self._weights)
        for index in range(offset):
            self.next()
            if index % _STRIDE == _STRIDE - 1:
                yield

    def next(self) -> int:
        edf = self._edf
        index = edf.index
        turns = self._turns[index] + 1
        self._turns[index] = turns
        edf.put_again(turns / self._weights[index])  # not a sum: equal deadlines must stay equal
        return index
