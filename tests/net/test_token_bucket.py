"""Token buckets: of one process by the rule, and of several workers as if there were one bucket."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshproxy import clock
from meshproxy.net.token_bucket import BucketTable, SharedTokenBucket, TokenBucket, bucket_key

WORKERS = 3


@pytest.fixture(autouse=True)
def one_turn() -> Iterator[None]:
    """Time stands still, but for `pass_time`."""
    clock.begin_turn()
    yield
    clock.end_turn()


def pass_time(seconds: float) -> None:
    clock.move_ahead(seconds)
    clock.begin_turn()


class Shared:
    """The tables of some workers over one memory, and the supervisor's."""

    def __init__(self, workers: int = WORKERS) -> None:
        self.fd = os.memfd_create("buckets", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, BucketTable.size_bytes(workers))
        self.tables = [BucketTable(self.fd, 0, workers) for _ in range(workers)]
        self.supervisor = BucketTable(self.fd, 0, workers)

    def buckets(self, tokens: int, rate: float, name: str = "b") -> list[SharedTokenBucket]:
        """One of each worker."""
        made = enumerate(self.tables)
        return [SharedTokenBucket(tokens, rate, name, table, worker) for worker, table in made]

    def close(self) -> None:
        for table in (*self.tables, self.supervisor):
            table.close()
        os.close(self.fd)


@pytest.fixture
def shared() -> Iterator[Shared]:
    made = Shared()
    yield made
    made.close()


def test_full_at_first_and_filled_evenly() -> None:
    bucket = TokenBucket(3, 2.0)
    assert [bucket.take(1) for _ in range(4)] == [True, True, True, False]
    pass_time(0.49)
    assert not bucket.take(1)
    pass_time(0.01)
    assert (bucket.take(1), bucket.take(1)) == (True, False)


def test_it_holds_no_more_than_it_holds() -> None:
    bucket = TokenBucket(2, 10.0)
    pass_time(1000.0)
    assert bucket.remaining() == 2
    assert [bucket.take(1) for _ in range(3)] == [True, True, False]


def test_several_at_once_or_none() -> None:
    bucket = TokenBucket(5, 1.0)
    assert (bucket.take(3), bucket.take(3), bucket.remaining(), bucket.take(2)) == (True, False, 2, True)


def test_the_time_to_the_next_token_in_whole_seconds() -> None:
    """Envoy's: rounded up; 0 while there is a token."""
    bucket = TokenBucket(1, 0.1)
    assert bucket.reset_s() == 0
    assert bucket.take(1)
    assert (bucket.reset_s(), bucket.remaining()) == (10, 0)
    pass_time(0.5)
    assert bucket.reset_s() == 10
    pass_time(8.6)
    assert bucket.reset_s() == 1
    pass_time(0.9)
    assert (bucket.reset_s(), bucket.remaining()) == (0, 1)


def test_workers_take_from_one_bucket(shared: Shared) -> None:
    one, two, three = shared.buckets(4, 1.0)
    assert [one.take(1), two.take(1), two.take(1), three.take(1), one.take(1), two.take(1)] == [True] * 4 + [False] * 2
    assert {bucket.remaining() for bucket in (one, two, three)} == {0}
    pass_time(1.0)
    assert [three.take(1), one.take(1)] == [True, False]


def test_what_runs_over_is_lost_for_all(shared: Shared) -> None:
    one, two, three = shared.buckets(2, 1.0)
    assert one.take(1)
    pass_time(100.0)
    assert two.take(2)
    pass_time(100.0)
    assert [bucket.remaining() for bucket in (one, two, three)] == [2, 2, 2]
    assert [one.take(1), three.take(1), two.take(1), three.take(1)] == [True, True, False, False]


def test_names_are_apart(shared: Shared) -> None:
    first, second = shared.buckets(1, 1.0, "a")[0], shared.buckets(1, 1.0, "b")[1]
    assert (first.take(1), second.take(1)) == (True, True)


