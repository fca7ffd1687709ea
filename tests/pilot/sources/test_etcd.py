"""Documents in a real etcd: read, watched over its restarts and compactions, written in transactions."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from meshproxy.pilot.documents.document import Identity
from meshproxy.pilot.sources.etcd import EtcdSource, key_of
from meshproxy.pilot.sources.etcd_client import EtcdSettings, parse_endpoints
from meshproxy.pilot.sources.source import RuleSet, SourceError, Write
from tests.pilot.sources.etcd import Etcd, free_port
from tests.tls.certificates import ip, issue

_DEADLINE_S = 30.0
PREFIX = "/test/rules"


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with Etcd(tmp_path_factory.mktemp("etcd")) as running:
        yield running


@pytest.fixture
async def source(etcd: Etcd) -> AsyncIterator[EtcdSource]:
    async with opened(etcd.endpoint) as found:
        await empty(found)
        yield found


@asynccontextmanager
async def opened(*endpoints: str) -> AsyncIterator[EtcdSource]:
    found = EtcdSource(EtcdSettings(endpoints, PREFIX))
    try:
        yield found
    finally:
        await found.close()


async def empty(source: EtcdSource) -> None:
    there = texts(await source.read())
    writes = [Write(Identity("Sidecar", "default", key.rpartition("/")[2]), None, text) for key, text in there.items()]
    await source.write(writes)


def identity(name: str) -> Identity:
    return Identity("Sidecar", "default", name)


def key(name: str) -> str:
    return f"{PREFIX}/networking.istio.io/sidecars/default/{name}"


def texts(rules: RuleSet) -> dict[str, str]:
    return {raw.source: raw.text for raw in rules.documents}


async def told(watch: AsyncIterator[RuleSet]) -> dict[str, str]:
    """What the next set has, by the names of the documents."""
    rules = await asyncio.wait_for(anext(watch), _DEADLINE_S)
    return {source.rpartition("/")[2]: text for source, text in texts(rules).items()}


async def close(watch: AsyncIterator[RuleSet]) -> None:
    await watch.aclose()  # type: ignore[attr-defined]


def etcdctl(etcd: Etcd, *arguments: str) -> str:
    """etcd's own client."""
    command = ["etcdctl", f"--endpoints={etcd.endpoint}", *arguments]
    environment = {**os.environ, "ETCDCTL_API": "3"}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def test_keys_name_group_kind_namespace_and_name() -> None:
    assert key_of(PREFIX, identity("a")) == key("a")
    assert key_of(PREFIX, Identity("Service", "shop", "b")) == f"{PREFIX}/core/services/shop/b"


async def test_what_is_written_is_read_and_is_plain_to_others(etcd: Etcd, source: EtcdSource) -> None:
    await source.write([Write(identity("a"), "text a\n"), Write(identity("b"), "text b\n")])
    rules = await source.read()
    assert texts(rules) == {key("a"): "text a\n", key("b"): "text b\n"}
    assert etcdctl(etcd, "get", "--print-value-only", key("a")) == "text a\n\n"
    assert int(rules.revision) > 0


async def test_more_than_a_page_is_read_whole(source: EtcdSource) -> None:
    wanted = {key(f"n{number:04}"): f"text {number}" for number in range(1_105)}
    await source.write([Write(identity(name.rpartition("/")[2]), text) for name, text in wanted.items()])
    assert texts(await source.read()) == wanted


async def test_a_watch_tells_what_is_there_then_each_change(etcd: Etcd, source: EtcdSource) -> None:
    await source.write([Write(identity("a"), "1")])
    async with opened(etcd.endpoint) as other:
        watch = other.watch()
        assert await told(watch) == {"a": "1"}
        await source.write([Write(identity("b"), "2")])
        assert await told(watch) == {"a": "1", "b": "2"}
        await source.write([Write(identity("a"), "3", "1"), Write(identity("b"), None, "2")])
        assert await told(watch) == {"a": "3"}
        etcdctl(etcd, "put", key("c"), "4")
        assert await told(watch) == {"a": "3", "c": "4"}
        await close(watch)


async def test_keys_beside_the_prefix_are_not_ours(etcd: Etcd, source: EtcdSource) -> None:
    etcdctl(etcd, "put", f"{PREFIX}-other/x", "1")
    etcdctl(etcd, "put", "/test/x", "1")
    assert texts(await source.read()) == {}


