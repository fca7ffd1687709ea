"""HTTP/2 under change: configuration, drains and upstreams that go, under load with many streams on each connection;
and not one request lost."""

from __future__ import annotations

import asyncio
import random
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.config import (
    Json,
    bootstrap,
    cluster,
    forward,
    header_filter,
    http2_cluster,
    listener,
    protocol,
    runtime,
)
from tests.integration.http2_load import Http2EchoUpstream, Http2Load
from tests.integration.load import EchoUpstream, echoed
from tests.integration.proxy import Proxy, eventually
from tests.tls.certificates import dns, issue, world

TWO = pytest.param("2", marks=pytest.mark.long)
UNTIL_IT_IS_BACK: Json = {
    "retry_policy": {
        "retry_on": "reset,connect-failure,refused-stream",
        "num_retries": 60,
        "retry_back_off": {"base_interval": "0.02s", "max_interval": "0.05s"},
    }
}
AT_ONCE = ("--drain-strategy", "immediate")


@pytest.fixture
async def v1() -> AsyncIterator[Http2EchoUpstream]:
    async with Http2EchoUpstream("v1") as upstream:
        yield upstream


@pytest.fixture
async def v2() -> AsyncIterator[Http2EchoUpstream]:
    async with Http2EchoUpstream("v2") as upstream:
        yield upstream


def http2(name: str, *ports: int, common: Json | None = None, **fields: Any) -> Json:
    """A cluster of HTTP/2."""
    return cluster(name, *ports, **http2_cluster(common), **fields)


def main(*routes: Json, **fields: Any) -> list[Json]:
    """The listener of most tests."""
    return [listener("main", routes, **fields)]


# -- configuration


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_routes_change_on_open_connections(v1: Http2EchoUpstream, v2: Http2EchoUpstream, workers: str) -> None:
    clusters = [http2("v1", v1.port), http2("v2", v2.port)]

    def config(name: str) -> str:
        return bootstrap(main(forward("/", name)), clusters)

    async with (
        Proxy(config("v1"), "--concurrency", workers) as proxy,
        Http2Load(proxy.ports["main"], echoed("v1", "v2"), fresh=0) as load,
    ):
        assert set(load.names()) == {b"v1"}
        await proxy.reload(config("v2"))
        in_force = asyncio.get_running_loop().time()
        await load.more(200)
        await load.stop()
        assert load.failures == []
        assert set(load.names(in_force)) == {b"v2"}
        assert (load.connections, load.goaways, load.closed_unasked) == (4, 0, 0)


@pytest.mark.parametrize("workers", ["1", TWO])
async def test_connections_of_a_changed_chain_drain(v1: Http2EchoUpstream, workers: str) -> None:
    def config(*filters: Json) -> str:
        return bootstrap(main(forward("/", "v1"), filters=filters), [http2("v1", v1.port)])

    async with (
        Proxy(config(), "--concurrency", workers, "--drain-time-s", "5", *AT_ONCE) as proxy,
        Http2Load(proxy.ports["main"], echoed("v1"), fresh=1) as load,
    ):
        v1.delay_s = 0.05
        for number in range(3):
            goaways = load.goaways
            await proxy.reload(config(header_filter("x-rule", str(number))))
            await eventually(lambda goaways=goaways: load.goaways >= goaways + 4, "all to be told")  # type: ignore[misc]
            told = asyncio.get_running_loop().time()
            await load.more(50)
            assert {answer.headers.get(b"x-rule") for answer in load.since(told)} == {b"%d" % number}
        await load.stop()
        assert load.failures == []
        assert load.closed_unasked == 0
        await proxy.until_stat("listener_manager.total_filter_chains_draining", lambda value: value == 0)


@pytest.mark.parametrize("workers", ["1", TWO])
async def test_endpoints_come_and_go(v1: Http2EchoUpstream, v2: Http2EchoUpstream, workers: str) -> None:
    def config(*ports: int, **fields: Any) -> str:
        return bootstrap(main(forward("/", "app")), [http2("app", *ports, **fields)])

    async with (
        Proxy(config(v1.port), "--concurrency", workers) as proxy,
        Http2Load(proxy.ports["main"], echoed("v1", "v2")) as load,
    ):
        v1.delay_s = v2.delay_s = 0.05  # so that requests are under way when the cluster changes
        await proxy.reload(config(v1.port, v2.port))
        added = asyncio.get_running_loop().time()
        await load.more(60)
        assert set(load.names(added)) == {b"v1", b"v2"}
        await proxy.reload(config(v2.port))
        removed = asyncio.get_running_loop().time()
        await load.more(60)
        assert set(load.names(removed)) == {b"v2"}
        await eventually(lambda: not v1.connections, "the connections of the endpoint that went to be closed")
        for number in range(3):
            await proxy.reload(config(v2.port, connect_timeout=f"{number + 3}s"))
            await load.more(60)
        await load.stop()
        assert load.failures == []
        assert load.goaways == load.closed_unasked == load.unprocessed == 0


