"""Connecting: one outcome for each attempt, in time; nothing after it was given up."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshproxy.errors import RESET_CONNECT_FAILURE, RESET_CONNECT_TIMEOUT, RESET_LOCAL_CONNECT_FAILURE
from meshproxy.net.address import Address, address_of
from meshproxy.net.connect import connect, keepalive_options
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.net.transport_socket import TransportSocket
from tests.net.peers import Speaker, receive_exactly, until


@pytest.fixture
async def dispatcher() -> AsyncIterator[Dispatcher]:
    made = Dispatcher(asyncio.get_running_loop())
    yield made
    await made.close()


def _listening(family: int = socket.AF_INET, name: object = ("127.0.0.1", 0), backlog: int = 16) -> socket.socket:
    sock = socket.socket(family)
    sock.bind(name)  # type: ignore[arg-type]
    sock.listen(backlog)
    sock.setblocking(False)
    return sock


async def _accept(listener: socket.socket) -> socket.socket:
    connection, _ = await asyncio.get_running_loop().sock_accept(listener)
    return connection


async def _talk(dispatcher: Dispatcher, listener: socket.socket, address: Address) -> Speaker:
    """Connect, send and receive; both ends are closed after it."""
    speaker = Speaker()
    connect(dispatcher, address, speaker, 5_000.0, 65536)
    assert speaker.events == []  # in a later turn
    await until(lambda: speaker.events == ["connected"], "the connection")
    speaker.send(b"hello")
    with await _accept(listener) as peer:
        assert await receive_exactly(peer, 5) == b"hello"
    await until(lambda: "eof" in speaker.events, "the peer's end")
    assert speaker.connection is not None
    speaker.connection.close()
    await until(lambda: "closed" in speaker.events, "the end")
    return speaker


async def test_tcp(dispatcher: Dispatcher) -> None:
    with _listening() as listener:
        address = address_of(listener.getsockname())
        speaker = await _talk(dispatcher, listener, address)
        assert speaker.connection is not None
        assert speaker.connection.remote == address


@pytest.mark.parametrize("abstract", [False, True])
async def test_unix(dispatcher: Dispatcher, tmp_path: Path, abstract: bool) -> None:
    path = f"{tmp_path}/socket"
    with _listening(socket.AF_UNIX, "\0" + path if abstract else path) as listener:
        address = Address("", 0, "@" + path if abstract else path)
        assert address_of(listener.getsockname()) == address
        await _talk(dispatcher, listener, address)


async def test_a_unix_socket_has_none_of_tcps_options(dispatcher: Dispatcher, tmp_path: Path) -> None:
    """Nor any other, as in Envoy: Istio asks for keepalive on the way to its agent's sockets."""
    with _listening(socket.AF_UNIX, f"{tmp_path}/socket"):
        speaker = Speaker()
        options = (*keepalive_options(3, 7, 2), (socket.SOL_SOCKET, 99999, 1))
        connect(dispatcher, Address("", 0, f"{tmp_path}/socket"), speaker, 5_000.0, 65536, options)
        await until(lambda: speaker.events == ["connected"], "the connection")
        assert speaker.connection is not None
        speaker.connection.abort()
        await until(lambda: len(speaker.events) == 2, "the end")


async def test_refused(dispatcher: Dispatcher) -> None:
    with _listening() as listener:
        address = address_of(listener.getsockname())
    speaker = Speaker()
    connect(dispatcher, address, speaker, 5_000.0, 65536)
    await until(lambda: speaker.events, "the outcome")
    assert speaker.events == [f"failed {RESET_CONNECT_FAILURE} delayed connect error: Connection refused"]


async def test_no_such_unix_socket(dispatcher: Dispatcher, tmp_path: Path) -> None:
    speaker = Speaker()
    connect(dispatcher, Address("", 0, f"{tmp_path}/nothing"), speaker, 5_000.0, 65536)
    await until(lambda: speaker.events, "the outcome")
    assert speaker.events == [f"failed {RESET_CONNECT_FAILURE} delayed connect error: No such file or directory"]


async def test_a_unix_socket_whose_queue_is_full(dispatcher: Dispatcher, tmp_path: Path) -> None:
    path = f"{tmp_path}/socket"
    fillers = [socket.socket(socket.AF_UNIX) for _ in range(4)]
    with _listening(socket.AF_UNIX, path, backlog=0):
        for filler in fillers:
            filler.setblocking(False)
            if filler.connect_ex(path) != 0:
                break
        speaker = Speaker()
        connect(dispatcher, Address("", 0, path), speaker, 5_000.0, 65536)
        await until(lambda: speaker.events, "the outcome")
        assert speaker.events == [
            f"failed {RESET_CONNECT_FAILURE} delayed connect error: Resource temporarily unavailable"
        ]
    for filler in fillers:
        filler.close()


