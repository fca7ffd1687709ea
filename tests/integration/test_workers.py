"""Two workers: both serve, one may be killed, and the process tree ends as one."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.config import bootstrap, cluster, direct, forward, header_filter, listener, pipe
from tests.integration.load import EchoUpstream, Load, echoed
from tests.integration.proxy import Proxy, eventually, is_alive
from tests.support.downstream import ConnectionEnded, RawDownstream, exchange
from tests.support.wire import WireReader

_GET = b"GET /x HTTP/1.1\r\nhost: test\r\n\r\n"
_TWO = ("--concurrency", "2")


@pytest.fixture
async def v1() -> AsyncIterator[EchoUpstream]:
    async with EchoUpstream("v1") as upstream:
        yield upstream


def _listeners(tmp_path: Path) -> list[dict[str, object]]:
    return [
        listener("main", [forward("/", "v1")]),
        listener("shared", [forward("/", "v1")], enable_reuse_port=False),
        listener("unix", [forward("/", "v1")], at=pipe(str(tmp_path / "unix.sock"))),
    ]


async def test_both_serve_and_the_stats_are_their_sum(v1: EchoUpstream, tmp_path: Path) -> None:
    config = bootstrap(_listeners(tmp_path), [cluster("v1", v1.port)])
    async with Proxy(config, *_TWO) as proxy:
        workers = proxy.workers()
        assert len(workers) == 2
        for port in (proxy.ports["main"], proxy.ports["shared"]):
            async with Load(port, echoed("v1"), kept=0, fresh=8) as load:
                await load.more(200)
            assert load.failures == []
        assert {pid for pid in workers if _cpu_ticks(pid) > 0} == set(workers)
        assert await proxy.stat("http.main.downstream_rq_total") >= 200
        assert await proxy.stat("http.main.downstream_rq_completed") + await proxy.stat(
            "http.shared.downstream_rq_completed"
        ) == await proxy.stat("cluster.v1.upstream_rq_completed")
        assert await proxy.stat("listener_manager.total_listeners_active") == 3
        assert await proxy.stat("listener_manager.listener_added") == 3
        assert await proxy.stat("server.concurrency") == 2
        answer = await asyncio.to_thread(_ask_unix, tmp_path / "unix.sock")
        assert answer == b"v1 /x"


async def test_a_killed_worker_loses_what_it_had_in_flight_and_nothing_else(v1: EchoUpstream) -> None:
    config = bootstrap([listener("main", [forward("/", "v1")])], [cluster("v1", v1.port)])
    async with Proxy(config, *_TWO) as proxy:
        v1.delay_s = 0.02
        async with Load(proxy.ports["main"], echoed("v1"), kept=6, fresh=8) as load:
            await load.more(100)
            counted = await proxy.stat("http.main.downstream_rq_total")
            victim, other = proxy.workers()
            os.kill(victim, signal.SIGKILL)
            await eventually(lambda: len(proxy.workers()) == 2 and victim not in proxy.workers(), "another worker")
            await load.more(200)
            assert other in proxy.workers()
        # Each client had one request in flight at most; who was waiting in the accept queue got an answer later.
        assert load.failures == load.lost
        assert len(load.lost) <= 14
        assert load.refused == 0
        assert await proxy.stat("server.worker_restarts") == 1
        assert await proxy.stat("http.main.downstream_rq_total") >= counted + 200
        assert await proxy.stat("http.main.downstream_cx_active") == 0
        assert "Traceback" not in proxy.output()


async def test_connections_made_while_every_worker_is_dead_are_answered(tmp_path: Path) -> None:
    listeners = [
        listener("main", [direct("/", "x")]),
        listener("unix", [direct("/", "x")], at=pipe(str(tmp_path / "unix.sock"))),
    ]
    async with Proxy(bootstrap(listeners), *_TWO) as proxy:
        dead = proxy.workers()
        for pid in dead:
            os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not any(is_alive(pid) for pid in dead), "the workers to die")
        downstreams = [RawDownstream(proxy.ports["main"], timeout_s=20.0) for _ in range(20)]
        for downstream in downstreams:
            downstream.send(_GET)
        unix = asyncio.create_task(asyncio.to_thread(_ask_unix, tmp_path / "unix.sock"))
        try:
            for downstream in downstreams:
                assert (await asyncio.to_thread(downstream.receive)).body == b"x"
            assert await unix == b"x"
        finally:
            for downstream in downstreams:
                downstream.close()
        assert await proxy.stat("server.worker_restarts") == 2


async def test_a_worker_that_comes_later_has_everything(v1: EchoUpstream) -> None:
    """The reloaded configuration, the operator's runtime values, and the failing health checks."""
    config = bootstrap([listener("main", [forward("/", "v1")])], [cluster("v1", v1.port)])
    runtime = {"layers": [{"name": "admin", "admin_layer": {}}]}
    changed = bootstrap([listener("main", [direct("/", "new")])], layered_runtime=runtime)
    async with Proxy(config, *_TWO) as proxy:
        await proxy.reload(changed)
        path = "/runtime_modify?envoy.resource_limits.listener.main.connection_limit=0"
        assert (await proxy.admin("/healthcheck/fail", "POST"))[0] == 200
        dead = proxy.workers()
        for pid in dead:
            os.kill(pid, signal.SIGKILL)
        await eventually(lambda: len(set(proxy.workers()) - set(dead)) == 2, "two new workers")
        answer = await asyncio.to_thread(exchange, proxy.ports["main"], _GET, 20.0)
        assert (answer.body, answer.get(b"connection")) == (b"new", b"close")
        assert (await proxy.admin(path, "POST"))[0] == 200
        dead = proxy.workers()
        for pid in dead:
            os.kill(pid, signal.SIGKILL)
        with RawDownstream(proxy.ports["main"], timeout_s=20.0) as downstream:
            downstream.send(_GET)
            with pytest.raises(ConnectionEnded):
                await asyncio.to_thread(downstream.receive)


