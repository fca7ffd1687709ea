"""`/stats` and `/stats/prometheus`: the formats are what Envoy 1.40 writes, and what Prometheus reads."""

from __future__ import annotations

import json
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from meshproxy.errors import ConfigError
from meshproxy.observe.export import Intervals, StatsExporter, metric_name, parse_query
from meshproxy.observe.histogram import Histogram
from meshproxy.observe.snapshot import Snapshot
from meshproxy.observe.stats_config import StatsSettings
from tests.support.proxy import ENVOY_ARGUMENTS, ProxyProcess, envoy_binary


def _histogram(*values: int) -> tuple[dict[int, int], int, int]:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return {index: count for index, count in enumerate(histogram.counts) if count}, histogram.total, histogram.sum


def _snapshot() -> Snapshot:
    snapshot = Snapshot()
    snapshot.counters = {"cluster.b.upstream_rq_200": 3, "cluster.a.upstream_rq_200": 0, "http.in.rq_total": 7}
    snapshot.gauges = {"cluster.a.upstream_rq_active": 2}
    snapshot.levels = {"server.live": 1}
    snapshot.histograms = {"http.in.downstream_rq_time": _histogram(0, 1, 6, 6), "http.in.empty": _histogram()}
    return snapshot


def _text(**parameters: str) -> str:
    return "".join(StatsExporter(_snapshot(), StatsSettings()).text(parse_query(parameters)))


def _json(**parameters: str) -> list[dict[str, object]]:
    whole = "".join(StatsExporter(_snapshot(), StatsSettings()).json(parse_query(parameters)))
    stats: list[dict[str, object]] = json.loads(whole)["stats"]
    return stats


def _prometheus(snapshot: Snapshot, **parameters: str) -> str:
    return "".join(StatsExporter(snapshot, StatsSettings()).prometheus(parse_query(parameters)))


def test_text() -> None:
    assert _text() == (
        "cluster.a.upstream_rq_200: 0\n"
        "cluster.a.upstream_rq_active: 2\n"
        "cluster.b.upstream_rq_200: 3\n"
        "http.in.rq_total: 7\n"
        "server.live: 1\n"
        "http.in.downstream_rq_time: P0(nan,0) P25(nan,0) P50(nan,1) P75(nan,6) P90(nan,6) P95(nan,6) P99(nan,6) "
        "P99.5(nan,6) P99.9(nan,6) P100(nan,6)\n"
        "http.in.empty: No recorded values\n"
    )


def test_text_with_filters() -> None:
    assert _text(usedonly="", type="Counters") == "cluster.b.upstream_rq_200: 3\nhttp.in.rq_total: 7\n"
    assert _text(filter="^cluster.*active") == "cluster.a.upstream_rq_active: 2\n"
    assert _text(type="TextReadouts") == ""


def test_usedonly_shows_gauges_that_were_set_to_0() -> None:
    snapshot = _snapshot()
    snapshot.gauges |= {"server.state": 0, "cluster.a.upstream_cx_active": 0}
    snapshot.set_gauges = {"server.state"}
    query = parse_query({"usedonly": "", "type": "Gauges"})
    exporter = StatsExporter(snapshot, StatsSettings())
    shown = "cluster.a.upstream_rq_active: 2\nserver.live: 1\nserver.state: 0\n"
    assert "".join(exporter.text(query)) == shown
    assert "envoy_server_state{} 0\n" in "".join(exporter.prometheus(query))


def test_text_buckets() -> None:
    cumulative = _text(type="Histograms", usedonly="", histogram_buckets="cumulative")
    assert cumulative.startswith("http.in.downstream_rq_time: B0.5(0,1) B1(0,2) B5(0,2) B10(0,4) B25(0,4) ")
    assert cumulative.endswith(" B600000(0,4) B1.8e+06(0,4) B3.6e+06(0,4)\n")
    disjoint = _text(type="Histograms", usedonly="", histogram_buckets="disjoint")
    assert disjoint.startswith("http.in.downstream_rq_time: B0.5(0,1) B1(0,1) B5(0,0) B10(0,2) B25(0,0) ")
    detailed = _text(type="Histograms", usedonly="", histogram_buckets="detailed")
    assert detailed.startswith("http.in.downstream_rq_time:\n  totals=0,1:1, 1,1:1, 6,1:2\n  intervals=\n  summary=P0(")


def test_intervals_are_what_came_since_the_last_flush() -> None:
    intervals = Intervals()
    before, after = Snapshot(), Snapshot()
    before.histograms = {"h": _histogram(5)}
    after.histograms = {"h": _histogram(5, 2, 2)}
    intervals.flush(before)
    intervals.flush(after)
    text = "".join(StatsExporter(after, StatsSettings(), intervals).text(parse_query({})))
    assert text.startswith("h: P0(2,2) P25(2,2) P50(2,2) P75(2,5) ")


def test_json() -> None:
    stats = _json()
    assert stats[0] == {"name": "cluster.a.upstream_rq_200", "value": 0}
    assert stats[4] == {"name": "server.live", "value": 1}
    assert stats[5]["histograms"] == {
        "supported_quantiles": [0, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 100],
        "computed_quantiles": [
            {
                "name": "http.in.downstream_rq_time",
                "values": [{"cumulative": value, "interval": None} for value in (0, 0, 1, 6, 6, 6, 6, 6, 6, 6)],
            },
            {"name": "http.in.empty", "values": [{"cumulative": None, "interval": None}] * 10},
        ],
    }


