"""Samples, and how those of one scenario are compared: medians over the rounds, ratios and differences within each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Sample:
    """What was measured of one contender in one round, by name: "cpu" (µs per request), "p50" (µs), and so on."""

    who: str
    round: int
    values: Mapping[str, float]

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Sample:
        """As `to_json` made it."""
        return cls(row["who"], row["round"], {name: row[name] for name in row if name not in {"who", "round"}})

    def to_json(self) -> dict[str, Any]:
        """Flat, and rounded to what a measurement can be worth."""
        return {"who": self.who, "round": self.round} | {name: round(self.values[name], 3) for name in self.values}


@dataclass(frozen=True, slots=True)
class Spread:
    """Median of the rounds, lowest, highest."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def names(samples: Sequence[Sample]) -> list[str]:
    """Who was measured, in the order of the first round."""
    return list(dict.fromkeys(sample.who for sample in samples))


def typical(samples: Sequence[Sample], who: str, value: str) -> float:
    """The median of the rounds."""
    return median(sample.values[value] for sample in samples if sample.who == who)


def ratio(samples: Sequence[Sample], who: str, baseline: str, value: str = "cpu") -> Spread:
    """A value over the baseline's. Every round must have both."""
    return within_rounds(samples, lambda of: of[who].values[value] / of[baseline].values[value])


def difference(samples: Sequence[Sample], who: str, baseline: str, value: str = "cpu") -> Spread:
    """A value less the baseline's. Every round must have both."""
    return within_rounds(samples, lambda of: of[who].values[value] - of[baseline].values[value])


def within_rounds(samples: Sequence[Sample], compare: Callable[[Mapping[str, Sample]], float]) -> Spread:
    """`compare` gets the samples of one round by who was measured; the spread of what it returns."""
    rounds: dict[int, dict[str, Sample]] = {}
    for sample in samples:
        rounds.setdefault(sample.round, {})[sample.who] = sample
    found = [compare(of) for of in rounds.values()]
    return Spread(median(found), min(found), max(found))
