"""Calls on our clusters to a server of grpcio's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from meshproxy.codec import grpc
from meshproxy.codec.headers import HeaderMap
from meshproxy.http.grpc.client import RpcCall, RpcClient, RpcError, RpcResponse
from meshproxy.http.grpc.metadata import binary_value
from meshproxy.rpc.call import ClusterCall
from tests.rpc.grpcio_server import GrpcioServer
from tests.rpc.harness import ask, client_of, service
from tests.support.garbage import only_collected
from tests.upstream.harness import turns, until

MESSAGE = b"x" * 16_384
MANY = 640  # of those are 10 MB
NARROW = {"initial_stream_window_size": 65_535, "initial_connection_window_size": 1 << 20}
FINE_METADATA = ((b"x-a", b"1"), (b"x-b-bin", b"\0\xff"))


@pytest.fixture(scope="module")
def server() -> Iterator[GrpcioServer]:
    process = GrpcioServer()
    yield process
    process.stop()


async def failure(client: RpcClient, method: bytes, timeout_ms: float = 0.0) -> RpcError:
    with pytest.raises(RpcError) as error:
        await client.unary(b"/test.Test/" + method, b"", timeout_ms=timeout_ms)
    return error.value


async def send_all(call: RpcCall, sent: list[bool]) -> None:
    while len(sent) < MANY:
        sent.append(await call.send(MESSAGE))


async def test_one_message_for_one(server: GrpcioServer) -> None:
    async with client_of(server.port) as (client, w):
        answer = await client.unary(b"/test.Test/echo", b"hello")
        assert answer.message == b"hello"
        assert answer.headers.get(b"content-type") == b"application/grpc"
        assert answer.trailers.get(b"grpc-status") == b"0"
        counters = w.counters()
        assert counters["upstream_rq_total"] == counters["upstream_rq_200"] == counters["internal.upstream_rq_200"] == 1
        assert counters["upstream_cx_http2_total"] == 1


async def test_one_message_for_one_without_a_task(server: GrpcioServer) -> None:
    async with client_of(server.port) as (client, _):
        outcomes: list[RpcResponse | RpcError] = []
        client.start_unary(b"/test.Test/echo", b"hello", outcomes.append)
        client.start_unary(b"/test.Test/fail", b"hello", outcomes.append)
        give_up = client.start_unary(b"/test.Test/wait", b"hello", outcomes.append)
        await until(lambda: len(outcomes) == 2)
        give_up()
        kinds = {type(outcome) for outcome in outcomes}
        assert kinds == {RpcResponse, RpcError}


async def test_both_sides_take_turns(server: GrpcioServer) -> None:
    async with client_of(server.port) as (client, _), client.call(b"/test.Test/echo") as call:
        for number in range(100):
            assert await call.send(b"%d" % number)
            assert await call.receive() == b"%d" % number
        call.end()
        assert await call.receive() is None
        assert await call.receive() is None
        assert not await call.send(b"more")
        assert call.trailers.get(b"grpc-status") == b"0"


async def test_a_stream_of_answers(server: GrpcioServer) -> None:
    async with client_of(server.port) as (client, _), client.call(b"/test.Test/many") as call:
        await call.send(b"1000 10")
        call.end()
        assert [message async for message in call] == [b"x" * 10] * 1000


async def test_a_stream_of_requests(server: GrpcioServer) -> None:
    async with client_of(server.port) as (client, _), client.call(b"/test.Test/total") as call:
        for _ in range(1000):
            await call.send(b"x" * 10)
        assert await call.result() == b"10000"


async def test_an_empty_message_is_one(server: GrpcioServer) -> None:
    async with client_of(server.port) as (client, _):
        assert (await client.unary(b"/test.Test/echo", b"")).message == b""


async def test_a_large_message(server: GrpcioServer) -> None:
    async with client_of(server.port) as (client, _):
        message = bytes(range(256)) * 12_000  # 3 MB, of the 4 MiB that grpcio takes
        assert (await client.unary(b"/test.Test/echo", message)).message == message


async def test_a_status_with_a_message_and_metadata(server: GrpcioServer) -> None:
    async with client_of(server.port) as (client, w):
        error = await failure(client, b"fail")
        assert str(error) == "NOT_FOUND: 100 % süß"
        assert error.code == grpc.NOT_FOUND
        assert error.status.trailers.get(b"why") == b"because"
        assert binary_value(error.status.trailers, b"why-bin") == b"\0\xff"
        assert w.counters()["upstream_rq_200"] == 1


async def test_an_error_behind_messages(server: GrpcioServer) -> None:
    async with client_of(server.port) as (client, _), client.call(b"/test.Test/fail_later") as call:
        assert await call.receive() == b"first"
        for _ in range(2):
            with pytest.raises(RpcError) as error:
                await call.receive()
            assert str(error.value) == "DATA_LOSS: lost"


async def test_a_method_that_is_not_there(server: GrpcioServer) -> None:
    async with client_of(server.port) as (client, _):
        assert (await failure(client, b"nothing")).code == grpc.UNIMPLEMENTED


async def test_metadata_both_ways(server: GrpcioServer) -> None:
    config = service(
        timeout="100s",
        initial_metadata=[{"key": "X-Own", "value": "own"}, {"key": "x-a", "value": "not this"}],
    )
    async with client_of(server.port, config) as (client, _):
        async with client.call(b"/test.Test/metadata", metadata=FINE_METADATA) as call:
            headers = await call.headers()
            assert headers.get(b"first") == b"1"
            assert binary_value(headers, b"first-bin") == b"\0\1"
            await call.result()
            assert call.trailers.get(b"last") == b"2"
            assert binary_value(call.trailers, b"last-bin") == b"\0\2"
        told = await ask(client, "metadata")
        assert ["x-own", "own"] in told["metadata"]
        assert ["x-a", "not this"] in told["metadata"]
        assert told["deadline"]
        answer = await client.unary(b"/test.Test/metadata", b"", metadata=FINE_METADATA)
        assert b'["x-a", "1"], ["x-b-bin", "00ff"]' in answer.message


async def test_headers_that_say_that_a_proxy_asks(server: GrpcioServer) -> None:
    async with client_of(server.port) as (client, _):
        told = await ask(client, "metadata")
        assert [name for name, _ in told["metadata"]] == ["x-envoy-internal", "x-forwarded-for"]
        assert not told["deadline"]
    plain = service(envoy_grpc={"cluster_name": "c", "skip_envoy_headers": True})
    async with client_of(server.port, plain) as (client, _):
        assert (await ask(client, "metadata"))["metadata"] == []


async def test_a_deadline(server: GrpcioServer) -> None:
    async with client_of(server.port) as (client, _):
        assert (await failure(client, b"wait", timeout_ms=50.0)).code == grpc.DEADLINE_EXCEEDED
    async with client_of(server.port, service(timeout="0.05s")) as (client, _):
        assert (await failure(client, b"wait")).code == grpc.DEADLINE_EXCEEDED


async def test_the_server_learns_of_a_cancellation(server: GrpcioServer) -> None:
    async with client_of(server.port) as (client, w):
        before = (await ask(client, "events"))["events"].count("cancelled")
        task = asyncio.create_task(client.unary(b"/test.Test/wait", b""))
        while (await ask(client, "events"))["events"].count("waits") == before:
            await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while (await ask(client, "events"))["events"].count("cancelled") == before:
            await turns()
        assert w.counters()["upstream_cx_total"] == 1  # its connection serves the others


async def test_who_waits_for_a_call_that_is_given_up(server: GrpcioServer) -> None:
    async with client_of(server.port) as (client, _), client.call(b"/test.Test/wait") as call:
        waiting = asyncio.create_task(call.receive())
        asking = asyncio.create_task(call.headers())
        await turns()
        call.cancel()
        for task in (waiting, asking):
            with pytest.raises(RpcError) as error:
                await task
            assert error.value.code == grpc.CANCELLED
        assert not await call.send(b"more")


async def test_a_client_that_is_closed(server: GrpcioServer) -> None:
    async with client_of(server.port) as (client, _):
        outcomes: list[RpcResponse | RpcError] = []
        client.start_unary(b"/test.Test/wait", b"", outcomes.append)
        async with client.call(b"/test.Test/wait") as call:
            client.close()
            with pytest.raises(RpcError) as error:
                await call.receive()
        (outcome,) = outcomes
        assert isinstance(outcome, RpcError)
        assert (outcome.code, error.value.code) == (grpc.CANCELLED, grpc.CANCELLED)
        assert (await failure(client, b"echo")).code == grpc.UNAVAILABLE


async def test_a_server_that_answers_faster_than_it_is_read(server: GrpcioServer) -> None:
    async with client_of(server.port, http2=NARROW) as (client, w):
        async with client.call(b"/test.Test/many") as call:
            assert isinstance(call, ClusterCall)
            await call.send(b"%d %d" % (MANY, len(MESSAGE)))
            call.end()
            await until(lambda: call.inbox.full)
            other = await ask(client, "events")  # the others on the connection go on
            assert other["sent"] < MANY // 2
            received = [message async for message in call]
        assert received == [MESSAGE] * MANY
        assert w.counters()["upstream_cx_total"] == 1


async def test_a_server_that_reads_slower_than_it_is_sent_to(server: GrpcioServer) -> None:
    async with client_of(server.port) as (client, w), client.call(b"/test.Test/hold") as call:
        assert isinstance(call, ClusterCall)
        sent: list[bool] = []
        task = asyncio.create_task(send_all(call, sent))
        await until(lambda: call.inbox.stream is not None and sent and not call.inbox.stream.writable)
        await turns(20)
        assert not task.done()
        await client.unary(b"/test.Test/release", b"")
        await task
        assert int(await call.result()) == MANY * len(MESSAGE)
        assert all(sent)
        assert w.counters()["upstream_cx_total"] == 1


async def test_no_cluster_and_no_host(server: GrpcioServer) -> None:
    async with client_of(server.port, service(envoy_grpc={"cluster_name": "none"})) as (client, _):
        assert str(await failure(client, b"echo")) == "UNAVAILABLE: Cluster not available"
    async with client_of(server.port) as (client, w):
        w.add({"name": "c"})
        assert str(await failure(client, b"echo")) == "UNAVAILABLE: no healthy upstream"


async def test_finished_calls_are_freed_at_once(server: GrpcioServer) -> None:
    async with client_of(server.port) as (client, _):
        await client.unary(b"/test.Test/echo", b"hello")
        with only_collected("meshproxy.") as found:
            outcomes: list[RpcResponse | RpcError] = []
            await client.unary(b"/test.Test/echo", b"hello")
            client.start_unary(b"/test.Test/echo", b"hello", outcomes.append)
            client.start_unary(b"/test.Test/fail", b"hello", outcomes.append)
            await until(lambda: len(outcomes) == 2)
            async with client.call(b"/test.Test/many") as call:
                await call.send(b"3 10")
                await call.receive()
            del call
            outcomes.clear()
        assert found == []


async def test_a_call_within_the_answer_to_another(server: GrpcioServer) -> None:
    async with client_of(server.port) as (client, _):
        outcomes: list[RpcResponse | RpcError] = []

        def on_first(outcome: RpcResponse | RpcError) -> None:
            outcomes.append(outcome)
            client.start_unary(b"/test.Test/echo", b"2", outcomes.append)

        client.start_unary(b"/test.Test/echo", b"1", on_first)
        await until(lambda: len(outcomes) == 2)
        assert [outcome.message for outcome in outcomes if isinstance(outcome, RpcResponse)] == [b"1", b"2"]


async def test_headers_of_an_answer_of_trailers_alone(server: GrpcioServer) -> None:
    async with client_of(server.port) as (client, _), client.call(b"/test.Test/fail") as call:
        with pytest.raises(RpcError):
            await call.headers()
    async with client_of(server.port) as (client, _), client.call(b"/test.Test/echo") as call:
        call.end()
        headers = await call.headers()
        assert isinstance(headers, HeaderMap)
        assert await call.receive() is None
