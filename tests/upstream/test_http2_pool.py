"""Pools that speak HTTP/2, on loopback sockets, to the `h2` package. The rules and the stats are Envoy's."""

from __future__ import annotations

from typing import Any

import h2.events
from h2.errors import ErrorCodes
from hyperframe.frame import SettingsFrame

from meshproxy.errors import (
    RESET_LOCAL,
    RESET_OVERFLOW,
    RESET_PROTOCOL_ERROR,
    RESET_REMOTE,
    RESET_REMOTE_REFUSED,
    RESET_TERMINATION,
)
from meshproxy.upstream.cluster import Cluster
from tests.support.garbage import only_collected
from tests.upstream.harness import Call, Upstream, World, cluster_dict, endpoint, turns, until, upstream, world
from tests.upstream.http2_peer import MAX_CONCURRENT_STREAMS, Http2Peer, accept_http2, goaway, speaking_http2


def limits(**fields: int) -> dict[str, Any]:
    """`circuit_breakers` of the default priority."""
    return {"circuit_breakers": {"thresholds": [fields]}}


def add(w: World, server: Upstream, http2: dict[str, Any] | None = None, **fields: Any) -> Cluster:
    """A cluster that speaks HTTP/2 to the server."""
    options = speaking_http2(http2, **fields.pop("common", {}))
    return w.add(cluster_dict(endpoint("127.0.0.1", server.port), **options, **fields))


async def started(cluster: Cluster, peer: Http2Peer) -> tuple[Call, int]:
    """A request that the peer has, on a connection that is open; and its stream."""
    call = Call().start(cluster)
    return call, await peer.request()


async def test_requests_share_a_connection() -> None:
    async with world() as w, upstream() as server:
        cluster = add(w, server)
        calls = [Call().start(cluster), Call(b"POST", b"body").start(cluster)]
        peer = await accept_http2(server)
        streams = [await peer.request(), await peer.request()]
        assert streams == [1, 3]
        assert w.counters()["upstream_rq_active"] == 2
        assert w.counters()["http2.streams_active"] == 2
        for stream_id in reversed(streams):
            peer.answer(stream_id)
        for call in calls:
            await call.until("end")
        assert [call.events for call in calls] == [["ready", "200", "end"], ["ready again", "200", "end"]]
        counters = w.counters()
        assert counters["upstream_cx_total"] == counters["upstream_cx_http2_total"] == 1
        assert "upstream_cx_http1_total" not in counters
        assert counters["upstream_rq_total"] == counters["upstream_rq_pending_total"] == 2
        assert "upstream_rq_active" not in counters
        assert "http2.streams_active" not in counters
        assert cluster.hosts[0].stats.rq_active == 0


async def test_where_there_is_a_connection_nobody_waits() -> None:
    async with world() as w, upstream() as server:
        cluster = add(w, server)
        first = Call().start(cluster)
        peer = await accept_http2(server)
        await peer.request()
        second = Call().start(cluster)
        assert second.events == ["ready again"]
        assert second.pending is None
        assert second.connection is first.connection
        assert second.connection is not None
        assert second.connection.protocol == 20


async def test_beyond_what_the_peer_allows_there_is_another_connection() -> None:
    async with world() as w, upstream() as server:
        cluster = add(w, server)
        first = Call().start(cluster)
        one = await accept_http2(server, {MAX_CONCURRENT_STREAMS: 1})
        stream_id = await one.request()
        await one.next(h2.events.SettingsAcknowledged)
        second = Call().start(cluster)
        assert second.events == []
        other = await accept_http2(server, {MAX_CONCURRENT_STREAMS: 1})
        await other.request()
        one.answer(stream_id)
        await first.until("end")
        third = Call().start(cluster)
        assert third.connection is first.connection
        assert w.counters()["upstream_cx_total"] == 2


