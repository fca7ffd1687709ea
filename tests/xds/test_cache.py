"""The cache file: what comes back after a restart, and what must never stand in it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret

from meshproxy.clock import monotonic, move_ahead
from meshproxy.config.config_source import ADS
from meshproxy.config.subscription import CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, SECRET_TYPE
from meshproxy.xds.cache import ResourceCache
from meshproxy.xds.resources import ResourceUpdate
from meshproxy.xds.sensitive import Search, secret_in
from tests.upstream.harness import World, any_of, turns, until, world
from tests.xds.harness import assignment, cluster, listener, parse

MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
TLS = "envoy.extensions.transport_sockets.tls.v3"
STRUCT = "type.googleapis.com/udpa.type.v1.TypedStruct"


def update(name: str, message: Any, version: str = "1", ttl_ms: int = 0) -> ResourceUpdate:
    return ResourceUpdate(name, version, message.SerializeToString(), message, (), ttl_ms)


def cache_of(w: World, path: Path, node: str = "n") -> ResourceCache:
    return ResourceCache(w.dispatcher, path, node)


def loaded(w: World, path: Path, node: str = "n") -> list[tuple[bytes, str, list[tuple[str, str, Any]]]]:
    groups = cache_of(w, path, node).load()
    return [
        (source, kind, [(each.name, each.version, each.message) for each in group]) for source, kind, group in groups
    ]


async def write(w: World, path: Path, *updates: tuple[bytes, str, ResourceUpdate]) -> None:
    cache = cache_of(w, path)
    for source, type_url, each in updates:
        cache.update(source, type_url, [each], [])
    await cache.close()


async def test_what_was_taken_comes_back_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    async with world() as w:
        cache = cache_of(w, path)
        cache.update(ADS, LISTENER_TYPE, [update("l", listener("l"))], [])
        cache.update(b"other", ENDPOINT_TYPE, [update("e", assignment("e"), "7")], [])
        cache.update(ADS, CLUSTER_TYPE, [update("a", cluster("a")), update("b", cluster("b"))], [])
        cache.update(ADS, CLUSTER_TYPE, [update("b", cluster("b", "new"), "2")], ["a"])
        await cache.close()
        assert loaded(w, path) == [
            (ADS, CLUSTER_TYPE, [("b", "2", cluster("b", "new"))]),
            (b"other", ENDPOINT_TYPE, [("e", "7", assignment("e"))]),
            (ADS, LISTENER_TYPE, [("l", "1", listener("l"))]),
        ]
        again = cache_of(w, path)
        again.load()
        again.update(ADS, CLUSTER_TYPE, [update("d", cluster("d"))], ["b"])
        await again.close()
        assert [(kind, [name for name, _, _ in group]) for _, kind, group in loaded(w, path)] == [
            (CLUSTER_TYPE, ["d"]),
            (ENDPOINT_TYPE, ["e"]),
            (LISTENER_TYPE, ["l"]),
        ]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["cache"]


async def test_many_resources(tmp_path: Path) -> None:
    async with world() as w:
        made = [update(f"c{number}", cluster(f"c{number}")) for number in range(1000)]
        cache = cache_of(w, tmp_path / "cache")
        cache.update(ADS, CLUSTER_TYPE, made, [])
        await cache.close()
        ((_, _, group),) = loaded(w, tmp_path / "cache")
        assert [name for name, _, _ in group] == [each.name for each in made]


async def test_large_resources_do_not_share_a_record(tmp_path: Path) -> None:
    """So that none of them takes long to write."""
    path = tmp_path / "cache"
    async with world() as w:
        cache = cache_of(w, path)
        made = [update(f"c{number}", cluster(f"c{number}", "n" * 300_000)) for number in range(5)]
        cache.update(ADS, CLUSTER_TYPE, made, [])
        await cache.close()
        ((_, _, group),) = loaded(w, path)
        assert [(each.name, each.message) for each in made] == [(name, message) for name, _, message in group]
    assert path.read_bytes().count(CLUSTER_TYPE.encode()) == 2 * len(made)  # of each record, and of its resource


async def test_it_is_written_once_a_second_at_most(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    async with world() as w:
        cache = cache_of(w, path)
        for number in range(10):
            cache.update(ADS, CLUSTER_TYPE, [update("a", cluster("a"), str(number))], [])
        await turns()
        assert not path.exists()
        move_ahead(1.1)
        w.dispatcher.timers.advance(int(monotonic() * 1000))
        await until(path.exists)
        assert loaded(w, path)[0][2][0][1] == "9"
        await cache.close()


async def test_resources_that_expire_are_not_kept(tmp_path: Path) -> None:
    async with world() as w:
        await write(w, tmp_path / "cache", (ADS, CLUSTER_TYPE, update("a", cluster("a"), ttl_ms=1000)))
        assert loaded(w, tmp_path / "cache") == []


# -- secrets


def tls(**certificate: Any) -> dict[str, Any]:
    """A transport socket with a certificate of its own."""
    context = {"common_tls_context": {"tls_certificates": [certificate]}}
    return {"name": "tls", "typed_config": any_of(f"{TLS}.UpstreamTlsContext", **context)}


INLINE = tls(private_key={"inline_string": "hush"})
WITH_SECRETS: list[tuple[Any, dict[str, Any], str]] = [
    (
        Cluster,
        {"name": "x", "transport_socket": INLINE},
        "transport_socket.typed_config.common_tls_context.tls_certificates[0].private_key",
    ),
    (
        Cluster,
        {"name": "x", "transport_socket": tls(private_key={"filename": "/k"}, password={"inline_bytes": "aHVzaA=="})},
        "transport_socket.typed_config.common_tls_context.tls_certificates[0].password",
    ),
    (
        Cluster,
        {"name": "x", "transport_socket_matches": [{"name": "m", "transport_socket": INLINE}]},
        "transport_socket_matches[0].transport_socket.typed_config.common_tls_context.tls_certificates[0].private_key",
    ),
    (
        Cluster,
        {"name": "x", "metadata": {"filter_metadata": {"k": {"key": "-----BEGIN PRIVATE KEY-----hush"}}}},
        "a private key",
    ),
    (
        Listener,
        {
            "name": "x",
            "filter_chains": [
                {
                    "filters": [
                        {
                            "name": "b",
                            "typed_config": {
                                "@type": STRUCT,
                                "type_url": "type.googleapis.com/envoy.extensions.filters.http.basic_auth.v3.BasicAuth",
                                "value": {"users": {"inline_string": "hush"}},
                            },
                        }
                    ]
                }
            ],
        },
        "filter_chains[0].filters[0].typed_config.users",
    ),
]


@pytest.mark.parametrize(("kind", "fields", "where"), WITH_SECRETS, ids=[case[2][-40:] for case in WITH_SECRETS])
async def test_a_resource_with_a_secret_in_it_is_withheld_and_told(
    kind: Any, fields: dict[str, Any], where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cache"
    message = parse(kind, fields)
    type_url = CLUSTER_TYPE if kind is Cluster else LISTENER_TYPE
    async with world() as w:
        await write(w, path, (ADS, type_url, update("x", message)), (ADS, CLUSTER_TYPE, update("a", cluster("a"))))
        assert [name for _, _, group in loaded(w, path) for name, _, _ in group] == ["a"]
    assert b"hush" not in path.read_bytes()
    (told,) = caplog.records
    assert told.message.endswith(f"'x' is not cached, it has a secret in it: {where}")


def test_a_key_in_a_file_is_no_secret() -> None:
    sources = {"certificate_chain": {"inline_string": "cert"}, "private_key": {"filename": "/key"}}
    message = parse(Cluster, {"name": "x", "transport_socket": tls(**sources)})
    assert found_in(message) is None


def test_what_cannot_be_read_may_be_a_secret() -> None:
    message = parse(Cluster, {"name": "x", "transport_socket": INLINE})
    message.transport_socket.typed_config.type_url = "type.googleapis.com/no.Such"
    assert found_in(message) == "transport_socket.typed_config"


def test_bytes_that_are_no_message_may_be_a_secret() -> None:
    message = parse(Cluster, {"name": "x", "transport_socket": INLINE})
    message.transport_socket.typed_config.value = b"\xff"
    assert found_in(message) == "transport_socket.typed_config"


def test_a_large_resource_is_searched_in_steps() -> None:
    """Routes of a listener: thousands of messages within an Any, and a secret behind them all."""
    header = {"header": {"key": "k", "value": "v" * 100}}
    route = {"match": {"prefix": "/"}, "route": {"cluster": "c"}, "request_headers_to_add": [header] * 4}
    hosts = [{"name": "h", "domains": ["*"], "routes": [route] * 1000}]
    manager = any_of(MANAGER, stat_prefix="s", route_config={"virtual_hosts": hosts})
    chain = {"filters": [{"name": "m", "typed_config": manager}], "transport_socket": INLINE}
    data = parse(Listener, {"name": "x", "filter_chains": [chain]}).SerializeToString()
    assert len(data) > 435_000
    found, steps = run(secret_in(Listener, data))
    assert found == "filter_chains[0].transport_socket.typed_config.common_tls_context.tls_certificates[0].private_key"
    assert steps > 1000 * 11  # messages of each route


def found_in(message: Any) -> str | None:
    return run(secret_in(type(message), message.SerializeToString()))[0]


def run(search: Search) -> tuple[str | None, int]:
    """What it finds, and in how many steps."""
    steps = 0
    while True:
        try:
            next(search)
        except StopIteration as end:
            return end.value, steps
        steps += 1


async def test_secrets_are_not_cached(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    secret = Secret(name="s")
    secret.tls_certificate.private_key.filename = "/k"
    async with world() as w:
        await write(w, path, (ADS, SECRET_TYPE, update("s", secret)), (ADS, CLUSTER_TYPE, update("a", cluster("a"))))
        assert [kind for _, kind, _ in loaded(w, path)] == [CLUSTER_TYPE]


# -- files that are not as they should be


async def test_no_file_is_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with world() as w:
        assert loaded(w, tmp_path / "none") == []
    assert not caplog.records


async def test_a_file_that_is_foreign_or_damaged_is_told_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cache"
    async with world() as w:
        await write(w, path, (ADS, CLUSTER_TYPE, update("a", cluster("a"))))
        whole = path.read_bytes()
        assert loaded(w, path, "another node") == []
        for size in (0, 1, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            assert loaded(w, path) == [], size
        for place in range(0, len(whole), 7):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert loaded(w, path) == [], place
        path.write_bytes(b"something else")
        assert loaded(w, path) == []
        path.unlink()
        path.mkdir()
        assert loaded(w, path) == []
    reasons = {each.message.rpartition(": ")[2] for each in caplog.records}
    assert reasons == {
        "it is of another node",
        "it is none of ours, or of another version",
        "it is damaged",
        "Is a directory",
    }


async def test_a_place_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with world() as w:
        cache = cache_of(w, tmp_path / "none" / "cache")
        for _ in range(2):
            cache.update(ADS, CLUSTER_TYPE, [update("a", cluster("a"))], [])
            await cache.close()
    assert [each.message.rpartition(": ")[2] for each in caplog.records] == ["No such file or directory"]
