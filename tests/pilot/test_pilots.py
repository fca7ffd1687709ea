"""Running pilots: gRPC's own client follows their rules, and proxies go on when one of two is killed."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshproxy.cli import main
from meshproxy.config.subscription import ROUTE_TYPE
from tests.integration.load import EchoUpstream
from tests.pilot.grpc_client import grpc_caller, grpc_server
from tests.pilot.processes import DEADLINE_S, PilotProcess, bootstrap, free_port, pilot
from tests.pilot.server.clients import Client, client
from tests.pilot.sources.etcd import Etcd
from tests.support.polling import wait_for
from tests.support.proxy import MESHPROXY_ARGUMENTS, ProxyProcess, envoy_binary

SERVICE = """\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: app, namespace: shop}
spec:
  hosts: [app.shop.svc.cluster.local]
  ports: [{number: %(port)d, name: main, protocol: %(protocol)s}]
  resolution: STATIC
  location: MESH_INTERNAL
  endpoints:
    - {address: 127.0.0.1, ports: {main: %(v1)d}, labels: {version: v1}}
    - {address: 127.0.0.1, ports: {main: %(v2)d}, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: app, namespace: shop}
spec:
  host: app
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
"""
SPLIT = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: app, namespace: shop}
spec:
  hosts: [app]
  http:
    - route:
        - {destination: {host: app, subset: v1}, weight: %(v1)d}
        - {destination: {host: app, subset: v2}, weight: %(v2)d}
"""
GRPC_NODE = {
    "id": "sidecar~127.0.0.1~caller.shop~shop.svc.cluster.local",
    "metadata": {"GENERATOR": "grpc", "NAMESPACE": "shop"},
}


class Rules:
    """A directory with one service in two versions, and how calls are split among them."""

    def __init__(self, folder: Path, **service: Any) -> None:
        self.path = folder / "rules"
        self.path.mkdir()
        (self.path / "service.yaml").write_text(SERVICE % service)

    def split(self, v1: int, v2: int) -> None:
        (self.path / "split.yaml").write_text(SPLIT % {"v1": v1, "v2": v2})


async def follow(call: Callable[[], Any], wanted: dict[str, range], calls: int = 100) -> None:
    """Call until so many calls in a row are answered by so many of each."""
    async with asyncio.timeout(DEADLINE_S):
        while not _fits(Counter([await call() for _ in range(calls)]), wanted):
            pass


def _fits(found: Counter[str], wanted: dict[str, range]) -> bool:
    return all(found[name] in share for name, share in wanted.items())


async def test_grpc_follows_the_weights_of_rules(tmp_path: Path) -> None:
    async with grpc_server("v1") as v1, grpc_server("v2") as v2:
        rules = Rules(tmp_path, port=9090, protocol="GRPC", v1=v1, v2=v2)
        rules.split(100, 0)
        with await asyncio.to_thread(_entered, pilot(rules.path, tmp_path, "one")) as one:
            target = "app.shop.svc.cluster.local:9090"
            async with grpc_caller([f"127.0.0.1:{one.port}"], target, GRPC_NODE, tmp_path) as call:
                assert {await call() for _ in range(10)} == {"v1"}
                rules.split(50, 50)
                await follow(call, {"v1": range(25, 76), "v2": range(25, 76)})
                rules.split(0, 100)
                await follow(call, {"v1": range(1), "v2": range(100, 101)})
                assert (await asyncio.to_thread(one.json, "/debug/rejections"))["clients"] == []


