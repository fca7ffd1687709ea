"""Stats as Envoy's admin shows them: `/stats` in text and JSON, `/stats/prometheus`.

Exporters are generators of pieces of text: whoever writes them out lets the event loop turn in between, since a big
table takes longer than traffic should wait.
"""

from __future__ import annotations

import heapq
import json
import math
import re
from collections.abc import Callable, Generator, Iterator
from itertools import islice
from typing import Any, Final, TypeAlias

import re2

from meshproxy.errors import ConfigError
from meshproxy.observe.histogram import count_up_to, lower_bound, quantile
from meshproxy.observe.snapshot import HistogramValue, Snapshot, subtract
from meshproxy.observe.stats_config import StatsSettings
from meshproxy.observe.tags import Tag

QUANTILES: Final = (0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 100.0)
BUCKET_MODES: Final = ("", "summary", "cumulative", "disjoint", "detailed")
TYPES: Final = ("All", "Counters", "Gauges", "Histograms", "TextReadouts")

_EMPTY: Final[HistogramValue] = ({}, 0, 0)
_NAMES_PER_STEP: Final = 100  # lines in a piece
_NAMES_PER_RUN: Final = 500  # names sorted at once
_NAMES_PER_TAGGING: Final = 50
_REMEMBERED_NAMES: Final = 200_000
_METRIC_CHARACTERS: Final = re.compile(r"[^a-zA-Z0-9_:]")
_ESCAPES: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})

Entry: TypeAlias = tuple[str, int]  # a name and its value


class StatsQuery:
    """The query parameters of `/stats` and `/stats/prometheus`."""

    def __init__(self) -> None:
        self.used_only: bool = False
        self.type: str = "All"
        self.buckets: str = ""
        self.filter: Callable[[str], bool] | None = None

    def wants(self, kind: str) -> bool:
        return self.type in {"All", kind}


def parse_query(parameters: dict[str, str]) -> StatsQuery:
    """Reads usedonly, type, histogram_buckets and filter. Raises ConfigError with the text of Envoy's 400."""
    query = StatsQuery()
    query.used_only = "usedonly" in parameters
    query.type = parameters.get("type") or "All"
    if query.type not in TYPES:
        raise ConfigError("", "invalid &type= param")
    query.buckets = parameters.get("histogram_buckets", "")
    if query.buckets not in BUCKET_MODES:
        raise ConfigError("", "usage: /stats?histogram_buckets=(cumulative|disjoint|detailed|summary)\n")
    text = parameters.get("filter")
    if text:
        query.filter = _compile_filter(text)
    return query


def _compile_filter(text: str) -> Callable[[str], bool]:
    """RE2 as in Envoy: whoever asks the admin cannot stop the loop with a regex."""
    options = re2.Options()
    options.log_errors = False
    try:
        pattern = re2.compile(text, options)
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        words = reason.decode() if isinstance(reason, bytes) else str(reason)
        raise ConfigError("", f"Invalid re2 regex: {words}") from error
    return lambda name: pattern.search(name) is not None


class Intervals:
    """What histograms recorded in the last flush interval (Envoy: 5 s), beside what they recorded in all."""

    def __init__(self) -> None:
        self._before: dict[str, HistogramValue] = {}
        self._last: dict[str, HistogramValue] = {}

    def flush(self, snapshot: Snapshot) -> None:
        """An interval ends now."""
        self._last = {
            name: subtract(value, self._before.get(name))
            for name, value in snapshot.histograms.items()
            if value != self._before.get(name)
        }
        self._before = snapshot.histograms

    def of(self, name: str) -> HistogramValue:
        return self._last.get(name, _EMPTY)