# -- the end


def secured(listeners: list[Json], folder: Path) -> list[Json]:
    """They speak TLS, and HTTP/2 where the client wants that."""
    issued = issue("server", world().ca, names=dns("a.test"))
    (folder / "chain.pem").write_bytes(issued.pem)
    (folder / "key.pem").write_bytes(issued.key_pem)
    files = {"certificate_chain": "chain.pem", "private_key": "key.pem"}
    pair = {name: {"filename": str(folder / file)} for name, file in files.items()}
    config = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {"tls_certificates": [pair], "alpn_protocols": ["h2", "http/1.1"]},
    }
    for each in listeners:
        each["filter_chains"][0]["transport_socket"] = {"name": "tls", "typed_config": config}
    return listeners


def client_context() -> ssl.SSLContext:
    """For clients of `secured`."""
    context = ssl.create_default_context(cadata=world().ca.pem.decode())
    context.set_alpn_protocols(["h2"])
    return context


@pytest.mark.parametrize(("workers", "pair"), [("1", "h2-h2"), ("2", "h2-h2"), ("1", "h2-h1"), ("1", "tls-h2")])
async def test_no_request_is_lost_at_the_end(v1: Http2EchoUpstream, workers: str, pair: str, tmp_path: Path) -> None:
    async with EchoUpstream("v1") as http1:
        app = cluster("v1", http1.port) if pair == "h2-h1" else http2("v1", v1.port)
        listeners = main(forward("/", "v1"))
        tls = client_context() if pair == "tls-h2" else None
        config = bootstrap(secured(listeners, tmp_path) if tls else listeners, [app])
        flags = ("--concurrency", workers, "--shutdown-delay-s", "0.5", "--drain-time-s", "10")
        async with Proxy(config, *flags) as proxy:
            async with Http2Load(proxy.ports["main"], echoed("v1"), fresh=3, until_refused=True, tls=tls) as load:
                v1.delay_s = http1.delay_s = 0.02
                assert load.goaways == 0
                proxy.signal(signal.SIGTERM)
                assert (await proxy.admin("/ready")) == (503, "DRAINING\n")
                await load.more(50)  # on connections that are new as well
                await load.ended()
            assert load.failures == []
            assert load.closed_unasked == 0
            assert load.refused == 7  # every client found the port closed at last
            assert await proxy.wait() == 0
            assert "Traceback" not in proxy.output()


async def test_drain_listeners_gracefully(v1: Http2EchoUpstream) -> None:
    config = bootstrap(main(forward("/", "v1")), [http2("v1", v1.port)])
    async with Proxy(config, "--drain-time-s", "1", *AT_ONCE) as proxy:
        async with Http2Load(proxy.ports["main"], echoed("v1"), until_refused=True) as load:
            assert (await proxy.admin("/drain_listeners?graceful", "POST")) == (200, "OK\n")
            await load.ended()
        assert load.failures == []
        assert load.goaways >= 4
        assert load.closed_unasked == 0
        assert (await proxy.admin("/ready"))[0] == 200


async def test_drain_listeners_gracefully_and_stay(v1: Http2EchoUpstream) -> None:
    config = bootstrap(main(forward("/", "v1")), [http2("v1", v1.port)])
    async with Proxy(config, "--drain-time-s", "0.1", *AT_ONCE) as proxy:
        async with Http2Load(proxy.ports["main"], echoed("v1")) as load:
            assert (await proxy.admin("/drain_listeners?graceful&skip_exit", "POST")) == (200, "OK\n")
            told = load.goaways
            await load.more(100)
            assert load.goaways > told
        assert load.failures == []
        assert load.refused == 0


# -- how long a connection lives