async def test_no_answer_in_time(dispatcher: Dispatcher) -> None:
    """A listener whose accept queue is full ignores the handshake."""
    loop = asyncio.get_running_loop()
    with _listening(backlog=0) as listener:
        address = address_of(listener.getsockname())
        fillers = [socket.socket() for _ in range(4)]
        tasks = []
        for filler in fillers:
            filler.setblocking(False)
            tasks.append(loop.create_task(loop.sock_connect(filler, (address.ip, address.port))))
        await asyncio.wait(tasks, timeout=0.2)
        speaker = Speaker()
        connect(dispatcher, address, speaker, 50.0, 65536)
        await until(lambda: speaker.events, "the outcome")
        assert speaker.events == [f"failed {RESET_CONNECT_TIMEOUT} "]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for filler in fillers:
            filler.close()


@pytest.mark.parametrize("turns", range(6))
async def test_given_up(dispatcher: Dispatcher, turns: int) -> None:
    """However far it had come: the handler hears nothing of it, unless it was connected before."""
    with _listening() as listener:
        speaker = Speaker()
        attempt = connect(dispatcher, address_of(listener.getsockname()), speaker, 50.0, 65536)
        for _ in range(turns):
            await asyncio.sleep(0)
        before = list(speaker.events)
        attempt.cancel()
        assert speaker.events == before
        try:
            peer, _ = listener.accept()
        except BlockingIOError:
            return  # it had not come so far
        with peer:
            peer.setblocking(False)
            if speaker.connection is not None:
                speaker.connection.abort()
                await until(lambda: len(speaker.events) == 2, "the end")
            async with asyncio.timeout(5):
                assert await asyncio.get_running_loop().sock_recv(peer, 1) == b""
        assert not any(event.startswith("failed") for event in speaker.events)


async def test_options_and_the_local_address(dispatcher: Dispatcher) -> None:
    with _listening() as listener:
        speaker = Speaker()
        options = keepalive_options(3, 7, 2)
        address = address_of(listener.getsockname())
        connect(dispatcher, address, speaker, 5_000.0, 65536, options, Address("127.0.0.3", 0))
        await until(lambda: speaker.events == ["connected"], "the connection")
        assert speaker.connection is not None
        assert speaker.connection.local.ip == "127.0.0.3"
        sock = speaker.connection.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 7
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 2
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        speaker.connection.abort()
        await until(lambda: len(speaker.events) == 2, "the end")


async def test_an_option_that_the_kernel_refuses_is_a_failure(dispatcher: Dispatcher) -> None:
    speaker = Speaker()
    connect(dispatcher, Address("127.0.0.1", 1), speaker, 5_000.0, 65536, ((socket.SOL_SOCKET, 99999, 1),))
    await until(lambda: speaker.events, "the outcome")
    assert speaker.events == [f"failed {RESET_LOCAL_CONNECT_FAILURE} "]


class Refusing(TransportSocket):
    """Fails before its first byte, as TLS does where a name cannot be sent."""

    def start(self) -> None:
        self.failure = "no"

    def take_output(self) -> bytes:
        return b""


async def test_a_descriptor_is_closed_once(dispatcher: Dispatcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        for _ in range(3):
            speaker = Speaker()
            address = Address("127.0.0.1", server.getsockname()[1])
            connect(dispatcher, address, speaker, 5_000.0, 65536, transport_socket=Refusing())
            taken: list[socket.socket] = []
            while not speaker.events:
                await asyncio.sleep(0)
            for _ in range(20):
                taken.append(socket.socket())  # one of them has the number of the descriptor that was closed
                await asyncio.sleep(0)
            gc.collect()
            assert speaker.events == [f"failed {RESET_CONNECT_FAILURE} no"]
            for sock in taken:
                assert os.fstat(sock.fileno())
                sock.close()


async def test_an_address_of_another_machine_cannot_be_bound(dispatcher: Dispatcher) -> None:
    speaker = Speaker()
    connect(dispatcher, Address("127.0.0.1", 1), speaker, 5_000.0, 65536, bind=Address("192.0.2.1", 0))
    await until(lambda: speaker.events, "the outcome")
    assert speaker.events == [f"failed {RESET_LOCAL_CONNECT_FAILURE} "]
