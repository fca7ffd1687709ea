"""The admin as an HTTP/1.1 server: odd requests, large answers, slow and silent clients."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from meshproxy.clock import monotonic
from meshproxy.net.address import Address
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.server.admin.connection import MAX_BODY_BYTES, REQUEST_TIMEOUT_MS, STALL_TIMEOUT_MS
from meshproxy.server.admin.exchange import AdminRequest, AdminResponse
from meshproxy.server.admin.handlers import AdminHandlers
from meshproxy.server.admin.server import AdminServer
from tests.server.admin.backend import FakeBackend
from tests.server.admin.client import ask, exchange, hang_up, parse

READY = b"GET /ready HTTP/1.1\r\nhost: a\r\n\r\n"
LAST = b"GET /ready HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"


class Responder:
    """Answers every request with the response that a test set."""

    def __init__(self) -> None:
        self.response = AdminResponse("fine")
        self.requests: list[AdminRequest] = []
        self.gate: asyncio.Event | None = None
        self.cancelled = asyncio.Event()

    async def handle(self, request: AdminRequest) -> AdminResponse:
        self.requests.append(request)
        if self.gate is not None:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        return self.response


@pytest.fixture
def responder() -> Responder:
    return Responder()


@pytest.fixture
async def server(responder: Responder, dispatcher: Dispatcher) -> AsyncIterator[AdminServer]:
    server = AdminServer(dispatcher, responder.handle, max_connections=3)
    await server.start(Address("127.0.0.1", 0))
    yield server
    await server.close()


async def open_raw(server: AdminServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(server.address.ip, server.address.port)


def advance(dispatcher: Dispatcher, by_ms: float) -> None:
    """Let the timers fire that are due in `by_ms`."""
    dispatcher.timers.advance(int(monotonic() * 1000.0 + by_ms))


# -- requests


async def test_an_answer_has_the_headers_that_envoy_sends(admin: str) -> None:
    answer = await ask(admin, "/ready")
    assert answer.status == 200
    assert answer.body == "LIVE\n"
    assert answer.headers["content-type"] == "text/plain; charset=UTF-8"
    assert answer.headers["cache-control"] == "no-cache, max-age=0"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["date"].endswith(" GMT")


async def test_head_has_the_head_of_get_and_no_body(admin: str) -> None:
    answer = parse(await exchange(admin, LAST.replace(b"GET", b"HEAD")))
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain; charset=UTF-8"
    assert not answer.body


async def test_pipelined_requests_are_answered_in_order(admin: str) -> None:
    second = b"GET /hot_restart_version HTTP/1.1\r\nhost: a\r\n\r\n"
    data = await exchange(admin, READY + second + LAST)
    assert data.count(b"HTTP/1.1 200 OK") == 3
    bodies = [part.partition(b"\r\n\r\n")[2] for part in data.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [b"5\r\nLIVE\n\r\n0\r\n\r\n", b"8\r\ndisabled\r\n0\r\n\r\n", b"5\r\nLIVE\n\r\n0\r\n\r\n"]


async def test_pipelined_requests_are_answered_though_the_client_has_shut_its_side(admin: str) -> None:
    host, _, port = admin.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(READY + READY)
    writer.write_eof()
    data = await reader.read()
    assert data.count(b"LIVE") == 2
    await hang_up(writer)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /ready HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET ready HTTP/1.1\r\nhost: a\r\n\r\n", 400),  # not a path
        (b"GET /ready HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        (b"GET /ready HTTP/1.0\r\n\r\n", 426),
        (b"GET /ready HTTP/2.0\r\nhost: a\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS
        (b"\r\n\0\0\r\n\r\n", 400),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 431),
        (b"POST /ready HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST /ready HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (b"POST /ready HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n", 501),
        (b"CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n", 404),
        (b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", 404),
    ],
)
async def test_what_is_no_request_is_refused_and_the_connection_closed(
    admin: str, request_bytes: bytes, status: int
) -> None:
    data = await exchange(admin, request_bytes)
    assert parse(data).status == status
    assert data.count(b"HTTP/1.1") == 1


async def test_the_answer_to_a_broken_request_has_envoys_body(admin: str) -> None:
    assert parse(await exchange(admin, b"\0\r\n\r\n")).body == "Bad Request"
    assert parse(await exchange(admin, b"GET / HTTP/1.0\r\n\r\n")).body == "Upgrade Required"


async def test_dot_segments_are_resolved(admin: str) -> None:
    assert (await ask(admin, "/../ready")).body == "LIVE\n"
    assert (await ask(admin, "/stats/../ready")).body == "LIVE\n"


async def test_a_body_is_read_and_a_form_passed_on(server: AdminServer, responder: Responder) -> None:
    kind = "application/x-www-form-urlencoded; charset=utf-8"
    answer = await ask(server.address.text, "/x?q=1", "POST", b"a=1&b=%20", kind)
    assert answer.status == 200
    (request,) = responder.requests
    assert request.form() == {"a": "1", "b": " "}
    assert request.params == {"q": "1"}


async def test_a_chunked_body_is_read(server: AdminServer, responder: Responder) -> None:
    head = b"POST /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    await exchange(server.address.text, head + b"3\r\nabc\r\n2\r\nde\r\n0\r\nt: 1\r\n\r\n")
    assert responder.requests[0].body == b"abcde"


async def test_a_client_that_expects_100_continue_gets_it(server: AdminServer) -> None:
    reader, writer = await open_raw(server)
    writer.write(b"POST /x HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"ok")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
    await hang_up(writer)


async def test_a_body_beyond_the_limit_is_413(server: AdminServer, responder: Responder) -> None:
    answer = await ask(server.address.text, "/x", "POST", b"a" * (MAX_BODY_BYTES + 1))
    assert answer.status == 413
    assert not responder.requests


# -- answers


async def test_a_large_answer_is_produced_only_as_the_client_takes_it(
    server: AdminServer, responder: Responder
) -> None:
    produced = 0

    def pieces() -> Iterator[str]:
        nonlocal produced
        for _ in range(2_000):
            produced += 1
            yield "z" * 10_000

    responder.response = AdminResponse(pieces())
    reader, writer = await asyncio.open_connection(server.address.ip, server.address.port, limit=1024)
    writer.write(LAST)
    await reader.readuntil(b"\r\n\r\n")
    before = -1
    while produced != before:  # until nothing moves any more: the buffers between us are full
        before = produced
        for _ in range(100):
            await asyncio.sleep(0)
    assert produced < 2_000
    body = await reader.read()
    assert body.count(b"z") == 20_000_000  # no digit of a chunk's size
    assert body.endswith(b"\r\n0\r\n\r\n")
    await hang_up(writer)


async def test_other_work_goes_on_between_the_pieces(server: AdminServer, responder: Responder) -> None:
    turns: list[int] = []
    turn = 0

    def pieces() -> Iterator[str]:
        for _ in range(100):
            turns.append(turn)
            yield "a" * 20_000

    async def count_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    responder.response = AdminResponse(pieces())
    counter = asyncio.create_task(count_turns())
    answer = await ask(server.address.text, "/x")
    counter.cancel()
    assert len(answer.body) == 2_000_000
    assert max(turns.count(one) for one in turns) <= 4  # 64 KiB a turn


async def test_a_handler_that_raises_is_a_500(server: AdminServer, responder: Responder) -> None:
    del responder.response
    answer = await ask(server.address.text, "/x")
    assert (answer.status, answer.body) == (500, "internal error: AttributeError\n")


async def test_an_answer_that_breaks_off_is_not_ended_as_if_it_were_whole(
    server: AdminServer, responder: Responder
) -> None:
    def pieces() -> Iterator[str]:
        yield "a" * 100_000
        raise ValueError("broken")

    responder.response = AdminResponse(pieces())
    reader, writer = await open_raw(server)
    writer.write(LAST)
    data = b""
    with contextlib.suppress(ConnectionResetError):  # as good as an early end
        while piece := await reader.read(65_536):
            data += piece
    assert not data.endswith(b"0\r\n\r\n")
    await hang_up(writer)


async def test_a_client_that_resets_cancels_its_request(server: AdminServer, responder: Responder) -> None:
    responder.gate = asyncio.Event()
    _, writer = await open_raw(server)
    writer.write(READY)
    while not responder.requests:
        await asyncio.sleep(0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    async with asyncio.timeout(10):
        await responder.cancelled.wait()


# -- time and number


async def test_a_request_that_does_not_arrive_is_408(server: AdminServer, dispatcher: Dispatcher) -> None:
    reader, writer = await open_raw(server)
    writer.write(READY)
    await reader.readuntil(b"0\r\n\r\n")
    writer.write(READY[:10])
    await _seen(dispatcher, server)
    advance(dispatcher, REQUEST_TIMEOUT_MS + 100)
    answer = parse(await reader.read())
    assert answer.status == 408
    assert answer.headers["connection"] == "close"
    await hang_up(writer)


async def test_an_idle_connection_is_closed(server: AdminServer, dispatcher: Dispatcher) -> None:
    reader, writer = await open_raw(server)
    writer.write(READY)
    await reader.readuntil(b"0\r\n\r\n")
    advance(dispatcher, STALL_TIMEOUT_MS + 100)
    assert await reader.read() == b""
    await hang_up(writer)


async def test_an_answer_that_nobody_reads_ends_in_time(
    server: AdminServer, responder: Responder, dispatcher: Dispatcher
) -> None:
    ended = asyncio.Event()

    def pieces() -> Iterator[str]:
        try:
            while True:
                yield "a" * 10_000
        finally:
            ended.set()

    responder.response = AdminResponse(pieces())
    reader, writer = await asyncio.open_connection(server.address.ip, server.address.port, limit=1024)
    writer.write(READY)
    await reader.readuntil(b"\r\n\r\n")
    while not ended.is_set():
        await asyncio.sleep(0)
        advance(dispatcher, STALL_TIMEOUT_MS + 100)
        responder.response = AdminResponse("")  # the generator's last reference is the connection's
    writer.transport.abort()
    await hang_up(writer)


async def test_connections_beyond_the_limit_are_closed_at_once(server: AdminServer) -> None:
    held = [await open_raw(server) for _ in range(3)]
    for reader, writer in held:
        writer.write(READY)
        await reader.readuntil(b"0\r\n\r\n")
    reader, writer = await open_raw(server)
    assert await reader.read() == b""
    await hang_up(writer)
    await hang_up(held[0][1])
    while True:  # the place is free as soon as the server has seen the end of the first one
        reader, writer = await open_raw(server)
        writer.write(LAST)
        try:
            data = await reader.read()
        except ConnectionError:
            data = b""
        await hang_up(writer)
        if data:
            break
    assert b" 200 " in data
    for _, writer in held[1:]:
        await hang_up(writer)


async def test_close_lets_an_answer_finish(dispatcher: Dispatcher, responder: Responder) -> None:
    server = AdminServer(dispatcher, responder.handle)
    await server.start(Address("127.0.0.1", 0))
    responder.gate = asyncio.Event()
    asked = asyncio.create_task(ask(server.address.text, "/x"))
    while not responder.requests:
        await asyncio.sleep(0)
    closing = asyncio.create_task(server.close())
    await asyncio.sleep(0)
    responder.gate.set()
    answer = await asked
    assert (answer.status, answer.headers["connection"], answer.body) == (200, "close", "fine")
    await closing


async def test_a_unix_socket(tmp_path: Path, dispatcher: Dispatcher, backend: FakeBackend) -> None:
    server = AdminServer(dispatcher, AdminHandlers(backend).handle)
    path = str(tmp_path / "admin")
    await server.start(Address("", 0, path))
    assert server.address.text == path
    assert (await ask(path, "/ready")).body == "LIVE\n"
    await server.close()


async def _seen(dispatcher: Dispatcher, server: AdminServer) -> None:
    """Wait until the server has read what was written before: it answers another connection's later request."""
    for _ in range(3):
        await ask(server.address.text, "/x")
