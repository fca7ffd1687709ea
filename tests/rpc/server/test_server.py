"""Our gRPC server, and grpcio's client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import grpc
import pytest

from meshproxy.net.dispatcher import Dispatcher
from meshproxy.rpc.server.core import ServerLimits
from meshproxy.rpc.server.server import RpcServer
from tests.rpc.server.harness import DEADLINE_S, Serving, ask, nobody, serving


async def failure(call: Any) -> tuple[grpc.StatusCode, str]:
    """How a call of grpcio's fails."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code(), error.value.details()


@pytest.mark.parametrize("message", [b"", b"hello", b"x" * 700_000])
async def test_one_message_for_one(tmp_path: Path, message: bytes) -> None:
    async with serving(tmp_path) as s, s.channel() as channel:
        assert await ask(channel, "echo", message) == message
        assert (s.server.stats.calls, s.server.stats.calls_active, s.server.stats.statuses) == (1, 0, {0: 1})


async def test_messages_both_ways_while_the_call_goes_on(tmp_path: Path) -> None:
    async with serving(tmp_path) as s, s.channel() as channel:
        call = channel.stream_stream("/test.Test/echo")()
        for message in (b"one", b"", b"three"):
            await call.write(message)
            assert await call.read() == message
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() == grpc.StatusCode.OK


async def test_calls_at_once_on_one_connection(tmp_path: Path) -> None:
    async with serving(tmp_path) as s, s.channel() as channel:
        answers = await asyncio.gather(*(ask(channel, "echo", str(n).encode()) for n in range(80)))
        assert answers == [str(n).encode() for n in range(80)]
        assert s.server.stats.connections == 1


async def test_a_status_with_its_message(tmp_path: Path) -> None:
    async with serving(tmp_path) as s, s.channel() as channel:
        assert await failure(ask(channel, "fail")) == (grpc.StatusCode.NOT_FOUND, "100 % süß\n")


async def test_a_status_after_a_message(tmp_path: Path) -> None:
    async with serving(tmp_path) as s, s.channel() as channel:
        call = channel.unary_stream("/test.Test/fail_later")(b"")
        assert await call.read() == b"first"
        assert await failure(call.read()) == (grpc.StatusCode.DATA_LOSS, "lost")


async def test_an_exception_of_a_handler_does_not_leave_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as s, s.channel() as channel:
        assert await failure(ask(channel, "broken")) == (grpc.StatusCode.INTERNAL, "internal error")
    assert "a secret of the server" in caplog.text


async def test_a_method_that_is_not_there(tmp_path: Path) -> None:
    async with serving(tmp_path) as s, s.channel() as channel:
        code, details = await failure(ask(channel, "nothing"))
        assert (code, details) == (grpc.StatusCode.UNIMPLEMENTED, "there is no method /test.Test/nothing")


async def test_metadata(tmp_path: Path) -> None:
    given = (("authorization", "Bearer x"), ("twice", "1"), ("twice", "2"), ("some-bin", b"\0\1"))
    async with serving(tmp_path) as s, s.channel() as channel:
        found = json.loads(await ask(channel, "metadata", metadata=given))
        assert found["authorization"] == ["Bearer x"]
        assert found["twice"] == ["1", "2"]
        assert not [name for name in found if name.startswith(":") or name.endswith("-bin")]


async def test_who_is_at_the_other_end_of_a_unix_socket(tmp_path: Path) -> None:
    async with serving(tmp_path) as s, s.channel() as channel:
        found = json.loads(await ask(channel, "who"))
        ours = {"pid": os.getpid(), "uid": os.getuid(), "gid": os.getgid()}
        assert found == {"address": "unix:", "uris": [], "encrypted": False, "serial": 0, **ours}


async def test_a_peer_that_is_not_allowed_is_not_read(tmp_path: Path) -> None:
    async with serving(tmp_path, allow=nobody) as s:
        with contextlib.suppress(ConnectionError):  # it may be gone before we have said anything
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
            assert await reader.read() == b""
            writer.close()
        async with s.channel() as channel:
            code, _ = await failure(ask(channel, "echo"))
            assert code == grpc.StatusCode.UNAVAILABLE
        assert s.server.stats.peers_refused >= 2
        assert s.server.stats.calls == 0


