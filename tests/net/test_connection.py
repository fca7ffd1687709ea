"""One connection: writes once a turn, watermarks, reading paused, and every kind of end."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from typing import Any

import pytest

from meshproxy.net.connection import CLOSED, LINGERING, Connection
from meshproxy.net.dispatcher import Dispatcher
from tests.net.peers import Speaker, connected, receive_end, receive_exactly, until


async def test_what_is_sent_in_a_turn_leaves_together() -> None:
    async with connected() as (dispatcher, speaker, peer):
        dispatcher.begin_turn()
        speaker.send(b"head ")
        speaker.send(b"body")
        assert speaker.out == [b"head ", b"body"]
        dispatcher.end_turn()
        assert speaker.out == []
        assert await receive_exactly(peer, 9) == b"head body"
        assert speaker.connection is not None
        assert speaker.connection.bytes_sent == 9


async def test_data_and_eof_arrive_and_our_side_stays_open() -> None:
    async with connected() as (_, speaker, peer):
        peer.send(b"ping")
        peer.shutdown(1)
        await until(lambda: "eof" in speaker.events, "eof")
        assert speaker.received == b"ping"
        speaker.send(b"pong")
        assert await receive_exactly(peer, 4) == b"pong"
        assert speaker.connection is not None
        speaker.connection.close()
        assert await receive_end(peer) == b""
        await until(lambda: "closed" in speaker.events, "the end")
        assert speaker.events.count("closed") == 1
        assert speaker.connection.state == CLOSED


async def test_close_sends_what_is_pending() -> None:
    data = bytes(1_000_000)
    async with connected() as (_, speaker, peer):
        speaker.send(data)
        assert speaker.connection is not None
        speaker.connection.close()
        assert await receive_end(peer) == data


async def test_abort_does_not() -> None:
    async with connected() as (_, speaker, peer):
        speaker.send(b"never")
        assert speaker.connection is not None
        speaker.connection.abort()
        assert await receive_end(peer) == b""


async def test_a_lingering_close_reads_on_until_the_peer_ends() -> None:
    async with connected() as (_, speaker, peer):
        speaker.send(b"last answer")
        connection = speaker.connection
        assert connection is not None
        connection.close(linger_ms=60_000.0)
        assert await receive_end(peer) == b"last answer"  # our FIN has come
        assert connection.state == LINGERING
        for _ in range(20):
            await asyncio.get_running_loop().sock_sendall(peer, bytes(100_000))  # read, and thrown away
        assert speaker.received == b""
        assert "closed" not in speaker.events
        peer.close()
        await until(lambda: "closed" in speaker.events, "the end")


async def test_a_lingering_close_ends_by_itself() -> None:
    async with connected() as (_, speaker, peer):
        assert speaker.connection is not None
        speaker.connection.close(linger_ms=20.0)
        await until(lambda: "closed" in speaker.events, "the end")
        assert await receive_end(peer) == b""


async def test_a_lingering_close_waits_while_the_peer_still_takes_what_is_sent() -> None:
    size = 4_000_000
    async with connected() as (_, speaker, peer):
        speaker.send(bytes(size))
        connection = speaker.connection
        assert connection is not None
        connection.close(linger_ms=60_000.0)
        received = 0
        unsent = connection.write_buffer_bytes
        async with asyncio.timeout(30):
            while data := await asyncio.get_running_loop().sock_recv(peer, 65536):
                received += len(data)
                if connection.write_buffer_bytes < unsent:  # the peer has taken some since the timer was set
                    unsent = connection.write_buffer_bytes
                    connection.on_linger_timer()
        assert received == size


async def test_a_lingering_close_gives_up_on_a_peer_that_takes_nothing() -> None:
    async with connected() as (_, speaker, _peer):
        speaker.send(bytes(4_000_000))
        assert speaker.connection is not None
        speaker.connection.close(linger_ms=50.0)
        await until(lambda: "closed" in speaker.events, "the end")


async def test_watermarks_are_told_of_once_each_way() -> None:
    size = 2_000_000
    async with connected(buffer_limit_bytes=10_000) as (_, speaker, peer):
        speaker.send(bytes(size))
        await until(lambda: "above" in speaker.events, "the high watermark")
        assert speaker.events == ["connected", "above"]
        assert speaker.connection is not None
        assert speaker.connection.write_buffer_bytes > 10_000
        assert await receive_exactly(peer, size) == bytes(size)
        await until(lambda: "below" in speaker.events, "the low watermark")
        assert speaker.events == ["connected", "above", "below"]


async def test_reading_is_disabled_by_count() -> None:
    async with connected() as (_, speaker, peer):
        connection = speaker.connection
        assert connection is not None
        connection.read_disable(True)
        connection.read_disable(True)
        peer.send(b"held")
        connection.read_disable(False)
        for _ in range(5):
            await asyncio.sleep(0.001)
        assert speaker.received == b""
        connection.read_disable(False)
        await until(lambda: speaker.received == b"held", "what was held")
        connection.read_disable(False)  # one too many changes nothing
        connection.read_disable(True)
        peer.send(b" again")
        for _ in range(5):
            await asyncio.sleep(0.001)
        assert speaker.received == b"held"


@pytest.mark.parametrize("where", ["data", "eof", "data_to_send"])
async def test_a_handler_that_raises_loses_its_connection_only(
    where: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("meshproxy"), "propagate", True)
    async with connected() as (dispatcher, speaker, peer), connected() as (_, other, other_peer):
        speaker.raise_in = where
        if where == "eof":
            peer.shutdown(1)
        elif where == "data":
            peer.send(b"x")
        else:
            dispatcher.begin_turn()
            speaker.send(b"x")
            dispatcher.end_turn()
        await until(lambda: any(event.startswith("closed") for event in speaker.events), "the end")
        assert not dispatcher.in_turn
        assert "internal error" in caplog.text
        other.send(b"well")
        assert await receive_exactly(other_peer, 4) == b"well"


async def test_a_peer_that_resets_is_told_with_its_error() -> None:
    loop = asyncio.get_running_loop()
    dispatcher = Dispatcher(loop)
    speaker = Speaker()
    factory: Any = lambda: Connection(dispatcher, speaker, 65536)  # noqa: E731
    server = await loop.create_server(factory, "127.0.0.1", 0)
    with socket.create_connection(server.sockets[0].getsockname()) as peer:
        await until(lambda: "connected" in speaker.events, "the connection")
        assert speaker.connection is not None
        assert speaker.connection.remote.text == f"127.0.0.1:{peer.getsockname()[1]}"
        assert speaker.connection.local.text == f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await until(lambda: len(speaker.events) == 2, "the end")
    assert speaker.events == ["connected", "closed Connection reset by peer"]
    server.close()
    await dispatcher.close()
