"""What each feature costs: µs of CPU per request through our proxy with it, less those without it just before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from bench.configuration import features
from bench.cpu import tree_cpu_us
from bench.goals import Verdict
from bench.load import Closed
from bench.peers import Running, application, start_peer
from bench.run import Record, Run
from bench.samples import Sample, Spread, names, typical, within_rounds

BASE: Final = "http1"
_PEER: Final = "meshproxy"
_CONNECTIONS: Final = 32
_WARM_UP_S: Final = 1

_INTRODUCTION: Final = f"""\
meshproxy alone, one worker. A row is a patch of bench/configs/patches.yaml laid over `{BASE}`, which has one route
and the router. In every round each row is measured right after the same requests without it; "more" is the difference
of the two. The first row has two equal proxies, and shows how far they differ by chance."""


@dataclass(frozen=True, slots=True)
class Features:
    """All rows of patches.yaml."""

    name: str
    title: str

    @property
    def who(self) -> Sequence[str]:
        """The rows."""
        return list(features())

    def words(self) -> dict[str, str]:
        """What the rows are called in the report."""
        return {name: patch["words"] for name, patch in features().items()}

    def measure(self, run: Run) -> list[Sample]:
        """Rows that do not load are left out. Raises LoadError, PeerError."""
        if not run.wants(_PEER):
            return []
        rows = features()
        samples = []
        with ExitStack() as stack:
            port = stack.enter_context(application())
            off = start_peer(_PEER, BASE, port)
            stack.callback(off.stop)
            running: dict[str, Running] = {}
            for name, patch in rows.items():
                if started := _start(run, name, patch, port):
                    stack.callback(started.stop)
                    running[name] = started
            for number, name in run.in_turn(list(running)):
                without = _cost_us(off, rows[name], run.seconds, is_on=False)
                having = _cost_us(running[name], rows[name], run.seconds, is_on=True)
                samples.append(Sample(name, number, {"off": without, "on": having}))
                run.say(f"round {number + 1}/{run.rounds}  {name:24}{without:6.1f} → {having:.1f} µs CPU per request")
        return samples

    def verdicts(self, samples: Sequence[Sample]) -> list[Verdict]:
        """The goals on features are with the scenarios that compare them."""
        return []

    def section(self, record: Record) -> str:
        """See Scenario."""
        rows = self.words()
        load = Closed(_CONNECTIONS).words
        lines = [
            f"{_INTRODUCTION} The load: {load}; {record.length}, each way.",
            "",
            "| CPU µs per request | off | on | more (lowest–highest) |",
            "|---|--:|--:|--:|",
        ]
        for name in [name for name in rows if name in names(record.samples)]:
            off, on = typical(record.samples, name, "off"), typical(record.samples, name, "on")
            lines.append(f"| {rows[name]} | {off:.1f} | {on:.1f} | {extra(record.samples, name)} |")
        return "\n".join(lines)


def extra(samples: Sequence[Sample], name: str) -> Spread:
    """What a row costs more, in µs."""
    own = [sample for sample in samples if sample.who == name]
    return within_rounds(own, lambda of: of[name].values["on"] - of[name].values["off"])


def _start(run: Run, name: str, patch: Mapping[str, Any], port: int) -> Running | None:
    """Started, and warm."""
    run.say(f"starting {name}")
    started = run.attempt(name, lambda: start_peer(_PEER, f"{BASE}+{name}", port))
    if started is None:
        return None
    if run.attempt(name, lambda: _cost_us(started, patch, _WARM_UP_S, is_on=True)) is None:
        started.stop()
        return None
    return started


def _cost_us(running: Running, patch: Mapping[str, Any], seconds: int, *, is_on: bool) -> float:
    """CPU per request under the load that the row asks for; both sides get the same headers. Raises LoadError."""
    request = patch.get("request", {})
    load = Closed(_CONNECTIONS, headers=tuple(request.get("headers", ())), tls=is_on and request.get("tls", False))
    before_us = tree_cpu_us(*running.pids)
    traffic = load.run(running.port, seconds)
    return (tree_cpu_us(*running.pids) - before_us) / traffic.requests
