"""Which names end when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshproxy.xds.lifetimes import Lifetimes


def test_a_name_lasts_until_its_time_is_over() -> None:
    lifetimes = Lifetimes()
    lifetimes.set("a", 1000, 5.0)
    assert lifetimes.next() == 6.0
    assert lifetimes.take_expired(5.999) == []
    assert lifetimes.take_expired(6.0) == ["a"]
    assert lifetimes.next() is None


def test_a_name_that_is_renewed_or_forgotten_or_lasts_for_ever() -> None:
    lifetimes = Lifetimes()
    for name in "abc":
        lifetimes.set(name, 1000, 0.0)
    lifetimes.set("a", 1000, 0.5)
    lifetimes.set("b", 0, 0.5)
    lifetimes.forget("c")
    assert lifetimes.take_expired(1.4) == []
    assert lifetimes.take_expired(9.0) == ["a"]


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 9), st.integers(0, 3)), max_size=200))
def test_as_a_dict_has_it(events: list[tuple[str, int, int]]) -> None:
    lifetimes, until, now = Lifetimes(), dict[str, float](), 0.0
    for name, seconds, passed in events:
        now += passed
        expired = {each for each, at in until.items() if at <= now}
        assert set(lifetimes.take_expired(now)) == expired
        until = {each: at for each, at in until.items() if each not in expired}
        lifetimes.set(name, seconds * 1000, now)
        until.pop(name, None)
        if seconds:
            until[name] = now + seconds
        assert lifetimes.next() == min(until.values(), default=None)
