"""Tags: the metric and labels that Envoy 1.40 gives the same stat."""

from __future__ import annotations

import pytest
from envoy.config.metrics.v3 import stats_pb2
from google.protobuf import json_format

from meshproxy.errors import ConfigError
from meshproxy.observe.stats_config import DEFAULT_BUCKETS, StatsSettings, build_stats_settings
from meshproxy.observe.tags import TagExtractor


@pytest.mark.parametrize(
    ("name", "metric", "tags"),
    [
        ("cluster.v1.upstream_rq_total", "cluster.upstream_rq_total", {"cluster_name": "v1"}),
        ("cluster.c.x.upstream_rq_total", "cluster.x.upstream_rq_total", {"cluster_name": "c"}),
        ("cluster.v1.upstream_rq_200", "cluster.upstream_rq", {"response_code": "200", "cluster_name": "v1"}),
        ("cluster.v1.external.upstream_rq_5xx", "cluster.external.upstream_rq_xx",
         {"response_code_class": "5", "cluster_name": "v1"}),
        ("cluster.v1.circuit_breakers.default.cx_open", "cluster.circuit_breakers.default.cx_open",
         {"cluster_name": "v1"}),
        ("http.in.downstream_rq_2xx", "http.downstream_rq_xx",
         {"response_code_class": "2", "http_conn_manager_prefix": "in"}),
        ("http.in.user_agent.ios.downstream_rq_total", "http.user_agent.downstream_rq_total",
         {"http_user_agent": "ios", "http_conn_manager_prefix": "in"}),
        ("http.in.fault.cart.aborts_injected", "http.fault.aborts_injected",
         {"fault_downstream_cluster": "cart", "http_conn_manager_prefix": "in"}),
        ("http.in.rds.a/b.c.config_reload", "http.rds.config_reload",
         {"http_conn_manager_prefix": "in", "rds_route_config": "a/b.c"}),
        ("http.in.rbac.allowed", "http.rbac.allowed", {"http_conn_manager_prefix": "in"}),
        ("vhost.vh.vcluster.vc.upstream_rq_time", "vhost.vcluster.upstream_rq_time",
         {"virtual_cluster": "vc", "virtual_host": "vh"}),
        ("listener.127.0.0.1_80.downstream_cx_total", "listener.downstream_cx_total",
         {"listener_address": "127.0.0.1_80"}),
        ("listener.[__1]_80.downstream_cx_total", "listener.downstream_cx_total", {"listener_address": "[__1]_80"}),
        ("listener.127.0.0.1_80.worker_3.downstream_cx_active", "listener.worker_downstream_cx_active",
         {"worker_id": "3", "listener_address": "127.0.0.1_80"}),
        ("listener.0.0.0.0_80.http.in.downstream_rq_completed", "listener.http.downstream_rq_completed",
         {"http_conn_manager_prefix": "in", "listener_address": "0.0.0.0_80"}),
        ("listener.admin.http.admin.downstream_rq_2xx", "listener.admin.http.downstream_rq_xx",
         {"response_code_class": "2", "http_conn_manager_prefix": "admin"}),
        ("tcp.in.downstream_cx_total", "tcp.downstream_cx_total", {"tcp_prefix": "in"}),
        ("server.live", "server.live", {}),
        ("cluster_manager.cluster_added", "cluster_manager.cluster_added", {}),
    ],
)  # fmt: skip
def test_default_tags(name: str, metric: str, tags: dict[str, str]) -> None:
    expected = (metric, tuple((f"envoy.{tag}", value) for tag, value in tags.items()))
    extractor = TagExtractor()
    assert extractor.extract(name) == expected
    assert extractor.extract(name) == expected  # remembered


def _settings(config: dict[str, object]) -> tuple[StatsSettings, list[ConfigError]]:
    errors: list[ConfigError] = []
    message = json_format.ParseDict(config, stats_pb2.StatsConfig())
    return build_stats_settings(message, "stats_config", errors), errors


def test_custom_tags_join_the_default_ones() -> None:
    settings, errors = _settings(
        {
            "stats_tags": [
                {"tag_name": "zone", "fixed_value": "a"},
                {"tag_name": "version", "regex": r"^cluster\.((v\d)\.)"},
            ]
        }
    )
    assert errors == []
    metric, tags = settings.tags.extract("cluster.v1.upstream_rq_200")
    assert metric == "cluster.upstream_rq"
    assert set(tags) == {
        ("zone", "a"),
        ("version", "v1"),
        ("envoy.cluster_name", "v1"),
        ("envoy.response_code", "200"),
    }


def test_default_tags_can_be_chosen() -> None:
    config = {"use_all_default_tags": False, "stats_tags": [{"tag_name": "envoy.response_code"}]}
    settings, errors = _settings(config)
    assert errors == []
    assert settings.tags.extract("cluster.v1.upstream_rq_200") == (
        "cluster.v1.upstream_rq",
        (("envoy.response_code", "200"),),
    )


def test_matchers() -> None:
    exclusive, _ = _settings({"stats_matcher": {"exclusion_list": {"patterns": [{"prefix": "http."}]}}})
    assert not exclusive.accepts("http.in.x")
    assert exclusive.accepts("cluster.x")
    inclusive, _ = _settings(
        {"stats_matcher": {"inclusion_list": {"patterns": [{"safe_regex": {"regex": ".*_rq_.*"}}, {"exact": "a.B"}]}}}
    )
    assert inclusive.accepts("cluster.upstream_rq_total")
    assert inclusive.accepts("a.B")
    assert not inclusive.accepts("a.b")
    assert not inclusive.accepts("upstream_rq")
    nothing, _ = _settings({"stats_matcher": {"reject_all": True}})
    assert not nothing.accepts("cluster.x")
    everything, _ = _settings({"stats_matcher": {"reject_all": False}})
    assert everything.accepts("cluster.x")


def test_histogram_buckets() -> None:
    settings, errors = _settings({"histogram_bucket_settings": [{"match": {"prefix": "a."}, "buckets": [1, 5, 10]}]})
    assert errors == []
    assert settings.buckets_of("a.b") == (1, 5, 10)
    assert settings.buckets_of("b") == DEFAULT_BUCKETS


def test_every_error_has_its_path() -> None:
    _, errors = _settings(
        {
            "stats_tags": [{"tag_name": "a", "regex": "("}, {"tag_name": "b"}, {"tag_name": "c", "regex": "x"}],
            "stats_matcher": {"inclusion_list": {"patterns": [{"safe_regex": {"regex": "["}}]}},
            "histogram_bucket_settings": [{"match": {"prefix": "a"}}],
        }
    )
    assert [error.path for error in errors] == [
        "stats_config.stats_tags[0].regex",
        "stats_config.stats_tags[1]",
        "stats_config.stats_tags[2].regex",
        "stats_config.stats_matcher.inclusion_list.patterns[0].safe_regex",
        "stats_config.histogram_bucket_settings[0].buckets",
    ]
