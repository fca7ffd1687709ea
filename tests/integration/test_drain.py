"""The end of the process under load: told, finished, refused; and not one request lost."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.config import bootstrap, cluster, direct, forward, listener, pipe
from tests.integration.load import Answer, EchoUpstream, Load, echoed
from tests.integration.proxy import Proxy, eventually, is_alive
from tests.integration.raw_upstream import RawUpstream
from tests.support.downstream import RawDownstream, exchange

_GET = b"GET /x HTTP/1.1\r\nhost: test\r\n\r\n"


@pytest.fixture
async def v1() -> AsyncIterator[EchoUpstream]:
    async with EchoUpstream("v1") as upstream:
        yield upstream


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, "1"), (signal.SIGTERM, "2"), (signal.SIGINT, "1")])
async def test_no_request_is_lost(v1: EchoUpstream, number: int, workers: str) -> None:
    config = bootstrap([listener("main", [forward("/", "v1")])], [cluster("v1", v1.port)])
    flags = ("--concurrency", workers, "--shutdown-delay-s", "0.5", "--drain-time-s", "10")
    async with Proxy(config, *flags) as proxy:
        load = Load(proxy.ports["main"], echoed("v1"), kept=6, fresh=6, pause_s=0.002, until_refused=True)
        async with load:
            assert not any(answer.closes for answer in load.answers)
            proxy.signal(number)
            assert (await proxy.admin("/ready")) == (503, "DRAINING\n")
            told = asyncio.get_running_loop().time()
            await load.more(50)
            draining = load.since(told)
            assert draining
            assert all(answer.closes for answer in draining)  # also on connections that are new
            await load.ended()
        assert load.failures == []
        assert load.refused == 12  # every client found the port closed at last
        assert await proxy.wait() == 0
        assert "Traceback" not in proxy.output()


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_it_ends_when_what_is_under_way_is_done(workers: str) -> None:
    with RawUpstream() as upstream:
        config = bootstrap([listener("main", [forward("/", "a")])], [cluster("a", upstream.port)])
        flags = ("--concurrency", workers, "--drain-time-s", "30")
        async with Proxy(config, *flags) as proxy:
            port = proxy.ports["main"]
            with RawDownstream(port) as busy, RawDownstream(port) as begun:
                begun.send(b"GET /begun")  # a request that is arriving
                busy.send(_GET)
                reader, _ = await asyncio.to_thread(upstream.accept_request)
                proxy.signal(signal.SIGTERM)
                await eventually(lambda: _refused(port), "the port to close")
                assert proxy.process.process.poll() is None
                begun.send(b" HTTP/1.1\r\nhost: test\r\n\r\n")
                second, head = await asyncio.to_thread(upstream.accept_request)
                assert head.target == b"/begun"
                for sock in (reader.sock, second.sock):
                    sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                for downstream in (busy, begun):
                    answer = await asyncio.to_thread(downstream.receive)
                    assert (answer.status, answer.body, answer.get(b"connection")) == (200, b"ok", b"close")
            assert await proxy.wait() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_the_drain_time_bounds_it(workers: str) -> None:
    with RawUpstream() as upstream:
        config = bootstrap([listener("main", [forward("/", "a")])], [cluster("a", upstream.port)])
        async with Proxy(config, "--concurrency", workers, "--drain-time-s", "0.5") as proxy:
            with RawDownstream(proxy.ports["main"]) as downstream:
                downstream.send(_GET)
                await asyncio.to_thread(upstream.accept_request)
                proxy.signal(signal.SIGTERM)
                assert await proxy.wait() == 0
                assert await asyncio.to_thread(downstream.wait_end) in ("closed", "reset")


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_second_signal_ends_it_at_once(workers: str) -> None:
    config = bootstrap([listener("main", [direct("/", "x")])])
    flags = ("--concurrency", workers, "--shutdown-delay-s", "1000", "--drain-time-s", "1000")
    async with Proxy(config, *flags) as proxy:
        children = proxy.workers()
        assert len(children) == (2 if workers == "2" else 0)
        proxy.signal(signal.SIGTERM)
        assert await _state(proxy) == 503
        assert exchange(proxy.ports["main"], _GET).body == b"x"
        proxy.signal(signal.SIGINT)
        assert await proxy.wait() == 1
        await eventually(lambda: not any(is_alive(child) for child in children), "the workers to end")


async def test_an_unix_socket_is_drained_too(tmp_path: Path) -> None:
    path = tmp_path / "main.sock"
    config = bootstrap([listener("main", [direct("/", "x")], at=pipe(str(path)))])
    async with Proxy(config, "--concurrency", "2") as proxy:
        assert path.is_socket()
        proxy.signal(signal.SIGTERM)
        assert await proxy.wait() == 0
        assert not path.exists()


async def test_drain_listeners(v1: EchoUpstream) -> None:
    """Measured on Envoy 1.40: without `graceful` the port closes at once, and open connections hear nothing of it."""
    listeners = [
        listener("in", [forward("/", "v1")], traffic_direction="INBOUND"),
        listener("out", [forward("/", "v1")], traffic_direction="OUTBOUND"),
    ]
    async with Proxy(bootstrap(listeners, [cluster("v1", v1.port)]), "--concurrency", "2") as proxy:
        inside, outside = proxy.ports["in"], proxy.ports["out"]
        with RawDownstream(inside) as kept, RawDownstream(outside) as other:
            assert await _connection(kept) is None
            assert (await proxy.admin("/drain_listeners?inboundonly", "POST")) == (200, "OK\n")
            await eventually(lambda: _refused(inside), "the inbound port to close")
            assert await _connection(kept) is None
            assert await _connection(other) is None
            assert not _refused(outside)
            assert (await proxy.admin("/ready"))[0] == 200
            assert await proxy.stat("listener_manager.listener_stopped") == 1
            assert (await proxy.admin("/drain_listeners", "POST")) == (200, "OK\n")
            await eventually(lambda: _refused(outside), "the outbound port to close")
            assert await _connection(other) is None
        # A reload does not open them again.
        await proxy.reload(bootstrap(listeners, [cluster("v1", v1.port), cluster("v2", v1.port)]))
        assert _refused(outside)


async def test_drain_listeners_gracefully() -> None:
    config = bootstrap([listener("main", [direct("/", "x")])])
    async with Proxy(config, "--drain-time-s", "1", "--drain-strategy", "immediate") as proxy:
        port = proxy.ports["main"]
        async with Load(port, _anything, fresh=4, until_refused=True) as load:
            assert (await proxy.admin("/drain_listeners?graceful", "POST")) == (200, "OK\n")
            told = asyncio.get_running_loop().time()
            await load.ended()
        assert load.failures == []
        assert all(answer.closes for answer in load.since(told))
        assert (await proxy.admin("/ready"))[0] == 200


async def test_drain_listeners_gracefully_and_stay() -> None:
    config = bootstrap([listener("main", [direct("/", "x")])])
    async with Proxy(config, "--drain-time-s", "0.1", "--drain-strategy", "immediate") as proxy:
        async with Load(proxy.ports["main"], _anything) as load:
            assert (await proxy.admin("/drain_listeners?graceful&skip_exit", "POST")) == (200, "OK\n")
            told = asyncio.get_running_loop().time()
            await load.more(100)
        assert load.failures == []
        assert load.refused == 0
        assert all(answer.closes for answer in load.since(told))


async def test_a_gradual_drain_tells_more_and_more_connections_to_close() -> None:
    """The default, as Envoy's: nobody at its begin, everybody at its end."""
    config = bootstrap([listener("main", [direct("/", "x")])])
    async with Proxy(config, "--drain-time-s", "2") as proxy:
        async with Load(proxy.ports["main"], _anything, kept=8, pause_s=0.001) as load:
            assert (await proxy.admin("/drain_listeners?graceful&skip_exit", "POST")) == (200, "OK\n")
            told = asyncio.get_running_loop().time()
            await load.until(lambda answer: answer.began > told + 2.0, "the end of the drain time")
            await load.more(100)
        assert load.failures == []
        first = [answer.closes for answer in load.since(told) if answer.ended < told + 0.4]
        assert sum(first) < len(first) / 2
        assert all(answer.closes for answer in load.since(told + 2.0))


