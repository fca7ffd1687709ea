"""When agents ask for certificates: a thousand of them, with chance and time of the test's own."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from meshproxy.agent.renewal import RenewalPolicy

AGENTS = 1_000
LIFE_S = 6 * 3600.0


@dataclass
class Mesh:
    """Agents that begin within a minute, and an authority that is gone from `gone` to `back`."""

    gone: float
    back: float
    attempts: list[float] = field(default_factory=list)
    renewals: list[list[float]] = field(default_factory=list)  # when each agent got its certificates

    def run(self, until: float, begin_s: float = 60.0) -> Mesh:
        chance = random.Random(8)
        for _ in range(AGENTS):
            policy = RenewalPolicy(chance.uniform)
            got: list[float] = []
            now = chance.uniform(0.0, begin_s)
            while now < until:
                self.attempts.append(now)
                if self.gone <= now < self.back:
                    now += policy.failed()
                else:
                    got.append(now)
                    now += policy.issued(LIFE_S)
            self.renewals.append(got)
        return self

    def busiest_second(self, begin: float, end: float) -> int:
        return max(Counter(int(at) for at in self.attempts if begin <= at < end).values(), default=0)


def test_a_certificate_is_renewed_at_two_thirds_of_its_life_on_average_and_never_all_at_once() -> None:
    mesh = Mesh(-1.0, -1.0).run(until=LIFE_S)
    delays = [(second - first) / LIFE_S for first, second in mesh.renewals]
    assert 0.6 <= min(delays) <= max(delays) <= 0.73
    assert sum(delays) / AGENTS == pytest.approx(2 / 3, abs=0.003)
    # 13 % of six hours are 47 minutes: 21 a minute on average, though all began within one.
    assert max(Counter(int(second // 60) for _, second in mesh.renewals).values()) <= 45


def test_an_outage_longer_than_a_third_of_a_life_and_the_authority_is_back() -> None:
    """Everybody is renewed within a minute of its return, before any certificate has ended, and no second sees a crowd:
    1,000 in 54 s are 19 a second on average."""
    gone, back = 0.55 * LIFE_S, 0.95 * LIFE_S
    mesh = Mesh(gone, back).run(until=back + 3600.0)
    late = [next(at for at in got if at >= back) - back for got in mesh.renewals]
    assert max(late) <= 60.0
    assert max(got[1] - got[0] for got in mesh.renewals) < LIFE_S
    assert mesh.busiest_second(back, back + 60.0) <= 50
    assert 0.2 < sorted(late)[AGENTS // 2] / 60.0 < 0.6  # spread over the minute, not at its beginning
    assert mesh.busiest_second(gone, back) <= 70  # while it is gone: 1,000 agents, a pause of 33 s on average


def test_a_thousand_that_start_while_the_authority_is_not_there() -> None:
    """As after a power cut: all in the same second. They ask quickly at first, and are parted when it comes."""
    mesh = Mesh(0.0, 600.0).run(until=1200.0, begin_s=0.5)
    assert mesh.busiest_second(300.0, 660.0) <= 70
    assert all(600.0 <= got[0] <= 660.0 for got in mesh.renewals)


def test_a_short_life_has_short_pauses() -> None:
    policy = RenewalPolicy(lambda low, high: high)
    assert policy.issued(10.0) == pytest.approx(7.3)
    assert [policy.failed() for _ in range(4)] == [1.0, 1.0, 1.0, 1.0]
    policy.issued(3600.0)
    assert [policy.failed() for _ in range(8)] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert policy.failures == 8
    assert policy.issued(-1.0) == pytest.approx(0.73)  # and not at once, and at once again
    assert policy.failures == 0


def test_a_pause_is_drawn_anew_each_time() -> None:
    policy = RenewalPolicy(random.Random(1).uniform)
    policy.issued(LIFE_S)
    pauses = [policy.failed() for _ in range(200)][10:]
    assert min(pauses) >= 6.0
    assert max(pauses) <= 60.0
    assert max(pauses) - min(pauses) > 45.0
