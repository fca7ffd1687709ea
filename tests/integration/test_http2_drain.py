"""HTTP/2 under change: configuration, drains and upstreams that go, under load with many streams on each connection;
and not one request lost."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable

import pytest

from tests.integration.config import Json, bootstrap, cluster, forward, header_filter, listener, runtime
from tests.integration.http2_load import Http2EchoUpstream, Http2Load, http2_cluster
from tests.integration.load import EchoUpstream, echoed
from tests.integration.proxy import Proxy, eventually

AT_ONCE = ("--drain-strategy", "immediate")


@pytest.fixture
async def v1() -> AsyncIterator[Http2EchoUpstream]:
    async with Http2EchoUpstream("v1") as upstream:
        yield upstream


@pytest.fixture
async def v2() -> AsyncIterator[Http2EchoUpstream]:
    async with Http2EchoUpstream("v2") as upstream:
        yield upstream


def http2(name: str, *ports: int, common: Json | None = None, **fields: object) -> Json:
    """A cluster of HTTP/2."""
    return cluster(name, *ports, **http2_cluster(common), **fields)


def main(*routes: Json, **fields: object) -> list[Json]:
    """The listener of most tests."""
    return [listener("main", routes, **fields)]  # type: ignore[arg-type]


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


@pytest.mark.parametrize("workers", ["1", "2"])
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


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_endpoints_come_and_go(v1: Http2EchoUpstream, v2: Http2EchoUpstream, workers: str) -> None:
    def config(*ports: int, **fields: object) -> str:
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


@pytest.mark.parametrize(("workers", "behind"), [("1", "h2"), ("2", "h2"), ("1", "h1")])
async def test_no_request_is_lost_at_the_end(v1: Http2EchoUpstream, workers: str, behind: str) -> None:
    async with EchoUpstream("v1") as http1:
        app = http2("v1", v1.port) if behind == "h2" else cluster("v1", http1.port)
        flags = ("--concurrency", workers, "--shutdown-delay-s", "0.5", "--drain-time-s", "10")
        async with Proxy(bootstrap(main(forward("/", "v1")), [app]), *flags) as proxy:
            async with Http2Load(proxy.ports["main"], echoed("v1"), fresh=3, until_refused=True) as load:
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


@pytest.mark.parametrize("workers", ["1", "2"])
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


@pytest.mark.parametrize(
    ("workers", "policy", "at_once"), [("1", "refused-stream", False), ("1", "reset", True), ("2", "reset", False)]
)
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
    again: Json = {
        "retry_policy": {
            "retry_on": "reset,connect-failure,refused-stream",
            "num_retries": 60,
            "retry_back_off": {"base_interval": "0.02s", "max_interval": "0.05s"},
        }
    }
    breakers: Json = {"thresholds": [{"max_retries": 1000}]}
    config = bootstrap(main(forward("/", "v1", **again)), [http2("v1", v1.port, circuit_breakers=breakers)])
    async with (
        Proxy(config) as proxy,
        Http2Load(proxy.ports["main"], echoed("v1"), fresh=0) as load,
    ):
        v1.delay_s = 0.05
        for _ in range(3):
            await v1.stop()
            await v1.start()
            await load.more(60)
        await load.stop()
        assert load.failures == []
        assert (load.connections, load.goaways) == (4, 0)
        assert await proxy.stat("cluster.v1.upstream_rq_retry_success") >= 3
        await proxy.until_stat("cluster.v1.upstream_rq_active", lambda value: value == 0)
