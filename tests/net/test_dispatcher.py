"""Turns: what is marked while one runs is flushed once at its end."""

from __future__ import annotations

import asyncio
import logging

import pytest

from meshproxy.net.dispatcher import Dispatcher, Flushable


class Flushed(Flushable):
    """Counts its flushes, and marks another meanwhile."""

    def __init__(
        self, log: list[str], name: str, then: Flushed | None = None, dispatcher: Dispatcher | None = None
    ) -> None:
        self.log = log
        self.name = name
        self.then = then
        self.dispatcher = dispatcher

    def flush(self) -> None:
        self.log.append(self.name)
        if self.then is not None and self.dispatcher is not None:
            self.dispatcher.mark_dirty(self.then)
            self.then = None


async def test_what_is_marked_in_a_turn_waits_for_its_end() -> None:
    dispatcher = Dispatcher(asyncio.get_running_loop())
    log: list[str] = []
    dispatcher.begin_turn()
    dispatcher.mark_dirty(Flushed(log, "one"))
    dispatcher.mark_dirty(Flushed(log, "two"))
    await asyncio.sleep(0)
    assert log == []
    dispatcher.end_turn()
    assert log == ["one", "two"]
    assert not dispatcher.in_turn
    await dispatcher.close()


async def test_what_is_marked_by_a_flush_is_flushed_too() -> None:
    dispatcher = Dispatcher(asyncio.get_running_loop())
    log: list[str] = []
    dispatcher.begin_turn()
    dispatcher.mark_dirty(Flushed(log, "one", Flushed(log, "two"), dispatcher))
    dispatcher.end_turn()
    assert log == ["one", "two"]
    await dispatcher.close()


async def test_outside_of_a_turn_it_is_flushed_in_the_next() -> None:
    dispatcher = Dispatcher(asyncio.get_running_loop())
    log: list[str] = []
    dispatcher.mark_dirty(Flushed(log, "one"))
    dispatcher.mark_dirty(Flushed(log, "two"))
    assert log == []
    await asyncio.sleep(0)
    assert log == ["one", "two"]
    await asyncio.sleep(0)
    assert log == ["one", "two"]
    await dispatcher.close()


async def test_a_task_s_callback_runs_in_a_turn_that_ends_even_when_it_raises() -> None:
    loop = asyncio.get_running_loop()
    dispatcher = Dispatcher(loop)
    told: list[dict[str, object]] = []
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: told.append(context))
    log: list[str] = []

    def on_done(task: asyncio.Task[int]) -> None:
        assert dispatcher.in_turn
        dispatcher.mark_dirty(Flushed(log, "flushed"))
        raise ValueError(task.result())

    async def answer() -> int:
        return 42

    dispatcher.run(answer(), "a task", on_done)
    async with asyncio.timeout(10):
        while not told:
            await asyncio.sleep(0)
    loop.set_exception_handler(before)
    assert log == ["flushed"]
    assert not dispatcher.in_turn
    assert str(told[0]["exception"]) == "42"
    await dispatcher.close()


async def test_a_task_that_fails_is_logged_and_close_ends_the_rest(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = Dispatcher(asyncio.get_running_loop())

    async def fail() -> None:
        raise ValueError("on purpose")

    failed = dispatcher.spawn(fail(), "the failing one")
    waiting = dispatcher.spawn(asyncio.Event().wait(), "waits for ever")
    with caplog.at_level(logging.ERROR, logger="meshproxy.main"):
        monkeypatch.setattr(logging.getLogger("meshproxy"), "propagate", True)
        await asyncio.wait([failed])
        await asyncio.sleep(0)
    assert "task the failing one failed" in caplog.text
    await dispatcher.close()
    assert waiting.cancelled()


async def test_what_gathers_is_flushed_once_for_several_turns() -> None:
    dispatcher = Dispatcher(asyncio.get_running_loop())
    log: list[str] = []
    dispatcher.begin_turn()
    dispatcher.mark_gathering(Flushed(log, "one", Flushed(log, "two"), dispatcher))
    dispatcher.end_turn()
    dispatcher.begin_turn()
    dispatcher.mark_gathering(Flushed(log, "three"))
    dispatcher.end_turn()
    assert log == []
    await asyncio.sleep(0)
    assert log == ["one", "three", "two"]
    assert not dispatcher.in_turn
    await dispatcher.close()


async def test_after_many_turns_it_is_flushed_without_waiting_for_more() -> None:
    dispatcher = Dispatcher(asyncio.get_running_loop())
    log: list[str] = []
    dispatcher.mark_gathering(Flushed(log, "one"))
    for _ in range(16):
        assert log == []
        dispatcher.begin_turn()
        dispatcher.end_turn()
    assert log == ["one"]
    dispatcher.mark_gathering(Flushed(log, "two"))
    await asyncio.sleep(0)
    assert log == ["one", "two"]
    await dispatcher.close()