@pytest.mark.parametrize(
    ("limit", "counter"),
    [
        ({"max_requests_per_connection": 25}, "downstream_cx_max_requests_reached"),
        ({"max_connection_duration": "0.3s"}, "downstream_cx_max_duration_reached"),
    ],
)
async def test_downstream_connections_that_may_not_live_for_ever(
    v1: Http2EchoUpstream, limit: Json, counter: str
) -> None:
    manager: Json = {"common_http_protocol_options": limit, "drain_timeout": "0.1s"}
    config = bootstrap(main(forward("/", "v1"), manager=manager), [http2("v1", v1.port)])
    async with (
        Proxy(config) as proxy,
        Http2Load(proxy.ports["main"], echoed("v1"), fresh=0) as load,
    ):
        v1.delay_s = 0.02
        await eventually(lambda: load.goaways >= 8, "connections to end")
        await load.stop()
        assert load.failures == []
        assert load.closed_unasked == 0
        assert await proxy.stat(f"http.main.{counter}") >= 8


@pytest.mark.parametrize(
    ("limit", "counter"),
    [
        ({"max_requests_per_connection": 25}, "upstream_cx_max_requests"),
        ({"max_connection_duration": "0.3s"}, "upstream_cx_max_duration_reached"),
    ],
)
async def test_upstream_connections_that_may_not_live_for_ever(
    v1: Http2EchoUpstream, limit: Json, counter: str
) -> None:
    config = bootstrap(main(forward("/", "v1")), [http2("v1", v1.port, common=limit)])
    async with (
        Proxy(config) as proxy,
        Http2Load(proxy.ports["main"], echoed("v1"), fresh=0) as load,
    ):
        v1.delay_s = 0.02
        await proxy.until_stat(f"cluster.v1.{counter}", lambda value: value >= 8)
        await load.more(100)
        await load.stop()
        assert load.failures == []
        assert (load.connections, load.goaways, load.unprocessed) == (4, 0, 0)
        # No more than one that takes streams, and those that finish theirs.
        assert await proxy.stat("cluster.v1.upstream_cx_total") > 8
        await eventually(lambda: len(v1.connections) <= 2, "the old connections to be closed")


# -- upstreams that go


async def again_and_again(act: Callable[[], int], load: Http2Load, times: int) -> int:
    """Let the upstream go so often while it has requests; the sum of what it says."""
    total = 0
    for _ in range(times):
        total += await eventually(act, "requests at the upstream")
        await load.more(40)
    return total


@pytest.mark.parametrize("workers", ["1", TWO])
async def test_an_upstream_that_goes_away(v1: Http2EchoUpstream, workers: str) -> None:
    """What it has taken it finishes; what comes too late for that is asked again, without a policy that says so."""
    config = bootstrap(main(forward("/", "v1")), [http2("v1", v1.port)])
    async with (
        Proxy(config, "--concurrency", workers) as proxy,
        Http2Load(proxy.ports["main"], echoed("v1"), fresh=0) as load,
    ):
        v1.delay_s = 0.05
        await again_and_again(v1.go_away, load, 5)
        await load.stop()
        assert load.failures == []
        assert (load.connections, load.goaways, load.unprocessed) == (4, 0, 0)
        assert await proxy.stat("cluster.v1.upstream_cx_close_notify") >= 5
        assert await proxy.stat("cluster.v1.upstream_cx_destroy_with_active_rq") == 0


@pytest.mark.parametrize(("policy", "at_once"), [("refused-stream", False), ("reset", True)])
@pytest.mark.parametrize("workers", ["1", TWO])
async def test_an_upstream_that_goes_away_with_unprocessed_requests(
    v1: Http2EchoUpstream, workers: str, policy: str, at_once: bool
) -> None:
    """They are asked again at once, and if that fails too as the policy says."""
    retries: Json = {"retry_policy": {"retry_on": policy, "num_retries": 3}}
    breakers: Json = {"thresholds": [{"max_retries": 1000}]}
    config = bootstrap(
        main(forward("/", "v1", **retries)),
        [http2("v1", v1.port, circuit_breakers=breakers)],
        layered_runtime=runtime(meshproxy__retry_stale_connections=at_once),
    )
    async with (
        Proxy(config, "--concurrency", workers) as proxy,
        Http2Load(proxy.ports["main"], echoed("v1"), fresh=0) as load,
    ):
        v1.delay_s = 0.05
        dropped = await again_and_again(v1.go_away_unprocessed, load, 5)
        await load.stop()
        assert load.failures == []
        assert dropped >= 5
        asked_again = await proxy.stats("cluster.v1.upstream_rq_(retry_success|stale_connection_retry)")
        assert sum(asked_again.values()) >= dropped
        assert (asked_again["cluster.v1.upstream_rq_retry_success"] >= dropped) != at_once


