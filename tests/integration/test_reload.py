"""A new configuration file under load: nothing fails, routes change at once, and nobody escapes a new rule."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.config import address, bootstrap, cluster, direct, forward, header_filter, listener
from tests.integration.load import EchoUpstream, Load, echoed
from tests.integration.proxy import Proxy, eventually
from tests.integration.raw_upstream import RawUpstream
from tests.support.downstream import RawDownstream, exchange
from tests.support.wire import Message

_GET = b"GET /x HTTP/1.1\r\nhost: test\r\n\r\n"


@pytest.fixture
async def v1() -> AsyncIterator[EchoUpstream]:
    async with EchoUpstream("v1") as upstream:
        yield upstream


@pytest.fixture
async def v2() -> AsyncIterator[EchoUpstream]:
    async with EchoUpstream("v2") as upstream:
        yield upstream


@pytest.mark.parametrize(("how", "workers"), [("rename", "1"), ("in place", "1"), ("SIGHUP", "1"), ("SIGHUP", "2")])
async def test_routes_change_on_open_connections(v1: EchoUpstream, v2: EchoUpstream, how: str, workers: str) -> None:
    clusters = [cluster("v1", v1.port), cluster("v2", v2.port)]

    def config(name: str) -> str:
        return bootstrap([listener("main", [forward("/", name)])], clusters)

    async with (
        Proxy(config("v1"), "--concurrency", workers) as proxy,
        Load(proxy.ports["main"], echoed("v1", "v2")) as load,
    ):
        connected = await proxy.stat("http.main.downstream_cx_total")
        kept = load.connections
        assert set(load.names()) == {b"v1"}
        proxy.write(config("v2"), in_place=how == "in place")
        if how == "SIGHUP":
            proxy.signal(signal.SIGHUP)
        await proxy.until_stat("server.config_reload_success", lambda value: value == 1)
        in_force = asyncio.get_running_loop().time()
        await load.more(100)
        await load.stop()
        assert load.failures == []
        assert set(load.names(in_force)) == {b"v2"}
        assert load.closed_unasked == 0
        assert not any(answer.closes for answer in load.answers)
        assert kept >= 6
        assert connected > 0


async def test_a_file_that_changes_bit_by_bit_is_read_when_it_is_quiet(v1: EchoUpstream, v2: EchoUpstream) -> None:
    """An editor that writes in pieces: what is half written is refused or not looked at, and then the whole counts."""
    clusters = [cluster("v1", v1.port), cluster("v2", v2.port)]
    new = bootstrap([listener("main", [forward("/", "v2")])], clusters)
    async with Proxy(bootstrap([listener("main", [forward("/", "v1")])], clusters)) as proxy:
        async with Load(proxy.ports["main"], echoed("v1", "v2")) as load:
            with proxy.process.config_path.open("w") as file:
                for start in range(0, len(new), 200):
                    file.write(new[start : start + 200])
                    file.flush()
                    await load.more(5)
            await load.until(lambda answer: answer.body.startswith(b"v2"), "the new routes")
        assert load.failures == []


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_connections_of_a_changed_chain_drain_and_the_others_stay(v1: EchoUpstream, workers: str) -> None:
    def config(*filters: dict[str, object]) -> str:
        changed = listener("main", [forward("/", "v1")], filters=filters)
        other = listener("other", [forward("/", "v1")])
        return bootstrap([changed, other], [cluster("v1", v1.port)])

    flags = ("--concurrency", workers, "--drain-time-s", "2", "--drain-strategy", "immediate")
    async with Proxy(config(), *flags) as proxy:
        idle, untouched = RawDownstream(proxy.ports["main"]), RawDownstream(proxy.ports["other"])
        async with (
            Load(proxy.ports["main"], echoed("v1")) as load,
            Load(proxy.ports["other"], echoed("v1")) as other,
        ):
            assert (await _ask(idle)).status == 200
            assert (await _ask(untouched)).status == 200
            connections = other.connections
            await proxy.reload(config(header_filter("x-rule", "new")))
            in_force = asyncio.get_running_loop().time()
            await load.more(100)
            await other.more(50)
            # The idle connection is closed within the drain time.
            assert await asyncio.to_thread(idle.wait_end) == "closed"
        assert load.failures == [] == other.failures
        told = [answer for answer in load.since(in_force) if b"x-rule" not in answer.headers]
        assert all(answer.closes for answer in told)
        assert any(answer.closes for answer in load.answers)
        assert not any(answer.closes and b"x-rule" in answer.headers for answer in load.answers)  # the new chain stays
        assert any(b"x-rule" in answer.headers for answer in load.since(in_force))
        assert not any(answer.closes for answer in other.answers)
        assert other.closed_unasked == 0
        assert other.connections > connections  # the fresh ones
        assert (await _ask(untouched)).status == 200
        untouched.close()
        idle.close()
        await proxy.until_stat("listener_manager.total_filter_chains_draining", lambda value: value == 0)


async def test_an_answer_under_way_is_finished_when_its_chain_is_replaced() -> None:
    """Its client was not told that the connection ends: it may use it once more, and is told then."""
    with RawUpstream() as upstream:

        def config(*filters: dict[str, object]) -> str:
            return bootstrap([listener("main", [forward("/", "a")], filters=filters)], [cluster("a", upstream.port)])

        async with Proxy(config(), "--drain-strategy", "immediate") as proxy:
            with RawDownstream(proxy.ports["main"]) as downstream:
                downstream.send(_GET)
                reader, _ = await asyncio.to_thread(upstream.accept_request)
                reader.sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab")
                head = await asyncio.to_thread(downstream.reader.read_head)
                assert head.get(b"connection") is None
                await proxy.reload(config(header_filter("x-rule", "new")))
                reader.sock.sendall(b"cd")
                assert await asyncio.to_thread(downstream.reader.read_exactly, 4) == b"abcd"
                downstream.send(_GET)
                await asyncio.to_thread(reader.read_head)
                reader.sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                last = await asyncio.to_thread(downstream.receive)
                assert (last.status, last.get(b"connection")) == (200, b"close")
                assert await asyncio.to_thread(downstream.wait_end) == "closed"


async def test_another_access_log_of_the_listener_holds_for_open_connections(tmp_path: Path) -> None:
    def config(name: str) -> str:
        kind = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
        log = {"name": "file", "typed_config": {"@type": kind, "path": str(tmp_path / name)}}
        return bootstrap([listener("main", [direct("/", "x")], access_log=[log])])

    async with Proxy(config("old")) as proxy:
        with RawDownstream(proxy.ports["main"]) as downstream:
            assert (await _ask(downstream)).status == 200
            await proxy.reload(config("new"))
            assert (await _ask(downstream)).status == 200  # the chain is the same, and so is the connection
        await eventually((tmp_path / "new").read_text, "the connection's line")
        assert (tmp_path / "old").read_text() == ""


async def test_many_signals_are_few_reloads() -> None:
    config = bootstrap([listener("main", [direct("/", "old")])])
    async with Proxy(config) as proxy:
        proxy.write("{")
        for _ in range(200):
            proxy.signal(signal.SIGHUP)
        await proxy.reload(bootstrap([listener("main", [direct("/", "new")])]))
        assert (await asyncio.to_thread(exchange, proxy.ports["main"], _GET)).body == b"new"
        assert await proxy.stat("server.config_reload_failure") < 50
        assert "Traceback" not in proxy.output()


async def test_a_change_of_the_admin_is_told_to_wait() -> None:
    listeners = [listener("main", [direct("/", "x")])]
    async with Proxy(bootstrap(listeners)) as proxy:
        await proxy.reload(bootstrap(listeners, admin={"address": address(), "allow_paths": [{"exact": "/x"}]}))
        assert (await proxy.admin("/ready"))[0] == 200
        assert "admin: the admin interface stays as it is until the next start" in proxy.output()


async def test_endpoints_come_and_go(v1: EchoUpstream, v2: EchoUpstream) -> None:
    listeners = [listener("main", [forward("/", "app")])]

    def config(*ports: int, **fields: object) -> str:
        return bootstrap(listeners, [cluster("app", *ports, **fields)])

    async with (
        Proxy(config(v1.port)) as proxy,
        Load(proxy.ports["main"], echoed("v1", "v2")) as load,
    ):
        v1.delay_s = v2.delay_s = 0.05  # so that requests are under way when the cluster changes
        await proxy.reload(config(v1.port, v2.port))
        added = asyncio.get_running_loop().time()
        await load.more(40)
        assert set(load.names(added)) == {b"v1", b"v2"}
        await proxy.reload(config(v2.port))
        removed = asyncio.get_running_loop().time()
        await load.more(40)
        assert set(load.names(removed)) == {b"v2"}
        await eventually(lambda: v1.connections == 0, "the connections of the endpoint that went to be closed")
        changed = config(v2.port, connect_timeout="1s", lb_policy="LEAST_REQUEST", max_requests_per_connection=3)
        await proxy.reload(changed)
        await load.more(40)
        await load.stop()
        assert load.failures == []
        assert load.closed_unasked == 0


async def test_a_cluster_that_goes_finishes_its_requests(v1: EchoUpstream, v2: EchoUpstream) -> None:
    async with (
        Proxy(bootstrap([listener("main", [forward("/", "v1")])], [cluster("v1", v1.port)])) as proxy,
        Load(proxy.ports["main"], echoed("v1", "v2")) as load,
    ):
        v1.delay_s = 0.1
        await load.more(10)
        await proxy.reload(bootstrap([listener("main", [forward("/", "v2")])], [cluster("v2", v2.port)]))
        await load.more(30)
        await load.stop()
        assert load.failures == []
        assert (await proxy.stats("cluster_manager"))["cluster_manager.active_clusters"] == 1
        assert not await proxy.stats(r"cluster\.v1\.")


async def test_listeners_come_go_move_and_are_renamed(v1: EchoUpstream) -> None:
    clusters = [cluster("v1", v1.port)]
    routes = [forward("/", "v1")]

    def config(**places: dict[str, object] | None) -> str:
        return bootstrap([listener(name, routes, at=place) for name, place in places.items()], clusters)

    async with Proxy(config(main=None), "--drain-strategy", "immediate") as proxy:
        first = proxy.ports["main"]
        async with Load(first, echoed("v1")) as load:
            fixed = address(first)
            await proxy.reload(config(main=None, second=None))
            second = proxy.ports["second"]
            assert (await asyncio.to_thread(exchange, second, _GET)).status == 200
            held = RawDownstream(second)
            assert (await _ask(held)).status == 200
            await proxy.reload(config(main=None))
            await eventually(lambda: _refused(second), "the removed listener's port to close")
            assert (await _ask(held)).get(b"connection") == b"close"
            held.close()
            assert load.failures == []
            assert load.closed_unasked == 0
        # The same address, written out or under another name: the port never closes.
        async with Load(first, echoed("v1"), kept=0, fresh=4) as load:
            await proxy.reload(config(main=fixed))
            await proxy.reload(config(renamed=fixed))
            await load.more(50)
            assert proxy.ports == {"renamed": first}
        assert load.failures == []
        assert load.refused == 0
        # Another address: the old port closes.
        await proxy.reload(config(renamed=address(host="127.0.0.2")))
        await eventually(lambda: _refused(first), "the old port to close")
        with RawDownstream(proxy.ports["renamed"], "127.0.0.2") as moved:
            assert (await _ask(moved)).status == 200


async def _ask(downstream: RawDownstream) -> Message:
    """In a thread: the upstream answers in this one."""
    downstream.send(_GET)
    return await asyncio.to_thread(downstream.receive)


def _refused(port: int) -> bool:
    try:
        RawDownstream(port).close()
    except ConnectionRefusedError:
        return True
    return False


_BAD = {
    "syntax": ("{", "line 1"),
    "empty": ("", "empty"),
    "unknown field": (bootstrap([listener("main", [direct("/", "x")], no_such_field=1)]), "no_such_field"),
    "unknown cluster": (
        bootstrap([listener("main", [forward("/", "nowhere")])]),
        "filters[0].typed_config.route_config.virtual_hosts[0].routes[0].route.cluster: unknown cluster 'nowhere'",
    ),
    "cluster of an unchanged listener": ("no clusters", "unknown cluster 'v1'"),
    "port in use": ("port in use", "static_resources.listeners[0].address: cannot bind 127.0.0.1:"),
    "address used twice": ("twice", "static_resources.listeners[1].address"),
    "not an address": (
        bootstrap([listener("main", [direct("/", "x")], at=address(1, "no.such.host"))]),
        "static_resources.listeners[0].address.socket_address.address: malformed IP address",
    ),
}


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_bad_file_changes_nothing(v1: EchoUpstream, workers: str) -> None:
    good = bootstrap([listener("main", [forward("/", "v1")])], [cluster("v1", v1.port)])
    async with Proxy(good, "--concurrency", workers) as proxy, EchoUpstream("taken") as taken:
        made = {
            "no clusters": bootstrap([listener("main", [forward("/", "v1")])]),
            "port in use": bootstrap([listener("main", [direct("/", "x")], at=address(taken.port))]),
            "twice": _same_address("main", "again"),
        }
        async with Load(proxy.ports["main"], echoed("v1"), kept=3, fresh=1) as load:
            for number, (text, reason) in enumerate(_BAD.values()):
                proxy.write(made.get(text, text))
                proxy.signal(signal.SIGHUP)
                await _until_error(proxy, reason)
                await load.more(10)
                assert reason in proxy.output()
                assert await proxy.stat("server.config_reload_failure") > number
            proxy.write(good)
            proxy.signal(signal.SIGHUP)
            await _until_no_error(proxy)
            await load.more(30)
        assert load.failures == []
        assert load.closed_unasked == 0
        assert not any(answer.closes for answer in load.answers)
        changed = bootstrap([listener("main", [direct("/", "changed")])], [cluster("v1", v1.port)])
        await proxy.reload(changed)
        assert (await asyncio.to_thread(exchange, proxy.ports["main"], _GET)).body == b"changed"
        assert "Traceback" not in proxy.output()


def _same_address(*names: str) -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        place = address(int(probe.getsockname()[1]))
    return bootstrap([listener(name, [direct("/", "x")], at=place) for name in names])


async def _error_state(proxy: Proxy) -> str:
    """What /config_dump says of the configuration that was refused."""
    dump = json.loads((await proxy.admin("/config_dump"))[1])
    found = [config["details"] for config in dump["configs"] if config["@type"].endswith(".UpdateFailureState")]
    return str(found[0]) if found else ""


async def _until_error(proxy: Proxy, reason: str) -> None:
    async with asyncio.timeout(15):
        while reason not in await _error_state(proxy):
            await asyncio.sleep(0.01)


async def _until_no_error(proxy: Proxy) -> None:
    async with asyncio.timeout(15):
        while await _error_state(proxy):
            await asyncio.sleep(0.01)
