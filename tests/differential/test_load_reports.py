"""Load reports: Envoy and meshproxy do the same, and tell the same of it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from google.protobuf.json_format import MessageToDict

from tests.integration.config import address, bootstrap, cluster, forward, http2_cluster, listener
from tests.support.load_report_server import LoadReportServer
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy

COUNTS = ("total_successful_requests", "total_error_requests", "total_issued_requests")


class Upstream:
    """Answers as the path says: with a status, or not before it is let go."""

    def __init__(self) -> None:
        self.port = 0
        self.held = 0
        self.let_go = asyncio.Event()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Upstream]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self.let_go.set()
            server.close()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        status = head.split()[1].rpartition(b"/")[2]
        if status == b"hold":
            self.held += 1
            await self.let_go.wait()
            status = b"200"
        writer.write(b"HTTP/1.1 %s X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % status)
        await writer.drain()
        writer.close()


def config(lrs_port: int, port: int) -> str:
    """Cluster `a` in one zone, `b` in another's second priority, `d` drops all, `n` is never asked."""
    names = ("a", "b", "d", "n")
    clusters = [cluster(name, port) for name in names]
    (group,) = clusters[0]["load_assignment"]["endpoints"]
    group["locality"] = {"region": "r", "zone": "z"}
    (group,) = clusters[1]["load_assignment"]["endpoints"]
    group.update(locality={"zone": "y", "sub_zone": "s"}, priority=1)
    clusters[1]["load_assignment"]["endpoints"].insert(0, {"priority": 0})
    overload = {"category": "overload", "drop_percentage": {"numerator": 100}}
    clusters[2]["load_assignment"]["policy"] = {"drop_overloads": [overload]}
    lrs = {**cluster("lrs", lrs_port), **http2_cluster()}
    source = {"api_type": "GRPC", "transport_api_version": "V3"}
    service = {"grpc_services": [{"envoy_grpc": {"cluster_name": "lrs"}}]}
    routes = [forward(f"/{name}/", name) for name in names]
    return bootstrap(
        [listener("main", routes, at=address())],
        [*clusters, lrs],
        node={"id": "n", "cluster": "c"},
        cluster_manager={"load_stats_config": {**source, **service}},
    )


async def ask(port: int, path: str) -> int:
    """The status."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return int(answer.split()[1])


async def told_by(start: Callable[[str], ProxyProcess]) -> dict[str, Any]:
    """What the reports of a proxy come to, by cluster, locality and endpoint."""
    async with LoadReportServer.start() as server, Upstream().serving() as upstream, asyncio.timeout(60):
        proxy = await asyncio.to_thread(start, config(server.port, upstream.port))
        try:
            ports = await asyncio.to_thread(proxy.listener_ports)
            await eventually(lambda: server.requests)
            server.ask("a", "b", "d", "n", "none", interval_s=1, report_endpoint_granularity=True)
            await eventually(lambda: len(server.requests) > 1)
            for path in ("/a/200", "/a/200", "/a/404", "/a/503", "/b/200", "/d/200", "/d/200"):
                await ask(ports["main"], path)
            held = asyncio.create_task(ask(ports["main"], "/a/hold"))
            await eventually(lambda: upstream.held)
            count = len(server.requests)
            await eventually(lambda: len(server.requests) > count + 1)
            in_progress = summed(server.requests[-1:])["a"]["in progress"]
            upstream.let_go.set()
            assert await held == 200
            count = len(server.requests)
            await eventually(lambda: len(server.requests) > count + 1)
            assert set(server.requests[0].node.client_features) >= {"envoy.lrs.supports_send_all_clusters"}
            return {"in progress": in_progress, **summed(server.requests)}
        finally:
            await asyncio.to_thread(proxy.stop)


async def eventually(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def summed(requests: list[Any]) -> dict[str, Any]:
    """All reports together."""
    found: dict[str, Any] = {}
    for report in (each for request in requests for each in request.cluster_stats):
        counts = found.setdefault(report.cluster_name, Counter())
        counts["dropped"] += report.total_dropped_requests
        for each in report.dropped_requests:
            counts[f"dropped: {each.category}"] += each.dropped_count
        for each in report.upstream_locality_stats:
            counts["in progress"] += each.total_requests_in_progress
            where = json.dumps([MessageToDict(each.locality), each.priority])
            for name in COUNTS:
                counts[f"{where} {name}"] += getattr(each, name)
            for endpoint in each.upstream_endpoint_stats:
                assert endpoint.address.socket_address.address == "127.0.0.1"
                for name in COUNTS:
                    counts[f"{where} endpoint {name}"] += getattr(endpoint, name)
    for counts in found.values():
        if requests and len(requests) > 1:
            del counts["in progress"]  # of all reports, it says nothing
    return found


async def test_the_same_is_told() -> None:
    expected = await told_by(start_envoy)
    assert expected["a"]['[{"region": "r", "zone": "z"}, 0] total_issued_requests'] == 5
    assert await told_by(start_meshproxy) == expected
