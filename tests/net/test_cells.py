"""Counts that several workers share: summed up, kept over changes, and cleared for a worker that died."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from meshproxy.net.cells import COLUMNS, NUMBERS, CellColumns, CellTable, Counters


@pytest.fixture
def columns() -> Iterator[CellColumns]:
    made = CellColumns(3)
    yield made
    made.close()


@pytest.fixture
def tables(columns: CellColumns) -> Iterator[list[CellTable]]:
    """What each of three workers maps."""
    made = [CellTable(columns.fd, 3) for _ in range(3)]
    yield made
    for table in made:
        table.close()


def _counters(tables: list[CellTable], assigned: dict[str, int]) -> list[Counters]:
    counters = [Counters(table, worker) for worker, table in enumerate(tables)]
    for one in counters:
        one.take_columns(assigned)
    return counters


def test_every_worker_sees_the_sum(columns: CellColumns, tables: list[CellTable]) -> None:
    workers = _counters(tables, columns.assign(["a", "b"]))
    for number, worker in enumerate(workers, 1):
        worker.counter("a").add(number)
    workers[0].counter("b").add(10)
    workers[1].counter("a").add(-2)
    assert [worker.counter("a").total() for worker in workers] == [4, 4, 4]
    assert [worker.counter("b").total() for worker in workers] == [10, 10, 10]


def test_a_dead_worker_s_row_is_cleared(columns: CellColumns, tables: list[CellTable]) -> None:
    workers = _counters(tables, columns.assign(["a"]))
    for worker in workers:
        worker.counter("a").add(5)
    columns.clear(1)
    assert workers[0].counter("a").total() == 10


def test_a_name_keeps_its_column_while_it_counts(columns: CellColumns, tables: list[CellTable]) -> None:
    first = columns.assign(["a", "b"])
    (worker, *_) = _counters(tables, first)
    held = worker.counter("a")
    held.add(1)
    assert columns.assign(["c"])["c"] != first["a"]  # what counts is not given away
    again = columns.assign(["b", "a"])
    assert again["a"] == first["a"]
    worker.take_columns(again)
    assert worker.counter("a") is held
    held.add(-1)
    assert columns.assign(["d"]).keys() == {"d"}
    assert columns.assign(["e", "f", "g"]).keys() == {"e", "f", "g"}


def test_a_new_column_is_a_new_counter(tables: list[CellTable]) -> None:
    worker = Counters(tables[0], 0)
    worker.take_columns({"a": 7})
    worker.counter("a").add(1)
    worker.take_columns({"a": 8})
    assert worker.counter("a").total() == 0


def test_without_a_table_or_a_column_a_worker_counts_for_itself(tables: list[CellTable]) -> None:
    for counters in (Counters(), Counters(tables[0], 0)):
        counter = counters.counter("a")
        counter.add(2)
        assert counters.counter("a").total() == 2
        counters.take_columns({})
        assert counters.counter("a") is counter


def test_a_name_has_several_numbers(columns: CellColumns, tables: list[CellTable]) -> None:
    workers = _counters(tables, columns.assign(["a", "b"]))
    for worker in workers:
        for number in range(NUMBERS):
            counter = worker.shared("a", number)
            assert counter is not None
            counter.add(number)
    read = [workers[0].shared("a", number) for number in range(NUMBERS)]
    assert [counter.total() for counter in read if counter is not None] == [3 * n for n in range(NUMBERS)]
    assert workers[0].counter("b").total() == 0
    columns.clear(2)
    assert [counter.total() for counter in read if counter is not None] == [2 * n for n in range(NUMBERS)]


def test_what_still_counts_is_found_when_its_name_comes_again(columns: CellColumns, tables: list[CellTable]) -> None:
    worker, other, _ = _counters(tables, columns.assign(["a"]))
    held = worker.shared("a", 3)
    assert held is not None
    held.add(2)
    for names in ([], ["a"]):
        assigned = columns.assign(names)
        worker.take_columns(assigned)
        other.take_columns(assigned)
    assert worker.shared("a", 3) is held
    seen = other.shared("a", 3)
    assert seen is not None
    assert seen.total() == 2


def test_names_beyond_the_last_column_have_none(columns: CellColumns) -> None:
    names = [str(number) for number in range(COLUMNS + 10)]
    assigned = columns.assign(names)
    assert len(set(assigned.values())) == len(assigned) == COLUMNS
    assert columns.assign(names) == assigned