@pytest.mark.parametrize("filter_text", ["rq_total", "nothing_at_all"])
def test_json_without_histograms(filter_text: str) -> None:
    expected = [{"name": "http.in.rq_total", "value": 7}] if filter_text == "rq_total" else []
    assert _json(filter=filter_text) == expected


def test_json_buckets() -> None:
    stats = _json(type="Histograms", usedonly="", histogram_buckets="disjoint")
    histograms = stats[0]["histograms"]
    assert isinstance(histograms, list)
    assert histograms[0]["name"] == "http.in.downstream_rq_time"
    assert histograms[0]["buckets"][:3] == [
        {"upper_bound": 0.5, "interval": 0, "cumulative": 1},
        {"upper_bound": 1, "interval": 0, "cumulative": 1},
        {"upper_bound": 5, "interval": 0, "cumulative": 0},
    ]


@pytest.mark.parametrize(
    ("parameters", "answer"),
    [
        ({"type": "Foo"}, "invalid &type= param"),
        ({"filter": "("}, "Invalid re2 regex: missing ): ("),
        ({"histogram_buckets": "foo"}, "usage: /stats?histogram_buckets="),
    ],
)
def test_bad_queries(parameters: dict[str, str], answer: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_query(parameters)
    assert str(caught.value).startswith(answer)


def test_prometheus_is_read_by_prometheus() -> None:
    families = {family.name: family for family in text_string_to_metric_families(_prometheus(_snapshot()))}
    requests = families["envoy_cluster_upstream_rq"]
    assert requests.type == "counter"
    assert [(sample.labels, sample.value) for sample in requests.samples] == [
        ({"envoy_response_code": "200", "envoy_cluster_name": "a"}, 0),
        ({"envoy_response_code": "200", "envoy_cluster_name": "b"}, 3),
    ]
    assert families["envoy_server_live"].type == "gauge"
    times = families["envoy_http_downstream_rq_time"]
    buckets = [(sample.labels["le"], sample.value) for sample in times.samples if sample.name.endswith("_bucket")]
    assert buckets[:4] == [("0.5", 1), ("1", 2), ("5", 2), ("10", 4)]
    assert buckets[-2:] == [("3600000", 4), ("+Inf", 4)]
    assert [sample.value for sample in times.samples[-2:]] == [13, 4]


def test_prometheus_escapes_labels() -> None:
    snapshot = Snapshot()
    name = 'a"b\\c\nd'
    snapshot.counters = {f"cluster.{name}.x": 1}
    families = list(text_string_to_metric_families(_prometheus(snapshot)))
    assert families[0].samples[0].labels == {"envoy_cluster_name": name}


def test_big_tables_come_in_small_pieces() -> None:
    snapshot = Snapshot()
    snapshot.counters = {f"cluster.c{number}.rq_{kind}": 1 for number in range(500) for kind in range(10)}
    exporter = StatsExporter(snapshot, StatsSettings())
    query = parse_query({})
    for pieces in (exporter.text(query), exporter.json(query), exporter.prometheus(query)):
        assert max(piece.count("rq_") for piece in pieces) <= 200


_CONFIG = """
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
static_resources:
  listeners:
  - name: l
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          http_filters:
          - name: router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            virtual_hosts:
            - {name: v, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: a.b}}],
               virtual_clusters: [{name: vc, headers: [{name: ":path", string_match: {prefix: /}}]}]}
  clusters:
  - {name: a.b, type: STATIC, connect_timeout: 1s, outlier_detection: {}, track_cluster_stats: {timeout_budgets: true}}
  - {name: plain, type: STATIC, connect_timeout: 1s, circuit_breakers: {thresholds: [{track_remaining: true}]}}
"""


def test_envoys_own_stats_come_out_as_envoy_writes_them() -> None:
    """Envoy's `/stats`, read back and exported here, is line by line its `/stats/prometheus`."""
    with ProxyProcess([envoy_binary(), *ENVOY_ARGUMENTS], _CONFIG) as envoy:
        plain, expected = envoy.admin("/stats")[1], envoy.admin("/stats/prometheus")[1]
    types = dict(line.split()[2:] for line in expected.splitlines() if line.startswith("# TYPE"))
    snapshot, settings = Snapshot(), StatsSettings()
    for line in plain.splitlines():
        name, value = line.split(": ", 1)
        if not value.isdigit():
            snapshot.histograms[name] = ({}, 0, 0)
        elif types[metric_name(settings.tags.extract(name)[0])] == "gauge":
            snapshot.gauges[name] = int(value)
        else:
            snapshot.counters[name] = int(value)
    ours = _prometheus(snapshot).splitlines()
    assert _without_changing(ours) == _without_changing(expected.splitlines())
    assert len(ours) > 500


def _without_changing(lines: list[str]) -> list[str]:
    """Without the values of what asking the admin, and time, changes."""
    return [re.sub(r" \S+$", "", line) if re.search("server_|admin|overload", line) else line for line in lines]
