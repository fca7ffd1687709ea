"""Weighted clusters where a route asks for rendezvous hashing: fair shares, and who moves when weights change.

That intervals go by Envoy's rules is tested with the real Envoy in tests/differential/test_sticky_splits.py.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh64_intdigest

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.runtime import Layer, Runtime
from meshproxy.observe.stats import StatsRegistry
from meshproxy.route.table import RouteTable
from tests.route.support import build, new_headers, new_info, try_build

Weights = dict[str, int]
USERS = 4_000
RENDEZVOUS = {"meshproxy": {"weighted_clusters": "rendezvous"}}
WHERE = "route_config.virtual_hosts[0].routes[0].metadata.filter_metadata[meshproxy]"
NEEDS = "needs a number of the user's: use_hash_policy with a hash_policy, or header_name"
BY_USER = {"use_hash_policy": True}
BY_NUMBER = {"header_name": "x-number"}


def config(clusters: list[dict[str, Any]], by: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
    """A route configuration with one route."""
    action = {
        "weighted_clusters": {"clusters": clusters, **by},
        "hash_policy": [{"header": {"header_name": "x-user"}}],
    }
    route = {"match": {"prefix": "/"}, "route": action, "metadata": {"filter_metadata": metadata}}
    return {"name": "t", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route]}]}


def split(weights: Weights, metadata: dict[str, Any] | None = None, by: dict[str, Any] = BY_USER) -> RouteTable:
    """A table of one route over these clusters."""
    clusters = [{"name": name, "weight": weight} for name, weight in weights.items()]
    return build(config(clusters, by, RENDEZVOUS if metadata is None else metadata))


def side(table: RouteTable, user: int, drawn: int = 0, header: str = "x-user") -> str:
    """Where a user goes."""
    headers = new_headers(fields=[(header, str(user))])
    route = table.match(headers, new_info(headers), drawn)
    assert route is not None
    return route.cluster_name


def sides(table: RouteTable, users: int = USERS) -> list[str]:
    return [side(table, user) for user in range(users)]


def moved(before: Weights, after: Weights, metadata: dict[str, Any] | None = None, users: int = USERS) -> float:
    """The share of users that change sides."""
    pairs = zip(sides(split(before, metadata), users), sides(split(after, metadata), users), strict=True)
    return sum(one != other for one, other in pairs) / users


def shares(weights: Weights) -> dict[str, float]:
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def least_possible(before: Weights, after: Weights) -> float:
    """What has to move: what the clusters gain."""
    old, new = shares(before), shares(after)
    return sum(max(0.0, new[name] - old.get(name, 0.0)) for name in new)


def deviation(share: float, users: int = USERS) -> float:
    """Five standard deviations of a share that is counted over so many users."""
    return 5 * math.sqrt(share * (1 - share) / users) + 1e-9


def test_the_example_of_a_release_moves_what_must_move() -> None:
    """From 10/45/45 to 50/25/25: the first gains 40 %; by intervals, as in Envoy, 60 % move."""
    before, after = {"new": 10, "a": 45, "b": 45}, {"new": 50, "a": 25, "b": 25}
    assert moved(before, after, users=20_000) == pytest.approx(0.40, abs=deviation(0.40, 20_000))
    assert moved(before, after, metadata={}, users=20_000) == pytest.approx(0.60, abs=deviation(0.60, 20_000))


def test_nobody_moves_when_only_the_total_changes() -> None:
    assert moved({"a": 10, "b": 90}, {"a": 100, "b": 900}) == 0.0
    assert moved({"a": 10, "b": 90}, {"a": 100, "b": 900}, metadata={}) > 0.05


def test_nobody_moves_when_the_order_changes() -> None:
    assert moved({"a": 10, "b": 45, "c": 45}, {"c": 45, "a": 10, "b": 45}) == 0.0


def test_a_third_version_takes_its_share_from_both_and_nobody_moves_between_them() -> None:
    before, after = split({"a": 10, "b": 90}), split({"a": 10, "b": 90, "c": 25})
    pairs = Counter(zip(sides(before), sides(after), strict=True))
    assert pairs["a", "b"] == pairs["b", "a"] == 0
    assert (pairs["a", "c"] + pairs["b", "c"]) / USERS == pytest.approx(0.2, abs=deviation(0.2))
    assert pairs["a", "c"] > 0


def test_a_version_that_goes_leaves_the_others_their_users() -> None:
    pairs = Counter(zip(sides(split({"a": 1, "b": 1, "c": 1})), sides(split({"a": 1, "b": 1, "c": 0})), strict=True))
    assert set(pairs) == {("a", "a"), ("b", "b"), ("c", "a"), ("c", "b")}


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 50), min_size=2, max_size=5),
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 50), min_size=2, max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_only_who_gained_takes_users(before: Weights, after: Weights) -> None:
    """A user goes to another cluster only if that one's weight grew by more than that of their own."""
    for old, new in zip(sides(split(before), 300), sides(split(after), 300), strict=True):
        if old != new:
            assert after[new] * before[old] > before.get(new, 0) * after.get(old, 0)


@given(st.integers(0, 2**32), st.lists(st.integers(1, 60), min_size=2, max_size=4), st.integers(1, 120))
@settings(max_examples=25, deadline=None)
def test_what_moves_is_what_must_when_one_weight_changes(seed: int, weights: list[int], changed: int) -> None:
    before = {f"c{seed}-{index}": weight for index, weight in enumerate(weights)}
    after = before | {f"c{seed}-0": changed}
    least = least_possible(before, after)
    assert moved(before, after, users=1_500) <= least + deviation(least, 1_500)