async def test_the_deadline_of_the_call_ends_its_handler(tmp_path: Path) -> None:
    async with serving(tmp_path) as s:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        async with s.channel() as channel:
            code, _ = await failure(channel.unary_unary("/test.Test/wait")(b"", timeout=0.3))
            assert code == grpc.StatusCode.DEADLINE_EXCEEDED
            await s.methods.until("waits", "cancelled")
        writer.close()
        assert await reader.read() is not None


async def test_a_call_that_is_cancelled_cancels_its_handler(tmp_path: Path) -> None:
    async with serving(tmp_path) as s, s.channel() as channel:
        call = channel.stream_stream("/test.Test/wait")()
        await call.write(b"")
        await s.methods.until("waits")
        call.cancel()
        await s.methods.until("waits", "cancelled")
        assert await ask(channel, "echo", b"goes on") == b"goes on"


async def test_a_client_that_leaves_cancels_its_handlers(tmp_path: Path) -> None:
    async with serving(tmp_path) as s:
        async with s.channel() as channel:
            call = channel.stream_stream("/test.Test/wait")()
            await call.write(b"")
            await s.methods.until("waits")
        await s.methods.until("waits", "cancelled")


async def test_a_message_beyond_the_limit(tmp_path: Path) -> None:
    async with serving(tmp_path, limits=ServerLimits(max_message_bytes=1000)) as s, s.channel() as channel:
        assert await ask(channel, "echo", b"x" * 1000) == b"x" * 1000
        code, _ = await failure(ask(channel, "echo", b"x" * 1001))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_messages_that_nobody_takes_are_bounded(tmp_path: Path) -> None:
    """By the call's own window, which the caller sees as a write that does not end; nothing is lost."""
    async with serving(tmp_path) as s, s.channel() as channel:
        call = channel.stream_unary("/test.Test/hold")()
        await s.methods.until("holds")
        sent = asyncio.ensure_future(_write(call, 200, b"x" * 50_000))
        await _until_stuck(s)
        assert not sent.done()
        assert s.server._core.held_bytes < 1_000_000
        s.methods.released.set()
        await sent
        assert await call == b"10000000"
        assert s.server._core.held_bytes == 0


async def _write(call: Any, number: int, message: bytes) -> None:
    for _ in range(number):
        await call.write(message)
    await call.done_writing()


async def _until_stuck(s: Serving) -> None:
    """The caller has to wait: the server has not given back what it was sent."""
    core = s.server._core
    async with asyncio.timeout(DEADLINE_S):
        while not any(call._full for connection in core.connections for call in connection.calls):
            await asyncio.sleep(0)


