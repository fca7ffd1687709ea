"""A running proxy for asynchronous tests: it never blocks the loop that the load runs in."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

from tests.support.proxy import ProxyProcess, start_meshproxy

T = TypeVar("T")


async def eventually(probe: Callable[[], T], what: str, deadline_s: float = 15.0) -> T:
    """The first true value of `probe`. Raises TimeoutError naming `what`."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline_s
    while True:
        if value := probe():
            return value
        if loop.time() > end:
            raise TimeoutError(f"waited {deadline_s} s for {what}")
        await asyncio.sleep(0.005)


class Proxy:
    """meshproxy as a process of its own."""

    process: ProxyProcess

    def __init__(self, config: str, *arguments: str) -> None:
        self._config = config
        self._arguments = arguments
        self.exit_code: int | None = None

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    def start(self) -> None:
        """Start it; `process.stop` ends it."""
        self.process = start_meshproxy(self._config, *self._arguments)
        self.ports = self.process.listener_ports()

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if value is not None:
            print(self.process.output())  # pytest shows it with the failure
        await asyncio.to_thread(self.process.stop)

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        return self.process.pid

    async def admin(self, path: str, method: str = "GET") -> tuple[int, str]:
        """Status and body."""
        return await asyncio.to_thread(self.process.admin, path, method)

    async def stats(self, pattern: str = "") -> dict[str, int]:
        """Counters and gauges by name."""
        return await asyncio.to_thread(self.process.stats, pattern)

    async def stat(self, name: str) -> int:
        """One of them."""
        return (await self.stats(name.replace(".", "\\."))).get(name, 0)

    async def until_stat(self, name: str, condition: Callable[[int], bool], deadline_s: float = 15.0) -> int:
        """Wait until it is so."""
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline_s
        while not condition(value := await self.stat(name)):
            if loop.time() > end:
                raise TimeoutError(f"{name} is {value} after {deadline_s} s")
            await asyncio.sleep(0.01)
        return value

    async def reload(self, config: str, *, in_place: bool = False) -> None:
        """Write another configuration file and wait until the proxy runs by it.

        A SIGHUP saves the wait for the watch.
        """
        before = await self.stat("server.config_reload_success")
        self.write(config, in_place=in_place)
        self.signal(signal.SIGHUP)
        await self.until_stat("server.config_reload_success", lambda value: value > before)
        self.ports = await asyncio.to_thread(self.process.listener_ports)

    def write(self, config: str, *, in_place: bool = False) -> None:
        """Write the file, by a rename that nobody sees halfway, or as an editor would that does not know better."""
        path = self.process.config_path
        if in_place:
            path.write_text(config)
            return
        temporary = path.with_suffix(".new")
        temporary.write_text(config)
        os.replace(temporary, path)

    def signal(self, number: int) -> None:
        """Send a signal to the supervisor."""
        self.process.process.send_signal(number)

    async def wait(self, deadline_s: float = 30.0) -> int:
        """Wait for its end; returns the exit code."""
        code = await eventually(lambda: self.process.process.poll() is not None, "the proxy to end", deadline_s)
        assert code
        return int(self.process.process.returncode)

    def output(self) -> str:
        """What it logged."""
        return self.process.output()

    def workers(self) -> list[int]:
        """The process ids of its workers."""
        return children(self.pid)


def children(pid: int) -> list[int]:
    """Child processes that live, oldest first."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        found = [int(child) for child in file.read().split()]
    return [child for child in found if is_alive(child)]


def is_alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def rss_kib(pid: int) -> int:
    """Resident memory."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:"))
