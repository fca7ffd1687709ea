"""The usual scenario: a load, several contenders that bear it in turn, and a table of what it cost each of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from bench.cpu import tree_cpu_us, tree_rss_kib
from bench.goals import Goal, Verdict
from bench.load import Load
from bench.peers import DIRECT, LISTENER, NGINX, PEERS, Running, application, start_peer
from bench.run import Record, Run
from bench.samples import Sample, difference, names, ratio, typical

_WARM_UP_S: Final = 1
_LATENCIES: Final = ("p50", "p90", "p99", "p999")


@dataclass(frozen=True, slots=True)
class Contender:
    """A peer on a configuration, under a name of its own where a scenario has the peer twice; `than` is the contender
    that is the same without what is measured."""

    peer: str
    config: str
    name: str = ""
    words: str = ""
    than: str = ""

    @property
    def who(self) -> str:
        """How samples and goals call it."""
        return self.name or self.peer

    @property
    def title(self) -> str:
        """How the table calls it."""
        return self.words or ("nobody between: the direct call" if self.peer == DIRECT else PEERS[self.peer].words)


@dataclass(frozen=True, slots=True)
class Comparison:
    """`listener` is one of the configurations' listeners, `server` who stands behind the proxies, `baseline` the
    contender that ratios are taken of, and `unit` what it is that costs."""

    name: str
    title: str
    contenders: tuple[Contender, ...]
    load: Load
    baseline: str = "envoy"
    goals: tuple[Goal, ...] = ()
    listener: str = LISTENER
    server: str = NGINX
    unit: str = "request"
    note: str = ""

    @property
    def who(self) -> Sequence[str]:
        """See Scenario."""
        return [contender.who for contender in self.contenders]

    def measure(self, run: Run) -> list[Sample]:
        """Every contender once a round, all started before the first. Raises LoadError."""
        with ExitStack() as stack:
            port = stack.enter_context(application(self.server))
            running: dict[str, Running] = {}
            for contender in self.contenders:
                if run.wants(contender.peer) and (started := self._start(run, contender, port)):
                    stack.callback(started.stop)
                    running[contender.who] = started
            samples = []
            for number, who in run.in_turn(list(running)):
                samples.append(self._sample(who, number, running[who], run.seconds))
                run.say(f"round {number + 1}/{run.rounds}  {who:24}{self._progress(samples[-1])}")
            return samples

    def _start(self, run: Run, contender: Contender, port: int) -> Running | None:
        """Started, and warm."""
        run.say(f"starting {contender.who}")
        started = run.attempt(contender.who, lambda: start_peer(contender.peer, contender.config, port))
        if started is None:
            return None
        warm = run.attempt(contender.who, lambda: self.load.run(started.ports[self.listener], _WARM_UP_S))
        if warm is None:
            started.stop()
            return None
        return started

    def _sample(self, who: str, number: int, running: Running, seconds: int) -> Sample:
        before_us = tree_cpu_us(*running.pids)
        traffic = self.load.run(running.ports[self.listener], seconds)
        cpu_us = tree_cpu_us(*running.pids) - before_us
        latencies = (traffic.p50_us, traffic.p90_us, traffic.p99_us, traffic.p999_us)
        values = {
            "cpu": cpu_us / traffic.requests,
            "rate": traffic.requests / traffic.seconds,
            **dict(zip(_LATENCIES, latencies, strict=True)),
            "rss": tree_rss_kib(*running.pids),
        }
        return Sample(who, number, values)

    def _progress(self, sample: Sample) -> str:
        values = sample.values
        latency = f"p50 {values['p50'] / 1000:.2f} p99 {values['p99'] / 1000:.2f} ms"
        return f"{values['cpu']:8.1f} µs CPU per {self.unit}  {values['rate']:9,.0f}/s  {latency}"

    def verdicts(self, samples: Sequence[Sample]) -> list[Verdict]:
        """See Scenario."""
        return [found for goal in self.goals if (found := goal.judge(samples))]

    def section(self, record: Record) -> str:
        """See Scenario."""
        samples = record.samples
        there = [contender for contender in self.contenders if contender.who in names(samples)]
        proxies = [contender for contender in there if contender.peer != DIRECT]
        configs = ", ".join(f"`{config}`" for config in dict.fromkeys(c.config for c in proxies))
        behind = "" if self.server == NGINX else f"; behind it {self.server}"
        head = ["", f"CPU µs per {self.unit}", f"× {self.baseline} (lowest–highest)"]
        head += ["µs more than without"] if self._has_pairs(samples) else []
        head += [f"{self.unit}s/s", "p50 ms", "p90", "p99", "p99.9"]
        head += ["p50 added", "p99 added"] if DIRECT in names(samples) else []
        lines = [
            f"{self.load.words}; {record.length}; configuration {configs}{behind}. {self.note.strip()}".strip(),
            "",
            f"| {' | '.join([*head, 'RSS MiB'])} |",
            f"|---{'|--:' * len(head)}|",
            *(f"| {' | '.join(self._row(contender, samples))} |" for contender in there),
            "",
            f"CPU µs per {self.unit} in each round: {'; '.join(_rounds(c.who, samples) for c in proxies)}.",
        ]
        return "\n".join(lines)

    def _has_pairs(self, samples: Sequence[Sample]) -> bool:
        there = names(samples)
        return any(contender.than in there and contender.who in there for contender in self.contenders)

    def _row(self, contender: Contender, samples: Sequence[Sample]) -> list[str]:
        who, there = contender.who, names(samples)
        is_direct = contender.peer == DIRECT
        cells = [contender.title]
        cells += ["–", "–"] if is_direct else [f"{typical(samples, who, 'cpu'):.1f}", self._against(who, samples)]
        if self._has_pairs(samples):
            cells.append(str(difference(samples, who, contender.than)) if contender.than in there else "")
        cells.append(f"{typical(samples, who, 'rate'):,.0f}")
        cells += [milliseconds(typical(samples, who, value)) for value in _LATENCIES]
        if DIRECT in there:
            cells += [
                "" if is_direct else milliseconds(difference(samples, who, DIRECT, value).median)
                for value in ("p50", "p99")
            ]
        return [*cells, "–" if is_direct else f"{typical(samples, who, 'rss') / 1024:.0f}"]

    def _against(self, who: str, samples: Sequence[Sample]) -> str:
        if who == self.baseline:
            return "1"
        return str(ratio(samples, who, self.baseline)) if self.baseline in names(samples) else "–"


def milliseconds(us: float) -> str:
    """Two digits after the point, three below a tenth."""
    return f"{us / 1000:.3f}" if abs(us) < 100 else f"{us / 1000:.2f}"


def _rounds(who: str, samples: Sequence[Sample]) -> str:
    return f"{who} " + " ".join(f"{sample.values['cpu']:.1f}" for sample in samples if sample.who == who)
