"""Callers that break the rules, or only lean on them: what they may take is bounded, and the others are served."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from meshproxy.rpc.server.core import ServerLimits
from tests.rpc.server.harness import DEADLINE_S, ask, serving
from tests.support.http2_wire import PREFACE, Http2Wire, StreamSeen, data, frame, goaway, headers, ping, reset, settings
from tests.support.wire import ConnectionEnded

T = TypeVar("T")
CALL = [(":method", "POST"), (":scheme", "http"), (":path", "/test.Test/echo"), (":authority", "a")]
GRPC = [*CALL, ("content-type", "application/grpc"), ("te", "trailers")]
HELLO = PREFACE + settings()


def head(path: str = "echo", *more: tuple[str, str]) -> list[tuple[str, str]]:
    """Of a call that is as it should be, but for what is laid on."""
    fields = dict(GRPC) | {":path": f"/test.Test/{path}"} | dict(more)
    return list(fields.items())


def message(text: bytes, flags: int = 0) -> bytes:
    return bytes([flags]) + len(text).to_bytes(4, "big") + text


async def wire(folder: Path, script: Callable[[Http2Wire], T]) -> T:
    """Run a script on a connection, in a thread."""

    def run() -> T:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(DEADLINE_S)
            sock.connect(str(folder / "s"))
            return script(Http2Wire(sock))

    return await asyncio.to_thread(run)


def to_the_end(w: Http2Wire) -> Http2Wire:
    """Read all there is."""
    with pytest.raises(ConnectionEnded):
        w.read_until(lambda: False)
    return w


def answer(w: Http2Wire, stream: int) -> StreamSeen:
    w.read_until(lambda: stream in w.streams and w.streams[stream].over)
    return w.streams[stream]


async def still_serves(s: Any) -> None:
    async with s.channel() as channel:
        assert await ask(channel, "echo", b"others") == b"others"


def call(fields: list[tuple[str, str]], body: bytes, *, end: bool = True) -> Callable[[Http2Wire], StreamSeen]:
    def script(w: Http2Wire) -> StreamSeen:
        w.send(HELLO + headers(1, fields) + data(1, body, end=end))
        return answer(w, 1)

    return script


@pytest.mark.parametrize(
    ("fields", "body", "status"),
    [
        (head("echo", ("grpc-timeout", "5x")), message(b"x"), "13"),
        (head("echo", ("grpc-timeout", "")), message(b"x"), "13"),
        (head(), message(b"x", flags=1), "12"),  # compressed
        (head(), message(b"hello")[:-1], "13"),  # cut short
        (head(), b"\0\0", "13"),
        (head(), b"\0\xff\xff\xff\xff", "8"),  # announces 4 GiB
        (head("nothing"), message(b"x"), "12"),
    ],
)
async def test_a_call_that_is_not_right(
    tmp_path: Path, fields: list[tuple[str, str]], body: bytes, status: str
) -> None:
    async with serving(tmp_path) as s:
        seen = await wire(tmp_path, call(fields, body))
        assert seen.parts[-1].get("grpc-status") == status
        assert s.server._core.held_bytes == 0


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (head("echo", (":method", "GET")), "405"),
        (head("echo", ("content-type", "application/json")), "415"),
        (CALL, "415"),
    ],
)
async def test_what_is_no_grpc(tmp_path: Path, fields: list[tuple[str, str]], status: str) -> None:
    async with serving(tmp_path):
        seen = await wire(tmp_path, call(fields, b"{}"))
        assert seen.parts[0].get(":status") == status


@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"]
)
async def test_a_client_of_another_protocol(tmp_path: Path, first: bytes) -> None:
    async with serving(tmp_path) as s:

        def script(w: Http2Wire) -> None:
            w.send(first + b"\0" * 64)
            to_the_end(w)

        await wire(tmp_path, script)
        assert s.server.stats.connection_errors == 1
        await still_serves(s)


async def _ends(folder: Path, first: bytes, limits: ServerLimits, check: Callable[[Http2Wire], object]) -> None:
    async with serving(folder, limits=limits):

        def script(w: Http2Wire) -> Http2Wire:
            w.answering = bool(first)
            w.send(first)
            return to_the_end(w)

        assert check(await wire(folder, script))


async def test_one_that_says_nothing(tmp_path: Path) -> None:
    await _ends(tmp_path, b"", ServerLimits(hello_timeout_s=0.05), lambda w: not w.goaways)


async def test_one_that_asks_for_nothing(tmp_path: Path) -> None:
    await _ends(tmp_path, HELLO, ServerLimits(idle_timeout_s=0.05), lambda w: w.goaways[0][0] == 0)


async def test_one_that_does_not_answer_pings(tmp_path: Path) -> None:
    limits = ServerLimits(keepalive_interval_s=0.02, keepalive_timeout_s=0.02)
    async with serving(tmp_path, limits=limits) as s:

        def script(w: Http2Wire) -> None:
            w.answering = False
            w.send(HELLO + headers(1, head("wait")))
            to_the_end(w)

        await wire(tmp_path, script)
        await s.methods.until("waits", "cancelled")


async def test_half_a_head_that_never_ends(tmp_path: Path) -> None:
    first = HELLO + headers(1, head(), end_headers=False)
    await _ends(tmp_path, first, ServerLimits(idle_timeout_s=0.05), lambda w: w.end)


async def test_too_many_connections_with_calls(tmp_path: Path) -> None:
    async with serving(tmp_path, limits=ServerLimits(max_connections=1)) as s, s.channel() as channel:
        call = channel.stream_stream("/test.Test/echo")()
        await call.write(b"first")
        assert await call.read() == b"first"
        await wire(tmp_path, to_the_end)
        assert s.server.stats.connections_refused == 1
        await call.write(b"goes on")
        assert await call.read() == b"goes on"
        call.cancel()


def held_open(w: Http2Wire) -> None:
    w.answering = False
    to_the_end(w)


async def test_connections_that_are_only_held_open_keep_nobody_out(tmp_path: Path) -> None:
    """The oldest of them goes."""
    async with serving(tmp_path, limits=ServerLimits(max_connections=2)) as s:
        first = asyncio.ensure_future(wire(tmp_path, held_open))
        await _until(lambda: s.server.stats.connections_active == 1)
        second = asyncio.ensure_future(wire(tmp_path, held_open))
        await _until(lambda: s.server.stats.connections_active == 2)
        await still_serves(s)
        await first
        assert not second.done()
        assert s.server.stats.connections_evicted == 1
        await s.server.close(0.0)
        await second


async def test_too_many_streams(tmp_path: Path) -> None:
    async with serving(tmp_path, limits=ServerLimits(max_streams=3)) as s:

        def script(w: Http2Wire) -> int | None:
            w.send(HELLO + b"".join(headers(number, head("hold")) for number in (1, 3, 5, 7)))
            return answer(w, 7).reset

        assert await wire(tmp_path, script) == 7  # REFUSED_STREAM
        assert s.server.stats.calls == 3


async def test_calls_that_are_made_and_taken_back(tmp_path: Path) -> None:
    """CVE-2023-44487: the connection ends before they are many."""
    async with serving(tmp_path) as s:

        def script(w: Http2Wire) -> None:
            w.send(HELLO)
            for number in range(1, 4001, 2):
                if not w.send(headers(number, head("hold")) + reset(number)):
                    break
            to_the_end(w)

        await wire(tmp_path, script)
        assert s.server.stats.connection_errors == 1
        assert s.server.stats.calls < 600
        await still_serves(s)
        assert s.server.stats.calls_active == 0


@pytest.mark.parametrize(
    "flood",
    [ping(), settings((3, 100)), frame(0, 0, 1), frame(2, 0, 1, b"\0\0\0\0\x0f"), frame(8, 0, 1, b"\0\0\0\1")],
    ids=["PING", "SETTINGS", "empty DATA", "PRIORITY", "WINDOW_UPDATE"],
)
async def test_floods(tmp_path: Path, flood: bytes) -> None:
    """The codec's limits hold; who does not read our answers cannot have more of them than those."""
    async with serving(tmp_path) as s:

        def script(w: Http2Wire) -> None:
            w.send(HELLO + headers(1, head("hold")))
            while w.send(flood * 500):
                pass

        await wire(tmp_path, script)
        assert s.server.stats.connection_errors == 1
        assert s.server.stats.calls_active == 0
        await still_serves(s)


