"""A host with several addresses: in which order they are tried, when the next one is, and which one counts."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from meshproxy.errors import RESET_CONNECT_FAILURE, RESET_CONNECT_TIMEOUT
from meshproxy.net.address import Address, address_of
from meshproxy.net.connect import ConnectAttempt, ConnectHandler, connect
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.net.happy_eyeballs import FIRST_V4, FIRST_V6, FamilyOrder, HappyEyeballs, Opener
from tests.net.peers import Speaker, until

A, B, C, D = (Address(f"10.0.0.{number}", 80) for number in range(1, 5))
P, Q, R = (Address(f"2001:db8::{number}", 80) for number in range(1, 4))
PIPE = Address("", 0, "/run/some.sock")


@pytest.mark.parametrize(
    ("given", "first", "count", "expected"),
    [
        ([A, B], 0, 1, [A, B]),
        ([A, B, P, Q], 0, 1, [A, P, B, Q]),
        ([P, A, B, C], 0, 1, [P, A, B, C]),
        ([A, B, P], FIRST_V6, 1, [P, A, B]),
        ([P, Q, A, B], FIRST_V4, 1, [A, P, B, Q]),
        ([P, Q, R, A, B, C, D], FIRST_V4, 2, [A, B, P, C, D, Q, R]),
        ([A, B, C, D, P], 0, 3, [A, B, C, P, D]),
        ([A, B], FIRST_V6, 1, [A, B]),
        ([A, PIPE, P, B], 0, 1, [A, PIPE, P, B]),
        ([A, P, B, Q], 99, 2, [A, P, B, Q]),
    ],
)
def test_order(given: list[Address], first: int, count: int, expected: list[Address]) -> None:
    """RFC 8305 section 4, and Envoy's `happy_eyeballs_config`."""
    assert FamilyOrder(first, count).sorted(given) == expected


@pytest.fixture
async def dispatcher() -> AsyncIterator[Dispatcher]:
    made = Dispatcher(asyncio.get_running_loop())
    yield made
    await made.close()


class Counter(Speaker):
    """Notes further attempts too."""

    def on_another_attempt(self) -> None:
        self._note("another")


class Plain(Opener):
    """Connects over TCP."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self.opened: list[Address] = []

    def open(self, address: Address, handler: ConnectHandler) -> ConnectAttempt:
        self.opened.append(address)
        return connect(self.dispatcher, address, handler, 60_000.0, 65536)


def begin(
    dispatcher: Dispatcher, addresses: list[Address], timeout_ms: float = 10_000.0
) -> tuple[Counter, Plain, HappyEyeballs]:
    speaker, opener = Counter(), Plain(dispatcher)
    attempt = HappyEyeballs(dispatcher, speaker, opener, addresses)
    attempt.begin(timeout_ms)
    return speaker, opener, attempt


@pytest.fixture
def server() -> Iterator[Address]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield address_of(sock.getsockname())


@pytest.fixture
def dead() -> Iterator[Address]:
    """An address that refuses."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield address_of(sock.getsockname())


@pytest.fixture
async def silent() -> AsyncIterator[Address]:
    """A listener whose accept queue is full ignores the handshake."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())
        yield address_of(sock.getsockname())
        for filler in fillers:
            filler.close()


async def test_the_first_that_answers_is_the_only_one(dispatcher: Dispatcher, server: Address, dead: Address) -> None:
    speaker, opener, _ = begin(dispatcher, [server, dead])
    await until(lambda: speaker.events, "the outcome")
    assert speaker.events == ["connected"]
    assert opener.opened == [server]
    assert speaker.connection is not None
    assert speaker.connection.remote == server
    speaker.connection.abort()


async def test_a_refusal_tries_the_next_at_once(dispatcher: Dispatcher, server: Address, dead: Address) -> None:
    speaker, opener, _ = begin(dispatcher, [dead, dead, server])
    await until(lambda: "connected" in speaker.events, "the outcome")
    assert speaker.events == ["another", "another", "connected"]
    assert opener.opened == [dead, dead, server]
    assert speaker.connection is not None
    speaker.connection.abort()


async def test_the_last_refusal_is_the_outcome(dispatcher: Dispatcher, dead: Address) -> None:
    speaker, _, _ = begin(dispatcher, [dead, dead])
    await until(lambda: len(speaker.events) > 1, "the outcome")
    assert speaker.events == ["another", f"failed {RESET_CONNECT_FAILURE} delayed connect error: Connection refused"]


async def test_silence_tries_the_next_after_a_while(dispatcher: Dispatcher, server: Address, silent: Address) -> None:
    speaker, _, _ = begin(dispatcher, [silent, server])
    await until(lambda: "connected" in speaker.events, "the outcome")
    assert speaker.events == ["another", "connected"]
    assert speaker.connection is not None
    assert speaker.connection.remote == server
    speaker.connection.abort()


async def test_a_refusal_leaves_the_others_their_time(dispatcher: Dispatcher, dead: Address, silent: Address) -> None:
    speaker, _, attempt = begin(dispatcher, [silent, dead])
    await until(lambda: speaker.events, "the second attempt")
    await asyncio.sleep(0)
    assert speaker.events == ["another"]
    attempt.cancel()


async def test_the_timeout_is_for_all_of_them(dispatcher: Dispatcher, silent: Address) -> None:
    speaker, opener, _ = begin(dispatcher, [silent, silent], timeout_ms=20.0)
    await until(lambda: speaker.events, "the outcome")
    assert speaker.events == [f"failed {RESET_CONNECT_TIMEOUT} "]
    assert opener.opened == [silent]


@pytest.mark.parametrize("turns", range(5))
async def test_given_up(dispatcher: Dispatcher, server: Address, dead: Address, turns: int) -> None:
    """However far it had come, the handler hears nothing more, unless it was connected."""
    speaker, opener, attempt = begin(dispatcher, [dead, server])
    for _ in range(turns):
        await asyncio.sleep(0)
    connected = "connected" in speaker.events
    events = list(speaker.events)
    attempt.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    assert speaker.events == events
    assert len(opener.opened) <= 2
    if connected:
        assert speaker.connection is not None
        speaker.connection.abort()
