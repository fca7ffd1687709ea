"""gRPC's four kinds of calls through the proxy, by grpcio at both ends: many messages, a slow server and a slow client,
cancellation and deadlines; and streams that stay open while the proxy changes under them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

import grpc
import pytest

from tests.integration.config import Json, bootstrap, cluster, forward, header_filter, http2_cluster, listener
from tests.integration.proxy import Proxy, eventually
from tests.rpc.grpcio_server import GrpcioServer

_SMALL: Json = {"initial_stream_window_size": 65536, "initial_connection_window_size": 262144}
_BUFFERS: Json = {"per_connection_buffer_limit_bytes": 65536}
_PATIENT: Json = {"timeout": "0s", "max_stream_duration": {"grpc_timeout_header_max": "0s"}}
_HELD_BYTES = 16 << 20  # by the kernel, grpcio and the proxy together, at most; far less than is offered
_PIECE = b"x" * 16384


@pytest.fixture(scope="module")
def server() -> Iterator[GrpcioServer]:
    started = GrpcioServer()
    yield started
    started.stop()


def config(server: GrpcioServer, *filters: Json, to: str = "app", **fields: Any) -> str:
    """One listener, and two clusters that are the same server."""
    manager: Json = {"http2_protocol_options": _SMALL, "stream_idle_timeout": "0s", "drain_timeout": "0.2s"}
    main = listener("main", [forward("/", to, **_PATIENT)], manager=manager, filters=filters, **_BUFFERS)
    clusters = [cluster(name, server.port, **http2_cluster(**_SMALL), **_BUFFERS) for name in ("app", "other")]
    return bootstrap([main], clusters, **fields)


class Client:
    """A channel of grpcio's to the proxy."""

    def __init__(self, proxy: Proxy) -> None:
        # A pool of its own: channels of one process share connections otherwise.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{proxy.ports['main']}", options=options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, value: object, trace: object) -> None:
        await self._channel.close()

    def unary_unary(self, method: str, message: bytes, **options: Any) -> Any:
        return self._channel.unary_unary(f"/test.Test/{method}")(message, **options)

    def unary_stream(self, method: str, message: bytes, **options: Any) -> Any:
        return self._channel.unary_stream(f"/test.Test/{method}")(message, **options)

    def stream_unary(self, method: str, **options: Any) -> Any:
        return self._channel.stream_unary(f"/test.Test/{method}")(**options)

    def stream_stream(self, method: str, **options: Any) -> Any:
        return self._channel.stream_stream(f"/test.Test/{method}")(**options)

    async def events(self) -> dict[str, Any]:
        """What the server says that happened."""
        found: dict[str, Any] = json.loads(await self.unary_unary("events", b""))
        return found


async def echoed(call: Any, message: bytes) -> bool:
    """Whether a stream of `echo` still works."""
    await call.write(message)
    answer = await asyncio.wait_for(call.read(), 20.0)
    return bool(answer == message)


@pytest.fixture(scope="module")
def shared(server: GrpcioServer) -> Iterator[Proxy]:
    """For tests that leave the proxy as it is."""
    running = Proxy(config(server))
    running.start()
    yield running
    running.process.stop()


@pytest.fixture
async def client(shared: Proxy) -> AsyncIterator[Client]:
    async with Client(shared) as connected:
        yield connected
    await shared.until_stat("http.main.downstream_rq_active", lambda value: value == 0)
    await shared.until_stat("cluster.app.upstream_rq_active", lambda value: value == 0)


# -- all four kinds


async def test_every_kind_of_call_with_many_messages(client: Client) -> None:
    assert await client.unary_unary("echo", b"hello") == b"hello"
    sizes = [len(message) async for message in client.unary_stream("many", b"2000 1000")]
    assert sizes == [1000] * 2000
    upload = client.stream_unary("total")
    for _ in range(2000):
        await upload.write(b"x" * 1000)
    await upload.done_writing()
    assert await upload == b"2000000"
    both = client.stream_stream("echo")
    for number in range(500):
        assert await echoed(both, b"%d" % number * 500)
    await both.done_writing()
    assert await both.read() == grpc.aio.EOF
    assert await both.code() == grpc.StatusCode.OK


