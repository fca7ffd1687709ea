"""Statistics that cost one attribute write on the way, and everything else at a scrape.

A `StatsScope` is a plain object whose int attributes are counters and gauges; the registry knows under which prefix it
stands. Whoever counts holds the scope and writes `scope.rq_total += 1`; names are put together only when someone looks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, TypeVar

from mypy_extensions import mypyc_attr

from meshproxy.observe.histogram import Histogram
from meshproxy.observe.snapshot import Snapshot, merge

S = TypeVar("S", bound="StatsScope")


@mypyc_attr(allow_interpreted_subclasses=True)
class StatsScope:
    """Base of every group of stats. Subclasses name their attributes and set all of them to 0 in `__init__`.

    `COUNTERS` and `GAUGES` are int attributes, `HISTOGRAMS` are `Histogram`s. `dynamic` takes counters whose names come
    from traffic of a bounded variety (`upstream_rq_200`, a fault's header …). An attribute `rq_2xx` appears as
    `<prefix>rq_2xx`; `ALIASES` maps an attribute to its Envoy name where that is no identifier (`rbac.allowed`).
    """

    COUNTERS: ClassVar[tuple[str, ...]] = ()
    GAUGES: ClassVar[tuple[str, ...]] = ()
    # Gauges that every worker has alike (membership_total, version …): not summed over the workers.
    LEVELS: ClassVar[tuple[str, ...]] = ()
    HISTOGRAMS: ClassVar[tuple[str, ...]] = ()
    ALIASES: ClassVar[dict[str, str]] = {}
    # Envoy's `usedonly` shows a gauge once it has been set, if only to 0: these are set when they are made,
    SET_AT_START: ClassVar[tuple[str, ...]] = ()
    # and all GAUGES are once one of these counters counts.
    SET_WITH: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.dynamic: dict[str, int] = {}

    def refresh(self) -> None:
        """Called before the scope is read or reset: what is kept elsewhere, or cheaper, goes into attributes."""

    def count(self, name: str) -> None:
        """Add one to a dynamic counter."""
        dynamic = self.dynamic
        dynamic[name] = dynamic.get(name, 0) + 1


def stat_part(name: str) -> str:
    """A name from a configuration as a part of a stat's, as Envoy writes it: colons would separate."""
    return name.replace(":", "_").replace("\0", "_")


def response_names(status: int) -> list[str]:
    """Under which names a response counts besides `completed`: its class and its code, or as unknown."""
    return [f"{status // 100}xx", str(status)] if status < 600 else ["unknown"]


class StatsRegistry:
    """Every scope of one process, by prefix (`http.ingress.`, `cluster.v1.` …)."""

    def __init__(self) -> None:
        self._scopes: dict[tuple[str, type[StatsScope]], tuple[StatsScope, int]] = {}

    def acquire(self, prefix: str, kind: type[S]) -> S:
        """The scope of `kind` under `prefix`: made at the first call, shared (and counted) afterwards, so that a
        listener that is replaced goes on counting where the old one stood."""
        held = self._scopes.get((prefix, kind))
        if held is None:
            scope = kind()
            self._scopes[(prefix, kind)] = (scope, 1)
            return scope
        found = held[0]
        assert isinstance(found, kind)
        self._scopes[(prefix, kind)] = (found, held[1] + 1)
        return found

    def release(self, prefix: str, kind: type[StatsScope]) -> None:
        """Give back what `acquire` gave; at the last one the stats disappear."""
        held = self._scopes.get((prefix, kind))
        if held is None:
            return
        if held[1] == 1:
            del self._scopes[(prefix, kind)]
        else:
            self._scopes[(prefix, kind)] = (held[0], held[1] - 1)

    def scopes(self) -> list[tuple[str, StatsScope]]:
        """(prefix, scope) of everything there is."""
        return [(key[0], held[0]) for key, held in self._scopes.items()]

    def snapshot(self) -> Snapshot:
        """All stats of this process, in one go."""
        return merge(self.collect())

    def collect(self, without: tuple[str, ...] = (), scopes_per_part: int = 16) -> Iterator[Snapshot]:
        """As `snapshot`, in parts that take a millisecond each: the caller lets other work in between.

        `without` are the prefixes of scopes to pass over.
        """
        part, scopes_read = Snapshot(), 0
        for prefix, scope in self.scopes():
            if prefix not in without:
                _read_scope(prefix, scope, part)
                scopes_read += 1
            if scopes_read == scopes_per_part:
                yield part
                part, scopes_read = Snapshot(), 0
        yield part

    def collect_histograms(self) -> Iterator[Snapshot]:
        """The histograms alone, of those that recorded something, in smaller parts."""
        for prefix, scope in self.scopes():
            part = Snapshot()
            for name in scope.HISTOGRAMS:
                if getattr(scope, name).total:
                    _read_histogram(prefix, scope, name, part)
            yield part

    def reset_counters(self) -> None:
        """Set every counter to 0; gauges and histograms stay (Envoy's `/reset_counters`)."""
        for _, scope in self.scopes():
            scope.refresh()
            for name in scope.COUNTERS:
                setattr(scope, name, 0)
            for name in scope.dynamic:
                scope.dynamic[name] = 0


def _read_scope(prefix: str, scope: StatsScope, into: Snapshot) -> None:
    """Two scopes may stand under one name (clusters that share an alt_stat_name): they add up."""
    scope.refresh()
    aliases = scope.ALIASES
    counters = into.counters
    for name in scope.COUNTERS:
        full = prefix + aliases.get(name, name)
        counters[full] = counters.get(full, 0) + int(getattr(scope, name))
    for name, count in scope.dynamic.items():
        full = prefix + name
        counters[full] = counters.get(full, 0) + count
    at_start = scope.SET_AT_START
    all_set = any(getattr(scope, name) for name in scope.SET_WITH)
    for name in scope.GAUGES:
        full = prefix + aliases.get(name, name)
        into.gauges[full] = into.gauges.get(full, 0) + int(getattr(scope, name))
        if all_set or name in at_start:
            into.set_gauges.add(full)
    for name in scope.LEVELS:
        full = prefix + aliases.get(name, name)
        into.levels[full] = int(getattr(scope, name))
        if name in at_start:
            into.set_gauges.add(full)
    for name in scope.HISTOGRAMS:
        _read_histogram(prefix, scope, name, into)


def _read_histogram(prefix: str, scope: StatsScope, name: str, into: Snapshot) -> None:
    histogram = getattr(scope, name)
    assert isinstance(histogram, Histogram)
    counts = {index: count for index, count in enumerate(histogram.counts) if count} if histogram.total else {}
    into.add_histogram(prefix + scope.ALIASES.get(name, name), (counts, histogram.total, histogram.sum))


__all__ = ["Histogram", "StatsRegistry", "StatsScope", "response_names", "stat_part"]
