"""Load reports to a server by grpcio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from envoy.config.endpoint.v3.load_report_pb2 import ClusterStats
from google.protobuf.json_format import MessageToDict

from meshproxy.clock import monotonic, move_ahead
from meshproxy.xds.load_reports import LoadReporter, LoadSource
from tests.rpc.harness import http2_cluster, services
from tests.support.load_report_server import LoadReportServer
from tests.upstream.harness import DEADLINE_S, World, turns, until, world
from tests.xds.harness import NODE, api


class Numbers(LoadSource):
    """What workers have counted: each list is given once."""

    def __init__(self) -> None:
        self.counted: list[dict[str, Any]] = []
        self.asked: list[bool] = []

    async def collect(self, names: list[str] | None, by_endpoint: bool) -> list[dict[str, Any]]:
        self.asked.append(by_endpoint)
        await turns(2)
        counted, self.counted = self.counted, []
        there = [cluster("a"), cluster("b"), *counted]
        return [each for each in there if names is None or each["cluster_name"] in names]


@asynccontextmanager
async def reporting() -> AsyncIterator[tuple[World, LoadReportServer, Numbers]]:
    numbers = Numbers()
    async with LoadReportServer.start() as handler, world() as w, asyncio.timeout(2 * DEADLINE_S):
        w.add(http2_cluster(handler.port))
        reporter = LoadReporter(services(w), NODE, api(), w.registry, numbers)
        reporter.start()
        await until(lambda: len(handler.requests) == 1)
        yield w, handler, numbers
        await reporter.close()


def cluster(name: str, *localities: dict[str, Any], dropped: int = 0, **fields: Any) -> dict[str, Any]:
    """As `report_load` makes it."""
    made = {"cluster_name": name, "cluster_service_name": "", "total_dropped_requests": dropped, "dropped_requests": {}}
    return {**made, "upstream_locality_stats": list(localities), **fields}


def locality(zone: str, success: int, active: int = 0, priority: int = 0, **fields: Any) -> dict[str, Any]:
    counts = {"total_successful_requests": success, "total_issued_requests": success + active}
    counts.update(total_error_requests=0, total_requests_in_progress=active)
    return {"locality": ("r", zone, ""), "priority": priority, **counts, **fields}


async def next_report(w: World, server: LoadReportServer, seconds: float = 10) -> dict[str, Any]:
    """Let the interval pass, and return what is reported of each cluster."""
    count = len(server.requests)
    await turns(20)
    for _ in range(4):
        move_ahead(seconds / 4 + 0.01)
        w.dispatcher.timers.advance(int(monotonic() * 1000))
    await until(lambda: len(server.requests) > count)
    return {each.cluster_name: as_dict(each) for each in server.requests[-1].cluster_stats}


def as_dict(stats: ClusterStats) -> dict[str, Any]:
    made = MessageToDict(stats, preserving_proto_field_name=True)
    del made["cluster_name"]
    interval = made.pop("load_report_interval")
    return {**made, "interval_s": int(float(interval.rstrip("s")))}


async def test_the_first_request_says_who_we_are() -> None:
    async with reporting() as (_, server, _numbers):
        (request,) = server.requests
        assert request.node.id == NODE.id
        assert list(request.node.client_features) == ["envoy.lrs.supports_send_all_clusters"]
        assert not request.cluster_stats


async def test_the_clusters_that_are_asked_for_are_reported_by_locality() -> None:
    async with reporting() as (w, server, numbers):
        numbers.counted = [cluster("a", locality("z", 99))]  # before anybody asked
        server.ask("a", "none")
        await until(lambda: numbers.asked)
        await turns(20)
        numbers.counted = [
            cluster("a", locality("z", 2, 1), locality("y", 0), cluster_service_name="s"),
            cluster("a", locality("z", 3, 1), locality("z", 1, priority=1), dropped=2),
            cluster("a", dropped_requests={"overload": 2}),
            cluster("b", locality("z", 5)),
        ]
        assert await next_report(w, server) == {
            "a": {
                "cluster_service_name": "s",
                "interval_s": 10,
                "total_dropped_requests": "2",
                "dropped_requests": [{"category": "overload", "dropped_count": "2"}],
                "upstream_locality_stats": [
                    {
                        "locality": {"region": "r", "zone": "z"},
                        "total_successful_requests": "5",
                        "total_requests_in_progress": "2",
                        "total_issued_requests": "7",
                    },
                    {
                        "locality": {"region": "r", "zone": "z"},
                        "total_successful_requests": "1",
                        "total_issued_requests": "1",
                        "priority": 1,
                    },
                ],
            }
        }
        assert await next_report(w, server) == {"a": {"interval_s": 10}}
        assert w.counters("load_reporter.") == {"requests": 3, "responses": 1}


async def test_what_is_asked_for_changes() -> None:
    async with reporting() as (w, server, numbers):
        server.ask("a")
        await until(lambda: len(numbers.asked) == 1)
        await turns(20)
        numbers.counted = [cluster("a", locality("z", 1, 1)), cluster("b", locality("z", 1))]
        server.ask(send_all_clusters=True, report_endpoint_granularity=True, interval_s=5)
        await until(lambda: len(numbers.asked) == 2)
        await turns(20)
        endpoint = {"address": ("10.0.0.1", 80), "total_successful_requests": 2, "total_issued_requests": 2}
        pipe = {"address": ("/socket", 0), "total_error_requests": 1}
        numbers.counted = [cluster("a", locality("z", 2, 1, upstream_endpoint_stats=[endpoint, endpoint, pipe]))]
        report = await next_report(w, server, 5)
        assert report["b"] == {"interval_s": 5}  # what came before it was asked for is not reported
        (told,) = report["a"]["upstream_locality_stats"]
        assert (told["total_successful_requests"], told["total_requests_in_progress"]) == ("3", "1")
        assert told["upstream_endpoint_stats"] == [
            {
                "address": {"socket_address": {"address": "10.0.0.1", "port_value": 80}},
                "total_successful_requests": "4",
                "total_issued_requests": "4",
            },
            {"address": {"pipe": {"path": "/socket"}}, "total_error_requests": "1"},
        ]
        assert numbers.asked[-1] is True


async def test_a_server_that_goes_is_called_again() -> None:
    async with reporting() as (w, server, numbers):
        server.ask("a")
        await until(lambda: numbers.asked)
        server.cut()
        await until(lambda: len(server.requests) == 2)
        assert not server.requests[1].cluster_stats
        server.ask("b")
        await until(lambda: len(numbers.asked) == 2)
        assert (await next_report(w, server)).keys() == {"b"}
        counted = w.counters("load_reporter.")
        assert (counted["errors"], counted["retries"]) == (1, 1)
