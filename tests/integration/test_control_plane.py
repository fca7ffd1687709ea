"""The whole proxy under a scripted control plane: what it is told, it does; what is wrong, it refuses alone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_pb2 import Listener

from meshproxy.config.subscription import CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE
from tests.integration.config import cluster, direct, forward, listener
from tests.integration.dynamic import (
    ADS,
    ads_bootstrap,
    assignment,
    eds_cluster,
    message,
    rds_listener,
    route_configuration,
)
from tests.integration.load import EchoUpstream, Load, echoed
from tests.integration.proxy import Proxy
from tests.support.control_plane import ControlPlane

_WAYS = pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
_WORKERS = pytest.mark.parametrize("workers", ["1", "2"])


@pytest.fixture
async def plane() -> AsyncIterator[ControlPlane]:
    async with ControlPlane.start() as plane:
        yield plane


@pytest.fixture
async def v1() -> AsyncIterator[EchoUpstream]:
    async with EchoUpstream("v1") as upstream:
        yield upstream


@pytest.fixture
async def v2() -> AsyncIterator[EchoUpstream]:
    async with EchoUpstream("v2") as upstream:
        yield upstream


async def get(port: int, path: str = "/") -> tuple[int, str]:
    """Status and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


async def until(proxy: Proxy, path: str, expected: tuple[int, str]) -> None:
    """Ask until the answer is this one."""
    async with asyncio.timeout(15.0):
        while (answer := await get(proxy.ports["main"], path)) != expected:
            await asyncio.sleep(0.01)
    assert answer == expected


async def configs(proxy: Proxy, kind: str) -> Any:
    """A section of /config_dump."""
    _, body = await proxy.admin("/config_dump?include_eds")
    return next(one for one in json.loads(body)["configs"] if one["@type"].endswith(f".{kind}"))


@_WORKERS
@_WAYS
async def test_everything_from_one_stream(
    plane: ControlPlane, v1: EchoUpstream, v2: EchoUpstream, delta: bool, workers: str
) -> None:
    plane.set(CLUSTER_TYPE, {"a": eds_cluster("a")})
    plane.set(ENDPOINT_TYPE, {"a": assignment("a", [v1.port])})
    plane.set(LISTENER_TYPE, {"main": rds_listener("main", "routes")})
    plane.set(ROUTE_TYPE, {"routes": route_configuration("routes", forward("/", "a"))})
    async with Proxy(ads_bootstrap(plane.port, delta=delta), "--concurrency", workers) as proxy:
        assert await get(proxy.ports["main"], "/x") == (200, "v1 /x")
        plane.set(ENDPOINT_TYPE, {"a": assignment("a", [v2.port])}, "2")
        await until(proxy, "/x", (200, "v2 /x"))
        plane.set(ROUTE_TYPE, {"routes": route_configuration("routes", direct("/", "hello"))}, "2")
        await until(proxy, "/", (200, "hello"))
        stats = await proxy.stats()
        assert stats["cluster_manager.cds.update_success"] == 1
        assert stats["listener_manager.lds.update_success"] == 1
        assert stats["http.main.rds.routes.update_success"] == 2
        assert stats["control_plane.connected_state"] == 1
        routes = await configs(proxy, "RoutesConfigDump")
        assert routes["dynamic_route_configs"][0]["version_info"] == "2"
        assert [plane.nacks(kind) for kind in (CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE)] == [[]] * 4


@_WORKERS
@_WAYS
async def test_one_bad_resource_is_refused_alone(
    plane: ControlPlane, v1: EchoUpstream, delta: bool, workers: str
) -> None:
    good = message(Cluster, cluster("a", v1.port))
    plane.set(CLUSTER_TYPE, {"a": good})
    plane.set(LISTENER_TYPE, {"main": message(Listener, listener("main", [forward("/", "a")]))})
    async with Proxy(ads_bootstrap(plane.port, delta=delta), "--concurrency", workers) as proxy:
        bad = message(Cluster, cluster("a", v1.port, connect_timeout="-1s"))
        plane.set(CLUSTER_TYPE, {"a": bad, "b": message(Cluster, cluster("b", v1.port))}, "2")
        await plane.until(lambda: plane.nacks(CLUSTER_TYPE))
        assert "a: connect_timeout" in plane.nacks(CLUSTER_TYPE)[0]
        assert await get(proxy.ports["main"], "/x") == (200, "v1 /x")
        section = await configs(proxy, "ClustersConfigDump")
        clusters = {one["cluster"]["name"]: one for one in section["dynamic_active_clusters"]}
        assert clusters["b"]["client_status"] == "ACKED"
        assert clusters["a"]["client_status"] == "NACKED"
        assert clusters["a"]["cluster"]["connect_timeout"] == "2s"
        assert "connect_timeout" in clusters["a"]["error_state"]["details"]
        assert await proxy.stat("cluster_manager.cds.update_rejected") == 1


