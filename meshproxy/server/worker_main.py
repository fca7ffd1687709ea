"""The process of one worker: exec'd by the supervisor, it does what the control socket says, and ends with it."""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
import socket
import sys

import uvloop

import meshproxy.filters.builtin
from meshproxy.config.token_buckets import TokenBuckets
from meshproxy.net.cells import CellTable, Counters, bucket_table
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.observe.log import setup_logging
from meshproxy.observe.log_file import LOG_FILES
from meshproxy.server.control import ANSWER, CALL, INTEREST, PART, ControlSocket, Frame
from meshproxy.server.heap import keep_freed_memory
from meshproxy.server.secrecy import keep_memory_private
from meshproxy.server.service import WAITING, WorkerService
from meshproxy.server.subscriptions import Interest
from meshproxy.server.worker import Worker

__all__ = ["main"]
_BUILTIN = meshproxy.filters.builtin


class WorkerProcess:
    """Answers calls in the order in which they came; those that wait for something beside the others."""

    def __init__(self, options: argparse.Namespace, loop: asyncio.AbstractEventLoop) -> None:
        self.dispatcher = Dispatcher(loop)
        counters = Counters(CellTable(options.cells_fd, options.workers), options.index)
        token_buckets = TokenBuckets(bucket_table(options.cells_fd, options.workers), options.index)
        self.worker = Worker(self.dispatcher, options.drain_over_s, counters, token_buckets, first=options.index == 0)
        self.service = WorkerService(self.worker)
        self.ended = asyncio.Event()
        self._calls: asyncio.Queue[Frame] = asyncio.Queue()
        self._control = ControlSocket(socket.socket(fileno=options.control_fd), loop, self._on_frame, self.ended.set)
        self.worker.subscriptions.report_to(self._tell_interest)

    def _on_frame(self, frame: Frame, fds: list[int]) -> None:
        if frame[0] == CALL and frame[2] in WAITING:
            self.dispatcher.spawn(self._answer(frame), frame[2])
        elif frame[0] == CALL:
            self._calls.put_nowait(frame)
        else:
            listener = frame[1]
            self.service.sockets.setdefault(listener, []).extend(socket.socket(fileno=fd) for fd in fds)

    async def serve(self) -> None:
        answering = asyncio.create_task(self._answer_calls())
        await self.ended.wait()
        answering.cancel()
        await self.worker.close()
        await self.dispatcher.close()

    async def _answer_calls(self) -> None:
        while True:
            await self._answer(await self._calls.get())

    async def _answer(self, frame: Frame) -> None:
        _, number, verb, arguments = frame
        failure = ""
        try:
            async for part in self.service.run(verb, arguments):
                self._control.send((PART, number, part))
        except Exception as error:  # noqa: BLE001  told to the supervisor, which logs it
            failure = f"{verb}: {type(error).__name__}: {error}"
        self._control.send((ANSWER, number, failure))

    def _tell_interest(self, changes: list[Interest]) -> None:
        self._control.send((INTEREST, 0, changes))


async def _serve(options: argparse.Namespace) -> None:
    await WorkerProcess(options, asyncio.get_running_loop()).serve()


def main() -> int:
    parser = argparse.ArgumentParser(description="A worker of meshproxy; started by it, not by hand.")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--cells-fd", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--component-log-level", default="")
    parser.add_argument("--file-flush-interval-msec", type=int, default=1000)
    parser.add_argument("--drain-over-s", type=float, default=0.0)
    parser.add_argument("--enable-core-dump", action="store_true")
    options = parser.parse_args()
    setup_logging(options.log_level, options.component_log_level)
    if not options.enable_core_dump:
        keep_memory_private()
    LOG_FILES.flush_interval_s = options.file_flush_interval_msec / 1000.0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends them to all; the supervisor decides
    keep_freed_memory()
    gc.freeze()
    uvloop.run(_serve(options))
    LOG_FILES.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
