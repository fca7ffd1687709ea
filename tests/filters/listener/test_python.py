"""Listener filters that are classes in Python: the contract, as their authors see it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from meshproxy import CLOSE, CONTINUE, NEEDS_DATA, AcceptedSocket, FilterContext, ListenerFilter
from meshproxy.config.python_class import loaded_modules
from meshproxy.errors import ConfigError
from meshproxy.testing import ListenerFilterTest


async def _until(holds: Any) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0)


@dataclass(frozen=True)
class Config:
    magic: str = "MAGIC"


class Preamble(ListenerFilter):
    """Takes a preamble off the connection, which says who it is."""

    config: Config
    max_read_bytes = 64

    def on_data(self, accepted: AcceptedSocket, data: bytes) -> int:
        line, found, _ = data.partition(b"\n")
        if not found:
            return NEEDS_DATA
        magic, _, user = line.decode().partition(" ")
        if magic != self.config.magic:
            return CLOSE
        accepted.consume(len(line) + 1)
        accepted.set_metadata("app", "user", user)
        return CONTINUE


async def test_data_is_read_and_consumed() -> None:
    async with ListenerFilterTest(Preamble, {"magic": "HELO"}) as t:
        client = t.connect()
        client.send("HELO a")
        await _until(lambda: t.stats()["connections_active"] == 1)
        client.send("nn\nand more")
        server = await t.accept()
        assert await server.read(8) == b"and more"
        assert t.stats()["connections_active"] == 0
        client.end()
        server.end()
        await client.until_closed()
        await _until(lambda: t.info is not None)
        assert t.info is not None
        assert t.info.dynamic_metadata == {"app": {"user": "ann"}}


@pytest.mark.parametrize("sent", ["OTHER\n", "x" * 64])
async def test_a_connection_is_closed(sent: str) -> None:
    async with ListenerFilterTest(Preamble) as t:
        client = t.connect()
        client.send(sent)
        assert await client.read_all() == b""
        client.close()
        await _until(lambda: t.stats()["connections_active"] == 0)
        assert t.stats()["errors"] == 0


async def test_a_connection_that_leaves_meanwhile() -> None:
    async with ListenerFilterTest(Preamble) as t:
        client = t.connect()
        client.send("MAG")
        await _until(lambda: t.stats()["connections_active"] == 1)
        client.end()
        assert await client.read_all() == b""
        await _until(lambda: t.stats()["connections_active"] == 0)


class Blocks(ListenerFilter):
    """Needs no data."""

    blocked: list[str] = []

    @classmethod
    def on_start(cls, context: FilterContext) -> None:
        context.state = set(cls.blocked)

    def on_accept(self, accepted: AcceptedSocket) -> int | None:
        if accepted.remote.ip in self.context.state:
            self.context.count("blocked")
            return CLOSE
        return None


@pytest.mark.parametrize("blocked", [True, False])
async def test_an_answer_without_data(blocked: bool) -> None:
    Blocks.blocked = ["127.0.0.1"] if blocked else []
    async with ListenerFilterTest(Blocks) as t:
        client = t.connect()
        if blocked:
            assert await client.read_all() == b""
            assert t.stats()["blocked"] == 1
        else:
            client.send("x")
            assert await (await t.accept()).read(1) == b"x"


class Fails(ListenerFilter):
    config: Config
    max_read_bytes = 10

    def __init__(self) -> None:
        self._maybe("init")

    def _maybe(self, hook: str) -> None:
        if self.config.magic == hook:
            raise ValueError(hook)

    def on_accept(self, accepted: AcceptedSocket) -> int:
        self._maybe("accept")
        if self.config.magic == "limit":
            self.max_read_bytes = 0
        return NEEDS_DATA

    def on_data(self, accepted: AcceptedSocket, data: bytes) -> Any:
        accepted.consume(1)
        self._maybe("data")
        return "what?"


HOOKS = ["init", "accept", "data", "result", "limit"]


@pytest.mark.parametrize("hook", HOOKS)
async def test_a_hook_that_raises_closes_the_connection(hook: str) -> None:
    async with ListenerFilterTest(Fails, {"magic": hook}) as t:
        client = t.connect()
        client.send("abc")
        assert await client.read_all() == b""
        assert (t.stats()["errors"], t.stats()["connections_active"]) == (1, 0)


@pytest.mark.parametrize("hook", HOOKS)
async def test_a_connection_goes_on_with_fail_open(hook: str) -> None:
    async with ListenerFilterTest(Fails, {"magic": hook}, options={"fail_open": True}) as t:
        t.connect().send("abc")
        assert await (await t.accept()).read(3) == b"abc"  # with what it had consumed
        assert (t.stats()["failed_open"], t.stats()["connections_active"]) == (1, 0)


class Waits(ListenerFilter):
    async def on_accept(self, accepted: AcceptedSocket) -> int: ...  # type: ignore[override,empty-body]


@pytest.mark.parametrize(
    ("kind", "config", "error"),
    [
        (Waits, {}, "Waits.on_accept cannot be async: nothing waits for it"),
        (Config, {}, "entry_point: Config is not derived from ListenerFilter"),
        (Preamble, {"magic": []}, "config.magic: must be a string, not a list"),
    ],
)
async def test_a_class_and_its_configuration_are_checked(kind: Any, config: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await ListenerFilterTest(kind, config).start()
    assert str(caught.value).endswith(error)


VERSION = """
from meshproxy import CONTINUE, NEEDS_DATA, ListenerFilter

class Version(ListenerFilter):
    max_read_bytes = 10

    def on_data(self, accepted, data):
        if len(data) < 2:
            return NEEDS_DATA
        accepted.filter_state["version"] = %(version)d
        return CONTINUE
"""


async def test_a_connection_finishes_on_the_version_that_it_began_on(tmp_path: Path) -> None:
    path = tmp_path / "version.py"
    path.write_text(VERSION % {"version": 1})
    async with ListenerFilterTest(path) as t:
        old = t.connect()
        old.send("a")
        await _until(lambda: t.stats()["connections_active"] == 1)
        path.write_text(VERSION % {"version": 2})
        await t.reload()
        assert loaded_modules() == 1
        for client, version in ((t.connect(), 2), (old, 1)):
            client.send("bc")
            server = await t.accept()
            await server.read(2)
            client.end()
            server.end()
            await client.until_closed()
            await _until(lambda: t.info is not None)
            assert t.info is not None
            assert t.info.filter_state == {"version": version}
