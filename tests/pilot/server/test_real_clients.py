"""Clients that nobody here wrote: the real Envoy in both variants of the protocol, and gRPC's own xDS client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_pb2 import RouteConfiguration

from meshproxy.config.subscription import CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE
from meshproxy.pilot.snapshot import Resource, Snapshot
from tests.integration.config import direct, forward
from tests.integration.dynamic import ads_bootstrap, assignment, eds_cluster, message, rds_listener, route_configuration
from tests.integration.load import EchoUpstream
from tests.pilot.grpc_client import grpc_caller, grpc_server
from tests.pilot.server.clients import Pilot, client, pilot, until
from tests.support.proxy import ProxyProcess, start_envoy

WAYS = pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])


def resources(**types: Mapping[str, Any]) -> Snapshot:
    """Messages by name, by `clusters`, `endpoints`, `listeners`, `routes`."""
    urls = {"clusters": CLUSTER_TYPE, "endpoints": ENDPOINT_TYPE, "listeners": LISTENER_TYPE, "routes": ROUTE_TYPE}
    return Snapshot(
        {urls[kind]: {name: Resource.of(name, each) for name, each in found.items()} for kind, found in types.items()}
    )


def mesh(clusters: Mapping[str, list[int]], routes: list[Any], **fields: Any) -> dict[str, Snapshot]:
    """One listener, its routes, and clusters with their ports."""
    shown = resources(
        clusters={name: eds_cluster(name, **fields) for name in clusters},
        endpoints={name: assignment(name, ports) for name, ports in clusters.items()},
        listeners={"main": rds_listener("main", "r")},
        routes={"r": route_configuration("r", *routes)},
    )
    return {"c": shown}


@asynccontextmanager
async def envoy(plane: Pilot, *, delta: bool) -> AsyncIterator[ProxyProcess]:
    """The real one, under the pilot; its node's cluster is `c`."""
    port = int(plane.target.rpartition(":")[2])
    process = await asyncio.to_thread(start_envoy, ads_bootstrap(port, delta=delta))
    try:
        yield process
    finally:
        await asyncio.to_thread(process.stop)