@_WAYS
async def test_the_last_good_configuration_outlives_its_control_plane(
    plane: ControlPlane, v1: EchoUpstream, delta: bool
) -> None:
    plane.set(CLUSTER_TYPE, {"a": message(Cluster, cluster("a", v1.port))})
    plane.set(LISTENER_TYPE, {"main": message(Listener, listener("main", [forward("/", "a")]))})
    async with Proxy(ads_bootstrap(plane.port, delta=delta)) as proxy:
        port = plane.port
        await plane.stop()
        await proxy.until_stat("control_plane.connected_state", lambda value: value == 0)
        assert await get(proxy.ports["main"], "/x") == (200, "v1 /x")
        plane.set(LISTENER_TYPE, {"main": message(Listener, listener("main", [direct("/", "back")]))}, "2")
        await plane.listen(port=port)
        await until(proxy, "/", (200, "back"))


@_WORKERS
@_WAYS
async def test_listeners_come_and_go(plane: ControlPlane, delta: bool, workers: str) -> None:
    plane.set(CLUSTER_TYPE, {})
    main = message(Listener, listener("main", [direct("/", "one")]))
    plane.set(LISTENER_TYPE, {"main": main})
    async with Proxy(ads_bootstrap(plane.port, delta=delta), "--concurrency", workers) as proxy:
        assert await get(proxy.ports["main"]) == (200, "one")
        second = message(Listener, listener("second", [direct("/", "two")]))
        plane.set(LISTENER_TYPE, {"main": main, "second": second}, "2")
        await proxy.until_stat("listener_manager.total_listeners_active", lambda value: value == 2)
        ports = await asyncio.to_thread(proxy.process.listener_ports)
        assert await get(ports["second"]) == (200, "two")
        plane.set(LISTENER_TYPE, {"main": main}, "3")
        await proxy.until_stat("listener_manager.total_listeners_active", lambda value: value == 1)
        assert await get(proxy.ports["main"]) == (200, "one")
        assert await proxy.stat("listener_manager.listener_removed") == 1


@_WAYS
async def test_a_cache_outlives_the_proxy(plane: ControlPlane, v1: EchoUpstream, delta: bool, tmp_path: Path) -> None:
    """Started without a control plane, it serves what was in force; then it follows the control plane again."""
    plane.set(CLUSTER_TYPE, {"a": eds_cluster("a")})
    plane.set(ENDPOINT_TYPE, {"a": assignment("a", [v1.port])})
    plane.set(LISTENER_TYPE, {"main": rds_listener("main", "routes")})
    plane.set(ROUTE_TYPE, {"routes": route_configuration("routes", forward("/", "a"))})
    config, cache = ads_bootstrap(plane.port, delta=delta), ("--xds-cache", str(tmp_path / "cache"))
    async with Proxy(config, *cache) as proxy:
        assert await get(proxy.ports["main"], "/x") == (200, "v1 /x")
    port = plane.port
    await plane.stop()
    async with Proxy(config, *cache) as proxy:
        assert await get(proxy.ports["main"], "/x") == (200, "v1 /x")
        plane.set(ROUTE_TYPE, {"routes": route_configuration("routes", direct("/", "back"))}, "2")
        await plane.listen(port=port)
        await until(proxy, "/", (200, "back"))


@_WORKERS
async def test_no_request_is_lost_while_everything_changes(
    plane: ControlPlane, v1: EchoUpstream, v2: EchoUpstream, workers: str
) -> None:
    """Endpoints, routes, clusters and the listener itself are replaced again and again, under load."""
    upstreams = [v1, v2]
    clusters: dict[str, Any] = {}
    endpoints: dict[str, Any] = {}

    async def push(version: int) -> None:
        """As a control plane does: what is new before what names it, what is gone last."""
        name, text = f"c{version}", str(version)
        clusters[name] = eds_cluster(name, connect_timeout="3s")
        endpoints[name] = assignment(name, [upstreams[version % 2].port])
        plane.set(CLUSTER_TYPE, dict(clusters), text)
        plane.set(ENDPOINT_TYPE, dict(endpoints), text)
        manager = {"stat_prefix": f"main-{version}"}
        plane.set(LISTENER_TYPE, {"main": rds_listener("main", manager=manager)}, text)
        plane.set(ROUTE_TYPE, {"routes": route_configuration("routes", forward("/", name))}, text)
        if plane.streams:
            await plane.acked(ROUTE_TYPE, text)
            del clusters[f"c{version - 1}"], endpoints[f"c{version - 1}"]
            plane.set(CLUSTER_TYPE, dict(clusters), f"{version}-last")

    await push(0)
    async with Proxy(ads_bootstrap(plane.port), "--concurrency", workers) as proxy:
        async with Load(proxy.ports["main"], echoed("v1", "v2")) as load:
            for version in range(1, 6):
                await push(version)
                await load.more(40)
            await load.stop()
        assert load.failures == []
        assert {answer.body[:2] for answer in load.answers} == {b"v1", b"v2"}


