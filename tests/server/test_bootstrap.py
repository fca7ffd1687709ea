"""Reading the bootstrap: here, or in another process while the event loop turns."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import meshproxy.filters.builtin  # noqa: F401  their messages are registered
from meshproxy.config.errors import ConfigErrors
from meshproxy.server.bootstrap import read_bootstrap, read_bootstrap_apart
from meshproxy.server.options import Options
from tests.integration.config import bootstrap, cluster, direct, forward, listener

LARGE = [cluster(f"c{number}", 1) for number in range(100)]  # more than is read in this process


async def _apart(options: Options) -> tuple[Any, list[str], list[str]]:
    errors = ConfigErrors()
    read = await read_bootstrap_apart(options, errors)
    return read, [str(error) for error in errors.items], [str(warning) for warning in errors.warnings]


async def test_another_process_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "envoy.yaml"
    path.write_text(bootstrap([listener("main", [direct("/", "x")])], LARGE, deferred_stat_options={}))
    options = Options(config_path=str(path), config_yaml="node: {cluster: here}", service_node="me")
    errors = ConfigErrors()
    here = read_bootstrap(options, errors)
    apart, found, warnings = await _apart(options)
    assert apart == here
    assert (apart.node.id, apart.node.cluster) == ("me", "here")
    assert found == []
    assert warnings == [str(warning) for warning in errors.warnings]
    assert warnings


async def test_errors_come_with_what_could_be_read() -> None:
    """Of every kind, those of a listener that cannot be built too."""
    text = json.loads(bootstrap([listener("main", [forward("/", "nowhere"), direct("/a", "x", 99)])], LARGE))
    text["static_resources"]["clusters"][7]["typo"] = 1
    apart, found, _ = await _apart(Options(config_yaml=json.dumps(text)))
    assert len(apart.static_resources.clusters) == 100
    assert [error.split(": ")[0].rpartition(".")[2] for error in sorted(found)] == ["typo", "cluster", "status"]


async def test_a_file_that_is_gone(tmp_path: Path) -> None:
    assert await _apart(Options(config_path=str(tmp_path / "none"), config_yaml=" " * 10_000)) == (
        None,
        [f"cannot read {tmp_path / 'none'}: No such file or directory"],
        [],
    )


async def test_a_process_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(config_yaml=bootstrap([], LARGE))
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert await _apart(options) == (
        None,
        ["no process can be started to read the configuration: No such file or directory"],
        [],
    )
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert await _apart(options) == (
        None,
        ["the process that was to read the configuration ended with 1"],
        [],
    )


async def test_the_loop_turns_meanwhile() -> None:
    reading = asyncio.create_task(_apart(Options(config_yaml=bootstrap([], LARGE))))
    turns = 0
    while not reading.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 10