async def test_an_upstream_that_restarts(v1: Http2EchoUpstream) -> None:
    """It leaves its streams unfinished: they are retried, and wait for it to come back."""
    breakers: Json = {"thresholds": [{"max_retries": 1000}]}
    config = bootstrap(main(forward("/", "v1", **UNTIL_IT_IS_BACK)), [http2("v1", v1.port, circuit_breakers=breakers)])
    async with (
        Proxy(config) as proxy,
        Http2Load(proxy.ports["main"], echoed("v1"), fresh=0) as load,
    ):
        v1.delay_s = 0.05
        for _ in range(3):
            await eventually(lambda: v1.waiting, "requests at the upstream")
            await v1.stop()
            await v1.start()
            await load.more(60)
        await load.stop()
        assert load.failures == []
        assert (load.connections, load.goaways) == (4, 0)
        assert await proxy.stat("cluster.v1.upstream_rq_retry_success") >= 3
        await proxy.until_stat("cluster.v1.upstream_rq_active", lambda value: value == 0)


async def test_an_upstream_that_goes_away_and_restarts_behind_tls(tmp_path: Path) -> None:
    """Its version of HTTP is agreed upon anew with each connection (auto_config)."""
    issued = issue("server", world().ca, names=dns("a.test"))
    for name, content in (("chain.pem", issued.pem), ("key.pem", issued.key_pem), ("ca.pem", world().ca.pem)):
        (tmp_path / name).write_bytes(content)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem")
    context.set_alpn_protocols(["h2"])
    trust = {"validation_context": {"trusted_ca": {"filename": str(tmp_path / "ca.pem")}}}
    upstream_tls = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": "a.test",
        "common_tls_context": trust,
    }
    async with Http2EchoUpstream("v1", tls=context) as v1:
        app = cluster(
            "v1",
            v1.port,
            **protocol(auto_config={}),
            circuit_breakers={"thresholds": [{"max_retries": 1000}]},
            transport_socket={"name": "tls", "typed_config": upstream_tls},
        )
        async with (
            Proxy(bootstrap(main(forward("/", "v1", **UNTIL_IT_IS_BACK)), [app])) as proxy,
            Http2Load(proxy.ports["main"], echoed("v1"), fresh=0) as load,
        ):
            v1.delay_s = 0.05
            await again_and_again(v1.go_away_unprocessed, load, 3)
            await v1.stop()
            await v1.start()
            await load.more(60)
            await load.stop()
            assert load.failures == []
            assert await proxy.stat("cluster.v1.upstream_cx_http2_total") >= 5
            assert await proxy.stat("cluster.v1.upstream_cx_http1_total") == 0
            await proxy.until_stat("cluster.v1.upstream_rq_active", lambda value: value == 0)


@pytest.mark.long
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_everything_at_once(v1: Http2EchoUpstream, v2: Http2EchoUpstream, workers: str) -> None:
    """A minute of new configurations, upstreams that go, and connections that do not live long."""
    chance = random.Random(6)
    limits: Json = {"max_requests_per_connection": 40, "max_connection_duration": "2s"}
    manager: Json = {"common_http_protocol_options": limits, "drain_timeout": "0.2s"}
    ports = {"v1": v1.port, "v2": v2.port}

    def config(number: int) -> str:
        name = chance.choice(["v1", "v2"])
        filters = [header_filter("x-number", str(number))] if number % 3 == 0 else []
        clusters = [
            http2(known, port, common={"max_requests_per_connection": 30}, connect_timeout=f"{1 + number % 3}s")
            for known, port in ports.items()
        ]
        return bootstrap(main(forward("/", name), filters=filters, manager=manager), clusters)

    async with (
        Proxy(config(0), "--concurrency", workers, "--drain-time-s", "3") as proxy,
        Http2Load(proxy.ports["main"], echoed("v1", "v2"), kept=6, fresh=3, streams=8) as load,
    ):
        v1.delay_s, v2.delay_s = 0.02, 0.01
        end = asyncio.get_running_loop().time() + 60.0
        number = 0
        while asyncio.get_running_loop().time() < end:
            number += 1
            await proxy.reload(config(number))
            await load.more(chance.randrange(20, 200))
            if chance.random() < 0.5:
                chance.choice([v1, v2]).go_away()
            assert load.failures == []
        await load.stop()
        assert load.failures == []
        assert load.refused == load.closed_unasked == 0
        await proxy.until_stat("http.main.downstream_rq_active", lambda value: value == 0)
        for name in ports:
            await proxy.until_stat(f"cluster.{name}.upstream_rq_active", lambda value: value == 0)
        assert "Traceback" not in proxy.output()