async def test_quitquitquit_ends_without_a_drain() -> None:
    config = bootstrap([listener("main", [direct("/", "x")])])
    for workers in ("1", "2"):
        async with Proxy(config, "--concurrency", workers, "--shutdown-delay-s", "1000") as proxy:
            assert (await proxy.admin("/quitquitquit", "POST")) == (200, "OK\n")
            assert await proxy.wait() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_while_health_checks_fail_every_answer_ends_its_connection(workers: str) -> None:
    """Measured on Envoy 1.40."""
    config = bootstrap([listener("main", [direct("/", "x")])])
    async with Proxy(config, "--concurrency", workers) as proxy:
        with RawDownstream(proxy.ports["main"]) as kept:
            assert await _connection(kept) is None
            assert (await proxy.admin("/healthcheck/fail", "POST")) == (200, "OK\n")
            assert (await proxy.admin("/ready")) == (503, "DRAINING\n")
            assert await _connection(kept) == b"close"
        for _ in range(4):
            assert exchange(proxy.ports["main"], _GET).get(b"connection") == b"close"
        assert (await proxy.admin("/healthcheck/ok", "POST")) == (200, "OK\n")
        assert (await proxy.admin("/ready")) == (200, "LIVE\n")
        for _ in range(4):
            assert exchange(proxy.ports["main"], _GET).get(b"connection") is None
        assert await proxy.stat("http.main.downstream_cx_drain_close") == 5


