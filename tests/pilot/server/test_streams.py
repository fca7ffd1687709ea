"""Streams over gRPC: who is served, who is sent away, and what everybody shares."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from h2.events import RemoteSettingsChanged
from h2.settings import SettingCodes

from meshproxy.config.subscription import CLUSTER_TYPE as CDS
from meshproxy.config.subscription import ENDPOINT_TYPE as EDS
from meshproxy.config.subscription import LISTENER_TYPE as LDS
from meshproxy.observe.log import log_once_per
from meshproxy.pilot.proxy import proxy_of
from meshproxy.pilot.server import protocol, snapshots, streams
from meshproxy.pilot.server.kinds import stream_methods
from meshproxy.pilot.server.server import MAX_STREAMS_OF_CONNECTION
from meshproxy.pilot.snapshot import Resource, Snapshot
from tests.pilot.server.clients import Pilot, client, pilot, until
from tests.pilot.server.support import NODE, changed, cluster, endpoints, listener, snapshot

BASE = snapshot(clusters=[cluster("a")], endpoints=[endpoints("a")], listeners=[listener("l")])
MESH = {"tests": BASE}
BOTH = pytest.mark.parametrize("method", ["StreamAggregatedResources", "DeltaAggregatedResources"])


@BOTH
@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_a_client_is_served_and_told_of_a_change(method: str, kind: str, tmp_path: Path) -> None:
    address = "127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/xds"
    async with pilot(address, MESH) as plane, client(plane.target, method) as proxy:
        await proxy.ask(CDS)
        first = await proxy.next()
        assert (first.type_url, len(first.resources)) == (CDS, 1)
        await proxy.ack(first)
        plane.set({"tests": changed(BASE, clusters=[cluster("a", 2)])})
        second = await proxy.next()
        assert second.nonce != first.nonce
        await proxy.ack(second)
        await until(lambda: plane.count("push_seconds_count") == 1)


@pytest.mark.parametrize("method", sorted(stream_methods()))
async def test_every_method_is_served(method: str) -> None:
    delta, type_url = stream_methods()[method]
    type_url = type_url or CDS
    mesh = {"tests": Snapshot({type_url: {"x": Resource("x", "1", b"")}})}
    async with pilot(mesh=mesh) as plane, client(plane.target, method) as proxy:
        await proxy.ask(type_url, "x")
        response = await proxy.next()
        assert (response.type_url, len(response.resources), proxy.is_delta) == (type_url, 1, delta)


async def test_a_client_that_comes_before_the_rules_waits() -> None:
    async with pilot() as plane, client(plane.target) as proxy:
        await proxy.ask(CDS)
        await until(lambda: len(plane.streams.clients) == 1)
        plane.set(MESH)
        assert len((await proxy.next()).resources) == 1


@BOTH
async def test_who_does_not_say_who_it_is_is_refused(method: str) -> None:
    async with pilot(mesh=MESH) as plane, client(plane.target, method) as proxy:
        await proxy.ask(CDS, node=None)
        error = await proxy.ended()
        assert (error.code(), "node.id is required" in error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, True)
        assert plane.count("refused_streams_total") == 1
        await until(lambda: not plane.streams.clients)


@BOTH
async def test_the_node_is_needed_once(method: str) -> None:
    async with pilot(mesh=MESH) as plane, client(plane.target, method) as proxy:
        await proxy.ask(LDS)
        await proxy.next()
        await proxy.ask(CDS, node=None)
        assert (await proxy.next()).type_url == CDS


@BOTH
async def test_bytes_that_are_no_request_end_the_stream(method: str) -> None:
    async with pilot(mesh=MESH) as plane, client(plane.target, method) as proxy:
        await proxy.send(b"\xff\xff\xff")
        assert (await proxy.ended()).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_rejection_is_remembered_and_counted() -> None:
    async with pilot(mesh=MESH) as plane, client(plane.target) as proxy:
        await proxy.ask(CDS)
        await proxy.ack(await proxy.next(), error="clusters[0].name: no")
        await until(lambda: len(plane.streams.rejections) == 1)
        ((who, rejection),) = plane.streams.rejections.values()
        assert (who, rejection.type_url, rejection.reason) == ("client-1", CDS, "clusters[0].name: no")
        assert plane.count("rejections_total", type="Cluster") == 1


@BOTH
async def test_a_client_that_does_not_answer_is_sent_away(method: str) -> None:
    async with pilot(mesh=MESH, deadline_s=0.2) as plane, client(plane.target, method) as proxy:
        await proxy.ask(CDS)
        await proxy.next()
        assert (await proxy.ended()).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert plane.count("slow_clients_total") == 1
        await until(lambda: not plane.streams.clients)


@BOTH
async def test_who_asks_for_too_many_names_is_told_so(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_NAMES", 3)
    async with pilot(mesh=MESH) as plane, client(plane.target, method) as proxy:
        await proxy.ask(EDS, "a", "b")
        await proxy.ack(await proxy.next(), *(() if proxy.is_delta else ("a", "b")))
        await proxy.ask(CDS, "a", "b")
        error = await proxy.ended()
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details().startswith("more than 3 names of resources")
        assert plane.count("refused_streams_total") == 1


@pytest.mark.parametrize("first", ["client", "rules"])
async def test_snapshots_that_clients_can_cause_are_bounded(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "MAX_SCOPES", 2)
    mesh = dict.fromkeys(("one", "two", "three"), BASE)
    async with pilot(mesh=None if first == "client" else mesh) as plane:
        async with client(plane.target) as one, client(plane.target) as two, client(plane.target) as three:
            asked = {name: type(NODE)(id=name, cluster=name) for name in mesh}
            await one.ask(CDS, node=asked["one"])
            await until(lambda: _introduced(plane) == 1)
            await two.ask(CDS, node=asked["two"])
            await until(lambda: _introduced(plane) == 2)
            await three.ask(CDS, node=asked["three"])
            if first == "client":
                await until(lambda: _introduced(plane) == 3)
                plane.set(mesh)
            error = await three.ended()
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert error.details().startswith("this pilot serves 2 different configurations")
            for proxy in (one, two):
                assert len((await proxy.next()).resources) == 1
        async with client(plane.target) as again:  # now there is room for it
            await until(lambda: not plane.snapshots.scopes)
            await again.ask(CDS, node=asked["three"])
            assert len((await again.next()).resources) == 1


def _introduced(plane: Pilot) -> int:
    return sum(1 for each in plane.streams.clients if each.node is not None)


@BOTH
async def test_what_a_client_says_of_itself_is_bounded(method: str) -> None:
    async with pilot(mesh=MESH) as plane, client(plane.target, method) as proxy:
        await proxy.ask(CDS, node=type(NODE)(id="x" * 1024 * 1024))
        error = await proxy.ended()
        assert (error.code(), error.details()) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "the node has more than 262144 bytes",
        )


async def test_the_log_and_the_status_do_not_repeat_all_that_a_client_says(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(streams, "_refusals", log_once_per(0.0, "pilot"))
    ports = {"meshproxy.io/ports": {"x" * 10_000: "none"}}
    async with pilot(mesh=MESH) as plane, client(plane.target) as proxy:
        plane.streams.identify = lambda node, _: proxy_of(node)
        node = type(NODE)(id="y" * 10_000)
        node.metadata.update(ports)
        await proxy.ask(CDS, node=node)
        error = await proxy.ended()
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert len(error.details()) == 1024
        assert max(map(len, caplog.messages)) < 2048


@BOTH
async def test_the_extensions_of_a_node_are_not_kept(method: str) -> None:
    """Envoy lists hundreds, and they are nothing that resources depend on."""
    async with pilot(mesh=MESH) as plane, client(plane.target, method) as proxy:
        node = type(NODE)(id="x", cluster="tests", extensions=[{"name": "envoy.filters.http.router"}])
        await proxy.ask(CDS, node=node)
        await proxy.next()
        (found,) = plane.streams.clients
        assert found.node == type(NODE)(id="x", cluster="tests")


async def test_streams_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_STREAMS", 1)
    async with pilot(mesh=MESH) as plane, client(plane.target) as one:
        await one.ask(CDS)
        assert len((await one.next()).resources) == 1
        async with client(plane.target) as other:
            error = await other.ended()
        assert (error.code(), error.details()) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "this pilot serves 1 streams: ask another",
        )


async def test_streams_of_a_connection_are_bounded() -> None:
    from h2.connection import H2Connection

    async with pilot(mesh=MESH) as plane, asyncio.timeout(10.0):
        host, _, port = plane.target.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        connection = H2Connection()
        connection.initiate_connection()
        writer.write(connection.data_to_send())
        found: list[Any] = []
        while not found:
            events = connection.receive_data(await reader.read(65536))
            found = [each for each in events if isinstance(each, RemoteSettingsChanged)]
        writer.close()
        changes = found[0].changed_settings
        assert changes[SettingCodes.MAX_CONCURRENT_STREAMS].new_value == MAX_STREAMS_OF_CONNECTION == 100


async def test_a_client_that_does_not_read_goes_early_where_too_much_waits() -> None:
    """Long before its time to answer is over."""
    large = {f"c{number}": Resource(f"c{number}", "1", b"x" * 1_000_000) for number in range(12)}
    async with pilot(mesh={"tests": Snapshot({CDS: large})}, deadline_s=600.0) as plane, _mute(plane.target) as mute:
        plane.streams.stalled_bytes = 1_000_000
        await mute()
        await until(lambda: plane.count("slow_clients_total") == 1)
        await until(lambda: not plane.streams.clients)


async def test_a_client_that_does_not_say_anything_is_sent_away() -> None:
    async with pilot(mesh=MESH, deadline_s=0.2) as plane, client(plane.target) as proxy:
        assert (await proxy.ended()).code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_client_that_does_not_read_is_sent_away_and_holds_up_nobody() -> None:
    large = {f"c{number}": Resource(f"c{number}", "1", b"x" * 1_000_000) for number in range(12)}
    mesh = {"tests": Snapshot({CDS: large})}
    async with pilot(mesh=mesh, deadline_s=2.0) as plane, client(plane.target) as reader, _mute(plane.target) as mute:
        await mute()
        await until(lambda: len(plane.streams.clients) == 2)
        await reader.ask(CDS)
        response = await reader.next()
        assert len(response.resources) == 12
        await reader.ack(response)
        await until(lambda: plane.count("slow_clients_total") == 1)
        await until(lambda: len(plane.streams.clients) == 1)


def _mute(target: str) -> Any:
    return _Mute(target)


class _Mute:
    """A client that asks, by HTTP/2 of its own, and opens no window for the answer."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._address = (host, int(port))

    async def __aenter__(self) -> Any:
        self._reader, self._writer = await asyncio.open_connection(*self._address)
        return self._ask

    async def _ask(self) -> None:
        from h2.connection import H2Connection

        from tests.pilot.server.support import ask

        connection = H2Connection()
        connection.initiate_connection()
        path = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
        connection.send_headers(
            1,
            [
                (":method", "POST"),
                (":path", path),
                (":scheme", "http"),
                (":authority", "pilot"),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
            ],
        )
        data = ask(CDS).SerializeToString()
        connection.send_data(1, b"\x00" + len(data).to_bytes(4, "big") + data)
        self._writer.write(connection.data_to_send())

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)


