"""Everything at once, for longer: kills, reloads and load; and memory over many reloads."""

from __future__ import annotations

import asyncio
import os
import random
import signal

import pytest

from tests.integration.config import bootstrap, cluster, direct, forward, header_filter, listener
from tests.integration.load import EchoUpstream, Load, echoed
from tests.integration.proxy import Proxy, eventually, rss_kib

_SECONDS = 60.0


@pytest.mark.long
async def test_kills_and_reloads_under_load() -> None:
    """Only what a killed worker had in flight is lost, however often, and every answer is right."""
    chance = random.Random(20)
    kept, fresh = 8, 6
    kills = 0
    async with EchoUpstream("v1") as v1, EchoUpstream("v2") as v2:

        def config(number: int) -> str:
            name = chance.choice(["v1", "v2"])
            filters = [header_filter("x-number", str(number))] if number % 2 else []
            ports = {"v1": v1.port, "v2": v2.port}
            clusters = [cluster(known, port, connect_timeout=f"{1 + number % 3}s") for known, port in ports.items()]
            return bootstrap([listener("main", [forward("/", name)], filters=filters)], clusters)

        async with Proxy(config(0), "--concurrency", "2", "--drain-time-s", "3") as proxy:
            async with Load(proxy.ports["main"], echoed("v1", "v2"), kept=kept, fresh=fresh) as load:
                loop = asyncio.get_running_loop()
                end = loop.time() + _SECONDS
                number = 0
                while loop.time() < end:
                    number += 1
                    before = load.lost.copy()
                    if chance.random() < 0.3:
                        os.kill(chance.choice(proxy.workers()), signal.SIGKILL)
                        kills += 1
                        await eventually(lambda: len(proxy.workers()) == 2, "another worker")
                        allowed = kept + fresh
                    else:
                        proxy.write(config(number) if chance.random() < 0.8 else "{")
                        proxy.signal(signal.SIGHUP)
                        allowed = 0
                    await load.more(60)
                    assert len(load.lost) - len(before) <= allowed, load.lost[len(before) :]
                    assert load.failures == load.lost
            assert load.refused == 0
            assert kills > 3
            assert await proxy.stat("server.worker_restarts") == kills
            await proxy.until_stat("http.main.downstream_cx_active", lambda value: value == 0)
            assert "Traceback" not in proxy.output()


@pytest.mark.long
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_memory_does_not_grow_with_reloads(workers: str) -> None:
    """Two hundred reloads of everything that there is, under load; the second hundred costs nothing."""
    async with EchoUpstream("v1") as v1:

        def config(number: int) -> str:
            routes = [forward(f"/{number}-{index}", "v1") for index in range(200)]
            filters = [header_filter("x-number", str(number))] if number % 2 else []
            clusters = [cluster("v1", v1.port, connect_timeout=f"{1 + number % 5}s")]
            clusters += [cluster(f"c{index}-{number % 7}", v1.port) for index in range(50)]
            listeners = [listener("main", [*routes, forward("/", "v1")], filters=filters)]
            listeners += [listener(f"l{number % 3}", [direct("/", "x")])]
            return bootstrap(listeners, clusters)

        async with Proxy(config(0), "--concurrency", workers, "--drain-time-s", "1") as proxy:
            async with Load(proxy.ports["main"], echoed("v1"), kept=3, fresh=1) as load:

                async def reload_to(first: int, last: int) -> int:
                    for number in range(first, last):
                        await proxy.reload(config(number))
                    await load.more(30)
                    return sum(rss_kib(pid) for pid in (proxy.pid, *proxy.workers()))

                warm = await reload_to(1, 101)
                grown = await reload_to(101, 201) - warm
            assert load.failures == []
            assert grown < 4_000, f"{grown} KiB in a hundred reloads"
            stats = await proxy.stats()
            assert stats["cluster_manager.active_clusters"] == 51
            assert stats["listener_manager.total_listeners_active"] == 2
            assert sum(name.startswith("cluster.c") and name.endswith(".upstream_cx_total") for name in stats) == 50


@pytest.mark.long
async def test_start_and_drain_again_and_again() -> None:
    """Twenty proxies that end under load: none of them loses a request."""
    for round_number in range(20):
        async with EchoUpstream("v1") as v1:
            config = bootstrap([listener("main", [forward("/", "v1")])], [cluster("v1", v1.port)])
            workers = str(1 + round_number % 2)
            flags = ("--concurrency", workers, "--shutdown-delay-s", "0.3", "--drain-time-s", "10")
            async with Proxy(config, *flags) as proxy:
                load = Load(proxy.ports["main"], echoed("v1"), kept=8, fresh=8, pause_s=0.001, until_refused=True)
                async with load:
                    proxy.signal(signal.SIGTERM)
                    await load.ended()
                assert load.failures == []
                assert await proxy.wait() == 0