@pytest.mark.parametrize(
    "weights",
    [
        {"a": 1, "b": 1},
        {"a": 10, "b": 90},
        {"a": 1, "b": 999},
        {"a": 10, "b": 45, "c": 45},
        {"v1": 50, "v2": 0, "v3": 25, "v4": 25},
        {f"cluster-{index}": index + 1 for index in range(12)},
        {"a": 2**31, "b": 2**31 - 1},
    ],
)
def test_shares_are_the_weights(weights: Weights) -> None:
    """Pearson's chi-square statistic, at most at its 99.99th percentile (by Wilson and Hilferty's approximation)."""
    users = 20_000
    counted = Counter(sides(split(weights), users))
    expected = {name: share * users for name, share in shares(weights).items() if share}
    assert counted.keys() <= expected.keys()
    statistic = sum((counted[name] - wanted) ** 2 / wanted for name, wanted in expected.items())
    degrees = len(expected) - 1
    spread = 2 / (9 * degrees)
    assert statistic < degrees * (1 - spread + 3.72 * math.sqrt(spread)) ** 3


def test_the_number_of_a_header_decides_too() -> None:
    table = split({"a": 30, "b": 70}, by=BY_NUMBER)
    found = [side(table, number, drawn=number * 7, header="x-number") for number in range(USERS)]
    assert found == [side(table, number, header="x-number") for number in range(USERS)]
    assert found.count("a") / USERS == pytest.approx(0.3, abs=deviation(0.3))


@pytest.mark.parametrize("number", [0, 2**64 - 1])
def test_numbers_at_the_ends_of_their_range(number: int) -> None:
    assert side(split({"a": 1, "b": 1}, by=BY_NUMBER), number, header="x-number") in ("a", "b")


def test_without_a_number_the_side_is_drawn_by_weight() -> None:
    table = split({"a": 10, "b": 90})
    found = [side(table, 0, drawn, header="x-other") for drawn in range(100)]
    assert found == ["a"] * 10 + ["b"] * 90


def test_the_assignment_is_kept_for_ever() -> None:
    """Users stay where they are through restarts and releases: other numbers here would move them all."""
    table = split({"a": 1, "b": 1, "c": 1}, by=BY_NUMBER)
    for number in range(16):
        costs = {name: cost(name, number) for name in "abc"}
        assert side(table, number, header="x-number") == min(costs, key=costs.__getitem__)
    assert "".join(side(table, number, header="x-number") for number in range(16)) == "bbcaabbaccbbbaca"


def cost(name: str, number: int) -> float:
    """Of a cluster with the weight 1."""
    return -math.log((xxh64_intdigest(number.to_bytes(8, "little"), xxh64_intdigest(name.encode())) + 0.5) / 2**64)


def test_the_runtime_changes_weights() -> None:
    context = BuildContext(ConfigErrors(), Runtime([Layer("admin", is_admin=True)]), StatsRegistry())
    clusters = [{"name": name, "weight": 50} for name in "ab"]
    table = build(config(clusters, {**BY_USER, "runtime_key_prefix": "split"}, RENDEZVOUS), context)
    assert sides(table) == sides(split({"a": 50, "b": 50}))
    context.runtime.modify({"split.a": "10", "split.b": "90"})
    assert sides(table) == sides(split({"a": 10, "b": 90}))
    context.runtime.modify({"split.a": "0", "split.b": "0"})
    headers = new_headers(fields=[("x-user", "u")])
    assert table.match(headers, new_info(headers), 0) is None


def test_a_cluster_that_stands_twice_has_both_weights() -> None:
    clusters = [{"name": "a", "weight": 30}, {"name": "b", "weight": 40}, {"name": "a", "weight": 30}]
    found = sides(build(config(clusters, BY_USER, RENDEZVOUS)))
    assert found.count("a") / USERS == pytest.approx(0.6, abs=deviation(0.6))


@pytest.mark.parametrize(
    ("own", "by", "error"),
    [
        (
            {"weighted_clusters": "Rendezvous"},
            BY_USER,
            f"{WHERE}.weighted_clusters: must be rendezvous, not 'Rendezvous'",
        ),
        ({"weighted_clusters": True}, BY_USER, f"{WHERE}.weighted_clusters: must be rendezvous, not True"),
        (
            {"weighted_cluster": "rendezvous"},
            BY_USER,
            f"{WHERE}.weighted_cluster: unknown field; weighted_clusters is what a route may ask for here",
        ),
        (
            {"weighted_clusters": "rendezvous"},
            {},
            f"{WHERE}.weighted_clusters: {NEEDS}",
        ),
    ],
)
def test_what_cannot_be_asked_for(own: dict[str, Any], by: dict[str, Any], error: str) -> None:
    table, errors = try_build(config([{"name": "a", "weight": 1}], by, {"meshproxy": own}))
    assert table is None
    assert errors == [error]


def test_only_a_split_can_ask() -> None:
    tree = config([], {}, RENDEZVOUS)
    route = tree["virtual_hosts"][0]["routes"][0]
    for action in ({"route": {"cluster": "a"}}, {"direct_response": {"status": 200}}):
        del route[next(name for name in ("route", "direct_response") if name in route)]
        route.update(action)
        assert try_build(tree)[1] == [f"{WHERE}.weighted_clusters: the route has no weighted_clusters"]


def test_metadata_of_others_is_left_alone() -> None:
    assert side(split({"a": 1}, {"envoy.lb": {"weighted_clusters": "x"}}), 1) == "a"
