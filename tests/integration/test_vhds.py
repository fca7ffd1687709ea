"""Virtual hosts on demand, with the whole proxy: whichever worker needs a host, the control plane is asked for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from envoy.config.route.v3.route_components_pb2 import VirtualHost
from envoy.config.route.v3.route_pb2 import RouteConfiguration

from meshproxy.config.subscription import CLUSTER_TYPE, LISTENER_TYPE, ROUTE_TYPE, VIRTUAL_HOST_TYPE
from tests.integration.config import direct
from tests.integration.dynamic import ADS, ads_bootstrap, message, rds_listener
from tests.integration.proxy import Proxy
from tests.support.control_plane import ControlPlane, resource

ON_DEMAND = "type.googleapis.com/envoy.extensions.filters.http.on_demand.v3.OnDemand"
_WORKERS = pytest.mark.parametrize("workers", ["1", "2"])


@pytest.fixture
async def plane() -> AsyncIterator[ControlPlane]:
    async with ControlPlane.start() as plane:
        routes = {"name": "routes", "vhds": {"config_source": ADS}, "virtual_hosts": [host("fixed")]}
        filters = [{"name": "on_demand", "typed_config": {"@type": ON_DEMAND}}]
        plane.set(LISTENER_TYPE, {"main": rds_listener("main", "routes", filters=filters)})
        plane.set(ROUTE_TYPE, {"routes": message(RouteConfiguration, routes)})
        yield plane


def host(name: str, *more: str, body: str = "") -> dict[str, Any]:
    return {"name": name, "domains": [name, *more], "routes": [direct("/", body or name)]}


def hosts(*given: dict[str, Any]) -> dict[str, Any]:
    return {f"routes/{each['name']}": message(VirtualHost, each) for each in given}


async def get(proxy: Proxy, name: str) -> tuple[int, str]:
    """Status and body of a request to this host, on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.ports["main"])
    writer.write(f"GET / HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n".encode())
    async with asyncio.timeout(15.0):
        answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


async def until(proxy: Proxy, name: str, expected: tuple[int, str]) -> None:
    async with asyncio.timeout(15.0):
        while (answer := await get(proxy, name)) != expected:
            await asyncio.sleep(0.01)
    assert answer == expected


def subscribed(plane: ControlPlane) -> list[str]:
    """The names that were asked for, in order."""
    return [name for each in plane.of_type(VIRTUAL_HOST_TYPE) for name in each.resource_names_subscribe]


@_WORKERS
async def test_hosts_come_when_they_are_needed(plane: ControlPlane, workers: str) -> None:
    plane.set(VIRTUAL_HOST_TYPE, hosts(host("one"), host("two"), host("three")))
    async with Proxy(ads_bootstrap(plane.port, delta=True), "--concurrency", workers) as proxy:
        assert await get(proxy, "fixed") == (200, "fixed")
        answers = await asyncio.gather(*(get(proxy, name) for name in ["one", "two"] * 20))
        assert answers == [(200, "one"), (200, "two")] * 20
        assert sorted(subscribed(plane)) == ["routes/one", "routes/two"]
        plane.set(VIRTUAL_HOST_TYPE, hosts(host("one", body="new"), host("two")), "2")
        await until(proxy, "one", (200, "new"))
        assert plane.nacks(VIRTUAL_HOST_TYPE) == []


@_WORKERS
async def test_a_host_that_nobody_has(plane: ControlPlane, workers: str) -> None:
    """The control plane says so with a resource that has nothing inside."""
    plane.script()
    starting = asyncio.create_task(_start(plane, workers))
    stream = await plane.stream()
    try:
        await _play(plane, stream)
        proxy = await starting
    except BaseException:
        starting.cancel()
        raise
    try:
        asked = asyncio.create_task(get(proxy, "nobody"))
        await plane.until(lambda: "routes/nobody" in subscribed(plane))
        stream.send_delta(VIRTUAL_HOST_TYPE, [resource("routes/nobody", aliases=["routes/nobody"])], nonce="v1")
        assert await asked == (404, "")
        asked = asyncio.create_task(get(proxy, "later"))
        await plane.until(lambda: "routes/later" in subscribed(plane))
        stream.send_delta(VIRTUAL_HOST_TYPE, [], ["routes/later"], nonce="v2")
        assert await asked == (404, "")
        asked = asyncio.create_task(get(proxy, "alias"))
        await plane.until(lambda: "routes/alias" in subscribed(plane))
        real = message(VirtualHost, host("real", "alias"))
        stream.send_delta(VIRTUAL_HOST_TYPE, [resource("routes/real", real, aliases=["routes/alias"])], nonce="v3")
        assert await asked == (200, "real")
        pushed = message(VirtualHost, host("pushed"))
        stream.send_delta(VIRTUAL_HOST_TYPE, [resource("routes/pushed", pushed)], nonce="v4")
        await plane.until(lambda: any(each.response_nonce == "v4" for each in plane.of_type(VIRTUAL_HOST_TYPE)))
        assert await get(proxy, "pushed") == (200, "pushed")
        assert "routes/pushed" not in subscribed(plane)
        stream.send_delta(VIRTUAL_HOST_TYPE, [], ["routes/pushed"], nonce="v5")
        await plane.until(lambda: any(each.response_nonce == "v5" for each in plane.of_type(VIRTUAL_HOST_TYPE)))
        asked = asyncio.create_task(get(proxy, "pushed"))
        await plane.until(lambda: "routes/pushed" in subscribed(plane))
        stream.send_delta(VIRTUAL_HOST_TYPE, [resource("routes/pushed", pushed)], nonce="v6")
        assert await asked == (200, "pushed")
        assert plane.nacks(VIRTUAL_HOST_TYPE) == []
    finally:
        await proxy.__aexit__(None, None, None)


async def _start(plane: ControlPlane, workers: str) -> Proxy:
    return await Proxy(ads_bootstrap(plane.port, delta=True), "--concurrency", workers).__aenter__()


async def _play(plane: ControlPlane, stream: Any) -> None:
    """Give the proxy its clusters (none), its listener and routes, and an empty first answer about virtual hosts."""
    for kind in (CLUSTER_TYPE, LISTENER_TYPE, ROUTE_TYPE, VIRTUAL_HOST_TYPE):
        await plane.until(partial(plane.of_type, kind))
        known = plane.resources.get(kind, {})
        made = [resource(name, held) for name, (held, _) in known.items()]
        stream.send_delta(kind, made, nonce=f"first-{kind}")
