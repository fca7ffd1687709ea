"""Load reports. What is left out, and what counts as dropped, is as in Envoy."""

from __future__ import annotations

from typing import Any

from meshproxy.config.subscription import ENDPOINT_TYPE
from meshproxy.upstream.cluster import Cluster
from tests.upstream.harness import World, cluster_dict, endpoint, run_steps, world


def report(w: World, by_endpoint: bool = False, names: list[str] | None = None) -> list[dict[str, Any]]:
    return run_steps(w.manager.report_loads(names, by_endpoint))


def add_cluster(w: World) -> Cluster:
    fields = cluster_dict(endpoint("10.0.0.1"), endpoint("10.0.0.2"))
    far = {"region": "r", "zone": "z"}
    fields["load_assignment"]["endpoints"] += [
        {"lb_endpoints": [endpoint("10.0.0.3")], "locality": far, "priority": 1},
        {"lb_endpoints": [endpoint("10.0.0.4")], "locality": {"region": "idle"}},
    ]
    return w.add(fields)


def work(cluster: Cluster, index: int, success: int, error: int, active: int) -> None:
    stats = cluster.hosts[index].stats
    stats.rq_success += success
    stats.rq_error += error
    stats.rq_active = active
    stats.rq_total += success + error + active


def numbers(entry: dict[str, Any]) -> tuple[int, ...]:
    """Success, error, active, issued."""
    names = ("successful_requests", "error_requests", "requests_in_progress", "issued_requests")
    return tuple(entry[f"total_{name}"] for name in names)


def loads(w: World) -> list[tuple[Any, ...]]:
    """Locality, priority and numbers of each locality of the cluster."""
    entries = report(w)[0]["upstream_locality_stats"]
    return [(entry["locality"], entry["priority"], *numbers(entry)) for entry in entries]


IDLE: dict[str, Any] = {
    "cluster_name": "c",
    "cluster_service_name": "",
    "total_dropped_requests": 0,
    "dropped_requests": {},
    "upstream_locality_stats": [],
}


async def test_each_report_tells_of_what_came_since_the_last() -> None:
    async with world() as w:
        cluster = add_cluster(w)
        assert report(w) == [IDLE]
        work(cluster, 0, 3, 1, 2)
        work(cluster, 1, 1, 0, 0)
        work(cluster, 2, 5, 0, 0)
        assert loads(w) == [(("", "", ""), 0, 4, 1, 2, 7), (("r", "z", ""), 1, 5, 0, 0, 5)]
        assert loads(w) == [(("", "", ""), 0, 0, 0, 2, 0)]


async def test_a_locality_that_only_finished_something_is_told() -> None:
    async with world() as w:
        add_cluster(w).hosts[0].stats.rq_success += 1
        assert loads(w) == [(("", "", ""), 0, 1, 0, 0, 0)]


async def test_endpoints() -> None:
    async with world() as w:
        cluster = add_cluster(w)
        work(cluster, 1, 2, 0, 0)
        work(cluster, 2, 0, 1, 0)
        localities = report(w, by_endpoint=True)[0]["upstream_locality_stats"]
        endpoints = [entry for one in localities for entry in one["upstream_endpoint_stats"]]
        assert [(entry["address"], *numbers(entry)) for entry in endpoints] == [
            (("10.0.0.2", 80), 2, 0, 0, 2),
            (("10.0.0.3", 80), 0, 1, 0, 1),
        ]


async def test_dropped_requests() -> None:
    async with world() as w:
        cluster = add_cluster(w)
        cluster.config.drop_category = "throttle"
        cluster.dropped = 5
        cluster.dropped_by_policy = 2
        assert report(w) == [{**IDLE, "total_dropped_requests": 5, "dropped_requests": {"throttle": 2}}]
        assert report(w) == [IDLE]


async def test_the_name_of_the_service() -> None:
    async with world() as w:
        source = {"eds_config": {"ads": {}}, "service_name": "s"}
        w.start({"name": "c", "type": "EDS", "eds_cluster_config": source})
        w.subscriptions.miss(ENDPOINT_TYPE, "s")
        assert report(w) == [{**IDLE, "cluster_service_name": "s"}]


async def test_only_those_who_are_asked_for() -> None:
    async with world() as w:
        add_cluster(w)
        w.add(cluster_dict(endpoint("10.0.0.9"), name="d"))
        assert [one["cluster_name"] for one in report(w, names=["d", "unknown"])] == ["d"]
        assert [one["cluster_name"] for one in report(w)] == ["c", "d"]
