"""The event loop as the rest of the proxy sees it: timers, tasks, and the end of a turn.

Everything that happens on the request path happens inside a *turn*: a socket became readable, a timer fired. While the
turn runs, connections that have something to send mark themselves; at its end each writes once, all it has, in one go.
A connection that many others send through gathers what several turns have for it.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import CancelledError, Task
from collections.abc import Callable, Coroutine
from typing import Any, Final

from mypy_extensions import mypyc_attr

from meshproxy.clock import begin_turn, end_turn
from meshproxy.errors import MeshProxyError
from meshproxy.net.handshakes import HandshakeQueue
from meshproxy.net.timers import TimerWheel

__all__ = ["CancelledError", "Dispatcher", "Flushable", "Task", "new_future"]

_log = logging.getLogger("meshproxy.main")

_MOST_GATHERED_TURNS: Final = 16  # each may bring a whole read: then the output goes out, so that backpressure is felt


def new_future() -> Any:
    """A future of the loop that runs: for a task that waits for a callback."""
    return asyncio.get_running_loop().create_future()


@mypyc_attr(allow_interpreted_subclasses=True)
class Flushable:
    """What can be marked: it is flushed at the end of the turn."""

    def flush(self) -> None:
        raise NotImplementedError


class Dispatcher:
    """One per process (and per event loop)."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.timers = TimerWheel(loop)
        self.in_turn: bool = False
        self._dirty: list[Flushable] = []
        self._flush_scheduled: bool = False
        self._gathering: list[Flushable] = []
        self._gathered_turns: int = 0
        self._gather_scheduled: bool = False
        self._tasks: set[Task[Any]] = set()
        self._next_connection_id: int = 0
        self.handshakes = HandshakeQueue(self)

    def next_connection_id(self) -> int:
        self._next_connection_id += 1
        return self._next_connection_id

    def mark_dirty(self, what: Flushable) -> None:
        """Flush `what` at the end of this turn. The caller marks itself once until it is flushed."""
        self._dirty.append(what)
        if not self.in_turn and not self._flush_scheduled:
            self._flush_scheduled = True
            self.loop.call_soon(self._flush_soon)

    def mark_gathering(self, what: Flushable) -> None:
        """As `mark_dirty`, but flush `what` when all sockets that are ready now have been read: they may have more for
        it, which then leaves in the same write."""
        self._gathering.append(what)
        if not self._gather_scheduled:
            self._gather_scheduled = True
            self.loop.call_soon(self._flush_gathered)

    def _flush_gathered(self) -> None:
        self._gather_scheduled = False
        self.begin_turn()
        self._end_gathering()
        self.end_turn()

    def _end_gathering(self) -> None:
        self._dirty.extend(self._gathering)
        self._gathering = []
        self._gathered_turns = 0

    def _flush_soon(self) -> None:
        self._flush_scheduled = False
        self.begin_turn()
        self.end_turn()

    def begin_turn(self) -> None:
        """Something happened: until `end_turn` time stands still, and output is gathered."""
        self.in_turn = True
        begin_turn()

    def end_turn(self) -> None:
        """Flush all that was marked; what is marked meanwhile is flushed too."""
        if self._gathering:
            self._gathered_turns += 1
            if self._gathered_turns >= _MOST_GATHERED_TURNS:
                self._end_gathering()
        while self._dirty:
            dirty = self._dirty
            self._dirty = []
            for what in dirty:
                what.flush()
        self.in_turn = False
        end_turn()

    def post(self, callback: Callable[[], object]) -> None:
        """Call back in the next turn."""
        self.loop.call_soon(callback)

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> Task[Any]:
        """Run `coroutine` as a task that is kept alive, cancelled by `close`, and whose exception is logged."""
        task = self.loop.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    def run(self, coroutine: Coroutine[Any, Any, Any], name: str, on_done: Callable[[Task[Any]], None]) -> Task[Any]:
        """Run `coroutine` and call `on_done(task)` in a turn; the caller looks at its exception."""
        task = self.loop.create_task(_without_exit(coroutine), name=name)
        self._tasks.add(task)
        task.add_done_callback(TaskDone(self, on_done, coroutine).on_done)
        return task

    def forget(self, task: Task[Any]) -> None:
        self._tasks.discard(task)

    def _on_task_done(self, task: Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            error = task.exception()
            if error is not None:
                _log.error("task %s failed", task.get_name(), exc_info=error)

    async def close(self) -> None:
        """Cancel what still runs, and wait for it."""
        self.timers.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _without_exit(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """A `sys.exit()` in a task would end the event loop."""
    try:
        return await coroutine
    except SystemExit as error:
        raise MeshProxyError(f"a task called sys.exit({error.code!r})") from error


class TaskDone:
    """Runs a task's callback inside a turn."""

    def __init__(
        self, dispatcher: Dispatcher, on_done: Callable[[Task[Any]], None], coroutine: Coroutine[Any, Any, Any]
    ) -> None:
        self._dispatcher = dispatcher
        self._on_done = on_done
        self._coroutine = coroutine

    def on_done(self, task: Task[Any]) -> None:
        self._dispatcher.forget(task)
        self._coroutine.close()  # a task that is cancelled at once has never begun it
        self._dispatcher.begin_turn()
        try:
            self._on_done(task)
        finally:
            self._dispatcher.end_turn()