async def get(port: int, path: str = "/") -> tuple[int, str]:
    """Status and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: a.test\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    (size,) = [line.partition(":")[2] for line in head.splitlines() if line.startswith("content-length:")]
    body = await reader.readexactly(int(size))
    writer.close()
    return int(head.split()[1]), body.decode()


async def served(port: int, expected: tuple[int, str]) -> set[tuple[int, str]]:
    """Ask until the answer is this one; all answers that came."""
    found = set()
    async with asyncio.timeout(15.0):
        while expected not in found:
            found.add(await get(port))
    return found


def settled(plane: Pilot) -> bool:
    """Every client has taken everything."""
    clients = list(plane.streams.clients)
    return bool(clients) and all(each.stream.settled and each.stream.ordered for each in clients)


@WAYS
async def test_envoy_takes_everything_and_follows(delta: bool) -> None:
    async with pilot() as plane, EchoUpstream("v1") as v1, EchoUpstream("v2") as v2:
        plane.set(mesh({"a": [v1.port]}, [forward("/", "a")]))
        async with envoy(plane, delta=delta) as proxy:
            port = (await asyncio.to_thread(proxy.listener_ports))["main"]
            assert await get(port) == (200, "v1 /")
            # Endpoints change.
            plane.set(mesh({"a": [v2.port]}, [forward("/", "a")]))
            assert await served(port, (200, "v2 /")) <= {(200, "v1 /"), (200, "v2 /")}
            # A cluster comes, its routes use it, the old one goes: no request is lost.
            plane.set(mesh({"b": [v1.port]}, [forward("/", "b")]))
            assert await served(port, (200, "v1 /")) <= {(200, "v1 /"), (200, "v2 /")}
            await until(lambda: settled(plane))
            await until(lambda: _held(plane, CLUSTER_TYPE).keys() == {"b"})
            # A cluster changes, its endpoints do not: it needs them again to become warm.
            another = mesh({"b": [v1.port]}, [forward("/", "b")], alt_stat_name="other")
            plane.set(another)
            await until(lambda: _held(plane, CLUSTER_TYPE) == another["c"].types[CLUSTER_TYPE])
            await until(lambda: settled(plane) and _held(plane, ENDPOINT_TYPE) == another["c"].types[ENDPOINT_TYPE])
            stats = await asyncio.to_thread(proxy.stats, "cluster_manager.(warming_clusters|active_clusters)")
            assert stats == {"cluster_manager.active_clusters": 2, "cluster_manager.warming_clusters": 0}
            assert await get(port) == (200, "v1 /")
            assert not plane.streams.rejections


def _held(plane: Pilot, type_url: str) -> Mapping[str, Resource]:
    (connected,) = plane.streams.clients
    held: Mapping[str, Resource] = connected.stream.subscriptions[type_url].held
    return held


@WAYS
async def test_what_envoy_refuses_is_told_and_the_rest_goes_on(delta: bool) -> None:
    async with pilot() as plane:
        plane.set(mesh({}, [direct("/", "first")]))
        async with envoy(plane, delta=delta) as proxy:
            port = (await asyncio.to_thread(proxy.listener_ports))["main"]
            assert await get(port) == (200, "first")
            wrong = message(Listener, {"name": "wrong"})
            before = mesh({}, [direct("/", "second")])["c"]
            listeners = {**before.types[LISTENER_TYPE], "wrong": Resource.of("wrong", wrong)}
            plane.set({"c": Snapshot({**before.types, LISTENER_TYPE: listeners})})
            await until(lambda: bool(plane.streams.rejections))
            ((who, rejection), *_) = plane.streams.rejections.values()
            assert (who, rejection.type_url, "wrong" in rejection.reason) == ("n", LISTENER_TYPE, True)
            await served(port, (200, "second"))
            # What is right again is taken.
            plane.set(mesh({}, [direct("/", "third")]))
            await served(port, (200, "third"))
            (connected,) = plane.streams.clients
            await until(lambda: connected.stream.subscriptions[LISTENER_TYPE].rejection is None)


@WAYS
async def test_envoy_takes_it_that_there_is_no_such_resource(delta: bool) -> None:
    """State of the world says so in `resource_errors`: Envoy does not refuse that, and takes the resource later."""
    async with pilot() as plane, EchoUpstream("v1") as v1:
        whole = mesh({"a": [v1.port]}, [forward("/", "a")])["c"]
        plane.set({"c": Snapshot({})})
        async with envoy(plane, delta=delta) as proxy:
            plane.set({"c": Snapshot({**whole.types, ROUTE_TYPE: {}})})
            told = _only(plane).stream.subscriptions
            await until(lambda: settled(plane) and ROUTE_TYPE in told and told[ROUTE_TYPE].accepted_version != "")
            assert _held(plane, ROUTE_TYPE)["r"].version == ""
            plane.set({"c": whole})
            await until(lambda: settled(plane) and _held(plane, ROUTE_TYPE) == whole.types[ROUTE_TYPE])
            async with asyncio.timeout(15.0):
                while "main" not in (ports := await asyncio.to_thread(proxy.listener_ports)):
                    pass
            port = ports["main"]
            await served(port, (200, "v1 /"))
            assert not plane.streams.rejections


@WAYS
async def test_envoy_moves_to_another_pilot_and_serves_on(delta: bool) -> None:
    shown = mesh({"a": [1]}, [direct("/", "same")])
    async with pilot() as first:
        first.set(shown)
        async with envoy(first, delta=delta) as proxy:
            port = (await asyncio.to_thread(proxy.listener_ports))["main"]
            await until(lambda: settled(first))
            (before,) = first.streams.clients
            versions = {url: each.sent_version for url, each in before.stream.subscriptions.items()}
            await first.server.stop(0.2)
            assert await get(port) == (200, "same")
            async with pilot(first.target, shown) as second:
                await until(lambda: settled(second) and len(_only(second).stream.ordered) >= 3)
                await until(lambda: _only(second).stream.view is not None)
                again = _only(second).stream.subscriptions
                # It has the clusters and listeners of the first pilot: by their versions they are those of the second.
                assert [again[url].responses for url in (CLUSTER_TYPE, LISTENER_TYPE)] == [0, 0]
                if not delta:
                    assert again[LISTENER_TYPE].accepted_version == versions[LISTENER_TYPE]
                second.set(mesh({"a": [1]}, [direct("/", "other")]))
                await served(port, (200, "other"))


def _only(plane: Pilot) -> Any:
    (connected,) = plane.streams.clients
    return connected


# gRPC's own client: `host:port` is a listener without an address, its routes, clusters and endpoints.
GRPC_NODE = {"id": "grpc-1", "cluster": "grpc"}
API_LISTENER = {
    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    "rds": {"route_config_name": "app-routes", "config_source": {"ads": {}, "resource_api_version": "V3"}},
    "http_filters": [
        {
            "name": "router",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
        }
    ],
}


def grpc_mesh(weights: Mapping[str, int], ports: Mapping[str, int]) -> dict[str, Snapshot]:
    """Calls to `app.test:80` are split by weight among clusters."""
    weighted = {"clusters": [{"name": name, "weight": weight} for name, weight in weights.items()]}
    route = {"match": {"prefix": ""}, "route": {"weighted_clusters": weighted}}
    hosts = [{"name": "app", "domains": ["*"], "routes": [route]}]
    fields: dict[str, Any] = {"load_balancing_weight": 1, "locality": {"region": "here"}}
    assignments = {name: assignment(name, [port]) for name, port in ports.items()}
    for each in assignments.values():
        each.endpoints[0].load_balancing_weight.value = fields["load_balancing_weight"]
        each.endpoints[0].locality.region = "here"
    shown = resources(
        clusters={name: message(Cluster, _grpc_cluster(name)) for name in ports},
        endpoints=assignments,
        listeners={
            "app.test:80": message(Listener, {"name": "app.test:80", "api_listener": {"api_listener": API_LISTENER}})
        },
        routes={"app-routes": message(RouteConfiguration, {"name": "app-routes", "virtual_hosts": hosts})},
    )
    return {"grpc": shown}


def _grpc_cluster(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": {"ads": {}, "resource_api_version": "V3"}},
        "lb_policy": "ROUND_ROBIN",
    }


async def test_grpc_resolves_splits_and_follows(tmp_path: Path) -> None:
    async with pilot() as plane, grpc_server("one") as one, grpc_server("two") as two:
        ports = {"cluster-one": one, "cluster-two": two}
        plane.set(grpc_mesh({"cluster-one": 1}, {"cluster-one": one}))
        async with grpc_caller([plane.target], "app.test:80", GRPC_NODE, tmp_path) as call:
            assert [await call() for _ in range(3)] == ["one"] * 3
            plane.set(grpc_mesh({"cluster-one": 1, "cluster-two": 1}, ports))
            async with asyncio.timeout(15.0):
                while await call() != "two":
                    pass
            plane.set(grpc_mesh({"cluster-two": 1}, {"cluster-two": two}))
            async with asyncio.timeout(15.0):
                while await call() != "two" or not _forgot(plane, "cluster-one"):
                    pass
            assert {await call() for _ in range(20)} == {"two"}
            assert not plane.streams.rejections


def _forgot(plane: Pilot, name: str) -> bool:
    (connected,) = plane.streams.clients
    return name not in connected.stream.subscriptions[CLUSTER_TYPE].wanted.names


async def test_a_second_client_learns_what_grpc_asks_for(tmp_path: Path) -> None:
    """The names that gRPC's client asks for stand in its subscriptions, as CSDS and the pages show them."""
    async with pilot() as plane, grpc_server("one") as one, client(plane.target):
        plane.set(grpc_mesh({"cluster-one": 1}, {"cluster-one": one}))
        async with grpc_caller([plane.target], "app.test:80", GRPC_NODE, tmp_path) as call:
            assert await call() == "one"
            (found,) = [each for each in plane.streams.clients if each.proxy.id == "grpc-1"]
            wanted = {url: set(each.wanted.names) for url, each in found.stream.subscriptions.items()}
            assert wanted[LISTENER_TYPE] == {"app.test:80"}
            assert wanted[ROUTE_TYPE] == {"app-routes"}
            assert wanted[CLUSTER_TYPE] == wanted[ENDPOINT_TYPE] == {"cluster-one"}
