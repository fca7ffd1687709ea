"""Token buckets: so many tokens at most, filled evenly all the time, full at first.

One that all workers share lives in shared memory without locks, since each number there has one writer. A worker tells
how many tokens it has taken, and how many have run over the brim by the time that it last took one, both counted from
the zero of the machine's monotonic clock. From these of all workers each works out what is left: a full bucket and what
has flowed in by now, less what all have taken, less the most that ran over. Who takes at the same time as another sees
a token too many: a bucket is overdrawn by at most one token for each other worker, which the next filling pays back.
Where the numbers of a worker go (it died, or gave the bucket up), the bucket is fuller for the others, full at most.
"""

from __future__ import annotations

import hashlib
import math
import mmap
from typing import Final

from mypy_extensions import mypyc_attr

from meshproxy.clock import monotonic

_SETS: Final = 8_192
_WAYS: Final = 8  # that a set has, for the names that fall into it
_CELLS: Final = 3  # of a way: key, tokens taken, tokens that ran over
_ROW: Final = _SETS * _WAYS * _CELLS  # cells, of one worker
_CELL_BYTES: Final = 8
_FREE: Final = 0
_FREED: Final = 1  # as free, but there may be something behind it
_NOWHERE: Final = -1

_LEAST_RATE: Final = 1.0 / (365 * 24 * 60 * 60)  # Envoy's: a token a year
_ROUNDING: Final = 1e-6  # tokens: what sums of times and rates may be off by


@mypyc_attr(allow_interpreted_subclasses=True)
class TokenBucket:
    """A bucket of this process. `rate` is in tokens a second."""

    def __init__(self, max_tokens: int, rate: float) -> None:
        self.max_tokens = max_tokens
        self.rate = max(rate, _LEAST_RATE)
        self._brim = float(max_tokens)
        self._tokens = self._brim  # as of `_at`
        self._at: float = monotonic()

    def tokens(self) -> float:
        """How many are left; below 0 when too many were taken at once."""
        return min(self._brim, self._tokens + (monotonic() - self._at) * self.rate)

    def take(self, number: int) -> bool:
        """Take so many, if they are there."""
        left, wanted = self.tokens(), float(number)
        if left + _ROUNDING < wanted:
            return False
        self._tokens = left - wanted
        self._at = monotonic()
        return True

    def remaining(self) -> int:
        """Whole tokens that are left."""
        return max(0, int(self.tokens() + _ROUNDING))

    def reset_s(self) -> int:
        """Whole seconds until there is a token; 0 when there is one."""
        missing = 1.0 - self.tokens()
        return 0 if missing <= _ROUNDING else math.ceil(missing / self.rate)

    def leave(self) -> None:
        """Nobody in this process uses it any more."""


class BucketTable:
    """The shared memory of all buckets, as one process sees it: a row for each worker, where it keeps its own numbers.

    A row is a table of names' hashes, in sets: a name is looked for in one set of each row. Those for which a set of
    their worker has no place are counted by each worker for itself.
    """

    def __init__(self, fd: int, offset: int, workers: int) -> None:
        self.workers = workers
        self._map = mmap.mmap(fd, BucketTable.size_bytes(workers), offset=offset)
        self._whole = memoryview(self._map)
        self.keys = self._whole.cast("q")
        self.numbers = self._whole.cast("d")

    @staticmethod
    def size_bytes(workers: int) -> int:
        return workers * _ROW * _CELL_BYTES

    def claim(self, worker: int, key: int) -> int:
        """A place for `key` in the worker's row, empty: the index of its first cell; -1 when there is none."""
        first = self.first(worker, key)
        for cell in range(first, first + _WAYS * _CELLS, _CELLS):
            if self.keys[cell] in (_FREE, _FREED):
                self.numbers[cell + 1] = self.numbers[cell + 2] = 0.0
                self.keys[cell] = key
                return cell
        return _NOWHERE

    def free(self, cell: int) -> None:
        self.keys[cell] = _FREED

    def clear(self, worker: int) -> None:
        """The worker is gone, with all that it took."""
        row = worker * _ROW
        self.keys[row : row + _ROW] = memoryview(bytes(_ROW * _CELL_BYTES)).cast("q")

    def first(self, worker: int, key: int) -> int:
        """The first cell of the set where `key` stands in the worker's row, if it does."""
        return worker * _ROW + key % _SETS * (_WAYS * _CELLS)

    def close(self) -> None:
        self.keys.release()
        self.numbers.release()
        self._whole.release()
        self._map.close()


def bucket_key(name: str) -> int:
    """A name as the table has it: 61 bits, so that it is a small integer; never one of the marks."""
    return (int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 3) | 2


class SharedTokenBucket(TokenBucket):
    """A bucket of all workers; `name` is the same in each, and each has one object for it."""

    def __init__(self, max_tokens: int, rate: float, name: str, table: BucketTable, worker: int) -> None:
        super().__init__(max_tokens, rate)
        self._table = table
        self._keys = table.keys
        self._numbers = table.numbers
        self._key: int = bucket_key(name)
        self._taken: float = 0.0  # by this worker
        self._over: float = 0.0  # ran over the brim, when this worker last took
        self._mine: int = table.claim(worker, self._key)
        # Where the set begins in the rows of the others, and where our key was in it when it was last looked for.
        others = [other for other in range(table.workers) if other != worker and self._mine >= 0]
        self._sets: list[int] = [table.first(other, self._key) for other in others]
        self._cells: list[int] = list(self._sets)
        self._inflow: float = 0.0  # until the last look
        self._taken_by_all: float = 0.0

    def tokens(self) -> float:
        keys, numbers, key = self._keys, self._numbers, self._key
        taken, over = self._taken, self._over
        inflow = monotonic() * self.rate
        for index in range(len(self._cells)):
            cell = self._cells[index]
            found: int = keys[cell]
            if found != key:
                cell = self._find(index)
                if cell < 0:
                    continue
            theirs: float = numbers[cell + 1]
            taken += theirs
            ran_over: float = numbers[cell + 2]
            over = max(over, ran_over)
        self._inflow = inflow
        self._taken_by_all = taken
        return self._brim + min(0.0, inflow - taken - over)

    def take(self, number: int) -> bool:
        wanted = float(number)
        if self.tokens() + _ROUNDING < wanted:
            return False
        self._over = max(self._over, self._inflow - self._taken_by_all)
        self._taken += wanted
        mine = self._mine
        if mine >= 0:
            self._numbers[mine + 1] = self._taken
            self._numbers[mine + 2] = self._over
        return True

    def leave(self) -> None:
        if self._mine >= 0:
            self._table.free(self._mine)
            self._mine = _NOWHERE

    def _find(self, index: int) -> int:
        """Where another worker keeps its numbers of this bucket; -1 when it has none."""
        first = self._sets[index]
        for cell in range(first, first + _WAYS * _CELLS, _CELLS):
            found: int = self._keys[cell]
            if found == self._key:
                self._cells[index] = cell
                return cell
            if found == _FREE:
                break
        return _NOWHERE
