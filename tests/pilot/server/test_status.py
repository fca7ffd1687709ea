"""What a pilot says of its clients: CSDS, the pages, and the metrics."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from envoy.admin.v3 import config_dump_shared_pb2 as shared
from envoy.service.status.v3 import csds_pb2 as csds
from envoy.service.status.v3 import csds_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from meshproxy.config.subscription import CLUSTER_TYPE as CDS
from meshproxy.config.subscription import ENDPOINT_TYPE as EDS
from meshproxy.config.subscription import LISTENER_TYPE as LDS
from meshproxy.net.address import Address
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.pilot.server import status
from meshproxy.pilot.server.pages import Pages
from meshproxy.server.admin.server import AdminServer
from tests.pilot.server.clients import Pilot, client, pilot, until
from tests.pilot.server.support import cluster, endpoints, listener, snapshot

MESH = {"tests": snapshot(clusters=[cluster("a")], endpoints=[endpoints("a")], listeners=[listener("l")])}


@asynccontextmanager
async def busy_pilot() -> AsyncIterator[Pilot]:
    """Of one client: its clusters are taken, its endpoints sent, its listeners refused, a name is not there."""
    async with pilot(mesh=MESH, csds=True) as plane, client(plane.target) as proxy:
        await proxy.ask(LDS)
        await proxy.ack(await proxy.next(), error="listeners: no")
        await proxy.ask(CDS, "a", "nobody")
        await proxy.ack(await proxy.next(), "a", "nobody")
        await proxy.ask(EDS, "a")
        await proxy.next()
        await until(lambda: bool(plane.streams.rejections))
        (found,) = plane.streams.clients
        await until(lambda: not found.stream.subscriptions[CDS].in_flight)
        yield plane


async def fetch(plane: Pilot, **fields: Any) -> Any:
    """The answer to a FetchClientStatus."""
    async with grpc.aio.insecure_channel(plane.target) as channel:
        stub = csds_pb2_grpc.ClientStatusDiscoveryServiceStub(channel)
        return await stub.FetchClientStatus(csds.ClientStatusRequest(**fields))


async def test_csds_shows_every_resource_and_what_became_of_it() -> None:
    async with busy_pilot() as plane:
        (config,) = (await fetch(plane)).config
        assert (config.node.id, config.node.cluster) == ("client-1", "tests")
        rows = {
            (row.type_url, row.name): (row.config_status, row.client_status, bool(row.xds_config.value))
            for row in config.generic_xds_configs
        }
        assert rows == {
            (CDS, "a"): (csds.SYNCED, shared.ACKED, True),
            (CDS, "nobody"): (csds.NOT_SENT, shared.REQUESTED, False),
            (EDS, "a"): (csds.STALE, shared.REQUESTED, True),
            (LDS, "l"): (csds.ERROR, shared.NACKED, True),
        }
        (refused,) = [row for row in config.generic_xds_configs if row.type_url == LDS]
        assert refused.error_state.details == "listeners: no"
        assert refused.version_info == listener("l").version


async def test_csds_leaves_out_contents_that_nobody_asks_for() -> None:
    async with busy_pilot() as plane:
        (config,) = (await fetch(plane, exclude_resource_contents=True)).config
        assert not any(row.xds_config.value for row in config.generic_xds_configs)


@pytest.mark.parametrize(("prefix", "found"), [("client", 1), ("other", 0)])
async def test_csds_shows_the_clients_that_are_asked_for(prefix: str, found: int) -> None:
    async with busy_pilot() as plane:
        answer = await fetch(plane, node_matchers=[{"node_id": {"prefix": prefix}}])
        assert len(answer.config) == found


async def test_csds_is_not_there_unless_it_is_asked_for() -> None:
    async with pilot(mesh=MESH) as plane:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await fetch(plane)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_csds_makes_its_answers_in_slices() -> None:
    """Of many resources, with others served between; together they are one ClientConfig."""
    many = {f"c{number}": cluster(f"c{number}") for number in range(1000)}
    async with pilot(mesh={"tests": snapshot(clusters=many.values())}) as plane, client(plane.target) as proxy:
        await proxy.ask(CDS)
        await proxy.ack(await proxy.next())
        loop, turns = asyncio.get_running_loop(), list[int]()

        def count() -> None:
            turns.append(1)
            loop.call_soon(count)

        loop.call_soon(count)
        answer = csds.ClientStatusResponse.FromString(await status.client_status(b"", plane.streams.clients))
        assert len(turns) > 10
        (config,) = answer.config
        assert config.node.id == "client-1"
        assert {row.name: row.xds_config.value for row in config.generic_xds_configs} == {
            name: each.data for name, each in many.items()
        }


async def test_csds_streams() -> None:
    async with busy_pilot() as plane, grpc.aio.insecure_channel(plane.target) as channel:
        call = csds_pb2_grpc.ClientStatusDiscoveryServiceStub(channel).StreamClientStatus()
        for _ in range(2):
            await call.write(csds.ClientStatusRequest(exclude_resource_contents=True))
            assert len((await call.read()).config) == 1
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def test_csds_says_what_it_cannot_do() -> None:
    async with busy_pilot() as plane:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await fetch(plane, node_matchers=[{"node_metadatas": [{}]}])
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == "node_matchers[0].node_metadatas: clients are matched by node_id only"


async def test_csds_bounds_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "MAX_CLIENTS", 0)
    async with busy_pilot() as plane:
        with pytest.raises(grpc.aio.AioRpcError, match="ask for fewer by node_matchers") as caught:
            await fetch(plane)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def _read(url: str, method: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=20) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@asynccontextmanager
async def pages(plane: Pilot) -> AsyncIterator[Any]:
    """What reads a page of the pilot: its status and body."""
    made = Pages(plane.server, lambda: {"revision": "1"})
    server = AdminServer(Dispatcher(asyncio.get_running_loop()), made.handle)
    await server.start(Address("127.0.0.1", 0))

    async def read(path: str, method: str = "GET") -> tuple[int, str]:
        return await asyncio.to_thread(_read, f"http://{server.address}{path}", method)

    try:
        yield read
    finally:
        await server.close()


async def test_the_page_of_clients() -> None:
    async with busy_pilot() as plane, pages(plane) as read:
        (shown,) = json.loads((await read("/debug/clients"))[1])
        assert (shown["id"], shown["protocol"], shown["namespace"]) == ("client-1", "sotw", "tests")
        states = {kind: (each["state"], each["asked"], each["has"]) for kind, each in shown["types"].items()}
        assert states == {
            "Listener": ("rejected", "*", 1),
            "Cluster": ("accepted", 2, 1),
            "ClusterLoadAssignment": ("sent", 1, 1),
        }
        assert shown["types"]["Listener"]["rejected"]["reason"] == "listeners: no"
        (with_names,) = json.loads((await read("/debug/clients?id=client-1"))[1])
        assert with_names["types"]["Cluster"]["resources"] == {"a": cluster("a").version}
        assert json.loads((await read("/debug/clients?id=nobody"))[1]) == []


async def test_the_page_of_snapshots() -> None:
    async with busy_pilot() as plane, pages(plane) as read:
        (shown,) = json.loads((await read("/debug/snapshots"))[1])
        assert (shown["clients"], shown["resources"]) == (1, {"Cluster": 1, "ClusterLoadAssignment": 1, "Listener": 1})
        (with_names,) = json.loads((await read(f"/debug/snapshots?scope={shown['number']}"))[1])
        assert with_names["scope"] == "'tests'"
        assert with_names["resources"]["Cluster"] == {"a": cluster("a").version}


async def test_the_page_of_rejections() -> None:
    async with busy_pilot() as plane, pages(plane) as read:
        shown = json.loads((await read("/debug/rejections"))[1])
        (refused,) = shown["clients"]
        assert (refused["client"], refused["type"], refused["reason"]) == ("client-1", "Listener", "listeners: no")
        assert shown["rules"] == {"revision": "1"}


async def test_the_metrics() -> None:
    async with busy_pilot() as plane, pages(plane) as read:
        families = text_string_to_metric_families((await read("/metrics"))[1])
        samples = {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}
        assert samples["meshproxy_pilot_clients", "sotw"] == 1
        assert samples["meshproxy_pilot_rejections_total", "Listener"] == 1
        assert samples["meshproxy_pilot_responses_total", "Cluster"] == 1
        assert samples["meshproxy_pilot_snapshots",] == 1
        assert samples["meshproxy_pilot_response_bytes_total",] > 0


async def test_types_that_clients_make_up_have_one_label() -> None:
    async with pilot(mesh=MESH) as plane, client(plane.target) as proxy:
        for number in range(3):
            await proxy.ask(f"type.googleapis.com/made.up.Type{number}", "x")
            await proxy.ack(await proxy.next(), "x", error="no")
        await until(lambda: len(plane.streams.rejections) == 3)
        assert plane.count("responses_total", type="other") == 3
        assert plane.count("rejections_total", type="other") == 3
        assert "Type" not in plane.metrics.text()


async def test_readiness_health_and_what_is_not_there() -> None:
    async with pilot() as plane, pages(plane) as read:
        assert (await read("/ready"))[0] == 503
        plane.server.ready = True
        assert await read("/ready") == (200, "ready\n")
        assert await read("/healthz") == (200, "ok\n")
        assert (await read("/nothing"))[0] == 404
        assert (await read("/metrics", "POST"))[0] == 405
        status_code, body = await read("/")
        assert (status_code, '<a href="/debug/clients">' in body) == (200, True)


async def test_the_health_service_of_grpc() -> None:
    async with pilot() as plane, grpc.aio.insecure_channel(plane.target) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert await check(b"") == b"\x08\x02"  # NOT_SERVING
        plane.server.ready = True
        assert await check(b"") == b"\x08\x01"  # SERVING