async def test_everybody_is_sent_away_when_the_pilot_ends() -> None:
    async with pilot(mesh=MESH) as plane, client(plane.target) as one, client(plane.target) as other:
        for proxy in (one, other):
            await proxy.ask(CDS)
            await proxy.next()
        stopping = asyncio.ensure_future(plane.server.stop(0.5))
        assert (await one.ended()).code() is grpc.StatusCode.UNAVAILABLE
        assert (await other.ended()).code() is grpc.StatusCode.UNAVAILABLE
        await stopping


async def test_connections_have_an_age() -> None:
    async with pilot(mesh=MESH, max_connection_age_s=0.2) as plane, client(plane.target) as proxy:
        await proxy.ask(CDS)
        await proxy.next()
        await proxy.ended()
        await until(lambda: not plane.streams.clients)


async def test_clients_of_one_scope_share_what_they_hold() -> None:
    async with pilot(mesh=MESH) as plane, client(plane.target) as one, client(plane.target) as other:
        for proxy in (one, other):
            await proxy.ask(CDS)
            await proxy.ask(EDS, "a")
            assert {(await proxy.next()).type_url for _ in range(2)} == {CDS, EDS}
        first, second = plane.streams.clients
        for type_url in (CDS, EDS):
            mine, others = (each.stream.subscriptions[type_url] for each in (first, second))
            assert mine.held is others.held
            assert mine.wanted is others.wanted