async def test_what_someone_else_changed_is_not_overwritten(etcd: Etcd, source: EtcdSource) -> None:
    await source.write([Write(identity("a"), "1")])
    await source.read()
    etcdctl(etcd, "put", key("a"), "theirs")
    with pytest.raises(SourceError, match="was changed by someone else"):
        await source.write([Write(identity("a"), "mine", "1"), Write(identity("b"), "new")])
    assert texts(await source.read()) == {key("a"): "theirs"}
    with pytest.raises(SourceError, match="was changed by someone else"):
        await source.write([Write(identity("a"), "mine", "1")])


async def test_a_watch_outlives_a_restart(tmp_path: Path) -> None:
    with Etcd(tmp_path) as etcd:
        async with opened(etcd.endpoint) as watching, opened(etcd.endpoint) as writing:
            watch = watching.watch()
            assert await told(watch) == {}
            await writing.read()
            await writing.write([Write(identity("a"), "1")])
            assert await told(watch) == {"a": "1"}
            etcd.stop()
            next_set = asyncio.ensure_future(told(watch))
            etcd.start()
            etcdctl(etcd, "put", key("b"), "2")
            assert await next_set == {"a": "1", "b": "2"}
            await close(watch)


async def test_what_was_compacted_away_meanwhile_is_read_anew(tmp_path: Path) -> None:
    with Etcd(tmp_path) as etcd:
        async with opened(etcd.endpoint) as watching, opened(etcd.endpoint) as writing:
            watch = watching.watch()
            await writing.write([Write(identity("a"), "1")])
            assert await told(watch) == {"a": "1"}
            # While the watch rests at its consumer, its connection goes, and history with it.
            etcd.stop()
            etcd.start()
            for text in ("2", "3", "4"):
                etcdctl(etcd, "put", key("a"), text)
            etcdctl(etcd, "del", key("a"))
            etcdctl(etcd, "put", key("b"), "5")
            revision = int((await writing.read()).revision)
            etcdctl(etcd, "compact", str(revision))
            assert await told(watch) == {"b": "5"}
            await close(watch)


async def test_another_endpoint_is_asked_when_one_is_gone(etcd: Etcd, source: EtcdSource) -> None:
    await source.write([Write(identity("a"), "1")])
    async with opened(f"127.0.0.1:{free_port()}", etcd.endpoint) as other:
        assert texts(await other.read()) == {key("a"): "1"}
        watch = other.watch()
        assert await told(watch) == {"a": "1"}
        await close(watch)


async def test_no_endpoint_at_all_is_an_error() -> None:
    async with opened(f"127.0.0.1:{free_port()}") as gone:
        with pytest.raises(SourceError, match="UNAVAILABLE"):
            await gone.read()


async def test_a_watch_begins_when_etcd_comes(tmp_path: Path) -> None:
    etcd = Etcd(tmp_path)
    async with opened(etcd.endpoint) as watching:
        watch = watching.watch()
        first = asyncio.ensure_future(told(watch))
        try:
            etcd.start()
            assert await first == {}
        finally:
            await close(watch)
            etcd.stop()


async def test_tls_with_certificates_of_both(tmp_path: Path) -> None:
    authority = issue("authority", ca=True)
    server, client = issue("etcd", authority, names=ip("127.0.0.1")), issue("pilot", authority)
    files = {
        "ca": authority.pem,
        "crt": server.pem,
        "key": server.key_pem,
        "c.crt": client.pem,
        "c.key": client.key_pem,
    }
    paths = {name: tmp_path / name for name in files}
    for name, data in files.items():
        paths[name].write_bytes(data)
    with Etcd(tmp_path, (paths["crt"], paths["key"], paths["ca"])) as etcd:
        settings = EtcdSettings(
            (etcd.endpoint,), PREFIX, True, str(paths["ca"]), str(paths["c.crt"]), str(paths["c.key"])
        )
        secure = EtcdSource(settings)
        await secure.write([Write(identity("a"), "1")])
        assert texts(await secure.read()) == {key("a"): "1"}
        await secure.close()
        stranger = EtcdSource(EtcdSettings((etcd.endpoint,), PREFIX, True, str(paths["ca"])))
        with pytest.raises(SourceError, match="UNAVAILABLE"):
            await stranger.read()
        await stranger.close()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a:1", (("a:1",), False)),
        ("http://a:1, b:2", (("a:1", "b:2"), False)),
        ("https://a:1/,https://[::1]:2", (("a:1", "[::1]:2"), True)),
    ],
)
def test_endpoints(text: str, found: tuple[tuple[str, ...], bool]) -> None:
    assert parse_endpoints(text) == found


@pytest.mark.parametrize(
    ("text", "reason"),
    [("a", "needs a port"), ("ftp://a:1", "is host:port"), ("a:1,https://b:2", "either all"), ("", "needs a port")],
)
def test_endpoints_that_are_none(text: str, reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        parse_endpoints(text)
