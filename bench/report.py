"""RESULTS.md: what was measured, with what, and which goals that meets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from bench.run import Record, Scenario

_HEAD: Final = """\
# Benchmark results

Written by `make bench` (`python -m bench`), as measured; the samples are in results.json. In every round of a scenario
each contender is measured in turn, on the same machine and against the same application (nginx, or nghttpd behind
HTTP/2, that returns 64 bytes, or a file), and each round begins with another. CPU is user + system time of the
contender's whole process tree, from /proc, over the requests answered in that time; RSS is the resident memory of the
same processes at the end. A ratio or a difference is taken within a round, so that a noisy minute hits both sides; a
table has medians over the rounds, and the lowest and highest ratio too. Latency "as fast as they are answered" is that
of a saturated proxy; at a fixed rate it counts from when each request was due, and "added" is what is more than
without a proxy.
"""
_NO_WHEN: Final = "?"


def report(scenarios: Sequence[Scenario], records: Mapping[str, Record], chart: str) -> str:
    """The whole file; `chart` is the name of the picture beside it, when there is one."""
    measured = [scenario for scenario in scenarios if scenario.name in records]
    parts = [_HEAD, *([f"![CPU, latency and features as a chart]({chart})"] if chart else [])]
    if measured:
        latest = max((records[scenario.name] for scenario in measured), key=_when)
        parts += ["\n".join(f"- {label}: {value}" for label, value in latest.facts.items())]
        parts += [goals(measured, records)]
    for scenario in measured:
        parts += [f"## {scenario.title} (`{scenario.name}`)", _section(scenario, records[scenario.name])]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def goals(scenarios: Sequence[Scenario], records: Mapping[str, Record]) -> str:
    """All goals in one table, the missed ones too."""
    rows = [
        f"| `{scenario.name}` | {verdict.goal} | {verdict.measured} | {'met' if verdict.is_met else '**missed**'} |"
        for scenario in scenarios
        for verdict in scenario.verdicts(records[scenario.name].samples)
    ]
    if not rows:
        return ""
    return "\n".join(["## Goals", "", "| scenario | goal | measured (lowest–highest) | |", "|---|---|--:|---|", *rows])


def _section(scenario: Scenario, record: Record) -> str:
    facts = record.facts
    lines = [scenario.section(record), ""] if record.samples else []
    lines += [f"Left out: {who}, since {_short(why)}." for who, why in record.left_out.items()]
    lines += [f"{text[0].upper()}{text[1:]}." for text in map(str, scenario.verdicts(record.samples))]
    lines += [f"Measured {_when(record)}, {facts.get('meshproxy', _NO_WHEN)}; load average before {_load(record)}."]
    return "\n\n".join(line for line in lines if line)


def _short(why: str) -> str:
    return why if len(why) <= 200 else f"{why[:60]} … {why[-120:]}"


def _when(record: Record) -> str:
    return record.facts.get("Date", _NO_WHEN)


def _load(record: Record) -> str:
    return record.facts.get("Load average before", _NO_WHEN)
