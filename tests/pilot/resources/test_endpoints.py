"""Assignments whose weights are large."""

from __future__ import annotations

import pytest

from meshproxy.pilot.mesh.services import Endpoint
from meshproxy.pilot.resources.endpoints import assignment
from meshproxy.pilot.resources.locality import grouped

MOST = 2**32 - 1


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ((0, 2, 3), [1, 2, 3]),
        ((MOST - 1, 1), [MOST - 1, 1]),
        ((3_000_000_000, 3_000_000_000), [2**30, 2**30]),
        ((MOST, 1), [2**31 - 1, 1]),
    ],
)
def test_their_sum_is_a_uint32_and_their_shares_stay(weights: tuple[int, ...], shares: list[int]) -> None:
    endpoints = tuple(Endpoint(f"10.0.0.{index}", 80, weight=weight) for index, weight in enumerate(weights))
    (locality,) = assignment("c", grouped(endpoints)).endpoints
    assert [one.load_balancing_weight.value for one in locality.lb_endpoints] == shares


def test_those_of_localities_too() -> None:
    places = ("eu", "us")
    endpoints = tuple(Endpoint(f"10.0.0.{place}", 80, locality=place, weight=3_000_000_000) for place in places)
    localities = assignment("c", grouped(endpoints)).endpoints
    assert [one.load_balancing_weight.value for one in localities] == [2**30, 2**30]