async def test_all_callers_together_are_bounded(tmp_path: Path) -> None:
    limits = ServerLimits(max_held_bytes=150_000)
    async with serving(tmp_path, limits=limits) as s, s.channel() as first, s.channel() as second:
        call = first.stream_unary("/test.Test/hold")()
        await s.methods.until("holds")
        await call.write(b"x" * 60_000)
        async with asyncio.timeout(DEADLINE_S):
            while s.server._core.held_bytes < 60_000:
                await asyncio.sleep(0)
        code, details = await failure(ask(second, "echo", b"x" * 100_000))
        assert (code, details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many messages wait here")
        assert s.server.stats.held_refused == 1
        assert await ask(second, "echo", b"small") == b"small"


async def test_who_holds_most_makes_room_for_the_others(tmp_path: Path) -> None:
    """One that keeps messages back to the last byte that there is."""
    limits = ServerLimits(max_held_bytes=100_000)
    async with serving(tmp_path, limits=limits) as s, s.channel() as first, s.channel() as second:
        calls = [first.stream_unary("/test.Test/hold")() for _ in range(2)]
        await s.methods.until("holds", "holds")
        for call, size in zip(calls, (60_000, 39_000), strict=True):
            await call.write(b"x" * size)
        async with asyncio.timeout(DEADLINE_S):
            while s.server._core.held_bytes < 99_000:
                await asyncio.sleep(0)
        assert await ask(second, "echo", b"x" * 2_000) == b"x" * 2_000
        assert (await failure(calls[0])) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many messages wait here")
        assert s.server.stats.held_refused == 1
        s.methods.released.set()
        await calls[1].done_writing()
        assert await calls[1] == b"39000"


async def test_a_caller_that_does_not_read_holds_its_handler_up(tmp_path: Path) -> None:
    async with serving(tmp_path) as s, s.channel() as channel:
        call = channel.unary_stream("/test.Test/many")(b"400 50000")
        assert len(await call.read()) == 50_000
        assert int(s.methods.events[0]) < 400
        rest = [await call.read() for _ in range(399)]
        assert {len(message) for message in rest} == {50_000}
        assert await call.read() is grpc.aio.EOF


async def test_close_tells_the_clients_to_go_elsewhere_and_lets_calls_end(tmp_path: Path) -> None:
    async with serving(tmp_path) as s, s.channel() as channel:
        call = channel.stream_unary("/test.Test/hold")()
        await s.methods.until("holds")
        closing = asyncio.ensure_future(s.server.close(DEADLINE_S))
        await asyncio.sleep(0)
        assert not (tmp_path / "s").exists()
        await call.write(b"still")
        await call.done_writing()
        s.methods.released.set()
        assert await call == b"5"
        await closing
        assert s.server.stats.connections_active == 0


async def test_calls_that_do_not_end_by_themselves_end_as_unavailable(tmp_path: Path) -> None:
    async with serving(tmp_path) as s, s.channel() as channel:
        call = channel.stream_stream("/test.Test/wait")()
        await call.write(b"")
        await s.methods.until("waits")
        await s.server.close(0.0)
        assert await failure(call.read()) == (grpc.StatusCode.UNAVAILABLE, "the server is going away")
        await s.methods.until("waits", "cancelled")


async def test_a_caller_that_reads_nothing_does_not_hold_the_end_up(tmp_path: Path) -> None:
    async with serving(tmp_path) as s, s.channel() as channel:
        call = channel.unary_stream("/test.Test/stubborn")(b"")
        assert len(await call.read()) == 60_000
        await s.server.close(0.0)
        assert s.server.stats.connections_active == 0


async def test_the_file_of_a_unix_socket(tmp_path: Path) -> None:
    """It has the mode that was asked for; one that a process left behind is replaced; at the end it is gone."""
    path = tmp_path / "socket"
    dispatcher = Dispatcher(asyncio.get_running_loop())
    crashed, server = RpcServer(dispatcher, {}), RpcServer(dispatcher, {})
    await crashed.listen_unix(str(path), mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for listening in crashed._servers:
        listening.close()  # and the file stays
    await server.listen_unix(str(path), mode=0o666)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    await server.close(0.0)
    assert not path.exists()


async def test_the_file_of_another_server_stays(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    dispatcher = Dispatcher(asyncio.get_running_loop())
    first, second = RpcServer(dispatcher, {}), RpcServer(dispatcher, {})
    await first.listen_unix(str(path))
    await second.listen_unix(str(path))
    await first.close(0.0)
    assert path.exists()
    await second.close(0.0)


async def test_a_file_that_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    server = RpcServer(Dispatcher(asyncio.get_running_loop()), {})
    with pytest.raises(OSError, match="in use"):
        await server.listen_unix(str(path))
    assert path.read_text() == "precious"


async def test_an_abstract_name(tmp_path: Path) -> None:
    name = f"meshproxy-test-{os.getpid()}-{tmp_path.name}"
    async with serving(tmp_path) as s:
        await s.server.listen_unix("@" + name)
        s.target = "unix-abstract:" + name
        async with s.channel() as channel:
            assert await ask(channel, "echo", b"hello") == b"hello"
