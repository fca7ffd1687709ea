"""Two workers: the circuit breakers of a cluster hold for both together, and what a worker that died held is free."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest

from tests.integration.config import bootstrap, cluster, forward, listener
from tests.integration.load import EchoUpstream
from tests.integration.proxy import Proxy, eventually
from tests.support.downstream import ConnectionEnded, RawDownstream, exchange
from tests.support.wire import Message

_GET = b"GET /x HTTP/1.1\r\nhost: test\r\n\r\n"
_TWO = ("--concurrency", "2")
_OVERFLOW = b"upstream connect error or disconnect/reset before headers. reset reason: overflow"
_NEVER_S = 1000.0
_BREAKERS = "cluster.v1.circuit_breakers.default."


class Hanging:
    """Requests that an upstream does not answer."""

    def __init__(self, proxy: Proxy, upstream: EchoUpstream, stack: ExitStack) -> None:
        self._port = proxy.ports["main"]
        self._upstream = upstream
        self._stack = stack
        self._downstreams: list[RawDownstream] = []

    def __len__(self) -> int:
        return len(self._downstreams)

    async def add(self, number: int) -> None:
        """Return when the upstream has them."""
        wanted = self._upstream.seen + number
        for _ in range(number):
            downstream = self._stack.enter_context(RawDownstream(self._port, timeout_s=20.0))
            downstream.send(_GET)
            self._downstreams.append(downstream)
        await eventually(lambda: self._upstream.seen == wanted, f"{number} more requests upstream")

    def drop_ended(self) -> int:
        """Of how many the connection is gone."""
        before = len(self._downstreams)
        self._downstreams = [downstream for downstream in self._downstreams if not _has_ended(downstream)]
        return before - len(self._downstreams)


def _has_ended(downstream: RawDownstream) -> bool:
    if not select.select([downstream.sock], [], [], 0)[0]:
        return False
    with pytest.raises(ConnectionEnded):
        downstream.receive()
    return True


@pytest.fixture
async def upstream() -> AsyncIterator[EchoUpstream]:
    async with EchoUpstream("v1") as made:
        made.delay_s = _NEVER_S
        yield made


def _config(upstream: EchoUpstream, **thresholds: object) -> str:
    breakers = {"thresholds": [{"track_remaining": True, **thresholds}]}
    to = cluster("v1", upstream.port, circuit_breakers=breakers)
    return bootstrap([listener("main", [forward("/", "v1", timeout="0s")])], [to])


async def _fresh(proxy: Proxy, number: int = 12) -> list[Message]:
    """The answers to requests on connections of their own: some come to each worker."""
    return [await asyncio.to_thread(exchange, proxy.ports["main"], _GET, 20.0) for _ in range(number)]


async def _kill_a_worker(proxy: Proxy) -> None:
    victim = proxy.workers()[0]
    os.kill(victim, signal.SIGKILL)
    await eventually(lambda: len(proxy.workers()) == 2 and victim not in proxy.workers(), "another worker")
    await proxy.until_stat("server.live", lambda live: live == 1)


@pytest.mark.long  # fails now and then where the machine is busy: docs/STATE.md
async def test_max_requests_holds_for_both_and_a_dead_worker_s_are_free(upstream: EchoUpstream) -> None:
    async with Proxy(_config(upstream, max_requests=3), *_TWO) as proxy:
        with ExitStack() as stack:
            hanging = Hanging(proxy, upstream, stack)
            await hanging.add(2)
            assert (await proxy.stats(_BREAKERS))[_BREAKERS + "remaining_rq"] == 1
            await hanging.add(1)
            for _ in range(3):
                stats = await proxy.stats("cluster.v1")
                assert (stats[_BREAKERS + "rq_open"], stats[_BREAKERS + "remaining_rq"]) == (1, 0)
                assert stats["cluster.v1.upstream_rq_active"] == 3
                assert {(answer.status, answer.body) for answer in await _fresh(proxy)} == {(503, _OVERFLOW)}
                await _kill_a_worker(proxy)
                lost = hanging.drop_ended()
                await proxy.until_stat("cluster.v1.upstream_rq_active", len(hanging).__eq__)
                assert await proxy.stat(_BREAKERS + "remaining_rq") == lost
                await hanging.add(lost)
        upstream.delay_s = 0.0
        await proxy.until_stat("cluster.v1.upstream_rq_active", (0).__eq__)
        assert {answer.status for answer in await _fresh(proxy)} == {200}
        assert "Traceback" not in proxy.output()


async def test_max_pending_requests_holds_for_both(upstream: EchoUpstream) -> None:
    """The only connection is one too many already, and is in use: who comes to that worker waits, one of all at most.
    A worker without any connection opens one of its own, as Envoy's does."""
    config = _config(upstream, max_connections=1, max_pending_requests=1)
    async with Proxy(config, *_TWO) as proxy:
        with ExitStack() as stack:
            for number in range(1, 17):
                downstream = stack.enter_context(RawDownstream(proxy.ports["main"], timeout_s=20.0))
                downstream.send(_GET)
                await proxy.until_stat("http.main.downstream_rq_total", number.__eq__)
            await proxy.until_stat("cluster.v1.upstream_rq_pending_active", (1).__eq__)
            stats = await proxy.stats("cluster.v1")
            served = stats["cluster.v1.upstream_cx_active"]
            assert served in (1, 2)
            assert stats["cluster.v1.upstream_rq_pending_overflow"] >= 16 - served - 1
            assert stats[_BREAKERS + "rq_pending_open"] == 1
            assert stats[_BREAKERS + "cx_open"] == 1


async def test_a_reload_forgets_nothing(upstream: EchoUpstream) -> None:
    """The limits of a cluster that changed, or that went and came back, count what its earlier versions have."""
    async with Proxy(_config(upstream, max_requests=2), *_TWO) as proxy:
        with ExitStack() as stack:
            hanging = Hanging(proxy, upstream, stack)
            await hanging.add(2)
            await proxy.reload(_config(upstream, max_requests=3))
            await hanging.add(1)
            assert {answer.status for answer in await _fresh(proxy)} == {503}