class StatsExporter:
    """Puts one snapshot into words."""

    def __init__(self, snapshot: Snapshot, settings: StatsSettings, intervals: Intervals | None = None) -> None:
        self._snapshot = snapshot
        self._settings = settings
        self._intervals = intervals or Intervals()

    # ---- text

    def text(self, query: StatsQuery) -> Iterator[str]:
        """`name: value` sorted, then the histograms."""
        lines: list[str] = []
        for name, value in (yield from self._sorted(self._scalars(query), query)):
            lines.append(f"{name}: {value}\n")
            if len(lines) == _NAMES_PER_STEP:
                yield "".join(lines)
                lines.clear()
        histograms = self._snapshot.histograms
        for name, _ in (yield from self._sorted(self._totals(query), query)):
            lines.append(f"{name}:{self._histogram_text(name, histograms[name], query.buckets)}\n")
            if len(lines) >= _NAMES_PER_STEP // 10:
                yield "".join(lines)
                lines.clear()
        yield "".join(lines)

    def _histogram_text(self, name: str, value: HistogramValue, mode: str) -> str:
        if value[1] == 0:
            return " No recorded values"
        interval = self._intervals.of(name)
        if mode in {"cumulative", "disjoint"}:
            return "".join([f" B{bound:g}({now},{ever})" for bound, now, ever in self._buckets(name, value, mode)])
        summary = " ".join([f"P{share:g}({now:g},{ever:g})" for share, now, ever in _quantiles(interval, value)])
        if mode == "detailed":
            return f"\n  totals={_detail(value)}\n  intervals={_detail(interval)}\n  summary={summary}"
        return f" {summary}"

    def _buckets(self, name: str, value: HistogramValue, mode: str) -> Iterator[tuple[float, int, int]]:
        """(upper bound, count in the interval, count in all)."""
        interval = self._intervals.of(name)
        last_now = last_ever = 0
        for bound in self._settings.buckets_of(name):
            now, ever = count_up_to(interval[0], bound), count_up_to(value[0], bound)
            if mode == "cumulative":
                yield bound, now, ever
            else:
                yield bound, now - last_now, ever - last_ever
            last_now, last_ever = now, ever

    # ---- JSON

    def json(self, query: StatsQuery) -> Iterator[str]:
        """Envoy's `format=json`."""
        separator = '{"stats":['
        items: list[str] = []
        for name, value in (yield from self._sorted(self._scalars(query), query)):
            items.append(f'{{"name":{json.dumps(name)},"value":{value}}}')
            if len(items) == _NAMES_PER_STEP:
                yield separator + ",".join(items)
                separator = ","
                items.clear()
        if items:
            yield separator + ",".join(items)
            separator = ","
        names = [name for name, _ in (yield from self._sorted(self._totals(query), query))]
        if names:
            yield separator
            separator = ""
            yield from self._json_histograms(names, query.buckets)
        yield ("" if separator in {"", ","} else separator) + "]}"

    def _json_histograms(self, names: list[str], mode: str) -> Iterator[str]:
        bucketed = mode in {"cumulative", "disjoint"}
        if bucketed:
            yield '{"histograms":['
        else:
            quantiles = json.dumps([_number(share) for share in QUANTILES], separators=(",", ":"))
            yield f'{{"histograms":{{"supported_quantiles":{quantiles},"computed_quantiles":['
        for index, name in enumerate(names):
            value = self._snapshot.histograms[name]
            entry = self._json_buckets(name, value, mode) if bucketed else self._json_quantiles(name, value)
            yield ("," if index else "") + json.dumps(entry, separators=(",", ":"))
        yield "]}" if bucketed else "]}}"

    def _json_buckets(self, name: str, value: HistogramValue, mode: str) -> dict[str, Any]:
        buckets = [
            {"upper_bound": _number(bound), "interval": now, "cumulative": ever}
            for bound, now, ever in self._buckets(name, value, mode)
        ]
        return {"name": name, "buckets": buckets}

    def _json_quantiles(self, name: str, value: HistogramValue) -> dict[str, Any]:
        values = [
            {"cumulative": _number(ever), "interval": _number(now)}
            for _, now, ever in _quantiles(self._intervals.of(name), value)
        ]
        return {"name": name, "values": values}

    # ---- Prometheus

    def prometheus(self, query: StatsQuery) -> Iterator[str]:
        """Prometheus' text format 0.0.4, with the tags as labels; samples of one metric stand together."""
        snapshot = self._snapshot
        if query.wants("Counters"):
            yield from self._prometheus_scalars([snapshot.counters], "counter", query)
        if query.wants("Gauges"):
            yield from self._prometheus_scalars([snapshot.gauges, snapshot.levels], "gauge", query)
        yield from self._prometheus_histograms(query)

    def _prometheus_scalars(self, tables: list[dict[str, int]], kind: str, query: StatsQuery) -> Iterator[str]:
        grouping = Grouping(self._settings)
        yield from grouping.take((yield from self._sorted(tables, query, _parts)))
        lines: list[str] = []
        for metric, members in grouping.metrics():
            lines.append(f"# TYPE {metric} {kind}\n")
            for labels, _, value in members:
                lines.append(f"{metric}{{{labels}}} {value}\n")
                if len(lines) >= _NAMES_PER_STEP:
                    yield "".join(lines)
                    lines.clear()
        yield "".join(lines)

    def _prometheus_histograms(self, query: StatsQuery) -> Iterator[str]:
        grouping = Grouping(self._settings)
        values = self._snapshot.histograms
        yield from grouping.take((yield from self._sorted(self._totals(query), query, _parts)))
        for metric, members in grouping.metrics():
            yield f"# TYPE {metric} histogram\n"
            for labels, name, _ in members:
                yield self._prometheus_histogram(metric, name, labels, values[name])

    def _prometheus_histogram(self, metric: str, name: str, tags: str, value: HistogramValue) -> str:
        before = f"{tags}," if tags else ""
        lines = [
            f'{metric}_bucket{{{before}le="{_decimal(bound)}"}} {count_up_to(value[0], bound)}\n'
            for bound in self._settings.buckets_of(name)
        ]
        lines.append(f'{metric}_bucket{{{before}le="+Inf"}} {value[1]}\n')
        lines.append(f"{metric}_sum{{{tags}}} {value[2]}\n{metric}_count{{{tags}}} {value[1]}\n")
        return "".join(lines)

    # ---- which stats

    def _shown(self, name: str, value: int, query: StatsQuery) -> bool:
        if query.used_only and value == 0 and name not in self._snapshot.set_gauges:
            return False
        if query.filter is not None and not query.filter(name):
            return False
        return self._settings.accepts(name)

    def _sorted(
        self, tables: list[dict[str, int]], query: StatsQuery, key: Callable[[Entry], Any] | None = None
    ) -> Generator[str, None, Iterator[Entry]]:
        """What to show of these, by name: sorted run by run, with an empty piece between, and merged as read."""
        runs: list[list[Entry]] = []
        for table in tables:
            entries = iter(table.items())
            while part := list(islice(entries, _NAMES_PER_RUN)):
                run = [entry for entry in part if self._shown(entry[0], entry[1], query)]
                run.sort(key=key)
                runs.append(run)
                yield ""
        return heapq.merge(*map(iter, runs), key=key)  # iterators free their runs one by one

    def _scalars(self, query: StatsQuery) -> list[dict[str, int]]:
        snapshot = self._snapshot
        chosen: list[dict[str, int]] = []
        if query.wants("Counters"):
            chosen.append(snapshot.counters)
        if query.wants("Gauges"):
            chosen += [snapshot.gauges, snapshot.levels]
        return chosen

    def _totals(self, query: StatsQuery) -> list[dict[str, int]]:
        """How much each histogram recorded."""
        wanted = query.wants("Histograms")
        return [{name: value[1] for name, value in self._snapshot.histograms.items()}] if wanted else []