async def test_workers_end_with_their_supervisor() -> None:
    async with Proxy(bootstrap([listener("main", [direct("/", "x")])]), *_TWO) as proxy:
        workers = proxy.workers()
        proxy.signal(signal.SIGKILL)
        assert await proxy.wait() == -signal.SIGKILL
        await eventually(lambda: not any(is_alive(pid) for pid in workers), "the workers to end")


async def test_a_terminal_s_interrupt_reaches_all_and_the_supervisor_decides() -> None:
    config = bootstrap([listener("main", [direct("/", "x")])])
    async with Proxy(config, *_TWO, "--shutdown-delay-s", "1000") as proxy:
        for pid in (*proxy.workers(), proxy.pid):
            os.kill(pid, signal.SIGINT)
        await eventually(lambda: "draining" in proxy.output(), "the drain")
        assert exchange(proxy.ports["main"], _GET).body == b"x"
        proxy.signal(signal.SIGTERM)
        assert await proxy.wait() == 1


async def test_a_worker_killed_in_a_drain_is_replaced(v1: EchoUpstream) -> None:
    config = bootstrap([listener("main", [forward("/", "v1")])], [cluster("v1", v1.port)])
    async with Proxy(config, *_TWO, "--shutdown-delay-s", "3", "--drain-time-s", "10") as proxy:
        async with Load(proxy.ports["main"], echoed("v1"), kept=2, fresh=6, until_refused=True) as load:
            proxy.signal(signal.SIGTERM)
            os.kill(proxy.workers()[0], signal.SIGKILL)
            await eventually(lambda: len(proxy.workers()) == 2, "another worker")
            told = asyncio.get_running_loop().time()
            await load.ended()
        assert load.failures == load.lost
        assert len(load.lost) <= 8
        assert all(answer.closes for answer in load.since(told))
        assert await proxy.wait() == 0


async def test_reload_while_a_worker_is_dying(v1: EchoUpstream) -> None:
    """Whoever lives takes the new configuration, and the replacement starts with it: none serves the old one."""

    def config(value: str) -> str:
        chain = listener("main", [forward("/", "v1")], filters=[header_filter("x-version", value)])
        return bootstrap([chain], [cluster("v1", v1.port)])

    async with Proxy(config("0"), *_TWO) as proxy:
        async with Load(proxy.ports["main"], echoed("v1"), kept=0, fresh=6) as load:
            for number in (1, 2, 3):
                version = str(number)
                victim = proxy.workers()[0]
                proxy.write(config(version))
                os.kill(victim, signal.SIGKILL)
                proxy.signal(signal.SIGHUP)
                await proxy.until_stat("server.config_reload_success", number.__eq__)
                in_force = asyncio.get_running_loop().time()
                await load.more(40)
                versions = {answer.headers.get(b"x-version") for answer in load.since(in_force)}
                assert versions == {version.encode()}
                await eventually(lambda: len(proxy.workers()) == 2, "another worker")
        assert load.failures == load.lost
        assert len(load.lost) <= 18


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def _ask_unix(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20.0)
        sock.connect(str(path))
        sock.sendall(_GET)
        reader = WireReader(sock)
        message = reader.read_head()
        reader.read_body(message, to_end=True)
        return message.body