# -- backpressure, end to end


async def test_a_slow_client_holds_the_server_back(client: Client) -> None:
    offered = 4 * _HELD_BYTES // len(_PIECE)
    download = client.unary_stream("many", b"%d %d" % (offered, len(_PIECE)))
    assert await download.read() == _PIECE
    sent = await quiet(client)
    assert sent * len(_PIECE) < _HELD_BYTES
    assert await client.unary_unary("echo", b"another") == b"another"
    received = 1
    while (message := await download.read()) != grpc.aio.EOF:
        assert message == _PIECE
        received += 1
    assert received == offered


async def quiet(client: Client) -> int:
    """How many messages the server had sent when it stopped, for lack of room."""
    seen = -1
    while (sent := (await client.events())["sent"]) != seen:
        seen = sent
        await asyncio.sleep(0.3)
    return seen


async def test_a_slow_server_holds_the_client_back(client: Client) -> None:
    offered = 4 * _HELD_BYTES // len(_PIECE)
    upload = client.stream_unary("hold")
    sent = 0
    writing = asyncio.create_task(upload.write(_PIECE))
    while sent < offered and (await asyncio.wait({writing}, timeout=0.3))[0]:
        sent += 1
        writing = asyncio.create_task(upload.write(_PIECE))
    assert 0 < sent * len(_PIECE) < _HELD_BYTES
    assert await client.unary_unary("echo", b"another") == b"another"
    upload.cancel()
    assert await upload.code() == grpc.StatusCode.CANCELLED
    await asyncio.gather(writing, return_exceptions=True)


# -- ends


async def test_a_cancelled_call_is_cancelled_at_the_server(client: Client) -> None:
    before = (await client.events())["events"].count("cancelled")
    call = client.stream_stream("wait")
    await call.write(b"x")
    await seen(client, "waits", before + 1)
    call.cancel()
    await seen(client, "cancelled", before + 1)
    assert await call.code() == grpc.StatusCode.CANCELLED


async def seen(client: Client, event: str, times: int) -> None:
    """Wait until the server says so."""
    async with asyncio.timeout(20.0):
        while (await client.events())["events"].count(event) < times:
            await asyncio.sleep(0.01)


async def test_a_deadline_ends_both_sides(client: Client) -> None:
    before = (await client.events())["events"].count("cancelled")
    call = client.stream_stream("wait", timeout=0.3)
    await call.write(b"x")
    assert await call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await seen(client, "cancelled", before + 1)


async def test_an_error_amid_a_stream_arrives(client: Client) -> None:
    call = client.stream_stream("fail_later")
    assert await call.read() == b"first"
    with pytest.raises(grpc.aio.AioRpcError):
        await call.read()
    assert (await call.code(), await call.details()) == (grpc.StatusCode.DATA_LOSS, "lost")


async def test_a_server_that_dies_is_told_of() -> None:
    dying = GrpcioServer()
    async with Proxy(config(dying)) as proxy, Client(proxy) as client:
        call = client.stream_stream("echo")
        assert await echoed(call, b"1")
        dying.kill()
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()
        assert await call.code() == grpc.StatusCode.INTERNAL  # that is what RST_STREAM with INTERNAL_ERROR comes to
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.unary_unary("echo", b"new")
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        dying.stop()


# -- under change


