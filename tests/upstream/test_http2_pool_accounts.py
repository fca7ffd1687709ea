"""Whatever requests and upstreams do to a pool that speaks HTTP/2, its books balance in the end."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import h2.events
import h2.exceptions
import pytest

from meshproxy.errors import RESET_LOCAL
from meshproxy.upstream.cluster import Cluster
from tests.upstream.harness import Call, Upstream, World, cluster_dict, endpoint, turns, until, upstream, world
from tests.upstream.http2_peer import MAX_CONCURRENT_STREAMS, Http2Peer, speaking_http2

GONE = (h2.exceptions.ProtocolError, RuntimeError)  # the proxy has reset the stream, or closed, meanwhile
ENDS = ("end", "reset", "failure")


class Peers:
    """All connections of the upstream, which read by themselves and answer when they are told."""

    def __init__(self, server: Upstream, dice: random.Random) -> None:
        self.server = server
        self.dice = dice
        self.waiting: list[tuple[Http2Peer, int]] = []
        self.open: list[Http2Peer] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._acceptor = asyncio.create_task(self._accept())

    async def _accept(self) -> None:
        while True:
            raw = await self.server._peers.get()
            peer = Http2Peer(raw, {MAX_CONCURRENT_STREAMS: self.dice.choice((1, 3, 100))})
            self.open.append(peer)
            self.tasks.append(asyncio.create_task(self._serve(peer)))

    async def _serve(self, peer: Http2Peer) -> None:
        try:
            while True:
                stream_id = await peer.request()
                self.waiting.append((peer, stream_id))
        except (AssertionError, ConnectionError, h2.exceptions.ProtocolError):
            peer.close()
            if peer in self.open:
                self.open.remove(peer)

    def take(self) -> tuple[Http2Peer, int] | None:
        """A stream that waits for its answer, on a connection that is open."""
        self.waiting = [each for each in self.waiting if each[0] in self.open]
        return self.waiting.pop(self.dice.randrange(len(self.waiting))) if self.waiting else None

    def act(self) -> None:
        """One upstream does something."""
        taken = self.take()
        if taken is None:
            return
        peer, stream_id = taken
        what = self.dice.randrange(10)
        try:
            if what < 5:
                peer.answer(stream_id, status=self.dice.choice((200, 503)))
            elif what < 7:
                peer.reset(stream_id, self.dice.choice((0, 1, 7, 8)))
            elif what == 7:
                peer.allow(self.dice.choice((0, 1, 2, 50)))
                self.waiting.append(taken)
            elif what == 8:
                peer.go_away(self.dice.choice((0, stream_id, 2**31 - 1)))
                self.waiting.append(taken)
            else:
                self.open.remove(peer)
                peer.close()
        except GONE:
            return

    def finish(self) -> bool:
        """Answer all that there is."""
        for peer in self.open:
            with contextlib.suppress(*GONE):
                peer.allow(100)
        while (taken := self.take()) is not None:
            with contextlib.suppress(*GONE):
                taken[0].answer(taken[1])
        return True

    async def stop(self) -> None:
        for task in (self._acceptor, *self.tasks):
            task.cancel()
        await asyncio.gather(self._acceptor, *self.tasks, return_exceptions=True)


def over(call: Call) -> bool:
    return any(event.startswith(ENDS) for event in call.events)


def ask(dice: random.Random, cluster: Cluster, calls: list[Call]) -> None:
    """A request, or the end of one from our side."""
    if dice.random() < 0.7 or not calls:
        calls.append(Call(dice.choice((b"GET", b"POST")), dice.choice((None, b"x" * 10))).start(cluster))
        return
    call = dice.choice(calls)
    if call.encoder is not None and not over(call):
        call.encoder.reset(RESET_LOCAL)
        call.events.append("reset by us")
    elif call.pending is not None and not call.events:
        call.pending.cancel()
        call.events.append("reset by us")


def balanced(w: World, cluster: Cluster) -> None:
    """Nobody holds anything but open connections."""
    counters = w.counters()
    for gauge in ("upstream_rq_active", "upstream_rq_pending_active", "http2.streams_active"):
        assert gauge not in counters
    breakers = cluster.breakers(0)
    assert (breakers.requests.in_use, breakers.pending.in_use) == (0, 0)
    pool = cluster.hosts[0].pool(cluster, 0)
    assert breakers.connections.in_use == len(pool.connections) == counters.get("upstream_cx_active", 0)
    assert all(connection.streams == 0 for connection in pool.connections)
    assert pool.idle
    stats = cluster.hosts[0].stats
    assert (stats.rq_active, stats.rq_pending_active) == (0, 0)
    destroyed = counters.get("upstream_cx_destroy", 0)
    assert counters["upstream_cx_total"] == destroyed + len(pool.connections)
    assert destroyed == counters.get("upstream_cx_destroy_local", 0) + counters.get("upstream_cx_destroy_remote", 0)


@pytest.mark.parametrize("seed", range(8))
async def test_the_books_balance(seed: int) -> None:
    dice = random.Random(seed)
    limits = {"max_connections": dice.choice((1, 3, 100)), "max_requests": dice.choice((2, 1000))}
    fields: dict[str, Any] = {"circuit_breakers": {"thresholds": [{"max_pending_requests": 50} | limits]}}
    if dice.random() < 0.3:
        fields["preconnect_policy"] = {"per_upstream_preconnect_ratio": 2.0}
    http2 = {"max_concurrent_streams": dice.choice((1, 2, 100))}
    async with world() as w, upstream() as server:
        options = speaking_http2(http2, max_requests_per_connection=dice.choice((2, 1000)))
        cluster = w.add(cluster_dict(endpoint("127.0.0.1", server.port), **options, **fields))
        peers = Peers(server, dice)
        calls: list[Call] = []
        for _ in range(300):
            if dice.random() < 0.5:
                ask(dice, cluster, calls)
            else:
                peers.act()
            if dice.random() < 0.3:
                await turns(dice.randrange(4))

        await until(lambda: peers.finish() and all(over(call) for call in calls))
        await until(lambda: "upstream_rq_active" not in w.counters())
        balanced(w, cluster)
        cluster.close()
        await until(lambda: "upstream_cx_active" not in w.counters())
        assert cluster.breakers(0).connections.in_use == 0
        await peers.stop()