async def test_beyond_what_the_configuration_allows_too() -> None:
    async with world() as w, upstream() as server:
        cluster = add(w, server, {"max_concurrent_streams": 2})
        calls = [Call().start(cluster) for _ in range(5)]
        assert w.counters()["upstream_cx_total"] == 3
        for _ in range(3):
            await accept_http2(server)
        await until(lambda: all(call.events for call in calls))
        connections = [call.connection for call in calls]
        assert sorted(connections.count(connection) for connection in set(connections)) == [1, 2, 2]


async def test_who_finds_no_room_waits_for_a_stream_to_end() -> None:
    async with world() as w, upstream() as server:
        cluster = add(w, server, {"max_concurrent_streams": 1}, **limits(max_connections=1))
        first, second = Call().start(cluster), Call().start(cluster)
        peer = await accept_http2(server)
        stream_id = await peer.request()
        assert second.events == []
        peer.answer(stream_id)
        await second.until("ready again")
        assert first.connection is second.connection
        peer.answer(await peer.request())
        await second.until("end")


async def test_more_room_is_used_at_once() -> None:
    """A peer may raise what it allows, and lower it below what there is."""
    async with world() as w, upstream() as server:
        cluster = add(w, server, **limits(max_connections=1))
        first = Call().start(cluster)
        peer = await accept_http2(server, {MAX_CONCURRENT_STREAMS: 1})
        streams = [await peer.request()]
        await peer.next(h2.events.SettingsAcknowledged)
        second, third = Call().start(cluster), Call().start(cluster)
        assert second.events == third.events == []
        peer.allow(3)
        streams += [await peer.request(), await peer.request()]
        peer.allow(0)
        await peer.next(h2.events.SettingsAcknowledged)
        await peer.next(h2.events.SettingsAcknowledged)
        for stream_id in streams:
            peer.answer(stream_id)
        for call in (first, second, third):
            await call.until("end")
        last = Call().start(cluster)
        assert last.events == []
        peer.allow(1)
        await last.until("ready again")


async def test_before_settings_no_more_begin_than_any_peer_takes() -> None:
    """Those that wait then have the same connection, if the peer takes as many as it was thought to."""
    async with world() as w, upstream() as server:
        cluster = add(w, server)
        calls = [Call().start(cluster) for _ in range(150)]
        raw = await server.accept()
        await until(lambda: any(call.events for call in calls))
        assert len([call for call in calls if call.events]) == 100
        assert w.counters()["upstream_cx_total"] == 1
        peer = Http2Peer(raw, {MAX_CONCURRENT_STREAMS: 150})
        for _ in calls:
            peer.answer(await peer.request())
        for call in calls:
            await call.until("end")
        assert w.counters()["upstream_cx_total"] == 1
        assert "http2.rx_reset" not in w.counters()


async def test_a_peer_that_takes_fewer_than_thought_is_refused_nothing() -> None:
    async with world() as w, upstream() as server:
        cluster = add(w, server)
        calls = [Call().start(cluster) for _ in range(150)]
        raw = await server.accept()
        await until(lambda: any(call.events for call in calls))
        one = Http2Peer(raw, {MAX_CONCURRENT_STREAMS: 100})
        for _ in range(100):
            await one.request()
        other = await accept_http2(server, {MAX_CONCURRENT_STREAMS: 100})
        for _ in range(50):
            await other.request()
        assert all(call.events in (["ready"], ["ready again"]) for call in calls)
        assert w.counters()["upstream_cx_total"] == 2


async def test_a_peer_that_goes_away_before_its_limit_is_known() -> None:
    """Those that waited for it have another connection at once."""
    async with world() as w, upstream() as server:
        cluster = add(w, server)
        calls = [Call().start(cluster) for _ in range(101)]
        raw = await server.accept()
        await until(lambda: any(call.events for call in calls))
        raw.send(SettingsFrame(settings={MAX_CONCURRENT_STREAMS: 100}).serialize() + goaway(2**31 - 1))
        other = await accept_http2(server)
        other.answer(await other.request())
        await calls[100].until("end")


