"""Network filters that are classes in Python: the contract, as their authors see it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from meshproxy import CONTINUE, STOP, CallError, DownstreamConnection, FilterContext, NetworkFilter
from meshproxy.config.python_class import loaded_modules
from meshproxy.errors import ConfigError
from meshproxy.testing import NetworkFilterTest


async def _until(holds: Any) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0)


@dataclass(frozen=True)
class Config:
    suffix: str = "!"


class Upper(NetworkFilter):
    """Changes both directions, and has a last word in each."""

    config: Config

    def on_data(self, connection: DownstreamConnection, data: bytes, end: bool) -> bytes:
        return b"bye" if end else data.upper()

    def on_write(self, connection: DownstreamConnection, data: bytes, end: bool) -> bytes:
        return b"" if end else data + self.config.suffix.encode()


async def test_bytes_are_replaced_both_ways_and_half_close_works() -> None:
    async with NetworkFilterTest(Upper, {"suffix": "?"}) as t:
        client, server = t.connect(), await t.accept()
        client.send("abc")
        assert await server.read(3) == b"ABC"
        client.end()
        assert await server.read_all() == b"bye"
        assert not server.closed
        server.send("def")
        assert await client.read(4) == b"def?"
        server.end()
        await client.until_closed()
        await _until(lambda: t.stats()["connections_active"] == 0)


async def test_the_upstream_ends_first() -> None:
    async with NetworkFilterTest(Upper) as t:
        client, server = t.connect(), await t.accept()
        server.send("last")
        server.end()
        assert await client.read_all() == b"last!"
        assert not client.closed
        client.send("more")
        assert await server.read(4) == b"MORE"
        client.end()
        await client.until_closed()


class Gate(NetworkFilter):
    """Holds what its context says, until the test lets it go."""

    instances: list[Gate] = []

    def on_connected(self, connection: DownstreamConnection) -> int:
        self.connection = connection
        self.holds: set[str] = {"read", "write"}
        self.seen: list[tuple[str, bytes, bool]] = []
        Gate.instances.append(self)
        return CONTINUE

    def on_data(self, connection: DownstreamConnection, data: bytes, end: bool) -> int:
        self.seen.append(("read", data, end))
        return STOP if "read" in self.holds else CONTINUE

    def on_write(self, connection: DownstreamConnection, data: bytes, end: bool) -> int:
        self.seen.append(("write", data, end))
        return STOP if "write" in self.holds else CONTINUE


async def test_stop_holds_a_direction_and_its_end() -> None:
    Gate.instances = []
    async with NetworkFilterTest(Gate) as t:
        client, server = t.connect(), await t.accept()
        (gate,) = Gate.instances
        client.send("one")
        await _until(lambda: gate.seen)
        client.send("two")
        client.end()
        server.send("answer")
        await _until(lambda: len(gate.seen) == 2)
        assert (server.received, server.ended, client.received) == (b"", False, b"")
        assert gate.seen == [("read", b"one", False), ("write", b"answer", False)]
        gate.connection.resume_read()
        assert await server.read(3) == b"one"
        await _until(lambda: len(gate.seen) == 3)  # the next piece is held as well
        assert not server.ended
        gate.holds.clear()
        gate.connection.resume_read()
        assert await server.read_all() == b"two"
        assert gate.seen[2:] == [("read", b"two", False), ("read", b"", True)]
        server.end()  # the connection ends with what is held, not before
        await asyncio.sleep(0)
        gate.connection.resume_write()
        assert await client.read_all() == b"answer"
        await client.until_closed()


class Tight(NetworkFilterTest):
    """Connections that buffer little."""

    def _listener(self, terminal: dict[str, Any]) -> dict[str, Any]:
        return {**super()._listener(terminal), "per_connection_buffer_limit_bytes": 1000}


async def test_what_is_held_is_bounded() -> None:
    """Both senders are told to wait: the client's socket is not read, the upstream's neither."""
    Gate.instances = []
    async with Tight(Gate) as t:
        client, server = t.connect(), await t.accept()
        (gate,) = Gate.instances
        for _ in range(20):
            client.send(b"c" * 500)
            server.send(b"s" * 500)
            await asyncio.sleep(0)
        await _until(lambda: client.backed_up and server.backed_up)
        gate.holds.clear()
        gate.connection.resume_read()
        gate.connection.resume_write()
        assert await server.read(10_000) == b"c" * 10_000
        assert await client.read(10_000) == b"s" * 10_000


class Greets(NetworkFilter):
    """Speaks for itself, to the downstream."""

    def on_connected(self, connection: DownstreamConnection) -> None:
        connection.write(b"hello " + connection.remote.ip.encode() + b"\n")

    def on_data(self, connection: DownstreamConnection, data: bytes, end: bool) -> Any:
        if data == b"quit":
            connection.write(b"bye")
            connection.close()
            return STOP
        connection.metadata("app")["bytes"] = len(data)
        connection.filter_state()["last"] = data
        return None


async def test_a_filter_speaks_and_closes() -> None:
    async with NetworkFilterTest(Greets) as t:
        client, server = t.connect(), await t.accept()
        assert await client.read(16) == b"hello 127.0.0.1\n"
        client.send("data")
        assert await server.read(4) == b"data"
        client.send("quit")
        assert await client.read_all() == b"bye"
        assert await server.read_all() == b""
        assert t.info is not None
        record = t.info
        assert record.dynamic_metadata == {"app": {"bytes": 4}}
        assert record.filter_state == {"last": b"data"}


class Asks(NetworkFilter):
    """Lets in whom a service knows."""

    async def on_connected(self, connection: DownstreamConnection) -> None:
        try:
            answer = await connection.call("users", path=b"/" + connection.remote.ip.encode(), timeout_ms=1000)
        except CallError:
            connection.close()
            return
        self.user = answer.body

    async def on_data(self, connection: DownstreamConnection, data: bytes, end: bool) -> Any:
        await asyncio.sleep(0)
        return None if end else self.user + b": " + data


async def test_coroutines() -> None:
    async with NetworkFilterTest(Asks, clusters=["users"]) as t:
        t.cluster["users"].respond(200, None, "ann")
        client, server = t.connect(), await t.accept()
        server.send("greeting")  # it is held until the filter knows the user
        client.send("one")
        assert await server.read(8) == b"ann: one"
        assert await client.read(8) == b"greeting"
        client.end()
        assert await server.read_all() == b""


async def test_a_service_that_is_not_there() -> None:
    async with NetworkFilterTest(Asks) as t:
        client = t.connect()
        client.send("one")
        assert await client.read_all() == b""
        assert (await t.accept()).received == b""


class Fails(NetworkFilter):
    """In the hook that its configuration names."""

    config: Config

    def _maybe(self, hook: str) -> None:
        if self.config.suffix == hook:
            raise ValueError(hook)

    def __init__(self) -> None:
        self._maybe("init")

    def on_connected(self, connection: DownstreamConnection) -> Any:
        self._maybe("connected")
        if self.config.suffix == "timer":
            connection.call_later(1.0, lambda: self._maybe("timer"))
            return STOP
        return self._wait() if self.config.suffix in ("task", "forever") else None

    async def _wait(self) -> None:
        if self.config.suffix == "forever":
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(0)
        self._maybe("task")

    def on_data(self, connection: DownstreamConnection, data: bytes, end: bool) -> Any:
        self._maybe("data")
        return "text" if self.config.suffix == "result" else data.upper()

    def on_write(self, connection: DownstreamConnection, data: bytes, end: bool) -> None:
        self._maybe("write")

    def on_close(self, connection: DownstreamConnection) -> None:
        self._maybe("close")


HOOKS = ["init", "connected", "timer", "task", "forever", "data", "result", "write"]


@pytest.mark.parametrize("hook", HOOKS)
async def test_a_hook_that_raises_ends_its_connection_only(hook: str) -> None:
    async with NetworkFilterTest(Fails, {"suffix": hook}, options={"hook_timeout": "0.02s"}) as t:
        client = t.connect()
        server = await t.accept()
        client.send("abc")
        server.send("def")
        await client.until_closed()
        await server.until_closed()
        stats = t.stats()
        assert (stats["errors"], stats["connections_active"]) == (1, 0)
        assert stats["hook_timeouts"] == (hook == "forever")
        assert server.received == (b"ABC" if hook == "write" else b"")
        assert client.received == b""


@pytest.mark.parametrize("hook", HOOKS)
async def test_a_connection_goes_on_with_fail_open(hook: str) -> None:
    options = {"fail_open": True, "hook_timeout": "0.02s"}
    async with NetworkFilterTest(Fails, {"suffix": hook}, options=options) as t:
        client, server = t.connect(), await t.accept()
        client.send("abc")
        assert (await server.read(3)).upper() == b"ABC"
        server.send("def")
        assert await client.read(3) == b"def"
        client.send("ghi")
        assert await server.read(3) == b"ghi"  # the filter is not asked any more
        client.end()
        assert await server.read_all() == b""
        assert t.stats()["failed_open"] == 1


async def test_an_end_that_raises_harms_nobody() -> None:
    async with NetworkFilterTest(Fails, {"suffix": "close"}) as t:
        client, server = t.connect(), await t.accept()
        client.end()
        server.end()
        await client.until_closed()
        await _until(lambda: t.stats()["connections_active"] == 0)
        assert t.stats()["errors"] == 1


async def test_the_log_says_which_filter_it_was() -> None:
    async with NetworkFilterTest(Fails, {"suffix": "data"}) as t:
        client = t.connect()
        client.send("abc")
        await client.until_closed()
        assert t.info is not None
        assert t.info.connection_termination_details == "filter_error{Fails|ValueError}"


class AsyncClose(NetworkFilter):
    async def on_close(self, connection: DownstreamConnection) -> None: ...  # type: ignore[override]


class Misspelt(NetworkFilter):
    def on_dat(self, connection: DownstreamConnection, data: bytes, end: bool) -> None: ...


@pytest.mark.parametrize(
    ("kind", "config", "error"),
    [
        (Misspelt, {}, "entry_point: Misspelt.on_dat is no hook of NetworkFilter (did you mean on_data?)"),
        (AsyncClose, {}, "AsyncClose.on_close cannot be async: nothing waits for it"),
        (Config, {}, "entry_point: Config is not derived from NetworkFilter"),
        (Upper, {"sufix": "?"}, "config.sufix: there is no such field (did you mean 'suffix'?)"),
    ],
)
async def test_a_class_and_its_configuration_are_checked(kind: Any, config: dict[str, str], error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await NetworkFilterTest(kind, config).start()
    assert str(caught.value).endswith(error)


class Shares(NetworkFilter):
    events: list[str] = []

    @classmethod
    def on_start(cls, context: FilterContext) -> None:
        context.state = {"connections": 0}

    @classmethod
    def on_stop(cls, context: FilterContext) -> None:
        cls.events.append(f"stopped after {context.state['connections']}")

    def on_connected(self, connection: DownstreamConnection) -> None:
        self.context.state["connections"] += 1
        self.context.count("greeted")


async def test_what_connections_share_survives_an_update_of_something_else() -> None:
    Shares.events = []
    async with NetworkFilterTest(Shares) as t:
        t.connect()
        await t.reload()
        t.connect()
        await _until(lambda: t.stats()["greeted"] == 2)
        assert Shares.events == []
    assert Shares.events == ["stopped after 2"]


# -- several filters

CHAIN = """
from meshproxy import NetworkFilter

