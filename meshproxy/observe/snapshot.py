"""The stats of a moment, under their full names: what a scrape reads, and what workers send to their supervisor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

# bucket index → count (only those that are not 0), number of values, their sum
HistogramValue: TypeAlias = tuple[dict[int, int], int, int]
# what `Snapshot.dump` gives: built of what `marshal` and JSON can carry
Dump: TypeAlias = tuple[dict[str, int], dict[str, int], dict[str, int], dict[str, HistogramValue], set[str]]


class Snapshot:
    """Counters, gauges, levels (gauges that every worker has alike) and histograms, by name.

    `set_gauges` are the gauges and levels that have been set, if only to 0.
    """

    def __init__(self) -> None:
        self.counters: dict[str, int] = {}
        self.gauges: dict[str, int] = {}
        self.levels: dict[str, int] = {}
        self.histograms: dict[str, HistogramValue] = {}
        self.set_gauges: set[str] = set()

    def dump(self) -> Dump:
        """Plain data, for the way between processes."""
        return (self.counters, self.gauges, self.levels, self.histograms, self.set_gauges)

    def add(self, other: Snapshot) -> None:
        """Add what another process counted: counters, gauges and histograms are sums, levels are the largest."""
        _sum(self.counters, other.counters)
        _sum(self.gauges, other.gauges)
        levels = self.levels
        for name, value in other.levels.items():
            levels[name] = max(levels.get(name, value), value)
        for name, histogram in other.histograms.items():
            self.add_histogram(name, histogram)
        self.set_gauges |= other.set_gauges

    def add_histogram(self, name: str, value: HistogramValue) -> None:
        self.histograms[name] = _add_histograms(self.histograms.get(name), value)

    def without_gauges(self) -> Snapshot:
        """What remains of a worker that died: what it counted, not what it held."""
        rest = Snapshot()
        rest.counters = self.counters
        rest.histograms = self.histograms
        return rest


def load_snapshot(data: Dump) -> Snapshot:
    """The snapshot of a `dump`."""
    snapshot = Snapshot()
    snapshot.counters, snapshot.gauges, snapshot.levels, snapshot.histograms, snapshot.set_gauges = data
    return snapshot


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """The stats of all workers (or all parts of one's) as one."""
    total = Snapshot()
    for snapshot in snapshots:
        total.add(snapshot)
    return total


def _sum(into: dict[str, int], values: dict[str, int]) -> None:
    for name, value in values.items():
        into[name] = into.get(name, 0) + value


def _add_histograms(left: HistogramValue | None, right: HistogramValue) -> HistogramValue:
    if left is None:
        return (dict(right[0]), right[1], right[2])
    counts = dict(left[0])
    for index, count in right[0].items():
        counts[index] = counts.get(index, 0) + count
    return (counts, left[1] + right[1], left[2] + right[2])


def subtract(now: HistogramValue, before: HistogramValue | None) -> HistogramValue:
    """What came since `before`; all of it when that is unknown or was reset in between."""
    if before is None or before[1] > now[1]:
        return now
    counts = {index: count - before[0].get(index, 0) for index, count in now[0].items()}
    return ({index: count for index, count in counts.items() if count > 0}, now[1] - before[1], now[2] - before[2])