async def test_max_requests_is_the_limit_of_streams() -> None:
    async with world() as w, upstream() as server:
        cluster = add(w, server, **limits(max_requests=2))
        first = Call().start(cluster)
        peer = await accept_http2(server)
        stream_id = await peer.request()
        second, third = Call().start(cluster), Call().start(cluster)
        assert second.events == ["ready again"]
        assert third.events == [f"failure {RESET_OVERFLOW}"]
        assert w.counters()["upstream_rq_active_overflow"] == 1
        peer.answer(stream_id)
        await first.until("end")
        assert Call().start(cluster).events == ["ready again"]


async def test_a_reset_of_one_stream_leaves_the_others() -> None:
    async with world() as w, upstream() as server:
        cluster = add(w, server)
        calls = [Call().start(cluster) for _ in range(4)]
        peer = await accept_http2(server)
        streams = [await peer.request() for _ in calls]
        peer.reset(streams[0], ErrorCodes.CANCEL)
        peer.reset(streams[1], ErrorCodes.REFUSED_STREAM)
        await calls[0].until(f"reset {RESET_REMOTE}")
        await calls[1].until(f"reset {RESET_REMOTE_REFUSED}")
        assert calls[2].encoder is not None
        calls[2].encoder.reset(RESET_LOCAL)
        assert (await peer.next(h2.events.StreamReset)).stream_id == streams[2]
        peer.answer(streams[3])
        await calls[3].until("end")
        counters = w.counters()
        assert counters["upstream_rq_rx_reset"] == 1
        assert counters["upstream_rq_tx_reset"] == 1
        assert counters["http2.rx_reset"] == 2
        assert counters["http2.tx_reset"] == 1
        assert counters["upstream_cx_active"] == 1
        assert "upstream_rq_active" not in counters


async def test_going_away_without_streams() -> None:
    async with world() as w, upstream() as server:
        cluster = add(w, server)
        call = Call().start(cluster)
        peer = await accept_http2(server)
        stream_id = await peer.request()
        peer.answer(stream_id)
        await call.until("end")
        peer.go_away(stream_id)
        assert await peer.closed()
        counters = w.counters()
        assert counters["upstream_cx_close_notify"] == 1
        assert counters["upstream_cx_destroy_local"] == 1
        assert "upstream_cx_destroy_with_active_rq" not in counters
        Call().start(cluster)
        await (await accept_http2(server)).request()


async def test_going_away_loses_no_request() -> None:
    """What the peer has taken goes on; what it has not is told so, and may go to another connection at once."""
    async with world() as w, upstream() as server:
        cluster = add(w, server)
        taken, refused = Again(cluster), Again(cluster)
        taken.start(cluster)
        refused.start(cluster)
        old = await accept_http2(server)
        streams = [await old.request(), await old.request()]
        old.go_away(streams[0])
        await refused.until(f"reset {RESET_REMOTE_REFUSED} stale")
        new = await accept_http2(server)
        new.answer(await new.request())
        assert refused.again is not None
        await refused.again.until("end")
        assert w.counters()["upstream_cx_active"] == 2
        old.answer(streams[0])
        await taken.until("end")
        assert await old.closed()
        assert taken.again is None
        counters = w.counters()
        assert counters["upstream_cx_close_notify"] == 1
        assert "upstream_cx_destroy_with_active_rq" not in counters
        assert "upstream_rq_rx_reset" not in counters


