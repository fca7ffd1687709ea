"""The checks: what they accept, and that each of them can say no."""

from fractions import Fraction
from math import comb

import pytest

from meshproxy.demo import checks
from meshproxy.demo.checks import Finding
from meshproxy.demo.tally import Ledger, Tally


def tally(failed: int = 0, latencies_ms: list[float] | None = None, **by_instance: int) -> Tally:
    """A tally of so many answers by instance (`v2_a=3`)."""
    made = Tally()
    made.by_instance.update({name.replace("_", "-"): count for name, count in by_instance.items()})
    made.latencies_ms = [1.0] * made.by_instance.total() if latencies_ms is None else latencies_ms
    made.failed = failed
    return made


def exact_tail(hits: int, trials: int, share: Fraction) -> Fraction:
    """The probability of a draw as far out as `hits`, on its side, in exact arithmetic."""
    side = range(hits + 1) if hits <= trials * share else range(hits, trials + 1)
    return sum((comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in side), Fraction(0))


@pytest.mark.parametrize("share", [Fraction(1, 20), Fraction(1, 2), Fraction(1, 5)])
@pytest.mark.parametrize("trials", [1, 40, 600])
def test_plausible_is_what_the_binomial_distribution_gives_a_thousand_millionth(trials: int, share: Fraction) -> None:
    for hits in range(trials + 1):
        expected = exact_tail(hits, trials, share) >= Fraction(1, 10**9)
        assert checks.is_plausible(hits, trials, float(share)) == expected, hits


def test_nothing_drawn_proves_nothing() -> None:
    assert not checks.is_plausible(0, 0, 0.05)


def test_a_share_is_accepted_near_what_the_file_says_and_refused_elsewhere() -> None:
    assert checks.share_is("Act 1", tally(v1_a=950, v2_a=50), 5).holds
    assert not checks.share_is("Act 1", tally(v1_a=700, v2_a=300), 5).holds
    assert not checks.share_is("Act 1", tally(v1_a=1000), 5).holds
    assert not checks.share_is("Act 2", tally(v1_a=950, v2_a=50), 50).holds


def ledger_of(*answers: tuple[str, str], failures: int = 0) -> Ledger:
    """A ledger with answers (kind, instance) and failures of one act."""
    ledger = Ledger()
    for kind, instance in answers:
        ledger.count_answer("Act 1", kind, instance, 1.0)
    for _ in range(failures):
        ledger.count_failure("Act 1", "curl", "status 503")
    return ledger


def test_one_failure_is_one_too_many() -> None:
    assert checks.nobody_failed(ledger_of(("curl", "v1-a"))).holds
    assert not checks.nobody_failed(ledger_of(("curl", "v1-a"), failures=1)).holds
    assert not checks.nobody_failed(Ledger()).holds


def test_a_kind_of_client_without_an_answer_is_named() -> None:
    finding = checks.everyone_took_part(ledger_of(("curl", "v1-a")), ["curl", "urllib"])
    assert finding == Finding(False, "no answer for urllib")


def test_everybody_else_stays_on_v1() -> None:
    assert checks.others_stay(tally(v1_a=10, v1_b=10)).holds
    assert not checks.others_stay(tally(v1_a=10_000, v2_a=1)).holds
    assert not checks.others_stay(tally()).holds


def test_a_second_connection_shows_that_one_was_lost() -> None:
    ledger = Ledger()
    ledger.count_connection("iPhone")
    assert checks.connections_lived(ledger, {"iPhone": 1}).holds
    ledger.count_connection("iPhone")
    assert not checks.connections_lived(ledger, {"iPhone": 1}).holds


@pytest.mark.parametrize(
    ("before", "after", "retries", "expected"),
    [
        (tally(v2_b=9), tally(v2_a=9), 3, [True, True]),
        (tally(v2_b=9), tally(v2_a=9, v2_b=1), 3, [False, True]),
        (tally(v2_a=9), tally(v2_a=9), 3, [False, True]),
        (tally(v2_b=9), tally(v1_a=9), 3, [True, False]),
        (tally(v2_b=9), tally(v2_a=9), 0, [True, False]),
    ],
    ids=["as it should be", "the dead answered", "it never lived", "nobody went on", "nothing was retried"],
)
def test_a_death_is_seen_and_survived(before: Tally, after: Tally, retries: int, expected: list[bool]) -> None:
    findings = checks.dead_stay_silent(before, after, "v2-b", "v2-a", retries)
    assert [finding.holds for finding in findings] == expected


def test_faults_are_as_many_as_the_file_says_and_felt() -> None:
    slow_and_fast = [205.0] * 20 + [1.0] * 80
    assert checks.faults_were_injected(tally(latencies_ms=slow_and_fast), 20, 20, 200.0).holds
    assert not checks.faults_were_injected(tally(latencies_ms=[1.0] * 100), 20, 20, 200.0).holds
    assert not checks.faults_were_injected(tally(latencies_ms=[205.0] * 100), 100, 20, 200.0).holds


def test_a_client_that_asked_twice_is_found() -> None:
    assert checks.counts_agree(ledger_of(("curl", "v1-a"), failures=1), 2).holds
    assert not checks.counts_agree(ledger_of(("curl", "v1-a")), 2).holds


def test_after_the_rollback_nobody_sees_v2() -> None:
    assert checks.nobody_sees_v2("Act 4", tally(v1_a=10)).holds
    assert not checks.nobody_sees_v2("Act 4", tally(v1_a=10_000, v2_a=1)).holds
    assert not checks.nobody_sees_v2("Act 4", tally()).holds


@pytest.mark.parametrize(
    ("routes", "pushes", "holds"),
    [
        ({"a": "1", "b": "1"}, {50: 0.5}, True),
        ({"a": "1", "b": "2"}, {50: 0.5}, False),
        ({"a": "1"}, {50: 0.5}, False),
        ({"a": "", "b": ""}, {50: 0.5}, False),
        ({"a": "1", "b": "1"}, {}, False),
    ],
    ids=["all", "one lags", "one is missing", "not taken", "nothing was pushed"],
)
def test_all_sidecars_have_the_same_rules(routes: dict[str, str], pushes: dict[int, float], holds: bool) -> None:
    assert checks.rules_are_the_same(routes, 2, pushes).holds == holds


def test_a_refusal_is_told() -> None:
    assert checks.nothing_was_refused([]).holds
    assert checks.nothing_was_refused(["a refused b"]) == Finding(False, "a refused b")
