"""Calls by grpcio, which the first one imports."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from meshproxy.codec import grpc
from meshproxy.http.grpc.client import RpcClient, RpcError, RpcResponse, open_client
from meshproxy.http.grpc.metadata import binary_value
from meshproxy.rpc.google import GoogleClient
from tests.rpc.grpcio_server import GrpcioServer
from tests.rpc.harness import ask, service, services
from tests.upstream.harness import DEADLINE_S, any_of, turns, until, world

LOCAL: dict[str, Any] = {"channel_credentials": {"local_credentials": {}}}


@pytest.fixture(scope="module")
def server() -> Iterator[GrpcioServer]:
    process = GrpcioServer()
    yield process
    process.stop()


@asynccontextmanager
async def client_of(
    server: GrpcioServer, google: dict[str, Any] | None = None, **fields: Any
) -> AsyncIterator[RpcClient]:
    target = {"target_uri": f"127.0.0.1:{server.port}", "stat_prefix": "g", **(google or {})}
    async with world() as w, asyncio.timeout(2 * DEADLINE_S):
        client = open_client(services(w), service(google_grpc=target, **fields))
        assert isinstance(client, GoogleClient)
        yield client
        client.close()


async def test_calls_of_all_kinds(server: GrpcioServer) -> None:
    async with client_of(server) as client:
        answer = await client.unary(b"/test.Test/echo", b"hello")
        assert answer.message == b"hello"
        async with client.call(b"/test.Test/echo") as call:
            for number in range(10):
                assert await call.send(b"%d" % number)
                assert await call.receive() == b"%d" % number
            call.end()
            assert await call.receive() is None
            assert not await call.send(b"more")
        async with client.call(b"/test.Test/many") as call:
            await call.send(b"100 10")
            assert [message async for message in call] == [b"x" * 10] * 100
        async with client.call(b"/test.Test/total") as call:
            for _ in range(100):
                await call.send(b"x" * 10)
            assert await call.result() == b"1000"


async def test_an_error(server: GrpcioServer) -> None:
    async with client_of(server) as client:
        with pytest.raises(RpcError) as error:
            await client.unary(b"/test.Test/fail", b"")
        assert str(error.value) == "NOT_FOUND: 100 % süß"
        assert error.value.status.trailers.get(b"why") == b"because"
        assert binary_value(error.value.status.trailers, b"why-bin") == b"\0\xff"
        async with client.call(b"/test.Test/fail_later") as call:
            assert await call.receive() == b"first"
            for _ in range(2):
                with pytest.raises(RpcError) as error:
                    await call.receive()
                assert error.value.code == grpc.DATA_LOSS


async def test_metadata(server: GrpcioServer) -> None:
    entries = [{"key": "x-own", "value": "own"}, {"key": "x-a", "value": "not this"}]
    async with (
        client_of(server, initial_metadata=entries, timeout="100s") as client,
        client.call(b"/test.Test/metadata", metadata=[(b"x-a", b"1"), (b"x-b-bin", b"\0\xff")]) as call,
    ):
        headers = await call.headers()
        assert headers.get(b"first") == b"1"
        assert binary_value(headers, b"first-bin") == b"\0\1"
        call.end()
        told = json.loads(await call.receive() or b"")
        assert await call.receive() is None
        assert call.trailers.get(b"last") == b"2"
        assert [entry for entry in told["metadata"] if entry[0].startswith("x-")] == [
            ["x-a", "1"],
            ["x-b-bin", "00ff"],
            ["x-own", "own"],
        ]
        assert told["deadline"]


async def test_tokens(server: GrpcioServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    from_file = any_of(
        "envoy.config.grpc_credential.v3.FileBasedMetadataConfig",
        secret_data={"filename": str(tmp_path / "token")},
        header_key="x-token",
        header_prefix="Token ",
    )
    credentials = [{"access_token": "abc"}, {"from_plugin": {"name": "file", "typed_config": from_file}}]
    async with client_of(server, {**LOCAL, "call_credentials": credentials}) as client:
        told = (await ask(client, "metadata"))["metadata"]
        assert ["authorization", "Bearer abc"] in told
        assert ["x-token", "Token secret"] in told
        (tmp_path / "token").write_text("another")
        assert ["x-token", "Token another"] in (await ask(client, "metadata"))["metadata"]


async def test_channel_arguments(server: GrpcioServer) -> None:
    args = {
        "args": {
            "grpc.max_receive_message_length": {"int_value": 10},
            "grpc.primary_user_agent": {"string_value": "me"},
        }
    }
    async with client_of(server, {"channel_args": args}) as client:
        with pytest.raises(RpcError) as error:
            await client.unary(b"/test.Test/echo", b"x" * 11)
        assert error.value.code == grpc.RESOURCE_EXHAUSTED


async def test_a_deadline_and_a_cancellation(server: GrpcioServer) -> None:
    async with client_of(server) as client:
        with pytest.raises(RpcError) as error:
            await client.unary(b"/test.Test/wait", b"", timeout_ms=50.0)
        assert error.value.code == grpc.DEADLINE_EXCEEDED
        async with client.call(b"/test.Test/wait") as call:
            waiting = asyncio.create_task(call.receive())
            await turns()
            call.cancel()
            with pytest.raises(RpcError) as error:
                await waiting
            assert error.value.code == grpc.CANCELLED
        task = asyncio.create_task(client.unary(b"/test.Test/wait", b""))
        await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_calls_without_a_task(server: GrpcioServer) -> None:
    outcomes: list[RpcResponse | RpcError] = []
    async with client_of(server) as client:
        client.start_unary(b"/test.Test/echo", b"hello", outcomes.append)
        client.start_unary(b"/test.Test/fail", b"hello", outcomes.append)
        client.start_unary(b"/test.Test/wait", b"hello", outcomes.append)()
        await until(lambda: len(outcomes) == 2)
        assert {type(outcome) for outcome in outcomes} == {RpcResponse, RpcError}
        client.close()
        client.start_unary(b"/test.Test/echo", b"hello", outcomes.append)
        await until(lambda: len(outcomes) == 3)
        assert isinstance(outcomes[-1], RpcError)
        assert outcomes[-1].code == grpc.CANCELLED


async def test_nobody_listens() -> None:
    async with world() as w:
        target = {"target_uri": "127.0.0.1:1", "stat_prefix": "g"}
        client = open_client(services(w), service(google_grpc=target))
        with pytest.raises(RpcError) as error:
            await client.unary(b"/test.Test/echo", b"", timeout_ms=10_000.0)
        assert error.value.code == grpc.UNAVAILABLE
        client.close()


def test_grpcio_is_not_imported_before_it_is_needed() -> None:
    program = "import sys, meshproxy.rpc.google, meshproxy.server.worker; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