async def test_health_checks_go_on_failing_with_a_new_configuration() -> None:
    """Of a listener that came with it, and of one whose filter chain it changed."""
    config = bootstrap([listener("main", [direct("/", "x")])])
    changed = bootstrap(
        [listener("main", [direct("/", "y")], manager={"via": "v"}), listener("second", [direct("/", "z")])]
    )
    async with Proxy(config) as proxy:
        assert (await proxy.admin("/healthcheck/fail", "POST")) == (200, "OK\n")
        await proxy.reload(changed)
        for name, body in (("main", b"y"), ("second", b"z")):
            answer = exchange(proxy.ports[name], _GET)
            assert (answer.body, answer.get(b"connection")) == (body, b"close")
        assert (await proxy.admin("/healthcheck/ok", "POST")) == (200, "OK\n")
        assert exchange(proxy.ports["second"], _GET).get(b"connection") is None


async def test_connections_of_an_idle_client_do_not_hold_it_up() -> None:
    config = bootstrap([listener("main", [direct("/", "x")])])
    async with Proxy(config, "--drain-time-s", "1000") as proxy:
        with RawDownstream(proxy.ports["main"]) as used, RawDownstream(proxy.ports["main"]) as silent:
            assert await _connection(used) is None
            proxy.signal(signal.SIGTERM)
            assert await proxy.wait() == 0
            assert used.wait_end() == "closed"
            assert silent.wait_end() == "closed"


async def _connection(downstream: RawDownstream) -> bytes | None:
    """The `connection` header of one more answer."""
    downstream.send(_GET)
    answer = await asyncio.to_thread(downstream.receive)
    assert answer.status == 200
    return answer.get(b"connection")


async def _state(proxy: Proxy) -> int:
    return (await proxy.admin("/ready"))[0]


def _anything(answer: Answer, target: bytes) -> str:
    return "" if answer.status == 200 else f"{target!r}: {answer.status}"


def _refused(port: int) -> bool:
    try:
        RawDownstream(port, timeout_s=0.2).close()
    except ConnectionRefusedError:
        return True
    except TimeoutError:  # its SYN is ignored for a moment, before the port closes
        return False
    return False