class Again(Call):
    """Goes again when it is reset."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self.cluster = cluster
        self.again: Call | None = None

    def on_reset(self, reason: int, details: str) -> None:
        super().on_reset(reason, details)
        self.again = Call().start(self.cluster)


async def test_a_second_goaway_says_nothing_new() -> None:
    async with world() as w, upstream() as server:
        cluster = add(w, server)
        calls = [Call().start(cluster), Call().start(cluster)]
        peer = await accept_http2(server)
        streams = [await peer.request(), await peer.request()]
        peer.go_away(2**31 - 1)
        peer.go_away(streams[0])
        await calls[1].until(f"reset {RESET_REMOTE_REFUSED} stale")
        peer.answer(streams[0])
        await calls[0].until("end")
        assert await peer.closed()


async def test_the_end_of_the_connection_resets_its_streams() -> None:
    async with world() as w, upstream() as server:
        cluster = add(w, server)
        calls = [Call().start(cluster), Call().start(cluster)]
        peer = await accept_http2(server)
        for _ in calls:
            await peer.request()
        peer.close()
        for call in calls:
            await call.until(f"reset {RESET_TERMINATION}")
        counters = w.counters()
        assert counters["upstream_rq_pending_failure_eject"] == 2
        assert counters["upstream_cx_destroy_remote_with_active_rq"] == 1
        assert "upstream_cx_active" not in counters
        assert "upstream_rq_active" not in counters


async def test_a_broken_protocol_ends_the_connection() -> None:
    async with world() as w, upstream() as server:
        cluster = add(w, server)
        calls = [Call().start(cluster), Call().start(cluster)]
        peer = await accept_http2(server)
        for _ in calls:
            await peer.request()
        peer.send_raw(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        for call in calls:
            await call.until(f"reset {RESET_PROTOCOL_ERROR}")
        assert await peer.closed()
        counters = w.counters()
        assert counters["upstream_cx_protocol_error"] == 1
        assert counters["upstream_rq_tx_reset"] == 2
        assert "upstream_rq_active" not in counters


async def test_max_requests_per_connection() -> None:
    async with world() as w, upstream() as server:
        cluster = add(w, server, common={"max_requests_per_connection": 2})
        calls = [Call().start(cluster) for _ in range(3)]
        one, other = await accept_http2(server), await accept_http2(server)
        streams = [await one.request(), await one.request()]
        assert w.counters()["upstream_cx_max_requests"] == 1
        for stream_id in streams:
            one.answer(stream_id)
        assert await one.closed()
        other.answer(await other.request())
        for call in calls:
            await call.until("end")
        assert w.counters()["upstream_cx_active"] == 1


async def test_idle_connections_time_out() -> None:
    async with world() as w, upstream() as server:
        cluster = add(w, server, common={"idle_timeout": "0.02s"})
        call = Call().start(cluster)
        peer = await accept_http2(server)
        stream_id = await peer.request()
        other = Call(b"POST").start(cluster)
        other_id = await peer.request()
        peer.answer(stream_id)
        await call.until("end")
        peer.answer(other_id)
        await other.until("end")
        assert await peer.closed()
        assert w.counters()["upstream_cx_idle_timeout"] == 1


async def test_old_connections_go_after_their_streams() -> None:
    async with world() as w, upstream() as server:
        cluster = add(w, server, common={"max_connection_duration": "0.02s"})
        call = Call().start(cluster)
        peer = await accept_http2(server)
        stream_id = await peer.request()
        await until(lambda: w.counters().get("upstream_cx_max_duration_reached"))
        assert Call().start(cluster).events == []
        peer.answer(stream_id)
        await call.until("end")
        assert await peer.closed()


async def test_a_peer_that_answers_pings_is_kept() -> None:
    keepalive = {"connection_keepalive": {"interval": "0.01s", "timeout": "10s"}}
    async with world() as w, upstream() as server:
        cluster = add(w, server, keepalive)
        Call().start(cluster)
        peer = await accept_http2(server)
        for _ in range(3):
            await peer.next(h2.events.PingReceived)
        assert w.counters()["upstream_cx_active"] == 1


async def test_a_peer_that_answers_no_ping_is_given_up() -> None:
    keepalive = {"connection_keepalive": {"interval": "0.01s", "timeout": "0.01s"}}
    async with world() as w, upstream() as server:
        cluster = add(w, server, keepalive)
        call = Call().start(cluster)
        await server.accept()
        await call.until(f"reset {RESET_TERMINATION}")
        counters = w.counters()
        assert counters["http2.keepalive_timeout"] == 1
        assert counters["upstream_cx_destroy_local_with_active_rq"] == 1
        assert counters["upstream_rq_pending_failure_eject"] == 1


async def test_draining_lets_streams_end() -> None:
    async with world() as w, upstream() as server:
        cluster = add(w, server)
        calls = [Call().start(cluster), Call().start(cluster)]
        peer = await accept_http2(server)
        streams = [await peer.request(), await peer.request()]
        cluster.hosts[0].drain_pools()
        later = Call().start(cluster)
        new = await accept_http2(server)
        await new.request()
        for call, stream_id in zip(calls, streams, strict=True):
            peer.answer(stream_id)
            await call.until("end")
        assert await peer.closed()
        assert later.connection is not calls[0].connection
        assert w.counters()["upstream_cx_active"] == 1


async def test_draining_closes_what_is_idle() -> None:
    async with world() as w, upstream() as server:
        cluster = add(w, server)
        call = Call().start(cluster)
        peer = await accept_http2(server)
        peer.answer(await peer.request())
        await call.until("end")
        cluster.hosts[0].drain_pools()
        assert await peer.closed()


async def test_draining_serves_who_waits() -> None:
    async with world() as w, upstream() as server:
        cluster = add(w, server)
        call = Call().start(cluster)
        cluster.hosts[0].drain_pools()
        peer = await accept_http2(server)
        peer.answer(await peer.request())
        await call.until("end")
        assert await peer.closed()


async def test_closing_everything_resets_streams() -> None:
    async with world() as w, upstream() as server:
        cluster = add(w, server)
        calls = [Call().start(cluster), Call().start(cluster)]
        peer = await accept_http2(server)
        for _ in calls:
            await peer.request()
        cluster.close()
        for call in calls:
            assert call.events[-1] == f"reset {RESET_TERMINATION}"
        assert await peer.closed()
        assert "upstream_cx_active" not in w.counters()


async def test_connections_are_opened_ahead_for_streams() -> None:
    """Three times the room that is used, of two streams a connection."""
    async with world() as w, upstream() as server:
        ahead = {"preconnect_policy": {"per_upstream_preconnect_ratio": 3.0}}
        cluster = add(w, server, {"max_concurrent_streams": 2}, **ahead)
        Call().start(cluster)
        await until(lambda: w.counters()["upstream_cx_total"] == 2)
        await until(lambda: server.waiting == 2)
        Call().start(cluster)
        assert w.counters()["upstream_cx_total"] == 3


async def test_a_large_request_is_held_by_the_watermark() -> None:
    async with world() as w, upstream() as server:
        cluster = add(w, server, per_connection_buffer_limit_bytes=1024)
        call = Watching(b"POST", b"x" * 200_000)
        call.start(cluster)
        peer = await accept_http2(server)
        stream_id = await peer.request()  # which opens the windows as it reads
        await call.until("below")
        assert call.events[:3] == ["ready", "above", "below"]
        peer.answer(stream_id)
        await call.until("end")


class Watching(Call):
    """Notes watermarks too."""

    def on_above_write_watermark(self) -> None:
        self.events.append("above")

    def on_below_write_watermark(self) -> None:
        self.events.append("below")


async def test_a_connection_that_is_gone_is_freed_without_the_collector() -> None:
    async with world() as w, upstream() as server:
        cluster = add(w, server, {"connection_keepalive": {"interval": "10s", "timeout": "1s"}})
        with only_collected() as garbage:
            call = Call().start(cluster)
            peer = await accept_http2(server)
            peer.answer(await peer.request())
            await call.until("end")
            peer.close()
            assert await peer.closed()
            await until(lambda: "upstream_cx_active" not in w.counters())
            await turns()
            call.connection = call.encoder = None  # the test's own cycle
        assert garbage == []
