"""The counters of codecs, as stats."""

from __future__ import annotations

from meshproxy.codec.http2.stats import Http2Stats
from meshproxy.observe.http2_stats import Http2Scope
from meshproxy.observe.stats import StatsRegistry


def test_what_codecs_count_is_seen() -> None:
    registry = StatsRegistry()
    counts = registry.acquire("cluster.c.http2.", Http2Scope).counts
    counts.rx_reset += 2
    counts.streams_active += 3
    for _ in range(2):
        snapshot = registry.snapshot()
        assert snapshot.counters["cluster.c.http2.rx_reset"] == 2
        assert snapshot.gauges["cluster.c.http2.streams_active"] == 3
    counts.rx_reset += 1
    assert registry.snapshot().counters["cluster.c.http2.rx_reset"] == 3


def test_counters_begin_anew_and_gauges_do_not() -> None:
    registry = StatsRegistry()
    counts = registry.acquire("http2.", Http2Scope).counts
    counts.tx_reset += 2
    counts.streams_active += 1
    registry.reset_counters()
    counts.tx_reset += 1
    snapshot = registry.snapshot()
    assert snapshot.counters["http2.tx_reset"] == 1
    assert snapshot.gauges["http2.streams_active"] == 1


def test_nothing_is_counted_that_nobody_sees() -> None:
    assert {*Http2Scope.COUNTERS, *Http2Scope.GAUGES} == {name for name in dir(Http2Stats()) if name[0] != "_"}
