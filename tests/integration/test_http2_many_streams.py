"""Very many streams at once: all are answered, or all are cancelled, and nothing of them is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.integration.config import bootstrap, cluster, forward, http2_cluster, listener, runtime
from tests.integration.http2_load import Http2Client, Http2EchoUpstream
from tests.integration.proxy import Proxy, eventually, rss_kib

_CONNECTIONS = 10
_KIB_PER_STREAM = 16  # measured: about 10, of both sides
_DEADLINE_S = 120.0


@pytest.fixture
async def upstream() -> AsyncIterator[Http2EchoUpstream]:
    async with Http2EchoUpstream("v1") as started:
        started.holds = True
        yield started


class Crowd:
    """So many requests on each of ten connections."""

    def __init__(self, proxy: Proxy, upstream: Http2EchoUpstream, each: int) -> None:
        self._proxy = proxy
        self._upstream = upstream
        self._each = each
        self.clients: list[Http2Client] = []

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(_CONNECTIONS):
            self.clients.append((await loop.create_connection(Http2Client, "127.0.0.1", self._proxy.ports["main"]))[1])

    async def ask(self) -> dict[Http2Client, list[int]]:
        """All requests are at the upstream."""
        asked = {client: [client.begin(b"/x") for _ in range(self._each)] for client in self.clients}
        total = _CONNECTIONS * self._each
        await eventually(lambda: self._upstream.waiting == total, "the requests to arrive", _DEADLINE_S)
        assert await self._proxy.stat("cluster.v1.upstream_rq_active") == total
        assert await self._proxy.stat("http.main.downstream_rq_active") == total
        assert await self._proxy.stat("http2.streams_active") == total
        return asked

    async def all_freed(self) -> None:
        """The proxy's gauges say that nothing is left."""
        for name in (
            "cluster.v1.upstream_rq_active",
            "cluster.v1.http2.streams_active",
            "http.main.downstream_rq_active",
            "http2.streams_active",
        ):
            await self._proxy.until_stat(name, lambda value: value == 0, _DEADLINE_S)

    async def leave(self) -> None:
        for client in self.clients:
            client.transport.close()
        await eventually(lambda: all(client.lost for client in self.clients), "the connections to end")


@pytest.mark.parametrize("each", [100, pytest.param(1000, marks=pytest.mark.long)])
async def test_many_streams(upstream: Http2EchoUpstream, each: int) -> None:
    total = _CONNECTIONS * each
    breakers = {"thresholds": [{"max_requests": total, "max_pending_requests": total, "max_connections": 100}]}
    config = bootstrap(
        [listener("main", [forward("/", "v1", timeout="0s")])],
        [cluster("v1", upstream.port, **http2_cluster(), circuit_breakers=breakers)],
        # Else so many that are taken back at once are an attack.
        layered_runtime=runtime(overload__premature_reset_total_stream_count=10 * total),
    )
    async with Proxy(config) as proxy, AsyncExitStack() as cleanup:
        crowd = Crowd(proxy, upstream, each)
        await crowd.connect()
        cleanup.push_async_callback(crowd.leave)
        before = rss_kib(proxy.pid)
        asked = await crowd.ask()
        first = rss_kib(proxy.pid) - before
        assert first < total * _KIB_PER_STREAM + 4096
        upstream.release()
        await eventually(lambda: not any(client.waiting for client in crowd.clients), "the answers", _DEADLINE_S)
        for client, streams in asked.items():
            answers = [client.take(stream) for stream in streams]
            assert {(answer.status, answer.body) for answer in answers} == {(200, b"v1 /x")}
        await crowd.all_freed()
        for _ in range(2):
            await crowd.ask()
            for client in crowd.clients:
                client.cancel_all()
            await eventually(lambda: upstream.waiting == 0, "the requests to be taken back", _DEADLINE_S)
            await crowd.all_freed()
        # What the first ones have left is used again.
        assert rss_kib(proxy.pid) - before < first * 1.25 + 2048
        assert not any(client.lost or client.last_taken for client in crowd.clients)
        assert "Traceback" not in proxy.output()
