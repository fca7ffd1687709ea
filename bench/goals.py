"""What was promised, and how it is judged. A goal that is missed is reported as missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from bench.peers import DIRECT
from bench.samples import Sample, Spread, difference, ratio, within_rounds

_WORDS: Final = {
    "cpu": "CPU",
    "held": "RSS with all connections",
    "each": "RSS for each connection",
    "p50": "p50",
    "p99": "p99",
    "rate": "rate",
    "ms": "start-up time",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal beside what was measured; whether the median met it."""

    goal: str
    measured: Spread
    is_met: bool

    def __str__(self) -> str:
        return f"goal: {self.goal}; measured {self.measured}: **{'met' if self.is_met else 'missed'}**"


class Goal(Protocol):
    """Judges the samples of its scenario; None when somebody whom it speaks of was left out."""

    def judge(self, samples: Sequence[Sample]) -> Verdict | None: ...


@dataclass(frozen=True, slots=True)
class AtMost:
    """`who` should have at most `limit` times the baseline's value."""

    who: str
    limit: float
    baseline: str = "envoy"
    value: str = "cpu"
    unit: str = ""

    def judge(self, samples: Sequence[Sample]) -> Verdict | None:
        """See Goal."""
        if not _are_there(samples, self.who, self.baseline):
            return None
        found = ratio(samples, self.who, self.baseline, self.value)
        each = f" per {self.unit}" if self.unit else ""
        words = f"{self.who} ≤ {self.limit} × {self.baseline}'s {_WORDS[self.value]}{each}"
        return Verdict(words, found, found.median <= self.limit)


@dataclass(frozen=True, slots=True)
class AtLeast:
    """`who` should have at least `limit` times the baseline's value."""

    who: str
    limit: float
    baseline: str = "envoy"
    value: str = "rate"

    def judge(self, samples: Sequence[Sample]) -> Verdict | None:
        """See Goal."""
        if not _are_there(samples, self.who, self.baseline):
            return None
        found = ratio(samples, self.who, self.baseline, self.value)
        words = f"{self.who} ≥ {self.limit} × {self.baseline}'s {_WORDS[self.value]}"
        return Verdict(words, found, found.median >= self.limit)


@dataclass(frozen=True, slots=True)
class AddsLatency:
    """What `who` adds to a quantile of the direct call should be at most `limit` times what the baseline adds."""

    who: str
    limit: float
    baseline: str = "envoy"
    value: str = "p50"

    def judge(self, samples: Sequence[Sample]) -> Verdict | None:
        """See Goal."""
        if not _are_there(samples, self.who, self.baseline, DIRECT):
            return None
        found = within_rounds(samples, lambda of: self._added(of, self.who) / self._added(of, self.baseline))
        words = f"{self.who} adds ≤ {self.limit} × what {self.baseline} adds to the direct call's {_WORDS[self.value]}"
        return Verdict(words, found, found.median <= self.limit)

    def _added(self, of: Mapping[str, Sample], who: str) -> float:
        """µs; at least one, since less cannot be told apart from nothing."""
        return max(of[who].values[self.value] - of[DIRECT].values[self.value], 1.0)


@dataclass(frozen=True, slots=True)
class CostsMore:
    """`who` should cost at most `limit_us` of CPU more than `baseline` does."""

    who: str
    limit_us: float
    baseline: str

    def judge(self, samples: Sequence[Sample]) -> Verdict | None:
        """See Goal."""
        if not _are_there(samples, self.who, self.baseline):
            return None
        found = difference(samples, self.who, self.baseline)
        words = f"{self.who} costs ≤ {self.limit_us:g} µs of CPU more than {self.baseline}"
        return Verdict(words, found, found.median <= self.limit_us)


def _are_there(samples: Sequence[Sample], *who: str) -> bool:
    return {sample.who for sample in samples} >= set(who)
