"""Resources from files, which change under the watcher."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from envoy.config.core.v3.config_source_pb2 import ConfigSource
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryResponse
from google.protobuf import json_format, text_format

from meshproxy.config.config_source import source_key
from meshproxy.config.subscription import CLUSTER_TYPE, ENDPOINT_TYPE
from meshproxy.xds import files
from meshproxy.xds.client import XdsClient
from tests.rpc.harness import services
from tests.support.control_plane import response
from tests.upstream.harness import until, world
from tests.xds.harness import NODE, RecordingSink, cluster

CLUSTERS = """
version_info: "1"
resources:
- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: a
- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: b
"""


def key_of(path: Path) -> bytes:
    return source_key(ConfigSource(path_config_source={"path": str(path)}))


def replace(path: Path, data: str | bytes) -> None:
    """By an atomic rename."""
    beside = path.with_name("beside")
    beside.write_bytes(data.encode() if isinstance(data, str) else data)
    beside.rename(path)


@asynccontextmanager
async def client(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[XdsClient, RecordingSink]]:
    """One that looks at files all the time."""
    monkeypatch.setattr(files, "_INTERVAL_MS", 1.0)
    async with world() as w:
        sink = RecordingSink()
        xds = XdsClient(services(w), NODE, None, w.registry, sink)
        yield xds, sink
        await xds.close()


async def test_a_file_is_taken_and_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cds.yaml"
    path.write_text(CLUSTERS)
    async with client(monkeypatch) as (xds, sink):
        xds.subscribe(key_of(path), CLUSTER_TYPE, "*")
        await sink.holds(CLUSTER_TYPE, "a", "b")
        assert sink.versions[CLUSTER_TYPE] == {"a": "1", "b": "1"}
        replace(path, CLUSTERS.replace('"1"', '"2"').replace("name: a", "name: d"))
        await sink.holds(CLUSTER_TYPE, "b", "d")
        assert sink.log[-1] == (CLUSTER_TYPE, ["d", "b"], ["a"], "2")
        path.write_text(CLUSTERS)  # in place
        await sink.holds(CLUSTER_TYPE, "a", "b")


async def test_a_broken_file_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cds.yaml"
    async with client(monkeypatch) as (xds, sink):
        xds.subscribe(key_of(path), CLUSTER_TYPE, "*")
        await until(lambda: sink.failures)
        replace(path, CLUSTERS)
        await sink.holds(CLUSTER_TYPE, "a", "b")
        replace(path, "resources: [")
        await until(lambda: len(sink.failures) == 2)
        path.unlink()
        replace(path, CLUSTERS.replace("name: a", "name: d"))
        await sink.holds(CLUSTER_TYPE, "b", "d")
        assert [each.connected for each in xds.status()] == [True]
    said = [each.message for each in caplog.records if each.levelno >= logging.WARNING]
    assert said[0] == f"cannot take {path}, what it said last stays in force: there is no such file"
    assert said[1].startswith(f"cannot take {path}, what it said last stays in force: line ")
    assert len(said) == 2


async def test_a_bad_resource_in_a_file_is_refused_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cds.yaml"
    path.write_text(CLUSTERS.replace("name: a", "alt_stat_name: a"))
    async with client(monkeypatch) as (xds, sink):
        xds.subscribe(key_of(path), CLUSTER_TYPE, "*")
        await sink.holds(CLUSTER_TYPE, "b")
        assert [str(each) for each in sink.own] == ["resources[0]: has no name"]


async def test_names_a_file_does_not_have_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "eds.yaml"
    path.write_text(f'resources: [{{"@type": "{ENDPOINT_TYPE}", "cluster_name": "a"}}]')
    async with client(monkeypatch) as (xds, sink):
        xds.subscribe(key_of(path), ENDPOINT_TYPE, "a")
        await sink.holds(ENDPOINT_TYPE, "a")
        xds.subscribe(key_of(path), ENDPOINT_TYPE, "other")
        await until(lambda: len(sink.log) == 2)
        assert sink.log[1][2] == ["other"]
        replace(path, "{}")
        await sink.holds(ENDPOINT_TYPE)


async def test_a_large_file_is_read_by_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cds.yaml"
    names = [f"c{number}" for number in range(50)]
    path.write_bytes(encoded(response(CLUSTER_TYPE, [cluster(name, "x" * 100) for name in names]), ".json"))
    monkeypatch.setattr(files, "read_response", None)  # in this one
    async with client(monkeypatch) as (xds, sink):
        xds.subscribe(key_of(path), CLUSTER_TYPE, "*")
        await sink.holds(CLUSTER_TYPE, *names)


@pytest.mark.parametrize("ending", [".pb", ".pb_text", ".json", ".yaml"])
def test_files_of_all_kinds(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"cds{ending}"
    message = response(CLUSTER_TYPE, [cluster("a"), cluster("b", "alt")])
    path.write_bytes(encoded(message, ending))
    assert files.read_response(str(path)) == (message, "")


def encoded(message: DiscoveryResponse, ending: str) -> bytes:
    if ending == ".pb":
        return bytes(message.SerializeToString())
    if ending == ".pb_text":
        return text_format.MessageToString(message).encode()
    return json_format.MessageToJson(message).encode()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.pb", b"\xff"),
        ("x.pb_text", b"nonsense {"),
        ("x.yaml", b"[]"),
        ("x.yaml", b"\xff"),
        ("x.yaml", b"resources: 1"),
    ],
)
def test_files_that_are_nothing(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    message, reason = files.read_response(str(path))
    assert message is None
    assert reason


async def test_the_swap_of_a_directory_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate("ab"):
        (tmp_path / f"data{number}").mkdir()
        (tmp_path / f"data{number}" / "cds.yaml").write_text(
            f'resources: [{{"@type": "{CLUSTER_TYPE}", name: {name}}}]'
        )
    link = tmp_path / "now"
    link.symlink_to(tmp_path / "data0")
    async with client(monkeypatch) as (xds, sink):
        xds.subscribe(key_of(link / "cds.yaml"), CLUSTER_TYPE, "*")
        await sink.holds(CLUSTER_TYPE, "a")
        beside = tmp_path / "beside"
        beside.symlink_to(tmp_path / "data1")
        beside.rename(link)
        await sink.holds(CLUSTER_TYPE, "b")
