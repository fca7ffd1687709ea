"""A worker as the supervisor sees it: in this process, or in one of its own."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from meshproxy.net.dispatcher import Dispatcher
from meshproxy.server.control import ANSWER, CALL, FDS_PER_FRAME, INTEREST, PART, SOCKETS, ControlSocket, Frame
from meshproxy.server.options import Options
from meshproxy.server.service import WorkerService
from meshproxy.server.subscriptions import Interest, Key
from meshproxy.server.worker import Worker

_log: Final = logging.getLogger("meshproxy.main")


OnInterest = Callable[["WorkerHandle", list[Interest]], None]


class WorkerGone(Exception):
    """The worker ended before it answered."""


class WorkerFailed(Exception):
    """A verb raised in a worker of another process."""


class WorkerHandle:
    """Calls verbs (`server/service.py`) on a worker. `interests` is what it watches of control planes: who is told of
    changes keeps it."""

    def __init__(self, on_interest: OnInterest) -> None:
        self.interests: set[Key] = set()
        self._tell_interest = on_interest

    def on_interest(self, changes: list[Interest]) -> None:
        """It watches something, once more perhaps, or does no longer."""
        self._tell_interest(self, changes)

    async def parts(self, verb: str, *arguments: Any) -> list[Any]:
        """The parts of the verb's result. Raises WorkerGone, and WorkerFailed for a worker of another process."""
        raise NotImplementedError

    async def call(self, verb: str, *arguments: Any) -> Any:
        """The result of a verb that has one part."""
        (result,) = await self.parts(verb, *arguments)
        return result

    async def give_sockets(self, sockets: dict[str, list[socket.socket]]) -> None:
        """What the next `commit_listeners`, `commit_updates` or `serve` listens on; the sockets stay the caller's."""
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


class LocalWorker(WorkerHandle):
    """The worker in this process."""

    def __init__(self, dispatcher: Dispatcher, options: Options, on_interest: OnInterest) -> None:
        super().__init__(on_interest)
        self.worker = Worker(dispatcher, options.drain_over_s)
        self.worker.subscriptions.report_to(self.on_interest)
        self._service = WorkerService(self.worker)

    async def parts(self, verb: str, *arguments: Any) -> list[Any]:
        return [part async for part in self._service.run(verb, arguments)]

    async def give_sockets(self, sockets: dict[str, list[socket.socket]]) -> None:
        self._service.sockets = dict(sockets)

    async def close(self) -> None:
        await self.worker.close()


class RemoteWorker(WorkerHandle):
    """A worker that was exec'd: told what to do over a socket pair, and noticed when it dies."""

    def __init__(
        self,
        index: int,
        options: Options,
        cells_fd: int,
        on_death: Callable[[RemoteWorker], None],
        on_interest: OnInterest,
    ) -> None:
        super().__init__(on_interest)
        self.index = index
        self._on_death = on_death
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, tuple[asyncio.Future[list[Any]], list[Any]]] = {}
        self._next_id = 0
        self._closing = False
        self.born = time.monotonic()
        self.last_snapshot: list[Any] | None = None  # of its stats, in parts: what is kept of it when it dies
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self.process = subprocess.Popen(  # exec'd, never forked: no state of ours leaks in
                [
                    *(sys.executable, "-m", "meshproxy.server.worker_main"),
                    *("--control-fd", str(theirs.fileno()), "--index", str(index)),
                    *("--cells-fd", str(cells_fd), "--workers", str(options.concurrency)),
                    *("--log-level", options.log_level, "--component-log-level", options.component_log_level),
                    *("--file-flush-interval-msec", str(options.file_flush_interval_msec)),
                    *("--drain-over-s", str(options.drain_over_s)),
                    *(["--enable-core-dump"] if options.enable_core_dump else []),
                ],
                pass_fds=[theirs.fileno(), cells_fd],
                stdin=subprocess.DEVNULL,
            )
        self._control = ControlSocket(ours, self._loop, self._on_frame, self._on_end)

    async def parts(self, verb: str, *arguments: Any) -> list[Any]:
        if self._closing:
            raise WorkerGone(f"worker {self.index} is gone")
        self._next_id += 1
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        self._waiting[self._next_id] = (future, [])
        self._control.send((CALL, self._next_id, verb, arguments))
        return await future

    async def give_sockets(self, sockets: dict[str, list[socket.socket]]) -> None:
        for name, given in sockets.items():
            for first in range(0, max(len(given), 1), FDS_PER_FRAME):  # none: it binds nothing any more
                part = [sock.fileno() for sock in given[first : first + FDS_PER_FRAME]]
                self._control.send((SOCKETS, name, len(part)), part)

    async def close(self) -> None:
        """Let it end: it does when its control socket ends."""
        self._closing = True
        self._control.close()
        self._fail_waiting()
        try:
            await self._loop.run_in_executor(None, self.process.wait, 5.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            await self._loop.run_in_executor(None, self.process.wait)

    def _on_frame(self, frame: Frame, fds: list[int]) -> None:
        kind, number, content = frame
        if kind == PART:
            self._waiting[number][1].append(content)
            return
        if kind == INTEREST:
            self.on_interest(content)
            return
        assert kind == ANSWER
        future, parts = self._waiting.pop(number)
        if future.done():
            return
        if content:
            future.set_exception(WorkerFailed(f"worker {self.index}: {content}"))
        else:
            future.set_result(parts)

    def _on_end(self) -> None:
        self._closing = True
        self._fail_waiting()
        self._on_death(self)

    def _fail_waiting(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for future, _ in waiting.values():
            if not future.done():
                future.set_exception(WorkerGone(f"worker {self.index} is gone"))