@_WAYS
async def test_a_worker_that_is_replaced_has_everything(
    plane: ControlPlane, v1: EchoUpstream, v2: EchoUpstream, delta: bool
) -> None:
    plane.set(CLUSTER_TYPE, {"a": eds_cluster("a")})
    plane.set(ENDPOINT_TYPE, {"a": assignment("a", [v1.port])})
    plane.set(LISTENER_TYPE, {"main": rds_listener("main")})
    plane.set(ROUTE_TYPE, {"routes": route_configuration("routes", forward("/", "a"))})
    async with Proxy(ads_bootstrap(plane.port, delta=delta), "--concurrency", "2") as proxy:
        for worker in proxy.workers():
            os.kill(worker, signal.SIGKILL)
        await proxy.until_stat("server.worker_restarts", lambda value: value == 2)
        await proxy.until_stat("listener_manager.workers_started", lambda value: value == 1)
        assert [await get(proxy.ports["main"], "/x") for _ in range(8)] == [(200, "v1 /x")] * 8
        plane.set(ENDPOINT_TYPE, {"a": assignment("a", [v2.port])}, "2")
        await until(proxy, "/x", (200, "v2 /x"))
        assert len(plane.streams) == 1


async def test_a_reload_of_the_file_leaves_the_control_plane_s_resources(plane: ControlPlane, v1: EchoUpstream) -> None:
    plane.set(CLUSTER_TYPE, {"a": message(Cluster, cluster("a", v1.port))})
    plane.set(LISTENER_TYPE, {"main": message(Listener, listener("main", [forward("/", "a")]))})
    config = json.loads(ads_bootstrap(plane.port))
    async with Proxy(json.dumps(config)) as proxy:
        port = proxy.ports["main"]
        config["static_resources"]["listeners"] = [listener("fixed", [direct("/", "fixed")])]
        await proxy.reload(json.dumps(config))
        assert proxy.ports["main"] == port
        assert await get(port, "/x") == (200, "v1 /x")
        assert await get(proxy.ports["fixed"]) == (200, "fixed")
        config["static_resources"]["listeners"] = []
        await proxy.reload(json.dumps(config))
        assert proxy.ports == {"main": port}
        assert len(plane.streams) == 1


async def test_who_waits_says_for_what(plane: ControlPlane, tmp_path: Path) -> None:
    """Until the routes are there: not ready, warming, and no answer; the others are served as soon as all began."""
    plane.set(CLUSTER_TYPE, {})
    waiting = {"rds": {"route_config_name": "later", "config_source": {**ADS, "initial_fetch_timeout": "0s"}}}
    first = message(Listener, listener("main", [direct("/", "main")]))
    plane.set(LISTENER_TYPE, {"main": first})
    async with Proxy(ads_bootstrap(plane.port)) as proxy:
        plane.set(LISTENER_TYPE, {"main": first, "second": rds_listener("second", manager=waiting)}, "2")
        await proxy.until_stat("listener_manager.total_listeners_warming", lambda value: value == 1)
        _, dump = await proxy.admin("/init_dump?mask=listener")
        (unready,) = json.loads(dump)["configs"][0]["unready_targets_dumps"]
        assert unready["name"].endswith("second")
        assert len(unready["target_names"]) == 1
        section = await configs(proxy, "ListenersConfigDump")
        states = {one["name"]: set(one) & {"active_state", "warming_state"} for one in section["dynamic_listeners"]}
        assert states == {"main": {"active_state"}, "second": {"warming_state"}}
        plane.set(ROUTE_TYPE, {"later": route_configuration("later", direct("/", "second"))}, "1")
        await proxy.until_stat("listener_manager.total_listeners_active", lambda value: value == 2)
        ports = await asyncio.to_thread(proxy.process.listener_ports)
        assert await get(ports["second"]) == (200, "second")


