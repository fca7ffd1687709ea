"""A histogram in fixed buckets: recording is one index computation and one addition."""

from __future__ import annotations

import math
from typing import Final

_SUB_BITS: Final = 3
_SUB: Final = 1 << _SUB_BITS  # each power of two is split in eight: a value is known within 12.5 %
BUCKETS: Final = 40 * _SUB


class Histogram:
    """Counts of non-negative ints (milliseconds, bytes …) in log-linear buckets: 0–7, then eight per power of two.

    `counts` is empty until the first value: of most clusters' histograms nothing is ever recorded.
    """

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.total: int = 0
        self.sum: int = 0

    def record(self, value: int) -> None:
        if value < _SUB:
            value = max(value, 0)
            index = value
        else:
            shift = value.bit_length() - 1 - _SUB_BITS
            index = ((shift + 1) << _SUB_BITS) + (value >> shift) - _SUB
            if index >= BUCKETS:
                index = BUCKETS - 1
        if not self.total:
            self.counts = [0] * BUCKETS
        counts = self.counts
        counts[index] = counts[index] + 1  # `+=` would be an operation on objects
        self.total += 1
        self.sum += value


def lower_bound(index: int) -> int:
    """The smallest value that falls into bucket `index`."""
    if index < _SUB:
        return index
    shift = (index >> _SUB_BITS) - 1
    return ((index & (_SUB - 1)) + _SUB) << shift


def quantile(counts: dict[int, int], total: int, share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie, interpolated within its bucket; nan without values."""
    if total == 0:
        return math.nan
    wanted = share * total
    before = 0
    found = 0
    for index in sorted(counts):
        found = index
        if before + counts[index] >= wanted:
            break
        before += counts[index]
    lower = lower_bound(found)
    width = lower_bound(found + 1) - lower
    if width == 1:
        return float(lower)
    return lower + width * max(0.0, wanted - before) / counts[found]


def count_up_to(counts: dict[int, int], bound: float) -> int:
    """How many values are at most `bound`; a bucket that the bound divides counts in proportion."""
    counted = 0
    for index, count in counts.items():
        lower = lower_bound(index)
        width = lower_bound(index + 1) - lower
        within = math.floor(bound) - lower + 1  # of the bucket's `width` whole numbers
        if within >= width:
            counted += count
        elif within > 0:
            counted += count * within // width
    return counted
