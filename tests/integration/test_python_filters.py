"""A filter's file that changes under load: its new version at once, nothing lost, and no connection closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.config import Json, bootstrap, cluster, forward, listener
from tests.integration.load import EchoUpstream, Load, echoed
from tests.integration.proxy import Proxy

_SOURCE = """
from meshproxy import HttpFilter

class Marks(HttpFilter):
    {hook}

    def on_response_headers(self, stream, headers, end):
        headers[b"x-version"] = b"{version}"
"""
_SYNC = "def on_request_headers(self, stream, headers, end): headers[b'x-seen'] = b'1'"
_WAITS = "async def on_request_headers(self, stream, headers, end):\n        await __import__('asyncio').sleep(0.001)"


def python_filter(path: Path) -> Json:
    kind = "type.googleapis.com/meshproxy.filters.http.python.v1.Python"
    return {"name": "marks", "typed_config": {"@type": kind, "file": str(path)}}


@pytest.fixture
async def upstream() -> AsyncIterator[EchoUpstream]:
    async with EchoUpstream("up") as server:
        yield server


@pytest.mark.parametrize(("workers", "hook"), [("1", _SYNC), ("1", _WAITS), ("2", _SYNC)])
async def test_a_changed_file_is_in_force_under_load(
    upstream: EchoUpstream, tmp_path: Path, workers: str, hook: str
) -> None:
    source = tmp_path / "marks.py"
    _write(source, _SOURCE.format(hook=hook, version=0))
    config = bootstrap(
        [listener("main", [forward("/", "up")], filters=[python_filter(source)])], [cluster("up", upstream.port)]
    )
    async with Proxy(config, "--concurrency", workers) as proxy, Load(proxy.ports["main"], echoed("up")) as load:
        in_force = 0.0
        for version in range(1, 4):
            _write(source, _SOURCE.format(hook=hook, version=version))
            await proxy.until_stat("server.config_reload_success", version.__eq__)
            in_force = asyncio.get_running_loop().time()
            await load.more(100)
            assert _versions(load, in_force) == {b"%d" % version}
        _write(source, "def broken(:")
        await proxy.until_stat("server.config_reload_failure", lambda value: value == 1)
        await load.more(100)
        await load.stop()
        assert _versions(load, in_force) == {b"3"}
        assert load.failures == []
        assert load.closed_unasked == 0
        assert not any(answer.closes for answer in load.answers)
        assert "marks.py:1: SyntaxError: " in proxy.output()


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _versions(load: Load, since: float) -> set[bytes]:
    return {answer.headers[b"x-version"] for answer in load.answers if answer.began >= since}