class _Entered:
    """A context manager that was entered in another thread, while this loop went on."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self.made: Any = manager.__enter__()

    def __enter__(self) -> Any:
        return self.made

    def __exit__(self, *what: object) -> None:
        self._manager.__exit__(*what)


def _entered(manager: Any) -> _Entered:
    return _Entered(manager)


PROXIES = {
    "meshproxy": [sys.executable, "-m", "meshproxy", "run", "--concurrency", "1", *MESHPROXY_ARGUMENTS],
    "envoy": [envoy_binary(), "--concurrency", "1", "--use-dynamic-base-id", "--log-level", "error"],
}


class Load:
    """Clients that ask one after the other, each on a connection of its own, until they are told to stop."""

    def __init__(self, port: int, clients: int = 4) -> None:
        self.answers: Counter[str] = Counter()
        self._port = port
        self._stopping = False
        self._tasks = [asyncio.ensure_future(self._ask()) for _ in range(clients)]

    async def _ask(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        while not self._stopping:
            writer.write(b"GET / HTTP/1.1\r\nhost: app.shop.svc.cluster.local\r\n\r\n")
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            size = next(line for line in head.splitlines() if line.startswith("content-length:")).partition(":")[2]
            body = (await reader.readexactly(int(size))).decode()
            self.answers[f"{head.split()[1]} {body}"] += 1
        writer.close()

    async def until(self, answer: str) -> None:
        """Wait until this one has come, and then a hundred more."""
        async with asyncio.timeout(DEADLINE_S):
            while not self.answers[answer]:
                await asyncio.sleep(0.005)
            wanted = self.answers.total() + 100
            while self.answers.total() < wanted:
                await asyncio.sleep(0.005)

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)


@pytest.mark.parametrize(
    ("proxy", "api_type"),
    [
        ("meshproxy", "DELTA_GRPC"),
        ("envoy", "GRPC"),
        pytest.param("meshproxy", "GRPC", marks=pytest.mark.long),
        pytest.param("envoy", "DELTA_GRPC", marks=pytest.mark.long),
    ],
)
async def test_a_pilot_is_killed_and_no_request_is_lost(tmp_path: Path, proxy: str, api_type: str) -> None:
    async with EchoUpstream("v1") as v1, EchoUpstream("v2") as v2:
        port = free_port()
        rules = Rules(tmp_path, port=port, protocol="HTTP", v1=v1.port, v2=v2.port)
        rules.split(100, 0)
        with (
            await asyncio.to_thread(_entered, pilot(rules.path, tmp_path, "one")) as one,
            await asyncio.to_thread(_entered, pilot(rules.path, tmp_path, "two")) as two,
            await asyncio.to_thread(
                ProxyProcess, PROXIES[proxy], bootstrap(one.port, two.port, api_type=api_type)
            ) as process,
        ):
            load = Load(port)
            await load.until("200 v1 /")
            serving, other = await asyncio.to_thread(_serving, one, two)
            serving.process.kill()
            await asyncio.to_thread(_wait_for_client, other)
            rules.split(0, 100)
            await load.until("200 v2 /")
            await load.stop()
            assert set(load.answers) == {"200 v1 /", "200 v2 /"}
            assert (await asyncio.to_thread(other.json, "/debug/rejections"))["clients"] == []
            assert process.process.poll() is None


def _serving(one: PilotProcess, two: PilotProcess) -> tuple[PilotProcess, PilotProcess]:
    return (one, two) if one.json("/debug/clients") else (two, one)


def _wait_for_client(pilot: PilotProcess) -> None:
    def accepted() -> bool:
        shown = pilot.json("/debug/clients")
        return bool(shown) and len(shown[0]["types"]) == 4

    wait_for(accepted, "the client to come", DEADLINE_S)


async def test_pilots_on_one_store_serve_the_same(tmp_path: Path) -> None:
    store = Etcd(tmp_path)
    await asyncio.to_thread(store.start)
    flags = ("--etcd", store.endpoint)
    rules = Rules(tmp_path, port=80, protocol="HTTP", v1=1, v2=2)
    rules.split(100, 0)
    try:
        await _apply(rules, store)
        with (
            await asyncio.to_thread(_entered, pilot(flags, tmp_path, "one")) as one,
            await asyncio.to_thread(_entered, pilot(flags, tmp_path, "two")) as two,
        ):
            async with (
                client(f"127.0.0.1:{one.port}", "DeltaAggregatedResources") as here,
                client(f"127.0.0.1:{two.port}", "DeltaAggregatedResources") as there,
            ):
                first = [await _routes(each, "80") for each in (here, there)]
                assert first[0] == first[1]
                rules.split(0, 100)
                await _apply(rules, store)
                second = [await _versions(each) for each in (here, there)]
                assert second[0] == second[1] != first[0]
    finally:
        await asyncio.to_thread(store.stop)


async def _apply(rules: Rules, store: Etcd) -> None:
    flags = ["rules", "apply", "-f", str(rules.path), "--etcd", store.endpoint]
    assert await asyncio.to_thread(main, flags) == 0


async def _routes(proxy: Client, name: str) -> dict[str, str]:
    """Ask for routes; the version of each."""
    await proxy.ask(ROUTE_TYPE, name, node={"id": "sidecar~127.0.0.1~web.shop~shop.svc.cluster.local"})
    return await _versions(proxy)


async def _versions(proxy: Client) -> dict[str, str]:
    response = await proxy.next()
    await proxy.ack(response)
    return {resource.name: resource.version for resource in response.resources}
