"""Scopes, the registry and snapshots: names, sums over workers, and what a dead worker leaves."""

from __future__ import annotations

import marshal
import math

from hypothesis import given
from hypothesis import strategies as st

from meshproxy.observe.histogram import Histogram, count_up_to, lower_bound, quantile
from meshproxy.observe.snapshot import load_snapshot, merge, subtract
from meshproxy.observe.stats import StatsRegistry, StatsScope


class SomeStats(StatsScope):
    COUNTERS = ("rq_total", "allowed")
    GAUGES = ("rq_active",)
    LEVELS = ("membership_total",)
    HISTOGRAMS = ("rq_time",)
    ALIASES = {"allowed": "rbac.allowed"}
    SET_AT_START = ("membership_total",)
    SET_WITH = ("rq_total",)

    def __init__(self) -> None:
        super().__init__()
        self.rq_total = 0
        self.allowed = 0
        self.rq_active = 0
        self.membership_total = 0
        self.rq_time = Histogram()
        self.pending = 0

    def refresh(self) -> None:
        self.rq_total += self.pending
        self.pending = 0


def _counted(value: int) -> StatsRegistry:
    registry = StatsRegistry()
    scope = registry.acquire("cluster.v1.", SomeStats)
    scope.rq_total = scope.allowed = scope.rq_active = scope.membership_total = value
    scope.count("upstream_rq_200")
    scope.rq_time.record(value)
    return registry


def test_names_are_prefix_and_attribute_or_alias() -> None:
    snapshot = _counted(3).snapshot()
    assert snapshot.counters == {
        "cluster.v1.rq_total": 3,
        "cluster.v1.rbac.allowed": 3,
        "cluster.v1.upstream_rq_200": 1,
    }
    assert snapshot.gauges == {"cluster.v1.rq_active": 3}
    assert snapshot.levels == {"cluster.v1.membership_total": 3}
    assert snapshot.histograms == {"cluster.v1.rq_time": ({3: 1}, 1, 3)}


def test_workers_add_up_and_a_dead_one_keeps_its_counters_only() -> None:
    live, dead = _counted(3).snapshot(), _counted(5).snapshot()
    travelled = load_snapshot(marshal.loads(marshal.dumps(dead.dump())))
    both = merge([live, travelled])
    assert both.counters["cluster.v1.rq_total"] == 8
    assert both.gauges["cluster.v1.rq_active"] == 8
    assert both.levels["cluster.v1.membership_total"] == 5
    assert both.histograms["cluster.v1.rq_time"] == ({3: 1, 5: 1}, 2, 8)
    rest = merge([live, travelled.without_gauges()])
    assert rest.counters["cluster.v1.rq_total"] == 8
    assert rest.gauges["cluster.v1.rq_active"] == 3
    assert live.counters["cluster.v1.rq_total"] == 3  # merging changes none of its parts


def test_a_gauge_is_set_from_the_start_or_with_its_counter() -> None:
    unused, used = _counted(0).snapshot(), _counted(1).snapshot()
    assert unused.set_gauges == {"cluster.v1.membership_total"}
    assert used.set_gauges == {"cluster.v1.membership_total", "cluster.v1.rq_active"}
    travelled = load_snapshot(marshal.loads(marshal.dumps(used.dump())))
    assert merge([unused, travelled]).set_gauges == used.set_gauges
    assert used.without_gauges().set_gauges == set()


def test_reset_clears_counters_and_what_was_not_yet_spelt_out() -> None:
    registry = _counted(4)
    scope = registry.acquire("cluster.v1.", SomeStats)
    scope.pending = 9
    registry.reset_counters()
    snapshot = registry.snapshot()
    assert set(snapshot.counters.values()) == {0}
    assert snapshot.gauges == {"cluster.v1.rq_active": 4}


def test_collect_gives_a_part_for_some_scopes() -> None:
    registry = StatsRegistry()
    for number in range(10):
        registry.acquire(f"s{number}.", SomeStats)
    parts = list(registry.collect(scopes_per_part=4))
    assert [len(part.gauges) for part in parts] == [4, 4, 2]
    assert merge(parts).gauges == registry.snapshot().gauges
    without = list(registry.collect(without=("s3.", "s7."), scopes_per_part=4))
    assert [len(part.gauges) for part in without] == [4, 4, 0]


def test_histograms_alone_are_those_that_recorded_something() -> None:
    registry = _counted(3)
    registry.acquire("idle.", SomeStats)
    whole = merge(registry.collect_histograms())
    assert whole.histograms == {"cluster.v1.rq_time": ({3: 1}, 1, 3)}
    assert whole.counters == {}


def test_the_last_release_removes_a_scope() -> None:
    registry = StatsRegistry()
    first = registry.acquire("a.", SomeStats)
    assert registry.acquire("a.", SomeStats) is first
    registry.release("a.", SomeStats)
    assert "a.rq_total" in registry.snapshot().counters
    registry.release("a.", SomeStats)
    assert registry.snapshot().counters == {}


@given(st.lists(st.integers(0, 5_000_000), min_size=1, max_size=50), st.floats(0, 1))
def test_a_quantile_lies_within_a_bucket_of_the_truth(values: list[int], share: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    counts = {index: count for index, count in enumerate(histogram.counts) if count}
    estimate = quantile(counts, histogram.total, share)
    exact = sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
    assert exact / 1.126 - 1 <= estimate <= exact * 1.126 + 1
    assert (histogram.total, histogram.sum) == (len(values), sum(values))


@given(st.lists(st.integers(0, 5_000_000), max_size=50), st.integers(0, 319))
def test_counts_up_to_the_end_of_a_bucket_are_exact(values: list[int], index: int) -> None:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    counts = {at: count for at, count in enumerate(histogram.counts) if count}
    bound = lower_bound(index + 1) - 1
    assert count_up_to(counts, bound) == sum(value <= bound for value in values)


def test_no_values_no_quantile() -> None:
    assert math.isnan(quantile({}, 0, 0.5))


def test_subtract_survives_a_reset() -> None:
    assert subtract(({1: 5, 2: 1}, 6, 7), ({1: 5}, 5, 5)) == ({2: 1}, 1, 2)
    assert subtract(({1: 2}, 2, 2), ({1: 5}, 5, 5)) == ({1: 2}, 2, 2)
