"""Where a request counts besides its cluster."""

from __future__ import annotations

from typing import Any

import pytest

from meshproxy.http.request_counts import RequestCounts, request_counts
from meshproxy.net.address import Address
from meshproxy.observe.stream_info import ConnectionInfo, StreamInfo
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.config import ClusterConfig, EndpointConfig
from meshproxy.upstream.host import Host
from tests.http.harness import Harness
from tests.route.support import build, new_headers

ROUTES = """
name: r
virtual_hosts:
- name: v
  domains: [v]
  virtual_clusters: [{name: posts, headers: [{name: ":method", string_match: {exact: POST}}]}]
  routes: [{match: {prefix: /}, route: {cluster: c}, stat_prefix: s}]
- {name: plain, domains: [plain], routes: [{match: {prefix: /}, route: {cluster: c}}]}
"""


class Counting:
    """A cluster with a host, and routes."""

    def __init__(self) -> None:
        self.harness = made = Harness()
        self.cluster = Cluster(ClusterConfig("c"), made.dispatcher, made.registry, made.runtime, lambda bits: 0, None)
        self.cluster.set_endpoints([EndpointConfig(Address("127.0.0.1", 1), "", "")])
        self.host: Host = self.cluster.hosts[0]
        self.table = build(ROUTES, made.context)

    def counts(
        self, authority: str = "v", method: str = "GET", *, dynamic: bool = True, alt: bytes | None = None
    ) -> tuple[RequestCounts | None, str]:
        """The counts of a request, and the name of its virtual cluster."""
        headers = new_headers("/", authority, method)
        info = StreamInfo(ConnectionInfo(1, self.host.address, self.host.address), 0.0)
        route = self.table.match(headers, info, 0)
        assert route is not None
        return request_counts(route, self.cluster, dynamic, headers, info, alt), info.virtual_cluster_name

    def nonzero(self) -> dict[str, int]:
        counters = self.harness.registry.snapshot().counters
        return {name: value for name, value in counters.items() if value and "upstream_rq" in name}


def whole_request(counts: RequestCounts, host: Host) -> None:
    """An attempt that is answered 503, and another that succeeds."""
    counts.on_attempt()
    counts.on_retry()
    counts.on_attempt()
    counts.on_retry_success()
    counts.on_response_headers(200, host, False, False)
    counts.on_response_complete(7, False, False)


def names(prefix: str, *, external: bool = False) -> dict[str, int]:
    """The counters of one response 200."""
    groups = ["", "external."] if external else [""]
    return {f"{prefix}{group}upstream_rq_{name}": 1 for group in groups for name in ("200", "2xx", "completed")}


def attempts(prefix: str) -> dict[str, int]:
    return {
        f"{prefix}upstream_rq_total": 2,
        f"{prefix}upstream_rq_retry": 1,
        f"{prefix}upstream_rq_retry_success": 1,
    }


@pytest.mark.parametrize(("method", "name", "shown"), [("POST", "posts", "posts"), ("GET", "", "other")])
def test_in_its_route_and_its_virtual_cluster(method: str, name: str, shown: str) -> None:
    made = Counting()
    counts, virtual_cluster = made.counts(method=method)
    assert counts is not None
    assert virtual_cluster == name
    whole_request(counts, made.host)
    route, cluster = "vhost.v.route.s.", f"vhost.v.vcluster.{shown}."
    expected = names("cluster.c.", external=True) | names(route) | names(cluster) | attempts(route) | attempts(cluster)
    assert made.nonzero() == expected
    histograms = made.harness.registry.snapshot().histograms
    assert [histograms[f"{prefix}upstream_rq_time"][1] for prefix in ("cluster.c.", route, cluster)] == [1, 1, 1]


def test_in_its_cluster_alone() -> None:
    assert Counting().counts("plain") == (None, "")


def test_where_it_asks_for_itself() -> None:
    made = Counting()
    counts, _ = made.counts("plain", alt=b"other.tree")
    assert counts is not None
    whole_request(counts, made.host)
    tree = "cluster.c.other.tree."
    assert made.nonzero() == names("cluster.c.", external=True) | names(tree, external=True)
    made.cluster.retire()
    assert not any(name.startswith("cluster.c.") for name in made.harness.registry.snapshot().counters)


def test_without_dynamic_stats_only_attempts_count() -> None:
    made = Counting()
    counts, _ = made.counts(dynamic=False, alt=b"tree")
    assert counts is not None
    whole_request(counts, made.host)
    counts.count_local_response(504, made.host, False)
    counts.on_timeout()
    expected: dict[str, Any] = attempts("vhost.v.route.s.") | attempts("vhost.v.vcluster.other.")
    expected |= {"vhost.v.route.s.upstream_rq_timeout": 1, "vhost.v.vcluster.other.upstream_rq_timeout": 1}
    assert made.nonzero() == expected
    assert (made.host.stats.rq_success, made.host.stats.rq_error) == (1, 0)


def test_a_quiet_response_counts_by_its_code_where_it_came_from_only() -> None:
    made = Counting()
    made.cluster.on_response_headers(503, made.host, False, False, quiet=True)
    made.cluster.count_retried_response(503, made.host, quiet=True)
    assert made.nonzero() == {
        "cluster.c.upstream_rq_completed": 1,
        "cluster.c.retry.upstream_rq_completed": 1,
        **{f"cluster.c.external.upstream_rq_{name}": 1 for name in ("503", "5xx", "completed")},
    }
