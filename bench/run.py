"""One run of the benchmark: how much is measured, what a scenario is, and what is said meanwhile."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

from bench.goals import Verdict
from bench.load import LoadError
from bench.peers import DIRECT, MOSN_VARIABLE, PeerError
from bench.samples import Sample

T = TypeVar("T")
# What starting and loading a proxy may raise.
FAILURES: Final = (LoadError, PeerError, RuntimeError, ConnectionError, TimeoutError)
_WIDTH: Final = 150


@dataclass(slots=True)
class Run:
    """`only` names peers, none means all. `left_out` says why somebody whom a scenario names is not measured."""

    rounds: int
    seconds: int
    only: Sequence[str] = ()
    label: str = ""
    left_out: dict[str, str] = field(default_factory=dict)

    def wants(self, peer: str) -> bool:
        """Whether this peer was asked for; MOSN must be named, and the direct call belongs to everything."""
        if peer == "mosn" and MOSN_VARIABLE not in os.environ:
            return False
        return peer == DIRECT or not self.only or peer in self.only

    def attempt(self, who: str, start: Callable[[], T]) -> T | None:
        """What `start` returns; None when it fails, and then `who` is left out."""
        try:
            return start()
        except FAILURES as error:
            self.left_out[who] = " ".join(str(error).split())
            self.say(f"{who} is left out: {self.left_out[who][-_WIDTH:]}")
            return None

    def say(self, text: str) -> None:
        """Progress, to stderr, at once."""
        print(f"{self.label}{text}", file=sys.stderr, flush=True)

    def in_turn(self, contenders: Sequence[T]) -> Iterable[tuple[int, T]]:
        """Everybody once a round, and each round begins with another."""
        for number in range(self.rounds):
            shift = number % len(contenders) if contenders else 0
            for contender in [*contenders[shift:], *contenders[:shift]]:
                yield number, contender


@dataclass(frozen=True, slots=True)
class Record:
    """What a run found out about a scenario, as results.json keeps it; `facts` is where and with what it was made."""

    facts: Mapping[str, str]
    seconds: int
    samples: Sequence[Sample]
    left_out: Mapping[str, str]

    @property
    def rounds(self) -> int:
        """How many there were."""
        return len({sample.round for sample in self.samples})

    @property
    def length(self) -> str:
        """How it reads in the report."""
        return f"{self.rounds} round{'s' * (self.rounds > 1)} of {self.seconds} s"

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Record:
        """As `to_json` made it."""
        samples = [Sample.from_json(row) for row in tree["samples"]]
        return cls(tree["facts"], tree["seconds"], samples, tree["left_out"])

    def to_json(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "facts": dict(self.facts),
            "seconds": self.seconds,
            "left_out": dict(self.left_out),
            "samples": [sample.to_json() for sample in self.samples],
        }


class Scenario(Protocol):
    """Something that is measured, and a section of the report."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def who(self) -> Sequence[str]:
        """Whom it measures."""
        ...

    def measure(self, run: Run) -> list[Sample]:
        """Raises what FAILURES lists."""
        ...

    def verdicts(self, samples: Sequence[Sample]) -> list[Verdict]: ...

    def section(self, record: Record) -> str:
        """Markdown below the heading."""
        ...
