"""Handshakes are done at once while there is time for them, and else in their order."""

from __future__ import annotations

import asyncio
import time

import pytest

from meshproxy.net.connection import Connection, ConnectionHandler
from meshproxy.net.dispatcher import Dispatcher


async def test_a_turn_of_the_loop_has_a_few_milliseconds_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher = Dispatcher(asyncio.get_running_loop())
    queue = dispatcher.handshakes
    assert queue.has_time()
    assert queue.has_time()
    now = time.monotonic()
    with monkeypatch.context() as clock:
        clock.setattr(time, "monotonic", lambda: now + 1.0)
        assert not queue.has_time()
    await asyncio.sleep(0)  # the next turn
    assert queue.has_time()
    await dispatcher.close()


async def test_who_comes_later_waits_behind_those_who_wait() -> None:
    dispatcher = Dispatcher(asyncio.get_running_loop())
    queue = dispatcher.handshakes
    queue.add(Connection(dispatcher, ConnectionHandler(), 0), b"")
    assert not queue.has_time()
    await asyncio.sleep(0)
    assert queue.has_time()
    await dispatcher.close()