def test_a_worker_that_died_leaves_the_bucket_full_at_most(shared: Shared) -> None:
    one, two, _ = shared.buckets(3, 1.0)
    assert all([one.take(1), one.take(1), two.take(1)])
    shared.supervisor.clear(0)
    assert [two.take(1) for _ in range(4)] == [True, True, True, False]
    reborn = SharedTokenBucket(3, 1.0, "b", shared.tables[0], 0)
    assert not reborn.take(1)
    pass_time(1.0)
    assert (reborn.take(1), two.take(1)) == (True, False)


def test_a_bucket_that_was_given_up_has_no_place_any_more(shared: Shared) -> None:
    one, two, _ = shared.buckets(3, 1.0)
    assert one.take(3)
    one.leave()
    assert two.remaining() == 3
    one.leave()
    again = SharedTokenBucket(3, 1.0, "b", shared.tables[0], 0)
    assert again.take(2)
    assert two.remaining() == 1


def _of_one_set(number: int) -> list[str]:
    """Names that fall into the same set."""
    table: dict[int, list[str]] = {}
    for index in range(1_000_000):
        names = table.setdefault(bucket_key(str(index)) % 8_192, [])
        names.append(str(index))
        if len(names) == number:
            return names
    raise AssertionError


def test_where_a_set_is_full_each_worker_counts_for_itself(shared: Shared) -> None:
    *first, last = _of_one_set(9)
    pairs = [shared.buckets(1, 1.0, name)[:2] for name in first]
    assert [(one.take(1), two.take(1)) for one, two in pairs] == [(True, False)] * 8
    one, two, _ = shared.buckets(1, 1.0, last)
    assert [one.take(1), two.take(1), one.take(1), two.take(1)] == [True, True, False, False]


def test_one_behind_a_gap_is_found(shared: Shared) -> None:
    first, second = _of_one_set(2)
    gone = shared.buckets(1, 1.0, first)
    one, two, _ = shared.buckets(1, 1.0, second)
    for bucket in gone:
        bucket.leave()
    assert (one.take(1), two.take(1)) == (True, False)
    assert shared.buckets(1, 1.0, first)[2].take(1)


STEPS = st.lists(st.tuples(st.integers(0, WORKERS - 1), st.floats(0.0, 3.0), st.integers(1, 3)), max_size=60)


@given(tokens=st.integers(1, 5), rate=st.floats(0.01, 20.0), steps=STEPS)
def test_workers_together_are_as_one(tokens: int, rate: float, steps: list[tuple[int, float, int]]) -> None:
    """Whoever takes, and after whatever time: all see what a single bucket would have."""
    shared = Shared()
    try:
        single, buckets = TokenBucket(tokens, rate), shared.buckets(tokens, rate)
        for worker, seconds, number in steps:
            pass_time(seconds)
            assert buckets[worker].tokens() == pytest.approx(single.tokens(), abs=1e-4)
            if abs(single.tokens() - number) > 1e-4:  # else rounding decides
                assert buckets[worker].take(number) == single.take(number)
    finally:
        shared.close()


def test_overdrawn_by_one_for_each_other_worker_at_most(shared: Shared) -> None:
    """Everybody looks before anybody's taking is seen; the next fillings pay it back."""
    buckets = shared.buckets(1, 1.0)
    numbers = shared.supervisor.numbers
    seen: list[tuple[int, float, float]] = []
    for worker, bucket in enumerate(buckets):
        assert bucket.take(1)
        cell = shared.supervisor.first(worker, bucket_key("b"))
        seen.append((cell, numbers[cell + 1], numbers[cell + 2]))
        numbers[cell + 1] = numbers[cell + 2] = 0.0
    for cell, taken, over in seen:
        numbers[cell + 1], numbers[cell + 2] = taken, over
    assert buckets[0].tokens() == pytest.approx(1 - WORKERS)
    assert buckets[0].remaining() == 0
    pass_time(2.5)
    assert not buckets[1].take(1)
    pass_time(0.5)
    assert (buckets[1].take(1), buckets[2].take(1)) == (True, False)
