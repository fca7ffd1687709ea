"""Control planes that flood, err, repeat themselves and break off: what is good of it is in force at the end, and not a
request is lost meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_pb2 import Listener
from google.protobuf.any_pb2 import Any as AnyMessage

from meshproxy.config.subscription import CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE
from tests.integration.config import direct, forward
from tests.integration.dynamic import ads_bootstrap, assignment, eds_cluster, rds_listener, route_configuration
from tests.integration.load import EchoUpstream, Load, echoed
from tests.integration.proxy import Proxy
from tests.integration.test_control_plane import get, until
from tests.support.control_plane import ControlPlane, ControlPlaneStream, resource

LONG = pytest.mark.long
WAYS = pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])


@pytest.fixture
async def plane() -> AsyncIterator[ControlPlane]:
    async with ControlPlane.start() as plane:
        yield plane


@pytest.fixture
async def v1() -> AsyncIterator[EchoUpstream]:
    async with EchoUpstream("v1") as upstream:
        yield upstream


def begin(plane: ControlPlane, v1: EchoUpstream) -> None:
    """A route to an upstream."""
    plane.set(CLUSTER_TYPE, {"a": eds_cluster("a")})
    plane.set(ENDPOINT_TYPE, {"a": assignment("a", [v1.port])})
    plane.set(LISTENER_TYPE, {"main": rds_listener("main")})
    plane.set(ROUTE_TYPE, {"routes": route_configuration("routes", forward("/", "a"))})


def send(stream: ControlPlaneStream, type_url: str, messages: dict[str, Any], version: str) -> None:
    """In the stream's form, and without waiting for anything."""
    if stream.is_delta:
        stream.send_delta(type_url, [resource(name, each, version) for name, each in messages.items()], nonce=version)
    else:
        stream.send(type_url, messages.values(), version, version)


@WAYS
@pytest.mark.parametrize("versions", [40, pytest.param(500, marks=pytest.mark.long)])
async def test_a_flood_of_updates(plane: ControlPlane, v1: EchoUpstream, delta: bool, versions: int) -> None:
    """Many versions of everything, without waiting for one answer."""
    begin(plane, v1)
    async with Proxy(ads_bootstrap(plane.port, delta=delta)) as proxy:
        plane.script()
        (stream,) = plane.streams
        async with Load(proxy.ports["main"], echoed("v1")) as load:
            await load.more(20)
            for number in range(versions):
                version = str(number)
                flaky = eds_cluster("b", alt_stat_name=version)
                send(stream, CLUSTER_TYPE, {"a": eds_cluster("a"), "b": flaky}, version)
                endpoints = {name: assignment(name, [v1.port] * (1 + number % 3)) for name in ("a", "b")}
                send(stream, ENDPOINT_TYPE, endpoints, version)
                listener = rds_listener("main", manager={"server_name": f"s{number}"})
                send(stream, LISTENER_TYPE, {"main": listener}, version)
                routes = route_configuration("routes", direct(f"/v/{number}/", version), forward("/", "a"))
                send(stream, ROUTE_TYPE, {"routes": routes}, version)
            last = str(versions - 1)
            await until(proxy, f"/v/{last}/", (200, last))
            await load.more(20)
            await load.stop()
        assert load.failures == []
        assert await proxy.stat("listener_manager.total_listeners_active") == 1
        assert [plane.nacks(kind) for kind in (CLUSTER_TYPE, LISTENER_TYPE, ROUTE_TYPE)] == [[]] * 3


@WAYS
async def test_a_huge_response(plane: ControlPlane, v1: EchoUpstream, delta: bool) -> None:
    """20 MiB in one message, of which one resource is good."""
    begin(plane, v1)
    async with Proxy(ads_bootstrap(plane.port, delta=delta)) as proxy:
        plane.script()
        (stream,) = plane.streams
        huge = AnyMessage(type_url=CLUSTER_TYPE, value=b"\xff" * (20 * 1024 * 1024))
        async with Load(proxy.ports["main"], echoed("v1")) as load:
            send(stream, CLUSTER_TYPE, {"a": eds_cluster("a"), "huge": huge, "b": eds_cluster("b")}, "2")
            await plane.until(lambda: plane.nacks(CLUSTER_TYPE))
            await load.more(20)
            await load.stop()
        assert load.failures == []
        assert plane.nacks(CLUSTER_TYPE)[0].endswith(
            "resources[1]: the bytes are not a envoy.config.cluster.v3.Cluster"
        )
        assert await proxy.stat("cluster_manager.cds.update_rejected") == 1


BAD = (
    (CLUSTER_TYPE, "b", Cluster(name="b", connect_timeout={"seconds": -1})),
    (CLUSTER_TYPE, "", Cluster(alt_stat_name="nameless")),
    (CLUSTER_TYPE, "x", AnyMessage(type_url=CLUSTER_TYPE, value=b"\xff")),
    (LISTENER_TYPE, "l", Listener(name="l")),
    (LISTENER_TYPE, "main", Listener(name="main", stat_prefix="without filter chains")),
    (ROUTE_TYPE, "other", route_configuration("other", direct("/", "nobody asked"))),
    ("type.googleapis.com/no.Such", "x", Cluster(name="x")),
)


