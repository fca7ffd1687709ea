"""`python -m bench`: start everybody, measure them in turn, write bench/RESULTS.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.cpu import tree_cpu_us, tree_rss_kib
from bench.idle import CONNECTIONS, IDLE, PROXIES, Held, IdleScenario, idle_verdict, measure_idle, section
from bench.load import LoadError, is_installed
from bench.machine import facts
from bench.peers import PEERS, PeerError, Running, upstream
from bench.report import Sample, render, verdict
from bench.scenarios import SCENARIOS, Scenario

_WARM_UP_S = 1
_MEMORY_ROUNDS = 3  # memory varies little


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 when something could not be measured, 0 even when a goal is missed."""
    options = _parser().parse_args(argv)
    if options.list:
        for scenario in SCENARIOS:
            print(f"{scenario.name:18} {scenario.title}: {', '.join(scenario.peers)}")
        for kind in IDLE:
            print(f"{kind.name:18} {CONNECTIONS} idle connections, {kind.title}: {', '.join(PROXIES)}")
        return 0
    scenarios = [scenario for scenario in SCENARIOS if not options.only or scenario.name in options.only]
    scenarios = [scenario for scenario in scenarios if _can_run(scenario)]
    kinds = [kind for kind in IDLE if not options.only or kind.name in options.only]
    try:
        where = facts()  # before the load, for the load average
        samples = measure(scenarios, options.peers, options.rounds, options.seconds)
        held = measure_memory(kinds, options.peers, min(options.rounds, _MEMORY_ROUNDS))
    except (LoadError, PeerError, RuntimeError, TimeoutError) as error:
        say(f"bench: {error}")
        return 1
    report = render(where, scenarios, samples, options.seconds, section(held) if held else "")
    options.output.write_text(report, encoding="utf-8")
    for name, said in _verdicts(scenarios, samples, kinds, held):
        if said:
            say(f"{name}: {said.replace('**', '')}")
    say(f"written to {options.output}")
    return 0


def _verdicts(
    scenarios: Sequence[Scenario], samples: Sequence[Sample], kinds: Sequence[IdleScenario], held: Sequence[Held]
) -> Iterator[tuple[str, str | None]]:
    for scenario in scenarios:
        yield scenario.name, verdict(scenario, [sample for sample in samples if sample.scenario == scenario.name])
    for kind in kinds:
        yield kind.name, idle_verdict(kind, held)


def measure(scenarios: Sequence[Scenario], only: Sequence[str], rounds: int, seconds: int) -> list[Sample]:
    """Every peer of every scenario once a round, all started before the first; `only` names peers, none means all.

    Raises PeerError, LoadError, and what starting a process raises (RuntimeError, TimeoutError).
    """
    samples: list[Sample] = []
    with ExitStack() as stack:
        upstream_port = stack.enter_context(upstream())
        running: dict[tuple[str, str], Running] = {}
        for scenario in scenarios:
            for name in _peers(scenario, only):
                key = (name, scenario.config)
                if key not in running:
                    say(f"starting {name}")
                    running[key] = PEERS[name].start(scenario.config, upstream_port)
                    stack.callback(running[key].stop)
                scenario.load.run(running[key].ports[scenario.listener], _WARM_UP_S)
        for number in range(rounds):
            for scenario in scenarios:
                names = _peers(scenario, only)
                shift = number % len(names) if names else 0
                for name in names[shift:] + names[:shift]:
                    samples.append(measure_one(scenario, name, running[name, scenario.config], number, seconds))
                    say(_progress(samples[-1], rounds))
    return samples


def measure_one(scenario: Scenario, name: str, running: Running, number: int, seconds: int) -> Sample:
    """One sample; raises LoadError."""
    before = tree_cpu_us(running.pid)
    traffic = scenario.load.run(running.ports[scenario.listener], seconds)
    cpu_us = tree_cpu_us(running.pid) - before
    return Sample(scenario.name, name, number, cpu_us, traffic, tree_rss_kib(running.pid))


def measure_memory(kinds: Sequence[IdleScenario], only: Sequence[str], rounds: int) -> list[Held]:
    """As `measure`, of idle connections; every proxy is started anew each time, since memory does not come back."""
    held: list[Held] = []
    names = [name for name in PROXIES if not only or name in only]
    if not kinds or not names:
        return held
    with upstream() as upstream_port:
        for number in range(rounds):
            for kind in kinds:
                for name in names:
                    held.append(measure_idle(kind, name, number, upstream_port))
                    say(_memory_progress(held[-1], rounds))
    return held


def say(text: str) -> None:
    """Progress goes to stderr, at once."""
    print(text, file=sys.stderr, flush=True)


def _progress(sample: Sample, rounds: int) -> str:
    traffic = sample.traffic
    return (
        f"round {sample.round + 1}/{rounds}  {sample.scenario:14} {sample.peer:17}"
        f"{sample.cost:7.1f} µs CPU each {traffic.requests / traffic.seconds:9,.0f}/s"
        f"   p50 {traffic.p50_us / 1000:.2f} p99 {traffic.p99_us / 1000:.2f} ms"
    )


def _memory_progress(held: Held, rounds: int) -> str:
    return (
        f"round {held.round + 1}/{rounds}  {held.scenario:14} {held.peer:17}"
        f"{held.before_kib / 1024:7.1f} MiB, then {held.with_kib / 1024:.1f}: {held.kib_per_connection:.1f} KiB each"
    )


def _peers(scenario: Scenario, only: Sequence[str]) -> list[str]:
    return [name for name in scenario.peers if not only or name in only]


def _can_run(scenario: Scenario) -> bool:
    if not is_installed(scenario.load):
        say(f"{scenario.name}: left out, {scenario.load.tool} is not installed")
        return False
    return True


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    add = parser.add_argument
    add("--rounds", type=_positive, default=5, metavar="N", help="how often everybody is measured (default 5)")
    add("--seconds", type=_positive, default=2, metavar="S", help="how long one measurement lasts (default 2)")
    names = [*(scenario.name for scenario in SCENARIOS), *(kind.name for kind in IDLE)]
    add("--only", action="append", choices=names, metavar="SCENARIO", help="this scenario only; may be repeated")
    add("--peers", action="append", default=[], choices=list(PEERS), metavar="PEER", help="this proxy only; as --only")
    add("--list", action="store_true", help="print the scenarios and end")
    default = Path(__file__).with_name("RESULTS.md")
    add("--output", type=Path, default=default, metavar="FILE", help="where results go (default bench/RESULTS.md)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
