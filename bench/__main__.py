"""`python -m bench`: measure everybody in turn, and write bench/RESULTS.md, its chart, and the samples."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from bench import results
from bench.features import Features
from bench.goals import Verdict
from bench.machine import facts
from bench.peers import MOSN_VARIABLE, PEERS, SMOKE_VARIABLE
from bench.report import report
from bench.run import FAILURES, Record, Run, Scenario
from bench.scenarios import SCENARIOS

_HELP: Final = """\
examples:
  make bench                                          everything, for half an hour, on a quiet machine
  make bench BENCH_ARGS="--only http1 --rounds 9"     one scenario; the report keeps all others as they were
  python -m bench --smoke --only headline             does it run? one round of a second, written nowhere
  python -m bench --list                              which scenarios there are, and whom they measure
  python -m bench --render                            report and chart anew, from the samples that are there

A scenario starts everybody it compares, warms each up for a second, measures them in turn for some rounds, and is
written down before the next one begins: a run that was interrupted is kept as far as it came. meshproxy must run a
compiled build, to which PYTHONPATH leads; `make bench` makes one. Goals that are missed do not fail the run; its exit
code is 1 when somebody could not be measured. docs/performance.md says what the numbers come from.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 when something could not be measured, 0 even when a goal is missed."""
    options = _parser().parse_args(argv)
    if options.mosn:
        os.environ[MOSN_VARIABLE] = str(options.mosn)
    if options.list:
        _print_list()
        return 0
    if options.render:
        results.save(options.output, SCENARIOS, results.load(options.output))
        return 0
    chosen = [scenario for scenario in SCENARIOS if not options.only or scenario.name in options.only]
    if options.smoke:
        os.environ[SMOKE_VARIABLE] = "1"
        records = _measure_all(chosen, Run(1, 1, options.peers), None)
        print(report(chosen, {name: record for name, record in records.items() if record}, ""))
    else:
        records = _measure_all(chosen, Run(options.rounds, options.seconds, options.peers), options.output)
    return 0 if all(record and not record.left_out for record in records.values()) else 1


def _measure_all(scenarios: Sequence[Scenario], asked: Run, output: Path | None) -> Mapping[str, Record | None]:
    """None for those that failed; each of the others is written to `output` when it is done."""
    asked.say(f"{len(scenarios)} scenarios, {_minutes(scenarios, asked)} minutes or so")
    records: dict[str, Record | None] = {}
    verdicts: list[tuple[str, Verdict]] = []
    for number, scenario in enumerate(scenarios, 1):
        run = Run(asked.rounds, asked.seconds, asked.only, f"[{number}/{len(scenarios)} {scenario.name}] ")
        record = measure(scenario, run)
        records[scenario.name] = record
        if record is None or not record.samples:
            continue
        found = scenario.verdicts(record.samples)
        verdicts += [(scenario.name, verdict) for verdict in found]
        for verdict in found:
            run.say(str(verdict).replace("**", ""))
        if output:
            results.save(output, SCENARIOS, results.load(output) | {scenario.name: record})
    for name, verdict in verdicts:
        asked.say(f"{'met   ' if verdict.is_met else 'MISSED'}  {name}: {verdict.goal}; measured {verdict.measured}")
    asked.say(f"written to {output}" if output else "written nowhere: a smoke run, whose numbers mean nothing")
    return records


def _minutes(scenarios: Sequence[Scenario], asked: Run) -> int:
    """Everybody is started, warmed up, and measured; starting takes a second, and features are measured both ways."""
    turns = sum(len(scenario.who) * (1 + isinstance(scenario, Features)) for scenario in scenarios)
    return 1 + turns * (asked.rounds * asked.seconds + 2) // 60


def measure(scenario: Scenario, run: Run) -> Record | None:
    """None when it failed; without samples when nobody whom it compares was asked for, or could be started."""
    where = facts()  # before the load, for the load average
    began = time.monotonic()
    try:
        samples = scenario.measure(run)
    except FAILURES as error:
        run.say(f"failed: {error}")
        return None
    run.say(f"took {time.monotonic() - began:.0f} s")
    return Record(where, run.seconds, samples, run.left_out)


def _print_list() -> None:
    for scenario in SCENARIOS:
        print(f"{scenario.name:18} {scenario.title}: {', '.join(scenario.who)}")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _program(text: str) -> Path:
    path = Path(text)
    if not os.access(path, os.X_OK) or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a program")
    return path.resolve()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure meshproxy next to Envoy, nginx, HAProxy, nghttpx and MOSN: CPU, rate, latency, memory.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    names = [scenario.name for scenario in SCENARIOS]
    add("--rounds", type=_positive, default=5, metavar="N", help="how often everybody is measured (default 5)")
    add("--seconds", type=_positive, default=2, metavar="S", help="how long one measurement lasts (default 2)")
    add("--only", action="append", choices=names, metavar="SCENARIO", help="this scenario only; may be repeated")
    add("--peers", action="append", default=[], choices=list(PEERS), metavar="PEER", help="this proxy only; as --only")
    add("--mosn", type=_program, metavar="PATH", help=f"a MOSN binary, else ${MOSN_VARIABLE}; without, it is left out")
    add("--smoke", action="store_true", help="one round of a second, any build; print the report, write nothing")
    add("--render", action="store_true", help="measure nothing; write report and chart from the samples again")
    add("--list", action="store_true", help="print the scenarios and end")
    default = Path(__file__).parent
    add("--output", type=Path, default=default, metavar="FOLDER", help="where results go (default bench)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
