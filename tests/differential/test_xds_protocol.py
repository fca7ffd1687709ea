"""What is said to a control plane: Envoy and meshproxy under the same script, their requests side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from envoy.config.listener.v3.listener_pb2 import Listener

from meshproxy.config.subscription import CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE
from tests.integration.config import forward
from tests.integration.dynamic import ads_bootstrap, assignment, eds_cluster, rds_listener, route_configuration
from tests.support.control_plane import ControlPlane
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy

TYPES = (CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE)
# A request, without what is another in every run: names, version, whether it answers, whether it refuses.
Said = tuple[Any, ...]


def prepare(plane: ControlPlane) -> None:
    """What there is from the beginning."""
    plane.set(ENDPOINT_TYPE, {name: assignment(name, [1]) for name in ("a", "b")}, "e1")
    plane.set(ROUTE_TYPE, {"routes": route_configuration("routes", forward("/", "a"))}, "r1")
    plane.set(CLUSTER_TYPE, {name: eds_cluster(name) for name in ("a", "b")}, "c1")
    plane.set(LISTENER_TYPE, {"l": rds_listener("l")}, "l1")


async def play(plane: ControlPlane) -> None:
    """One step after another, each when the client has answered the one before."""
    await answered(plane, CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE)
    for version in ("l2", "l3"):  # a listener without an address, twice
        plane.set(LISTENER_TYPE, {"l": rds_listener("l"), "bad": Listener(name="bad", stat_prefix=version)}, version)
        await answered(plane, LISTENER_TYPE)
    plane.set(LISTENER_TYPE, {"l": rds_listener("l")}, "l4")
    await answered(plane, LISTENER_TYPE)
    plane.set(ENDPOINT_TYPE, {"a": assignment("a", [2]), "b": assignment("b", [1])}, "e2")
    await answered(plane, ENDPOINT_TYPE)
    plane.set(CLUSTER_TYPE, {"a": eds_cluster("a")}, "c2")
    await answered(plane, CLUSTER_TYPE)
    await plane.until(lambda: "b" not in asked(plane, ENDPOINT_TYPE))
    plane.script()
    plane.streams[0].cut()
    await plane.until(lambda: len(plane.streams) > 1 and len(plane.streams[1].requests) >= len(TYPES))


async def answered(plane: ControlPlane, *types: str) -> None:
    """Wait until every response of these types that was sent has its answer."""
    for type_url in types:
        await plane.until(lambda: plane.sent.get(type_url) in {each.response_nonce for each in plane.of_type(type_url)})  # noqa: B023


def asked(plane: ControlPlane, type_url: str) -> set[str]:
    """The names of a type that are asked for now."""
    names: set[str] = set()
    for each in plane.of_type(type_url):
        if hasattr(each, "resource_names"):
            names = set(each.resource_names)
        else:
            names = (names | set(each.resource_names_subscribe)) - set(each.resource_names_unsubscribe)
    return names


def in_words(request: Any) -> Said:
    answers, refuses = bool(request.response_nonce), request.HasField("error_detail")
    if hasattr(request, "resource_names"):
        return tuple(sorted(request.resource_names)), request.version_info, answers, refuses
    names = (request.resource_names_subscribe, request.resource_names_unsubscribe)
    versions = sorted(request.initial_resource_versions.items())
    return *(tuple(sorted(each)) for each in names), versions, answers, refuses


async def said_by(start: Callable[[str], ProxyProcess], delta: bool) -> dict[str, Any]:
    """What a proxy says of each type on both streams, and in which order the types come up."""
    async with ControlPlane.start() as plane:
        prepare(plane)
        proxy = await asyncio.to_thread(start, ads_bootstrap(plane.port, delta=delta))
        try:
            await play(plane)
        finally:
            await asyncio.to_thread(proxy.stop)
        first, second = plane.streams[:2]
        found: dict[str, Any] = {
            type_url: [
                [in_words(each) for each in stream.requests if each.type_url == type_url] for stream in (first, second)
            ]
            for type_url in TYPES
        }
        found["order"] = list(dict.fromkeys(each.type_url for each in second.requests))
        found["nodes"] = [sum(each.HasField("node") for each in stream.requests) for stream in (first, second)]
        return found


@pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
async def test_the_same_is_said(delta: bool) -> None:
    expected, ours = await said_by(start_envoy, delta), await said_by(start_meshproxy, delta)
    for key, said in expected.items():
        assert ours[key] == said, key
