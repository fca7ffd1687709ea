"""Token buckets, and how many of them there are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshproxy.pilot.authority.limits import MAX_BUCKETS, Limits

_PLENTY = (1e9, 1e9)


def test_an_identity_has_its_burst_then_its_rate() -> None:
    limits = Limits((2.0, 3.0), _PLENTY, 0.0)
    assert [limits.refusal("a", 0.0) for _ in range(4)] == ["", "", "", "too many certificates for this identity"]
    assert limits.refusal("a", 0.4) != ""
    assert limits.refusal("a", 0.5) == ""
    assert limits.refusal("b", 0.5) == ""


def test_all_of_them_have_one_more() -> None:
    limits = Limits((10.0, 10.0), (1.0, 2.0), 0.0)
    assert [limits.refusal(name, 0.0) for name in "abc"] == ["", "", "too many certificates"]
    assert limits.refusal("c", 1.0) == ""


def test_a_refusal_for_all_costs_the_identity_nothing() -> None:
    limits = Limits((0.001, 1.0), (1.0, 1.0), 0.0)
    assert limits.refusal("a", 0.0) == ""
    assert limits.refusal("b", 0.0) == "too many certificates"
    assert limits.refusal("b", 1.0) == ""


def test_the_table_is_bounded_and_forgets_who_asked_longest_ago() -> None:
    limits = Limits((0.001, 1.0), _PLENTY, 0.0)
    for number in range(MAX_BUCKETS):
        assert limits.refusal(str(number), 0.0) == ""
    assert limits.refusal("0", 0.0) != ""  # asked last, now
    assert limits.refusal("new", 0.0) == ""
    assert limits.refusal("0", 0.0) != ""
    assert len(limits._buckets) == MAX_BUCKETS
    assert "1" not in limits._buckets


@given(st.lists(st.floats(0.0, 3.0), max_size=200))
def test_never_more_than_burst_and_rate(pauses: list[float]) -> None:
    limits = Limits((2.0, 5.0), _PLENTY, 0.0)
    now, granted = 0.0, 0
    for pause in pauses:
        now += pause
        granted += limits.refusal("a", now) == ""
        assert granted <= 5.0 + 2.0 * now + 1e-6
