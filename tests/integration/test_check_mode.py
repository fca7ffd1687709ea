"""What a proxy cannot do is left out of a resource, counted and listed; what guards access refuses the resource."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_pb2 import RouteConfiguration

from meshproxy.config.subscription import LISTENER_TYPE, ROUTE_TYPE
from tests.integration.config import direct, listener
from tests.integration.dynamic import ads_bootstrap, message, rds_listener, route_configuration
from tests.integration.proxy import Proxy
from tests.support.control_plane import ControlPlane

UNKNOWN = b"\xf8\x7f\x01"  # field 2047, a varint


@pytest.fixture
async def plane() -> AsyncIterator[ControlPlane]:
    async with ControlPlane.start() as plane:
        yield plane


async def section(proxy: Proxy, kind: str) -> Any:
    """Of /config_dump."""
    _, body = await proxy.admin("/config_dump")
    return next(one for one in json.loads(body)["configs"] if one["@type"].endswith(f".{kind}"))


async def test_it_is_taken_without_and_told(plane: ControlPlane) -> None:
    made = message(Listener, listener("main", [direct("/", "ok")], transparent=True))
    made.MergeFromString(UNKNOWN)
    plane.set(LISTENER_TYPE, {"main": made})
    async with Proxy(ads_bootstrap(plane.port)) as proxy:
        assert "main" in proxy.ports
        assert await proxy.stat("server.dynamic_unknown_fields") == 1
        dump = await section(proxy, "ListenersConfigDump")
        assert dump["dynamic_listeners"][0]["active_state"]["listener"]["transparent"] is True, "as it came"
        not_done = await section(proxy, "NotDoneConfigDump")
        told = json.dumps(not_done)
        assert "transparent" in told
        assert "unknown field 2047" in told
    assert not plane.nacks(LISTENER_TYPE)


async def test_what_guards_access_refuses_its_resource_alone(plane: ControlPlane) -> None:
    """The routes keep their last good version, and the reason reaches the control plane."""
    plane.set(LISTENER_TYPE, {"main": rds_listener("main", "r")})
    plane.set(ROUTE_TYPE, {"r": route_configuration("r", direct("/", "good"))})
    async with Proxy(ads_bootstrap(plane.port, delta=True)) as proxy:
        newer = route_configuration("r", direct("/", "bad"))
        newer.virtual_hosts[0].routes[0].match.MergeFromString(UNKNOWN)
        plane.set(ROUTE_TYPE, {"r": newer}, "2")
        await plane.until(lambda: plane.nacks(ROUTE_TYPE))
        assert "virtual_hosts[0].routes[0].match: unknown field 2047" in plane.nacks(ROUTE_TYPE)[0]
        dump = await section(proxy, "RoutesConfigDump")
        assert '"good"' in json.dumps(dump["dynamic_route_configs"])


async def test_a_strict_proxy_takes_no_field_that_it_does_not_know(plane: ControlPlane) -> None:
    good, newer = (message(Listener, listener(name, [direct("/", name)])) for name in ("good", "newer"))
    newer.MergeFromString(UNKNOWN)
    plane.set(LISTENER_TYPE, {"good": good, "newer": newer})
    async with Proxy(ads_bootstrap(plane.port), "--reject-unknown-dynamic-fields") as proxy:
        assert set(proxy.ports) == {"good"}
        await plane.until(lambda: plane.nacks(LISTENER_TYPE))
        assert "unknown field 2047" in plane.nacks(LISTENER_TYPE)[0]


def test_the_messages_are_what_the_tests_think() -> None:
    assert RouteConfiguration.DESCRIPTOR.fields_by_number.get(2047) is None
    assert Listener.DESCRIPTOR.fields_by_number.get(2047) is None
