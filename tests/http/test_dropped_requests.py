"""Requests that a cluster does not get, and load reports tell of."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from google.protobuf import json_format

from meshproxy.upstream.build import build_cluster
from tests.http.discovery import Discovered
from tests.http.harness import get
from tests.upstream.harness import run_steps

TO_C = [{"name": "v", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "c"}}]}]
HOST = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 9}}}}
DROP = {"drop_overloads": [{"category": "throttle", "drop_percentage": {"numerator": 100}}]}
NO_REQUESTS = {"circuit_breakers": {"thresholds": [{"max_pending_requests": 0}]}}


@pytest.mark.parametrize(
    ("policy", "fields", "header", "by_category"),
    [(DROP, {}, b"x-envoy-unconditional-drop-overload", {"throttle": 2}), ({}, NO_REQUESTS, b"x-envoy-overloaded", {})],
    ids=["policy", "overflow"],
)
def test_they_are_counted(
    policy: dict[str, Any], fields: dict[str, Any], header: bytes, by_category: dict[str, int]
) -> None:
    proxy = Discovered()
    assignment = {"cluster_name": "c", "endpoints": [{"lb_endpoints": [HOST]}], "policy": policy}
    message = json_format.ParseDict({"name": "c", "load_assignment": assignment, **fields}, Cluster())
    config = build_cluster(message, "", proxy.new_context())
    assert config is not None
    proxy.clusters.add_or_update(config)
    proxy.harness.clusters = proxy.clusters
    built, _ = proxy.build(route_config={"name": "routes", "virtual_hosts": TO_C})
    for _ in range(2):
        assert header in proxy.harness.connect(built.config).send(get())
    (report,) = run_steps(proxy.clusters.report_loads(["c"], False))
    assert (report["total_dropped_requests"], report["dropped_requests"]) == (2, by_category)