@WAYS
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 40))])
async def test_whatever_happens_the_end_is_what_is_good(
    plane: ControlPlane, v1: EchoUpstream, delta: bool, seed: int
) -> None:
    """Bad resources between good ones, streams that end, a control plane that goes and comes back."""
    draw = random.Random(seed)
    begin(plane, v1)
    port = plane.port
    async with Proxy(ads_bootstrap(plane.port, delta=delta)) as proxy, Load(proxy.ports["main"], echoed("v1")) as load:
        for number in range(12):
            await load.more(3)
            happens = draw.choice(("bad", "bad", "bad", "good", "good", "cut", "garbage", "gone"))
            stream = plane.streams[-1] if plane.streams else None
            if happens == "good":
                manager = {"server_name": f"s{number}"}
                plane.set(LISTENER_TYPE, {"main": rds_listener("main", manager=manager)}, f"good-{number}")
            elif happens == "gone":
                await plane.stop()
                await plane.listen(port=port)
            elif stream is None or stream.over:
                continue
            elif happens == "bad":
                type_url, name, bad = draw.choice(BAD)
                good = {key: each for key, (each, _) in plane.resources.get(type_url, {}).items()}
                send(stream, type_url, good | {name: bad}, f"bad-{number}")
            elif happens == "garbage":
                stream.send_raw(draw.randbytes(draw.randrange(200)))
            else:
                stream.cut()
        last = route_configuration("routes", direct("/last", "last"), forward("/", "a"))
        plane.set(ROUTE_TYPE, {"routes": last}, "last")
        await until(proxy, "/last", (200, "last"))
        await load.more(3)
        await load.stop()
        assert load.failures == []


@WAYS
async def test_who_watches_what_nobody_can_read_counts_it(plane: ControlPlane, v1: EchoUpstream, delta: bool) -> None:
    begin(plane, v1)
    async with Proxy(ads_bootstrap(plane.port, delta=delta)) as proxy:
        garbage = resource("routes", AnyMessage(type_url=ROUTE_TYPE, value=b"\xff"), "2")
        if delta:
            plane.streams[0].send_delta(ROUTE_TYPE, [garbage])
        else:
            plane.streams[0].send(ROUTE_TYPE, [garbage], "2")
        await proxy.until_stat("http.main.rds.routes.update_rejected", lambda value: value == 1)
        assert plane.nacks(ROUTE_TYPE)[0].startswith("routes: resources[0]: the bytes are not a ")
        await until(proxy, "/x", (200, "v1 /x"))


STEPS = {
    CLUSTER_TYPE: {"a": eds_cluster("a")},
    ENDPOINT_TYPE: {"a": assignment("a", [1])},
    LISTENER_TYPE: {"main": rds_listener("main")},
    ROUTE_TYPE: {"routes": route_configuration("routes", forward("/", "a"))},
}
ORDERS = list(itertools.permutations(STEPS))
SOME = (ORDERS[0], ORDERS[-1], ORDERS[10], ORDERS[16])  # with endpoints, listeners and routes first, too


@WAYS
@pytest.mark.parametrize("orders", [pytest.param(SOME, id="some"), pytest.param(ORDERS, marks=LONG, id="all")])
async def test_in_any_order_the_end_is_the_same(
    plane: ControlPlane, v1: EchoUpstream, delta: bool, orders: Sequence[Sequence[str]]
) -> None:
    """From nothing to everything, and back to nothing in the same order."""
    everything = STEPS | {ENDPOINT_TYPE: {"a": assignment("a", [v1.port])}}
    ends = []
    async with Proxy(ads_bootstrap(plane.port, delta=delta)) as proxy:
        for number, order in enumerate(orders):
            for type_url in order:
                await play(plane, type_url, everything[type_url], f"{number}-all")
            await proxy.until_stat("listener_manager.total_listeners_active", lambda value: value == 1)
            proxy.ports = await asyncio.to_thread(proxy.process.listener_ports)
            await until(proxy, "/x", (200, "v1 /x"))
            assert [await get(proxy.ports["main"], f"/{each}") for each in range(4)] == [
                (200, f"v1 /{each}") for each in range(4)
            ]
            ends.append(await end_state(proxy))
            for type_url in order:
                await play(plane, type_url, {}, f"{number}-none")
            await proxy.until_stat("listener_manager.total_listeners_active", lambda value: value == 0)
            await proxy.until_stat("cluster_manager.active_clusters", lambda value: value == 1)
    assert ends == [ends[0]] * len(orders)
    assert [plane.nacks(type_url) for type_url in STEPS] == [[]] * 4
    assert len(plane.streams) == 1


async def play(plane: ControlPlane, type_url: str, resources: dict[str, Any], version: str) -> None:
    """These are the resources from now on; wait until the proxy has answered about those that it has asked for."""
    plane.set(type_url, resources, version)
    if type_url in plane.sent:
        nonce = plane.sent[type_url]
        await plane.until(lambda: any(each.response_nonce == nonce for each in plane.of_type(type_url)))


async def end_state(proxy: Proxy) -> dict[str, Any]:
    """What is in force: all of /config_dump but for versions and times."""
    _, body = await proxy.admin("/config_dump?include_eds")
    tree = json.loads(body, object_hook=lambda each: {key: each[key] for key in each if key not in CHANGING})
    return {each["@type"]: each for each in tree["configs"] if not each["@type"].endswith("BootstrapConfigDump")}


CHANGING = ("version_info", "last_updated")
