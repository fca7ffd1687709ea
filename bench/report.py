"""Samples into bench/RESULTS.md: medians over the rounds, and ratios taken within each round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from bench.load import Traffic
from bench.peers import PEERS
from bench.scenarios import Scenario

_HEAD = """\
# Benchmark results

Written by `make bench` (`python -m bench`), as measured. Every round measures every proxy in turn, on the same machine
and against the same upstream (nginx that returns 64 bytes, or a file), and shifts the order by one. CPU is user +
system time of the proxy's whole process tree, from /proc, over the requests answered in that time; RSS is the
resident memory of the same processes at the end. A ratio is taken within a round, so that a noisy minute hits both
sides; a table has the medians, and the lowest and highest ratio too.
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """One proxy in one round of one scenario."""

    scenario: str
    peer: str
    round: int
    cpu_us: float
    traffic: Traffic
    rss_kib: int

    @property
    def cost(self) -> float:
        """CPU µs that a request (or what else is the scenario's unit) cost."""
        return self.cpu_us / self.traffic.requests


class Costed(Protocol):
    """What can be compared: one peer's cost in one round."""

    @property
    def peer(self) -> str: ...

    @property
    def round(self) -> int: ...

    @property
    def cost(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Ratio:
    """A cost over the baseline's: median of the rounds, lowest, highest."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def ratio(samples: Sequence[Costed], peer: str, baseline: str) -> Ratio:
    """Of one scenario's samples; every round must have both peers."""
    cost = {(sample.peer, sample.round): sample.cost for sample in samples}
    rounds = sorted({sample.round for sample in samples})
    ratios = [cost[peer, number] / cost[baseline, number] for number in rounds]
    return Ratio(median(ratios), min(ratios), max(ratios))


def verdict(scenario: Scenario, samples: Sequence[Sample]) -> str | None:
    """The goal beside what was measured; None when the scenario has no goal, or who it speaks of was left out."""
    goal = scenario.goal
    if goal is None or not {goal.peer, scenario.baseline} <= {sample.peer for sample in samples}:
        return None
    found = ratio(samples, goal.peer, scenario.baseline)
    said = "met" if found.median <= goal.ratio else "missed"
    whose = f"{scenario.baseline}'s CPU per {scenario.unit}"
    return f"goal: {goal.peer} ≤ {goal.ratio} × {whose}; measured {found}: **{said}**"


def render(
    facts: dict[str, str], scenarios: Sequence[Scenario], samples: Sequence[Sample], seconds: int, idle: str = ""
) -> str:
    """The whole file; `idle` is the section on idle connections."""
    parts = [_HEAD, "\n".join(f"- {label}: {value}" for label, value in facts.items())]
    for scenario in scenarios:
        own = [sample for sample in samples if sample.scenario == scenario.name]
        if own:
            parts.append(_section(scenario, own, seconds))
    if idle:
        parts.append(idle)
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _section(scenario: Scenario, samples: Sequence[Sample], seconds: int) -> str:
    rounds = len({sample.round for sample in samples})
    peers = [name for name in scenario.peers if any(sample.peer == name for sample in samples)]
    has_baseline = scenario.baseline in peers
    unit = scenario.unit
    costs = "; ".join(f"{name} {_rounds(name, samples)}" for name in peers)
    lines = [
        f"## {scenario.title} (`{scenario.name}`)",
        "",
        f"{scenario.load.words}; {rounds} rounds of {seconds} s; configuration `bench/configs/{scenario.config}.*`.",
        "",
        f"| | CPU µs per {unit} | × {scenario.baseline} (lowest–highest) | {unit}s/s | p50 ms | p90 | p99 | RSS MiB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
        *(_row(name, scenario.baseline if has_baseline else None, samples) for name in peers),
        "",
        f"CPU µs per {unit} in each round: {costs}.",
    ]
    said = verdict(scenario, samples)
    return "\n".join([*lines, "", said[0].upper() + said[1:] + "."] if said else lines)


def _row(name: str, baseline: str | None, samples: Sequence[Sample]) -> str:
    own = [sample for sample in samples if sample.peer == name]
    against = str(ratio(samples, name, baseline)) if baseline and baseline != name else "1" if baseline else "–"
    rate = median(sample.traffic.requests / sample.traffic.seconds for sample in own)
    latencies = (
        median(sample.traffic.p50_us for sample in own),
        median(sample.traffic.p90_us for sample in own),
        median(sample.traffic.p99_us for sample in own),
    )
    cells = [
        PEERS[name].words,
        f"{median(sample.cost for sample in own):.1f}",
        against,
        f"{rate:,.0f}",
        *(f"{value / 1000:.2f}" for value in latencies),
        f"{median(sample.rss_kib for sample in own) / 1024:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _rounds(name: str, samples: Sequence[Sample]) -> str:
    return " ".join(f"{sample.cost:.1f}" for sample in samples if sample.peer == name)