async def test_what_cannot_be_done_is_listed_and_what_guards_fails_closed(
    plane: ControlPlane, v1: EchoUpstream
) -> None:
    times = {"timeout": "1s", "interval": "1s", "unhealthy_threshold": 1, "healthy_threshold": 1}
    checked = cluster("a", v1.port, health_checks=[{**times, "tcp_health_check": {}}])
    plane.set(CLUSTER_TYPE, {"a": message(Cluster, checked)})
    good = message(Listener, listener("main", [forward("/", "a")]))
    plane.set(LISTENER_TYPE, {"main": good})
    async with Proxy(ads_bootstrap(plane.port)) as proxy:
        (listed,) = (await configs(proxy, "NotDoneConfigDump"))["resources"]
        assert (listed["name"], [field["path"] for field in listed["fields"]]) == ("a", ["health_checks"])
        assert await proxy.stat("server.dynamic_not_done_fields") == 1
        unknown = {"name": "guard", "typed_config": {"@type": "type.googleapis.com/envoy.config.core.v3.Address"}}
        bad = message(Listener, listener("guarded", [direct("/", "open")], filters=[unknown]))
        plane.set(LISTENER_TYPE, {"main": good, "guarded": bad}, "2")
        await plane.until(lambda: plane.nacks(LISTENER_TYPE))
        assert "guarded: " in plane.nacks(LISTENER_TYPE)[0]
        assert await asyncio.to_thread(proxy.process.listener_ports) == proxy.ports
        assert await get(proxy.ports["main"], "/x") == (200, "v1 /x")


async def test_a_listener_that_changes_while_it_warms(plane: ControlPlane) -> None:
    """Its second version has the sockets that the first one never came to listen on."""
    plane.set(CLUSTER_TYPE, {})
    first = message(Listener, listener("main", [direct("/", "main")]))
    plane.set(LISTENER_TYPE, {"main": first})
    async with Proxy(ads_bootstrap(plane.port)) as proxy:
        for version in ("2", "3"):
            second = rds_listener("second", "later", manager={"stat_prefix": version})
            plane.set(LISTENER_TYPE, {"main": first, "second": second}, version)
            await plane.acked(LISTENER_TYPE, version)
        plane.set(ROUTE_TYPE, {"later": route_configuration("later", direct("/", "second"))}, "1")
        await proxy.until_stat("listener_manager.total_listeners_active", lambda value: value == 2)
        ports = await asyncio.to_thread(proxy.process.listener_ports)
        assert await get(ports["second"]) == (200, "second")


@_WORKERS
async def test_what_nobody_watches_any_more_is_let_go(plane: ControlPlane, workers: str) -> None:
    plane.set(CLUSTER_TYPE, {})
    first = message(Listener, listener("main", [direct("/", "main")]))
    plane.set(ROUTE_TYPE, {"other": route_configuration("other", direct("/", "other"))})
    plane.set(LISTENER_TYPE, {"main": first, "second": rds_listener("second", "other")})
    async with Proxy(ads_bootstrap(plane.port), "--concurrency", workers) as proxy:
        second = rds_listener("second", "other", manager={"stat_prefix": "again"})
        plane.set(LISTENER_TYPE, {"main": first, "second": second}, "2")
        await plane.acked(LISTENER_TYPE, "2")
        plane.set(LISTENER_TYPE, {"main": first}, "3")
        await plane.until(lambda: not plane.of_type(ROUTE_TYPE)[-1].resource_names)
        assert "dynamic_route_configs" not in await configs(proxy, "RoutesConfigDump")


async def test_who_watches_what_is_refused_hears_of_it(plane: ControlPlane) -> None:
    """A second listener names routes that were refused already: it goes on without, as the first did."""
    plane.set(CLUSTER_TYPE, {})
    waiting = {"rds": {"route_config_name": "bad", "config_source": {**ADS, "initial_fetch_timeout": "0s"}}}
    bad = route_configuration("bad", {"match": {"prefix": "/"}, "direct_response": {"status": 99}})
    plane.set(ROUTE_TYPE, {"bad": bad})
    plane.set(LISTENER_TYPE, {"main": rds_listener("main", manager=waiting)})
    async with Proxy(ads_bootstrap(plane.port)) as proxy:
        both = {name: rds_listener(name, manager=waiting) for name in ("main", "second")}
        plane.set(LISTENER_TYPE, both, "2")
        await proxy.until_stat("listener_manager.total_listeners_active", lambda value: value == 2)
        ports = await asyncio.to_thread(proxy.process.listener_ports)
        assert (await get(ports["second"]))[0] == 404


async def test_connections_of_replaced_listeners_end(plane: ControlPlane) -> None:
    plane.set(CLUSTER_TYPE, {})
    plane.set(LISTENER_TYPE, {"main": message(Listener, listener("main", [direct("/", "one")]))})
    async with Proxy(ads_bootstrap(plane.port), "--drain-time-s", "1") as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.ports["main"])
        changed = listener("main", [direct("/", "two")], manager={"stat_prefix": "other"})
        plane.set(LISTENER_TYPE, {"main": message(Listener, changed)}, "2")
        await plane.acked(LISTENER_TYPE, "2")
        async with asyncio.timeout(15.0):
            assert await reader.read() == b""  # it was idle
        writer.close()
