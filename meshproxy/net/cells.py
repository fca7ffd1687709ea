"""Counts that hold for all workers together: a table of 64-bit cells in shared memory.

A column is what is counted, a row is a worker. Each cell has one writer, its worker, and whoever wants the count adds
the column up: no locks. Who checks a limit and then counts may find that others did so at the same time, so that a
limit is overshot by at most one for each other worker. The supervisor names the columns, and clears the row of a worker
that died.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from typing import Final

COLUMNS: Final = 65_536  # memory is only taken for those that are used
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


class CellTable:
    """The table, as one process sees it."""

    def __init__(self, fd: int, workers: int) -> None:
        self._map = mmap.mmap(fd, workers * COLUMNS * _CELL_BYTES)
        self._whole = memoryview(self._map)
        self.cells = self._whole.cast("q")

    def total(self, column: int) -> int:
        """The count of a column."""
        return sum(self.cells[column::COLUMNS])

    def close(self) -> None:
        self.cells.release()
        self._whole.release()
        self._map.close()


class SharedCounter(Counter):
    """So many there are, in all workers."""

    def __init__(self, table: CellTable, worker: int, column: int) -> None:
        super().__init__()
        self._table = table
        self._column = column
        self._mine = worker * COLUMNS + column

    def add(self, number: int) -> None:
        self._table.cells[self._mine] += number

    def total(self) -> int:
        return self._table.total(self._column)


class CellColumns:
    """The supervisor's side: makes the table, and says which column is whose."""

    def __init__(self, workers: int) -> None:
        self.fd = os.memfd_create("meshproxy cells", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, workers * COLUMNS * _CELL_BYTES)
        self.table = CellTable(self.fd, workers)
        self._columns: dict[str, int] = {}

    def assign(self, names: Iterable[str]) -> dict[str, int]:
        """A column for each of these names. A name keeps its column for as long as it is asked for or counts something.

        Names for which there is no column left are not in the answer.
        """
        wanted = dict.fromkeys(names)
        for name, column in list(self._columns.items()):
            if name not in wanted and not self.table.total(column):
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
            self.table.cells[worker * COLUMNS + column] = 0

    def close(self) -> None:
        self.table.close()
        os.close(self.fd)


class Counters:
    """The counters of one worker by name: shared ones where the supervisor gave a column."""

    def __init__(self, table: CellTable | None = None, worker: int = 0) -> None:
        self._table = table
        self._worker = worker
        self._columns: dict[str, int] = {}
        self._counters: dict[str, Counter] = {}

    def take_columns(self, columns: dict[str, int]) -> None:
        """The columns of the configuration to come; counters of other names are forgotten by whoever holds none."""
        self._counters = {
            name: counter for name, counter in self._counters.items() if columns.get(name) == self._columns.get(name)
        }
        self._columns = columns

    def counter(self, name: str) -> Counter:
        """The counter of this name: one and the same for all who ask."""
        held = self._counters.get(name)
        if held is None:
            column = self._columns.get(name)
            table = self._table
            held = Counter() if table is None or column is None else SharedCounter(table, self._worker, column)
            self._counters[name] = held
        return held
