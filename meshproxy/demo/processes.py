"""The processes of the demonstration, ended by id whatever happens."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_START_S: Final = 60.0
_STOP_S: Final = 5.0
_POLL_S: Final = 0.05
# Loopback is never to be asked of a proxy that the environment names.
DIRECT: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class DemoError(Exception):
    """The demonstration cannot go on; the message is for the user."""


class Child:
    """A child process in a process group of its own (Ctrl-C reaches us alone); its standard error goes to a log file.

    Its standard output goes to a file as well. With `talks` it is ours to read instead, and its standard input stays
    open for as long as we live.
    """

    def __init__(self, argv: Sequence[str], path: Path, talks: bool) -> None:
        self.log = path.with_suffix(".log")
        self.output = path.with_suffix(".out")
        with self.log.open("ab") as log, self.output.open("ab") as output:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else output,
                stderr=log,
                process_group=0,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    async def ended(self) -> int:
        """Its exit code, once it has one."""
        return await asyncio.to_thread(self.process.wait)

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        await asyncio.to_thread(self.process.wait)

    def log_end(self) -> str:
        """The last lines that it wrote, for an error message."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])

    def close(self) -> None:
        """Reap it, after SIGTERM or by SIGKILL when it does not end."""
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class Processes:
    """All children that were started; a context manager that ends them all."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._children: list[Child] = []

    def start(self, name: str, module: str, *arguments: str, talks: bool = False) -> Child:
        """Run a Python module with our interpreter; what it writes goes to `<name>.log` and `<name>.out`."""
        child = Child([sys.executable, "-m", module, *arguments], self._directory / name, talks)
        self._children.append(child)
        return child

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        for child in self._children:
            if child.runs:
                child.process.send_signal(signal.SIGTERM)
        for child in self._children:
            child.close()


class Instance:
    """One instance of the application."""

    def __init__(self, processes: Processes, name: str) -> None:
        self.name = name
        self.child = processes.start(name, "meshproxy.demo.application", "--instance", name, "--until-eof", talks=True)
        self.port = 0

    async def wait_until_it_serves(self) -> None:
        """It says its port when it does. Raises DemoError when it ends instead."""
        output = self.child.process.stdout
        line = await asyncio.to_thread(output.readline) if output is not None else b""
        if not line:
            raise DemoError(f"{self.name} did not start:\n{self.child.log_end()}")
        self.port = int(line)


class Served:
    """A process of ours that answers HTTP at `admin`, which it writes to the file `addresses` when it knows it. It is
    ready when its page `ready` is there, and has the word."""

    def __init__(self, child: Child, name: str, addresses: Path, ready: tuple[str, str]) -> None:
        self.child = child
        self.name = name
        self.admin = ""
        self._addresses = addresses
        self._ready = ready

    async def wait_until_ready(self) -> None:
        """Raises DemoError when it ends instead."""
        await self.wait(self._is_ready, "become ready")

    async def _is_ready(self) -> bool:
        if not self._addresses.exists():
            return False
        self.take_addresses(self._addresses.read_text(encoding="utf-8"))
        return await self._says(*self._ready)

    def take_addresses(self, text: str) -> None:
        """What the file says: here the address alone."""
        self.admin = text.strip()

    async def ask(self, path: str) -> str:
        """GET from it; raises DemoError when it does not answer."""
        try:
            return await asyncio.to_thread(self._get, path)
        except OSError as error:
            raise DemoError(f"{self.name} does not answer: {error}\n{self.child.log_end()}") from error

    def _get(self, path: str) -> str:
        with DIRECT.open(f"http://{self.admin}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    async def _says(self, path: str, word: str) -> bool:
        """Whether the page is there, and has the word."""
        try:
            return word in await asyncio.to_thread(self._get, path)
        except OSError:
            return False  # it serves a moment later, or has ended: `wait` looks

    async def wait(self, probe: Callable[[], Awaitable[bool]], what: str) -> None:
        """Until `probe` says so. Raises DemoError when it ends, or does not in time."""
        end = asyncio.get_running_loop().time() + _START_S
        while not await probe():
            if not self.child.runs:
                raise DemoError(f"{self.name} ended instead of having to {what}:\n{self.child.log_end()}")
            if asyncio.get_running_loop().time() > end:
                raise DemoError(f"{self.name} did not {what} in {_START_S:.0f} s:\n{self.child.log_end()}")
            await asyncio.sleep(_POLL_S)


class Proxy(Served):
    """`meshproxy run` on a file, seen through its admin interface."""

    def __init__(self, processes: Processes, config: Path, name: str = "proxy") -> None:
        self.config = config
        addresses = config.with_suffix(".admin")
        child = processes.start(
            name, "meshproxy", "run", "-c", str(config), "--admin-address-path", str(addresses),
            "--shutdown-delay-s", "0", "--drain-time-s", "1",
        )  # fmt: skip
        super().__init__(child, name, addresses, ("/ready", "LIVE"))
        self.port = 0

    async def wait_until_it_serves(self, listener: str) -> None:
        """Learn where it serves `listener`. Raises DemoError when it ends instead."""
        await self.wait_until_ready()
        listeners = dict(line.split("::", 1) for line in (await self.ask("/listeners")).splitlines())
        if listener not in listeners:
            raise DemoError(f"{self.name} has no listener named {listener}:\n{self.child.log_end()}")
        self.port = int(listeners[listener].rpartition(":")[2])

    async def stats(self, name_filter: str) -> dict[str, int]:
        """Its counters and gauges whose names match."""
        answer = json.loads(await self.ask(f"/stats?format=json&filter={urllib.parse.quote(name_filter)}"))
        return {entry["name"]: entry["value"] for entry in answer["stats"] if "value" in entry}