async def test_a_stream_stays_while_routes_and_clusters_change(server: GrpcioServer) -> None:
    async with Proxy(config(server)) as proxy, Client(proxy) as client:
        call = client.stream_stream("echo")
        assert await echoed(call, b"before")
        for to in ("other", "app", "other"):
            await proxy.reload(config(server, to=to))
            assert await echoed(call, to.encode())
            assert await client.unary_unary("echo", b"new") == b"new"
        await call.done_writing()
        assert await call.read() == grpc.aio.EOF
        assert await call.code() == grpc.StatusCode.OK
        assert await proxy.stat("http.main.downstream_cx_http2_total") == 1


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.long)])
async def test_a_stream_of_a_changed_chain_goes_on_to_its_end(server: GrpcioServer, workers: str) -> None:
    """Its client is told (GOAWAY) though no answer begins on the connection, and asks anew on another."""
    flags = ("--concurrency", workers, "--drain-time-s", "60", "--drain-strategy", "immediate")
    async with Proxy(config(server), *flags) as proxy, Client(proxy) as client:
        call = client.stream_stream("echo")
        assert await echoed(call, b"before")
        await proxy.reload(config(server, header_filter("x-rule", "new")))
        await proxy.until_stat("http2.goaway_sent", lambda value: value == 1)
        assert await echoed(call, b"after")
        other = client.unary_unary("echo", b"new")
        assert await other == b"new"
        assert ("x-rule", "new") in list(await other.initial_metadata())
        assert await echoed(call, b"still")
        await call.done_writing()
        assert await call.read() == grpc.aio.EOF
        assert await call.code() == grpc.StatusCode.OK
        await proxy.until_stat("listener_manager.total_filter_chains_draining", lambda value: value == 0)


async def test_a_stream_goes_on_while_the_listener_drains(server: GrpcioServer) -> None:
    flags = ("--drain-time-s", "1", "--drain-strategy", "immediate")
    async with Proxy(config(server), *flags) as proxy, Client(proxy) as client:
        call = client.stream_stream("echo")
        assert await echoed(call, b"before")
        assert (await proxy.admin("/drain_listeners?graceful", "POST")) == (200, "OK\n")
        await proxy.until_stat("http2.goaway_sent", lambda value: value == 1)
        await proxy.until_stat("listener_manager.listener_stopped", lambda value: value == 1)
        assert await echoed(call, b"after")
        await call.done_writing()
        assert await call.read() == grpc.aio.EOF
        assert await call.code() == grpc.StatusCode.OK


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.long)])
async def test_a_stream_goes_on_to_its_end_while_the_process_ends(server: GrpcioServer, workers: str) -> None:
    flags = ("--concurrency", workers, "--drain-time-s", "60")
    async with Proxy(config(server), *flags) as proxy, Client(proxy) as client:
        call = client.stream_stream("echo")
        assert await echoed(call, b"before")
        proxy.signal(signal.SIGTERM)
        await proxy.until_stat("http2.goaway_sent", lambda value: value == 1)
        assert await echoed(call, b"after")
        await call.done_writing()
        assert await call.read() == grpc.aio.EOF
        assert await call.code() == grpc.StatusCode.OK
        assert await proxy.wait() == 0  # though the client is still there


async def test_streams_of_a_worker_stay_while_another_is_replaced(server: GrpcioServer) -> None:
    async with Proxy(config(server), "--concurrency", "2") as proxy:
        clients = [Client(proxy) for _ in range(8)]
        calls = [client.stream_stream("echo") for client in clients]
        for call in calls:
            assert await echoed(call, b"before")
        dead, alive = proxy.workers()
        os.kill(dead, signal.SIGKILL)
        await eventually(lambda: len(proxy.workers()) == 2 and dead not in proxy.workers(), "another worker")
        assert alive in proxy.workers()
        ended = [await ends(call) for call in calls]
        assert None in ended
        assert any(ended)
        for client in clients:  # those of the dead worker find the new one
            assert await client.unary_unary("echo", b"new", wait_for_ready=True) == b"new"
            await client.__aexit__(None, None, None)


async def ends(call: Any) -> grpc.StatusCode | None:
    """The status of a stream that has ended, None where it goes on."""
    try:
        if await echoed(call, b"still"):
            call.cancel()
            return None
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        pass
    status: grpc.StatusCode = await call.code()
    return status
