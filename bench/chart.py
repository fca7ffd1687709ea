"""RESULTS.svg: CPU as a multiple of Envoy's, latency, and µs per feature. It has a ground of its own, and follows the
reader's light or dark setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from xml.sax.saxutils import escape

from bench.comparison import Comparison, Contender, milliseconds
from bench.features import Features, extra
from bench.goals import AtMost
from bench.peers import DIRECT
from bench.run import Record, Scenario
from bench.samples import Sample, Spread, names, ratio, typical

_STYLE: Final = """\
text { font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
.title { font-size: 17px; font-weight: 600 }
.group { font-weight: 600 }
.faint { fill: #59636e }
.page { fill: #ffffff; stroke: #d1d9e0 }
.grid { stroke: #d1d9e0 }
.axis { stroke: #59636e }
.range { stroke: #1f2328 }
.goal { stroke: #cf222e; stroke-width: 2 }
.ours { fill: #2f81f7 } .ours-2 { fill: #79a8e8 } .envoy { fill: #8957e5 } .nginx { fill: #2da44e }
.haproxy { fill: #c4690f } .nghttpx { fill: #bf3989 } .mosn { fill: #1b8a9e } .direct { fill: #7d8590 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .faint { fill: #9198a1 } .page { fill: #0d1117; stroke: #3d444d } .grid { stroke: #3d444d }
  .axis { stroke: #9198a1 } .range { stroke: #f0f6fc } .goal { stroke: #ff7b72 }
}"""
_WIDTH: Final = 980
_MARGIN: Final = 24
_LEFT: Final = 370  # where the scales begin
_SCALE: Final = 430  # how wide they are
_ROW: Final = 22
_MOST_TIMES: Final = 2.0
_MOST_US: Final = 8.0
_LATENCY_MS: Final = (0.01, 100.0)


@dataclass(slots=True)
class _Canvas:
    """Elements from the top down; `y` is where the next row goes."""

    y: float = _MARGIN
    elements: list[str] = field(default_factory=list)

    def text(self, x: float, words: str, style: str = "", anchor: str = "start") -> None:
        at = f'x="{x:.1f}" y="{self.y + 15:.1f}" text-anchor="{anchor}"'
        self.elements.append(f'<text {at} class="{style}">{escape(words)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        points = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        self.elements.append(f'<line {points} class="{style}"/>')

    def bar(self, x1: float, x2: float, style: str) -> None:
        place = f'x="{min(x1, x2):.1f}" y="{self.y + 4:.1f}" width="{max(abs(x2 - x1), 1):.1f}" height="{_ROW - 8}"'
        self.elements.append(f'<rect {place} rx="2" class="{style}"/>')

    def dot(self, x: float, radius: float, style: str) -> None:
        self.elements.append(f'<circle cx="{x:.1f}" cy="{self.y + _ROW / 2:.1f}" r="{radius}" class="{style}"/>')

    def title(self, words: str, explained: str) -> None:
        self.y += 14
        self.text(_MARGIN, words, "title")
        self.y += _ROW
        self.text(_MARGIN, explained, "faint")
        self.y += _ROW + 4

    def ticks(self, places: Sequence[tuple[float, str]], top: float) -> None:
        """Grid lines from `top` down to here, and their labels below."""
        for x, label in places:
            self.elements.insert(0, f'<line x1="{x:.1f}" y1="{top:.1f}" x2="{x:.1f}" y2="{self.y:.1f}" class="grid"/>')
            self.text(x, label, "faint", "middle")
        self.y += _ROW + 10


def chart(scenarios: Sequence[Scenario], records: Mapping[str, Record]) -> str:
    """The picture of what was measured."""
    canvas = _Canvas()
    compared = [
        (scenario, records[scenario.name].samples)
        for scenario in scenarios
        if isinstance(scenario, Comparison) and scenario.name in records
    ]
    _draw_cpu(canvas, [(s, samples) for s, samples in compared if s.baseline == "envoy" and _has_others(samples)])
    _draw_latency(canvas, [(s, samples) for s, samples in compared if DIRECT in names(samples)])
    for scenario in scenarios:
        if isinstance(scenario, Features) and scenario.name in records:
            _draw_features(canvas, scenario, records[scenario.name].samples)
    return _document(canvas)


def _has_others(samples: Sequence[Sample]) -> bool:
    """Whether there is somebody to hold against Envoy."""
    return "envoy" in names(samples) and bool(set(names(samples)) - {"envoy", DIRECT})


def _document(canvas: _Canvas) -> str:
    height = canvas.y + _MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" role="img">',
            "<title>meshproxy next to other proxies: CPU, latency, and what features cost</title>",
            f"<style>\n{_STYLE}\n</style>",
            f'<rect class="page" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1:.0f}" rx="8"/>',
            *canvas.elements,
            "</svg>\n",
        ]
    )


def _draw_cpu(canvas: _Canvas, compared: Sequence[tuple[Comparison, Sequence[Sample]]]) -> None:
    if not compared:
        return
    canvas.title(
        "CPU, as a multiple of Envoy's in the same round",
        "Median of the rounds, with the lowest and the highest; shorter is better. Red: our goal; →: off the scale.",
    )
    top = canvas.y
    for scenario, samples in compared:
        canvas.text(_MARGIN, scenario.name, "group")
        canvas.text(_LEFT - 8, f"Envoy {typical(samples, 'envoy', 'cpu'):,.1f} µs per {scenario.unit}", "faint", "end")
        canvas.y += _ROW
        for contender in scenario.contenders:
            if contender.who in names(samples) and contender.who not in {"envoy", DIRECT}:
                _draw_ratio(canvas, scenario, contender, samples)
        canvas.y += 6
    canvas.line(_times(1), top, _times(1), canvas.y, "axis")
    canvas.ticks([(_times(value), f"{value:g}") for value in (0, 0.5, 1, 1.5, 2)], top)


def _draw_ratio(canvas: _Canvas, scenario: Comparison, contender: Contender, samples: Sequence[Sample]) -> None:
    found = ratio(samples, contender.who, "envoy")
    canvas.text(_LEFT - 8, contender.title.replace("`", ""), anchor="end")
    canvas.bar(_times(0), _times(found.median), _colour(contender))
    _draw_range(canvas, _times(found.low), _times(found.high))
    for goal in scenario.goals[:1]:
        if isinstance(goal, AtMost) and (goal.who, goal.baseline) == (contender.who, "envoy"):
            canvas.line(_times(goal.limit), canvas.y, _times(goal.limit), canvas.y + _ROW, "goal")
    beyond = "→ " if found.median > _MOST_TIMES else ""
    canvas.text(_LEFT + _SCALE + 12, f"{beyond}{found.median:.2f} × · {typical(samples, contender.who, 'cpu'):,.1f} µs")
    canvas.y += _ROW


def _draw_latency(canvas: _Canvas, compared: Sequence[tuple[Comparison, Sequence[Sample]]]) -> None:
    if not compared:
        return
    canvas.title(
        "Latency, ms on a logarithmic scale",
        "Large dot p50, then p90, p99 and p99.9; medians of the rounds. At the right p50 and p99.",
    )
    top = canvas.y
    for scenario, samples in compared:
        canvas.text(_MARGIN, f"{scenario.name}: {scenario.load.words}", "group")
        canvas.y += _ROW
        for contender in scenario.contenders:
            if contender.who in names(samples):
                _draw_quantiles(canvas, contender, samples)
        canvas.y += 6
    canvas.ticks([(_latency(ms * 1000), f"{ms:g}") for ms in (0.01, 0.1, 1, 10, 100)], top)


def _draw_quantiles(canvas: _Canvas, contender: Contender, samples: Sequence[Sample]) -> None:
    p50, p90, p99, p999 = (typical(samples, contender.who, value) for value in ("p50", "p90", "p99", "p999"))
    canvas.text(_LEFT - 8, contender.title.replace("`", ""), anchor="end")
    middle = canvas.y + _ROW / 2
    canvas.line(_latency(p50), middle, _latency(p999), middle, "axis")
    for value, radius in ((p50, 6), (p90, 4), (p99, 4), (p999, 3)):
        canvas.dot(_latency(value), radius, _colour(contender))
    canvas.text(_LEFT + _SCALE + 12, f"{milliseconds(p50)} · {milliseconds(p99)}")
    canvas.y += _ROW


def _draw_features(canvas: _Canvas, scenario: Features, samples: Sequence[Sample]) -> None:
    canvas.title(
        "What a feature costs, µs of CPU per request",
        "With it less without it, meshproxy; median of the rounds, with the lowest and the highest.",
    )
    top = canvas.y
    rows = scenario.words()
    for name in [name for name in rows if name in names(samples)]:
        found: Spread = extra(samples, name)
        canvas.text(_LEFT - 8, rows[name].replace("`", ""), anchor="end")
        canvas.bar(_extra(0), _extra(found.median), "ours")
        _draw_range(canvas, _extra(found.low), _extra(found.high))
        canvas.text(_LEFT + _SCALE + 12, f"{'→ ' if found.median > _MOST_US else ''}{found.median:.1f} µs")
        canvas.y += _ROW
    canvas.line(_extra(0), top, _extra(0), canvas.y, "axis")
    canvas.ticks([(_extra(value), f"{value:g}") for value in (-2, 0, 2, 4, 6, 8)], top)


def _draw_range(canvas: _Canvas, low: float, high: float) -> None:
    middle = canvas.y + _ROW / 2
    canvas.line(low, middle, high, middle, "range")
    for x in (low, high):
        canvas.line(x, middle - 3, x, middle + 3, "range")


def _colour(contender: Contender) -> str:
    if contender.peer in {"meshproxy-source", "meshproxy-2"}:
        return "ours-2"
    return {"meshproxy": "ours"}.get(contender.peer, contender.peer)


def _times(ratio_: float) -> float:
    """What is off the scale ends where it ends; the number stands beside it."""
    return _LEFT + _SCALE * min(max(ratio_, 0.0), _MOST_TIMES) / _MOST_TIMES


def _latency(us: float) -> float:
    low, high = _LATENCY_MS
    share = (math.log(max(us / 1000, low)) - math.log(low)) / (math.log(high) - math.log(low))
    return _LEFT + _SCALE * min(share, 1.0)


def _extra(us: float) -> float:
    least = -_MOST_US / 4
    return _LEFT + _SCALE * (min(max(us, least), _MOST_US) - least) / (_MOST_US - least)
