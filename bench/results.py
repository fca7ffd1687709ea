"""What is known so far: results.json has the samples of every scenario as it was last measured, and RESULTS.md and
RESULTS.svg are made of it. So a run of one scenario changes that scenario's part and no other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.chart import chart
from bench.report import report
from bench.run import Record, Scenario

_SAMPLES: Final = "results.json"
_REPORT: Final = "RESULTS.md"
_CHART: Final = "RESULTS.svg"
_BY_HAND: Final = "CONTROL_PLANE.md"  # what other programs of bench/ measured; it stands at the end of the report


def load(folder: Path) -> dict[str, Record]:
    """By the scenario's name; nothing when nothing was measured yet."""
    path = folder / _SAMPLES
    if not path.exists():
        return {}
    return {name: Record.from_json(tree) for name, tree in json.loads(path.read_text(encoding="utf-8")).items()}


def save(folder: Path, scenarios: Sequence[Scenario], records: Mapping[str, Record]) -> None:
    """Samples, report and chart; what no scenario is called any more is dropped."""
    known = {scenario.name: records[scenario.name] for scenario in scenarios if scenario.name in records}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _SAMPLES).write_text(_lines({name: record.to_json() for name, record in known.items()}), encoding="utf-8")
    (folder / _CHART).write_text(chart(scenarios, known), encoding="utf-8")
    text = report(scenarios, known, _CHART)
    by_hand = folder / _BY_HAND
    if by_hand.exists():
        text += "\n" + by_hand.read_text(encoding="utf-8")
    (folder / _REPORT).write_text(text, encoding="utf-8")


def _lines(trees: Mapping[str, Mapping[str, Any]]) -> str:
    """JSON with a line for each sample, so that a difference can be read."""
    blocks = []
    for name, tree in trees.items():
        fields = [f"  {json.dumps(key)}: {json.dumps(tree[key])}" for key in tree if key != "samples"]
        rows = ",\n".join(f"   {json.dumps(row)}" for row in tree["samples"])
        blocks.append(f" {json.dumps(name)}: {{\n" + ",\n".join([*fields, f'  "samples": [\n{rows}\n  ]']) + "\n }")
    return "{\n" + ",\n".join(blocks) + "\n}\n"
