"""Counts that hold for all workers together: a table of 64-bit cells in shared memory.

A column is what is counted, in up to 16 numbers; a row is a worker. Each cell has one writer, its worker, and whoever
wants the count adds up what all rows have there: no locks. Who checks a limit and then counts may find that others did
so at the same time, so that a limit is overshot by at most one for each other worker. The supervisor names the columns,
and clears the row of a worker that died.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from typing import Final

from meshproxy.net.token_bucket import BucketTable

COLUMNS: Final = 65_536  # memory is only taken for those that are used
NUMBERS: Final = 16  # that a column has
_ROW: Final = COLUMNS * NUMBERS  # cells
_CELL_BYTES: Final = 8


class Counter:
    """So many there are, in this process."""

    def __init__(self) -> None:
        self._own: int = 0

    def add(self, number: int) -> None:
        self._own += number

    def total(self) -> int:
        """Of all workers."""
        return self._own


def cells_bytes(workers: int) -> int:
    """The size of their table; token buckets follow it in the same memory."""
    return workers * _ROW * _CELL_BYTES


def bucket_table(fd: int, workers: int) -> BucketTable:
    """The token buckets that stand behind the cells."""
    return BucketTable(fd, cells_bytes(workers), workers)


class CellTable:
    """The table, as one process sees it."""

    def __init__(self, fd: int, workers: int) -> None:
        self.workers = workers
        self._map = mmap.mmap(fd, cells_bytes(workers))
        self._whole = memoryview(self._map)
        self.cells = self._whole.cast("q")

    def counts(self, column: int) -> bool:
        """Whether any number of the column is not 0."""
        first = column * NUMBERS
        return any(any(self.cells[first + row : first + row + NUMBERS]) for row in range(0, self.workers * _ROW, _ROW))

    def clear(self, worker: int, column: int) -> None:
        first = worker * _ROW + column * NUMBERS
        for cell in range(first, first + NUMBERS):
            self.cells[cell] = 0

    def close(self) -> None:
        self.cells.release()
        self._whole.release()
        self._map.close()


class SharedCounter(Counter):
    """So many there are, in all workers. There is one object for each cell that this worker writes."""

    def __init__(self, table: CellTable, worker: int, column: int, number: int) -> None:
        super().__init__()
        self.column = column
        self._table = table
        cell = column * NUMBERS + number
        self._mine = worker * _ROW + cell
        self._others = [other * _ROW + cell for other in range(table.workers) if other != worker]

    @property
    def in_use(self) -> bool:
        """Whether this worker counts something."""
        return self._own != 0

    def add(self, number: int) -> None:
        self._own += number
        self._table.cells[self._mine] = self._own

    def total(self) -> int:
        cells = self._table.cells
        total: int = self._own
        for cell in self._others:
            total += cells[cell]
        return total


class CellColumns:
    """The supervisor's side: makes the table, and says which column is whose."""

    def __init__(self, workers: int) -> None:
        self.fd = os.memfd_create("meshproxy cells", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, cells_bytes(workers) + BucketTable.size_bytes(workers))
        self.table = CellTable(self.fd, workers)
        self.buckets = bucket_table(self.fd, workers)
        self._columns: dict[str, int] = {}

    def assign(self, names: Iterable[str]) -> dict[str, int]:
        """A column for each of these names. A name keeps its column for as long as it is asked for or counts something.

        Names for which there is no column left are not in the answer.
        """
        wanted = dict.fromkeys(names)
        for name, column in list(self._columns.items()):
            if name not in wanted and not self.table.counts(column):
                del self._columns[name]
        taken = set(self._columns.values())
        free = iter([column for column in range(min(COLUMNS, len(taken) + len(wanted))) if column not in taken])
        for name in wanted:
            if name not in self._columns:
                for column in free:
                    self._columns[name] = column
                    break
        return {name: self._columns[name] for name in wanted if name in self._columns}

    def clear(self, worker: int) -> None:
        """The worker is gone, with all that it counted."""
        for column in self._columns.values():
            self.table.clear(worker, column)
        self.buckets.clear(worker)

    def close(self) -> None:
        self.table.close()
        self.buckets.close()
        os.close(self.fd)


class Counters:
    """The counters of one worker by name: shared ones where the supervisor gave a column."""

    def __init__(self, table: CellTable | None = None, worker: int = 0) -> None:
        self._table = table
        self._worker = worker
        self._columns: dict[str, int] = {}
        self._counters: dict[str, Counter] = {}
        self._shared: dict[tuple[str, int], SharedCounter] = {}

    def take_columns(self, columns: dict[str, int]) -> None:
        """The columns of the configuration to come. Counters of names that have none any more are kept while they count
        something: so does the supervisor, in case that the name comes again."""
        self._shared = {
            key: counter
            for key, counter in self._shared.items()
            if columns.get(key[0], counter.column if counter.in_use else -1) == counter.column
        }
        self._columns = columns

    def counter(self, name: str) -> Counter:
        """The first number under this name: one and the same counter for all who ask."""
        shared = self.shared(name, 0)
        if shared is not None:
            return shared
        return self._counters.setdefault(name, Counter())

    def shared(self, name: str, number: int) -> SharedCounter | None:
        """A number under this name, of all workers; None where there is no other worker, or no column."""
        table, column = self._table, self._columns.get(name)
        if table is None or column is None:
            return None
        held = self._shared.get((name, number))
        if held is None:
            held = self._shared[(name, number)] = SharedCounter(table, self._worker, column, number)
        return held
