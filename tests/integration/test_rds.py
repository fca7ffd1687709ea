"""Routes from a control plane, with the whole proxy, while the listener that uses them changes too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from meshproxy.config.subscription import LISTENER_TYPE, ROUTE_TYPE
from tests.integration.config import direct, header_filter
from tests.integration.dynamic import ads_bootstrap, rds_listener, route_configuration
from tests.integration.kept import KeptConnection, Reply
from tests.integration.proxy import Proxy
from tests.support.control_plane import ControlPlane

_WAYS = pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])


@pytest.fixture
async def plane() -> AsyncIterator[ControlPlane]:
    async with ControlPlane.start() as plane:
        plane.set(LISTENER_TYPE, {"main": rds_listener("main", "first")})
        routes = {name: route_configuration(name, direct("/", name)) for name in ("first", "second")}
        plane.set(ROUTE_TYPE, routes)
        yield plane


@_WAYS
async def test_a_listener_takes_other_routes_under_its_connections(plane: ControlPlane, delta: bool) -> None:
    async with Proxy(ads_bootstrap(plane.port, delta=delta)) as proxy:
        kept = await KeptConnection.open(proxy.ports["main"])
        assert (await kept.get("/")).body == "first"
        plane.set(LISTENER_TYPE, {"main": rds_listener("main", "second")}, "2")
        await kept.until("/", lambda reply: reply.body == "second")
        routes = {
            "first": route_configuration("first", direct("/", "first")),
            "second": route_configuration("second", direct("/", "newer")),
        }
        plane.set(ROUTE_TYPE, routes, "2")
        await kept.until("/", lambda reply: reply.body == "newer")
        stats = await proxy.stats()
        assert stats["http.main.rds.second.config_reload"] == 2
        assert "http.main.rds.first.config_reload" not in stats
        kept.close()


@_WAYS
async def test_the_old_listener_serves_until_the_routes_of_the_new_one_are_there(
    plane: ControlPlane, delta: bool
) -> None:
    async with Proxy(ads_bootstrap(plane.port, delta=delta)) as proxy:
        kept = await KeptConnection.open(proxy.ports["main"])
        filters = [header_filter("x-new", "yes")]
        plane.set(LISTENER_TYPE, {"main": rds_listener("main", "third", filters=filters)}, "2")
        await plane.until(lambda: any("third" in _asked(each) for each in plane.of_type(ROUTE_TYPE)))
        assert (await kept.get("/")).body == "first"
        plane.set(ROUTE_TYPE, {"third": route_configuration("third", direct("/", "third"))}, "2")
        reply = await _on_new_connections(proxy, "third")
        assert reply.header("x-new") == "yes"
        kept.close()


async def test_explain_names_the_route_configuration(plane: ControlPlane) -> None:
    async with Proxy(ads_bootstrap(plane.port)) as proxy:
        status, body = await proxy.admin("/explain?url=http://a.test/x&listener=main&format=json")
        assert status == 200, body
        assert "routes.first.virtual_hosts[0].routes[0]" in json.dumps(json.loads(body))


async def _on_new_connections(proxy: Proxy, body: str) -> Reply:
    """Ask, each time on a connection of its own, until the answer is this one."""
    async with asyncio.timeout(15.0):
        while True:
            connection = await KeptConnection.open(proxy.ports["main"])
            reply = await connection.get("/")
            connection.close()
            if reply.body == body:
                return reply


def _asked(request: object) -> list[str]:
    """The names in a request, of either kind."""
    return [*getattr(request, "resource_names", ()), *getattr(request, "resource_names_subscribe", ())]
