"""Access loggers that are classes in Python: the contract, as their authors see it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from meshproxy import AccessLogger, FilterContext, StreamInfo
from meshproxy.config.python_class import loaded_modules
from meshproxy.errors import ConfigError
from meshproxy.server.listener import ActiveListener
from meshproxy.testing import AccessLoggerTest, NetworkFilterTest
from meshproxy.testing.filter_test import listener_of


@dataclass(frozen=True)
class Config:
    threshold: int = 400


class Remembers(AccessLogger):
    config: Config
    records: list[tuple[Any, ...]] = []

    @classmethod
    def on_start(cls, context: FilterContext) -> None:
        context.state = []
        context.spawn(cls._ship(context))

    @classmethod
    async def _ship(cls, context: FilterContext) -> None:
        while True:
            Remembers.records += context.state
            context.state.clear()
            await asyncio.sleep(0)

    def __init__(self) -> None:
        self.seen = 0

    def on_log(self, info: StreamInfo) -> None:
        self.seen += 1
        headers = info.request_headers
        assert headers is not None
        bad = info.response_code >= self.config.threshold
        self.context.state.append((self.seen, headers[b":path"], info.response_code, bad, info.connection.remote.ip))


async def _until(holds: Any) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0)


async def test_one_instance_is_told_of_every_stream() -> None:
    Remembers.records = []
    async with AccessLoggerTest(Remembers, {"threshold": 500}) as t:
        t.upstream.respond(404)
        await t.request("GET", "/a")
        t.upstream.respond(503)
        await t.request("GET", "/b")
        await t.reload()
        await t.request("GET", "/c")
        await _until(lambda: len(Remembers.records) == 3)
    assert Remembers.records == [
        (1, b"/a", 404, False, "127.0.0.1"),
        (2, b"/b", 503, True, "127.0.0.1"),
        (3, b"/c", 503, True, "127.0.0.1"),
    ]


async def test_the_filter_of_the_entry_holds() -> None:
    Remembers.records = []
    status = {"op": "GE", "value": {"default_value": 500, "runtime_key": "k"}}
    async with AccessLoggerTest(Remembers, log_filter={"status_code_filter": {"comparison": status}}) as t:
        await t.request("GET", "/a")
        t.upstream.respond(503)
        await t.request("GET", "/b")
        await _until(lambda: Remembers.records)
    assert [record[1] for record in Remembers.records] == [b"/b"]


class Fails(AccessLogger):
    def on_log(self, info: StreamInfo) -> None:
        raise ValueError("no")


class FailsAtOnce(AccessLogger):
    def __init__(self) -> None:
        raise ValueError("no")


@pytest.mark.parametrize("kind", [Fails, FailsAtOnce])
async def test_a_logger_that_raises_harms_no_stream(kind: type[AccessLogger]) -> None:
    async with AccessLoggerTest(kind) as t:
        assert [(await t.request("GET", "/")).status for _ in range(2)] == [200, 200]
        assert t.stats()["errors"] == 2


class Waits(AccessLogger):
    async def on_log(self, info: StreamInfo) -> None: ...  # type: ignore[override]


@pytest.mark.parametrize(
    ("kind", "config", "error"),
    [
        (Waits, {}, "Waits.on_log cannot be async: nothing waits for it"),
        (Config, {}, "entry_point: Config is not derived from AccessLogger"),
        (Remembers, {"threshold": "x"}, "config.threshold: must be a whole number, not 'x'"),
    ],
)
async def test_a_class_and_its_configuration_are_checked(kind: Any, config: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await AccessLoggerTest(kind, config).start()
    assert str(caught.value).endswith(error)


VERSION = """
from meshproxy import AccessLogger

class Version(AccessLogger):
    @classmethod
    def on_stop(cls, context):
        context.log.error("stopped %(version)d")

    def on_log(self, info):
        self.context.count("version_%(version)d")
"""


async def test_a_changed_file_takes_over_on_open_connections(tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "version.py"
    path.write_text(VERSION % {"version": 1})
    async with AccessLoggerTest(path) as t:
        await t.request("GET", "/")
        waiting = t.open("POST", "/", {"content-length": "1"})
        path.write_text(VERSION % {"version": 2})
        await t.reload()
        await waiting.send("x")
        await waiting.finish()
        assert (t.stats()["version_1"], t.stats()["version_2"]) == (1, 1)
        assert loaded_modules() == 1
        path.write_text("import nothing.of.that.name")
        with pytest.raises(ConfigError, match=r"version.py:1: ModuleNotFoundError"):
            await t.reload()
        await t.request("GET", "/")
        assert t.stats()["version_2"] == 2
    assert loaded_modules() == 0
    assert [record.getMessage() for record in caplog.records if "stopped" in record.getMessage()] == [
        "version: stopped 1",
        "version: stopped 2",
    ]


class OfConnections(NetworkFilterTest):
    """The logger of a tcp_proxy."""

    _stats_prefix = "access_log.python.{name}."

    def _listener(self, terminal: dict[str, Any]) -> dict[str, Any]:
        entry = {"name": self._name, "typed_config": self._python("access_loggers")}
        config = {**terminal["typed_config"], "access_log": [entry]}
        return listener_of({**terminal, "typed_config": config})

    def _record(self, listener: ActiveListener) -> None:
        """The test's own logger is the only one."""


async def test_connections_are_logged_by_the_version_that_is_in_force_at_their_end(tmp_path: Path) -> None:
    path = tmp_path / "version.py"
    path.write_text(VERSION % {"version": 1})
    async with OfConnections(path) as t:
        client, server = t.connect(), await t.accept()
        path.write_text(VERSION % {"version": 2})
        await t.reload()
        client.end()
        server.end()
        await client.until_closed()
        assert t.stats()["version_2"] == 1
