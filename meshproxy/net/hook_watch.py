"""Finds the hook of a user's filter that holds the event loop too long, and says where it is at that moment.

The loop beats; a thread looks whether it still does. When it has not for the limit while a hook runs, or a task of a
filter, that one's stack goes to the log at once: it may never come back. What keeps the interpreter to itself (a
regular expression that backtracks, say) keeps the thread from looking, too: the hook is then named when it returns.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any, Final

_log: Final = logging.getLogger("meshproxy.filter")
_STACK_FRAMES: Final = 12
_OURS: Final = str(Path(__file__).parents[1])  # what a user's hook is called by
TASK_PREFIX: Final = "filter "  # how the tasks of filters are named


class HookOwner:
    """Whose hooks are watched."""

    def __init__(self, name: str, slow_s: float, on_slow: Callable[[], object]) -> None:
        self.name = name
        self.slow_s = slow_s
        self.on_slow = on_slow  # called in the watching thread, or in the loop's
        self.told: bool = False  # of the hook that runs


class HookWatch:
    """One per process. `running` is set by whoever calls a hook, and cleared when that returns."""

    def __init__(self) -> None:
        self.running: HookOwner | None = None
        self._owners: dict[str, HookOwner] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread: int = 0
        self._beats: int = 0
        self._interval_s: float = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None

    def add(self, owner: HookOwner) -> None:
        """Watch the hooks of `owner` too. Called in the loop's thread; the first one starts the watch."""
        self._owners[owner.name] = owner
        self._interval_s = min(one.slow_s for one in self._owners.values()) / 2
        if self._watcher is None:
            self._loop = asyncio.get_running_loop()
            self._loop_thread = threading.get_ident()
            self._stop = threading.Event()
            self._watcher = threading.Thread(target=self._run, args=(self._stop,), name="filter watch", daemon=True)
            self._beat()
            self._watcher.start()

    def remove(self, owner: HookOwner) -> None:
        """The last one ends the watch."""
        if self._owners.get(owner.name) is owner:
            del self._owners[owner.name]
        if not self._owners and self._watcher is not None:
            self._stop.set()
            if self._timer is not None:
                self._timer.cancel()
            self._watcher = self._loop = self._timer = None

    def on_returned(self, owner: HookOwner, took_s: float) -> None:
        """A hook has returned that took too long; it is told of unless that was done while it ran."""
        if not owner.told:
            _log.warning("filter %s held the event loop for %.0f ms", owner.name, took_s * 1000.0)
            owner.on_slow()
        owner.told = False

    def _beat(self) -> None:
        self._beats += 1
        if self._loop is not None:
            self._timer = self._loop.call_later(self._interval_s, self._beat)

    # -- the thread

    def _run(self, stop: threading.Event) -> None:
        seen, since, told = self._beats, monotonic(), False
        while not stop.wait(self._interval_s):
            if self._beats != seen:
                seen, since, told = self._beats, monotonic(), False
                continue
            owner = None if told else self._who()
            if owner is not None and monotonic() - since >= owner.slow_s:
                told = owner.told = True
                self._tell(owner)

    def _who(self) -> HookOwner | None:
        if self.running is not None:
            return self.running
        loop = self._loop
        task: asyncio.Task[Any] | None = None if loop is None else asyncio.current_task(loop)
        name = "" if task is None else task.get_name()
        return self._owners.get(name.removeprefix(TASK_PREFIX)) if name.startswith(TASK_PREFIX) else None

    def _tell(self, owner: HookOwner) -> None:
        frame = sys._current_frames().get(self._loop_thread)
        stack = [] if frame is None else traceback.extract_stack(frame)
        del frame
        ours = [index for index, entry in enumerate(stack) if entry.filename.startswith(_OURS)]
        users = stack[ours[-1] + 1 :] if ours and ours[-1] + 1 < len(stack) else stack
        shown = "".join(traceback.format_list(users[-_STACK_FRAMES:]))
        _log.warning("filter %s holds the event loop, here:\n%s", owner.name, shown.rstrip())
        owner.on_slow()


HOOK_WATCH: Final = HookWatch()