async def test_a_head_beyond_all_bounds(tmp_path: Path) -> None:
    async with serving(tmp_path) as s:

        def script(w: Http2Wire) -> StreamSeen | None:
            w.send(HELLO + headers(1, [*GRPC, *((f"x-{n}", "v" * 1000) for n in range(90))]))
            return answer(w, 1)

        seen = await wire(tmp_path, script)
        assert seen is not None
        assert seen.reset is not None
        await still_serves(s)


async def test_one_that_takes_no_answers(tmp_path: Path) -> None:
    """Its calls wait; what is kept for it is bounded."""
    async with serving(tmp_path) as s:

        def script(w: Http2Wire) -> None:
            w.send(HELLO + headers(1, head("stubborn")) + headers(3, head("stubborn")))
            w.read_until(lambda: 3 in w.streams)  # and no more of it, but what tells that the server is still there

        await wire(tmp_path, script)
        await _until(lambda: s.server.stats.calls_active == 0)
        assert s.server._core.http2_stats.pending_send_bytes == 0
        await still_serves(s)


async def _until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not done():
            await asyncio.sleep(0)


async def test_frames_in_any_order_and_with_any_fault_end_no_more_than_their_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """300 clients of chance, always the same ones."""
    chance = random.Random(5)
    async with serving(tmp_path) as s:
        for _ in range(300):
            streams = [1]
            pieces = [headers(1, head("echo")), *(_any_frames(chance, streams) for _ in range(chance.randrange(12)))]
            sent = bytearray(HELLO + b"".join(pieces))
            for _ in range(chance.choice((0, 0, 1, 4))):
                sent[chance.randrange(len(HELLO), len(sent))] = chance.randrange(256)
            _, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
            writer.write(bytes(sent))
            writer.write_eof()
            writer.close()
        await _until(lambda: s.server.stats.connections_active == 0)
        assert (s.server.stats.calls_active, s.server._core.held_bytes) == (0, 0)
        assert s.server.stats.calls > 300
        await still_serves(s)
    assert "closed by an internal error" not in caplog.text


def _any_frames(chance: random.Random, streams: list[int]) -> bytes:
    """On one of the streams that there are, mostly; or those that begin another one."""
    stream = chance.choice(streams) if chance.random() < 0.97 else chance.randrange(4)
    path = chance.choice(("echo", "wait", "many", "hold", "stubborn", "fail", "nothing"))
    text = message(chance.choice((b"", b"9 9", b"x" * 5000)), chance.choice((0, 0, 0, 1)))
    if chance.random() < 0.4:
        streams.append(streams[-1] + 2)
        return headers(streams[-1], head(path), end=chance.random() < 0.3)
    kinds = (
        data(stream, text, end=chance.random() < 0.3),
        data(stream, text, end=chance.random() < 0.3),
        data(stream, text[: chance.randrange(1, len(text) + 1)], end=chance.random() < 0.3),
        reset(stream),
        settings((4, chance.choice((0, 1, 70_000)))),
        ping(),
        frame(8, 0, stream, chance.choice((b"\0\0\0\1", b"\0\0\xff\xff"))),
        goaway(0),
        headers(stream, head(path)),
    )
    return chance.choice(kinds)