class Grouping:
    """Names by their metric, as Prometheus wants them; both sorted part by part, as Envoy does."""

    def __init__(self, settings: StatsSettings) -> None:
        self._tags = settings.tags
        self._names = settings.prometheus_names
        self._metrics: dict[str, list[tuple[str, str, int]]] = {}

    def take(self, entries: Iterator[Entry]) -> Iterator[str]:
        """Takes sorted entries in; yields empty pieces now and then, since tags of new names take their time."""
        for index, (name, value) in enumerate(entries):
            metric, text = self._names.get(name) or self._new_name(name)
            self._metrics.setdefault(metric, []).append((text, name, value))
            if index % _NAMES_PER_TAGGING == _NAMES_PER_TAGGING - 1:
                yield ""

    def _new_name(self, name: str) -> tuple[str, str]:
        metric, tags = self._tags.extract(name)
        if len(self._names) >= _REMEMBERED_NAMES:
            self._names.clear()
        self._names[name] = metric, labels(tags)
        return self._names[name]

    def metrics(self) -> Iterator[tuple[str, list[tuple[str, str, int]]]]:
        """(metric, its samples as (labels, name, value))."""
        metrics: dict[str, list[tuple[str, str, int]]] = {}
        for name in sorted(self._metrics, key=_name_parts):
            metrics.setdefault(metric_name(name), []).extend(self._metrics.pop(name))
        for metric in list(metrics):
            yield metric, metrics.pop(metric)  # freed when it is written: all at once would hold the loop


def _parts(entry: Entry) -> list[str]:
    return _name_parts(entry[0])


def _name_parts(name: str) -> list[str]:
    return name.split(".")


def metric_name(name: str) -> str:
    """Prometheus' name of a stat without its tags."""
    return "envoy_" + _METRIC_CHARACTERS.sub("_", name)


def labels(tags: tuple[Tag, ...]) -> str:
    """`envoy_cluster_name="v1",…`."""
    return ",".join([f'{_METRIC_CHARACTERS.sub("_", name)}="{value.translate(_ESCAPES)}"' for name, value in tags])


def _quantiles(interval: HistogramValue, ever: HistogramValue) -> list[tuple[float, float, float]]:
    return [
        (share, quantile(interval[0], interval[1], share / 100), quantile(ever[0], ever[1], share / 100))
        for share in QUANTILES
    ]


def _detail(value: HistogramValue) -> str:
    """`lower bound,width:count` of every bucket that is not empty."""
    buckets = [(lower_bound(index), lower_bound(index + 1), value[0][index]) for index in sorted(value[0])]
    return ", ".join([f"{lower},{upper - lower}:{count}" for lower, upper, count in buckets])


def _number(value: float) -> float | int | None:
    """A number as JSON has it: whole ones without a point, null where there is none."""
    if math.isnan(value):
        return None
    return int(value) if value == int(value) else value


def _decimal(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else repr(bound)
