"""The pilot's streams on our own gRPC server: what `test_streams.py` holds grpcio's to, where the servers differ."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from meshproxy.codec import grpc as codes
from meshproxy.config.subscription import CLUSTER_TYPE as CDS
from meshproxy.net.address import Address
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.observe.log import log_once_per
from meshproxy.pilot.server.identity import Shown
from meshproxy.pilot.snapshot import Resource, Snapshot
from meshproxy.rpc.server.call import RpcFailure
from meshproxy.rpc.server.core import ServerLimits
from meshproxy.rpc.server.server import RpcServer
from tests.pilot.server.clients import Pilot, client, until
from tests.pilot.server.support import cluster, snapshot
from tests.pilot.server.test_streams import _mute

MESH = {"tests": snapshot(clusters=[cluster("a")])}
_LARGE = {f"c{number}": Resource(f"c{number}", "1", b"x" * 1_000_000) for number in range(12)}


class Proofs:
    """What callers prove."""

    def __init__(self) -> None:
        self.hold = True
        self.failure: RpcFailure | None = None

    async def prove(self, _context: Any) -> Shown:
        if self.failure is not None:
            raise self.failure
        return Shown(("spiffe://mesh.test/ns/tests/sa/app",), lambda: self.hold)


@asynccontextmanager
async def own_pilot(mesh: Any = None, **options: Any) -> AsyncIterator[tuple[Pilot, Proofs]]:
    """On our server."""
    made, proofs = Pilot(**options), Proofs()
    made.streams.proof = proofs.prove
    dispatcher = Dispatcher(asyncio.get_running_loop())
    server = RpcServer(dispatcher, made.server.own_handlers(), ServerLimits())
    made.target = str(await server.listen_tcp(Address("127.0.0.1", 0)))
    await made.server.start()
    made.set(MESH if mesh is None else mesh)
    try:
        yield made, proofs
    finally:
        await server.close()
        await made.server.stop()
        await dispatcher.close()


@pytest.mark.parametrize("method", ["StreamAggregatedResources", "DeltaAggregatedResources"])
async def test_resources_and_their_changes(method: str) -> None:
    async with own_pilot() as (plane, _), client(plane.target, method) as proxy:
        await proxy.ask(CDS)
        first = await proxy.next()
        assert len(first.resources) == 1
        await proxy.ack(first)
        plane.set({"tests": snapshot(clusters=[cluster("a"), cluster("b")])})
        assert len((await proxy.next()).resources) == (1 if proxy.is_delta else 2)
        (shown,) = plane.streams.clients
        assert shown.proxy.service_account == "app"
        assert shown.address.startswith("127.0.0.1:")
    assert not plane.streams.clients


async def test_large_responses() -> None:
    async with own_pilot({"tests": Snapshot({CDS: _LARGE})}) as (plane, _), client(plane.target) as proxy:
        await proxy.ask(CDS)
        assert len((await proxy.next()).resources) == 12


async def test_what_makes_no_sense_ends_the_stream() -> None:
    async with own_pilot() as (plane, _), client(plane.target) as proxy:
        await proxy.send(b"\xff")
        assert (await proxy.ended()).code() is grpc.StatusCode.INVALID_ARGUMENT
        await until(lambda: not plane.streams.clients)
        assert plane.count("refused_streams_total") == 1


async def test_whoever_proves_nothing_is_told_so() -> None:
    """Before it has said anything."""
    async with own_pilot() as (plane, proofs):
        proofs.failure = RpcFailure(codes.UNAUTHENTICATED, "no valid proof of identity")
        async with client(plane.target) as proxy:
            ended = await proxy.ended()
        assert (ended.code(), ended.details()) == (grpc.StatusCode.UNAUTHENTICATED, "no valid proof of identity")
        assert plane.count("refused_streams_total") == 1


async def test_a_stream_ends_with_its_proof() -> None:
    async with own_pilot() as (plane, proofs), client(plane.target) as proxy:
        await proxy.ask(CDS)
        await proxy.ack(await proxy.next())
        proofs.hold = False
        ended = await proxy.ended()
        assert (ended.code(), ended.details()) == (grpc.StatusCode.UNAUTHENTICATED, "the proof of identity has ended")
        await until(lambda: not plane.streams.clients)


async def test_a_client_that_does_not_say_anything_is_sent_away() -> None:
    async with own_pilot(deadline_s=0.2) as (plane, _), client(plane.target) as proxy:
        assert (await proxy.ended()).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: not plane.streams.clients)


async def test_a_client_that_does_not_read_is_sent_away() -> None:
    mesh = {"tests": Snapshot({CDS: _LARGE})}
    async with own_pilot(mesh, deadline_s=600.0) as (plane, _), _mute(plane.target) as mute:
        plane.streams.stalled_bytes = 1_000_000
        await mute()
        await until(lambda: plane.count("slow_clients_total") == 1)
        await until(lambda: not plane.streams.clients)


async def test_who_is_refused_again_and_again_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("meshproxy.pilot.server.streams._refusals", log_once_per(1e9, "pilot"))
    async with own_pilot() as (plane, proofs):
        proofs.failure = RpcFailure(codes.UNAUTHENTICATED, "no proof")
        for _ in range(3):
            async with client(plane.target) as proxy:
                with pytest.raises(grpc.aio.AioRpcError, match="no proof"):
                    await proxy.next()
        assert plane.count("refused_streams_total") == 3
    assert caplog.text.count("is refused: no proof") == 1


async def test_health() -> None:
    async with own_pilot() as (plane, _), grpc.aio.insecure_channel(plane.target) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert await check(b"", timeout=20.0) == b"\x08\x02"
        plane.server.ready = True
        assert await check(b"", timeout=20.0) == b"\x08\x01"


async def test_health_is_for_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has proved anything there: a call that asks nothing is not held open."""
    monkeypatch.setattr("meshproxy.pilot.server.server._CHECK_S", 0.01)
    async with own_pilot() as (plane, _), grpc.aio.insecure_channel(plane.target) as channel:
        call = channel.stream_unary("/grpc.health.v1.Health/Check")(timeout=20.0)
        with pytest.raises(grpc.aio.AioRpcError, match="nothing was asked for"):
            await call