class Marks(NetworkFilter):
    def on_data(self, connection, data, end):
        return None if end else data + b"%(mark)s"

    def on_write(self, connection, data, end):
        return None if end else data + b"%(mark)s"
"""


async def _pass_through(t: NetworkFilterTest, expected: bytes) -> None:
    """A connection of its own, from its beginning to its end."""
    client, server = t.connect(), await t.accept()
    client.send("x")
    assert await server.read(2) == expected
    client.end()
    server.end()
    await client.until_closed()


async def test_a_connection_finishes_on_the_version_that_it_began_on(tmp_path: Path) -> None:
    path = tmp_path / "marks.py"
    path.write_text(CHAIN % {"mark": "0"})
    classes: list[weakref.ref[type]] = []
    async with NetworkFilterTest(path) as t:
        old, old_server = t.connect(), await t.accept()
        for mark in range(1, 10):
            path.write_text(CHAIN % {"mark": mark})
            await t.reload()
            await _pass_through(t, b"x%d" % mark)
            classes += [weakref.ref(kind) for kind in NetworkFilter.__subclasses__() if kind.__name__ == "Marks"]
            await _until(lambda: t.stats()["connections_active"] == 1)
        assert loaded_modules() == 1
        old.send("x")
        assert await old_server.read(2) == b"x0"
        path.write_text("def broken(:")
        with pytest.raises(ConfigError, match=r"marks.py:1: SyntaxError"):
            await t.reload()
        old.end()
        old_server.end()
        await old.until_closed()
        await _until(lambda: t.stats()["connections_active"] == 0)
        del old, old_server  # in memory, each end knows the other
        gc.collect()
        assert len({id(ref()) for ref in classes if ref() is not None}) == 1
    gc.collect()
    assert not any(ref() for ref in classes)


class Two(NetworkFilterTest):
    """With another filter behind the first."""

    behind: Path

    def _listener(self, terminal: dict[str, Any]) -> dict[str, Any]:
        listener = super()._listener(terminal)
        python = {"@type": "type.googleapis.com/meshproxy.filters.network.python.v1.Python", "file": str(self.behind)}
        listener["filter_chains"][0]["filters"].insert(1, {"name": "behind", "typed_config": python})
        return listener


async def test_filters_stand_one_behind_the_other(tmp_path: Path) -> None:
    """Requests pass them in their order, what is written in reverse; a filter that waits holds those behind it."""
    other = tmp_path / "other.py"
    other.write_text(CHAIN % {"mark": "2"})
    Two.behind = other
    async with Two(Asks, clusters=["users"]) as t:
        t.cluster["users"].respond(200, None, "ann")
        client, server = t.connect(), await t.accept()
        client.send("x")
        assert await server.read(7) == b"ann: x2"
        server.send("y")
        assert await client.read(2) == b"y2"
        client.end()
        assert await server.read_all() == b""
