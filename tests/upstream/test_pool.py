"""Pools on loopback sockets. The stats and the order of connections are those of Envoy's HTTP/1 pool."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from meshproxy.errors import (
    RESET_CONNECT_FAILURE,
    RESET_CONNECT_TIMEOUT,
    RESET_LOCAL,
    RESET_OVERFLOW,
    RESET_PROTOCOL_ERROR,
    RESET_TERMINATION,
)
from meshproxy.net.connection import CLOSED, LINGERING
from meshproxy.upstream.http1_connection import Http1UpstreamConnection, _LastDecoder
from tests.support.garbage import only_collected
from tests.upstream.harness import OK, Call, Peer, cluster_dict, endpoint, until, upstream, world


def limits(**fields: int) -> dict[str, Any]:
    """`circuit_breakers` of the default priority."""
    return {"circuit_breakers": {"thresholds": [fields]}}


async def test_a_request_and_its_response() -> None:
    async with world() as w, upstream() as server:
        cluster = w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
        call = Call().start(cluster)
        assert call.events == []
        peer = await server.accept()
        assert await peer.request() == b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
        assert w.counters()["upstream_rq_active"] == 1
        peer.send(OK)
        await call.until("end")
        assert call.events == ["ready", "200", "end"]
        assert call.received == b"ok"
        counters = w.counters()
        assert counters["upstream_cx_total"] == counters["upstream_cx_active"] == 1
        assert counters["upstream_cx_http1_total"] == 1
        assert counters["upstream_rq_total"] == counters["upstream_rq_pending_total"] == 1
        assert "upstream_rq_active" not in counters
        assert counters["upstream_cx_rx_bytes_total"] == len(OK)
        assert counters["upstream_cx_tx_bytes_total"] == len(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        assert cluster.hosts[0].stats.rq_total == 1
        assert cluster.hosts[0].stats.rq_active == 0


async def test_an_idle_connection_is_used_again_at_once() -> None:
    async with world() as w, upstream() as server:
        cluster = w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
        first = Call().start(cluster)
        peer = await server.accept()
        await peer.request()
        peer.send(OK)
        await first.until("end")
        second = Call().start(cluster)
        assert second.events == ["ready again"]
        assert second.pending is None
        await peer.request()
        peer.send(OK)
        await second.until("end")
        assert first.connection is second.connection
        assert w.counters()["upstream_cx_total"] == 1
        assert w.counters()["upstream_rq_pending_total"] == 1


async def test_of_idle_connections_the_one_used_last_comes_first() -> None:
    async with world() as w, upstream() as server:
        cluster = w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
        calls = [Call().start(cluster), Call().start(cluster)]
        peers = [await server.accept(), await server.accept()]
        for peer in peers:
            await peer.request()
        for call, peer in zip(calls, peers, strict=True):
            peer.send(OK)
            await until(lambda: any("end" in one.events for one in calls))
            assert call is not None
        await until(lambda: all("end" in one.events for one in calls))
        last = Call().start(cluster)
        used_last = peers[1]
        await used_last.request()
        used_last.send(OK)
        await last.until("end")


async def test_a_stale_connection_tells_so() -> None:
    """The peer closed the reused connection, and had not sent a byte for this request."""
    async with world() as w, upstream() as server:
        cluster = w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
        first = Call().start(cluster)
        peer = await server.accept()
        await peer.request()
        peer.send(OK)
        await first.until("end")
        second = Call().start(cluster)
        await peer.request()
        peer.close()
        await second.until(f"reset {RESET_TERMINATION} stale")
        counters = w.counters()
        assert counters["upstream_cx_destroy_remote_with_active_rq"] == 1
        assert "upstream_rq_active" not in counters
        assert "upstream_cx_active" not in counters
        third = Call().start(cluster)
        assert third.events == []
        peer = await server.accept()
        peer.reset()
        await third.until(f"reset {RESET_TERMINATION}")


async def test_a_response_that_is_cut_short_is_reset() -> None:
    async with world() as w, upstream() as server:
        cluster = w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
        call = Call().start(cluster)
        peer = await server.accept()
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc")
        await until(lambda: call.received == b"abc")
        peer.close()
        await call.until(f"reset {RESET_PROTOCOL_ERROR}")
        assert "upstream_rq_active" not in w.counters()


async def test_a_response_that_the_end_of_the_connection_ends() -> None:
    async with world() as w, upstream() as server:
        cluster = w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
        call = Call().start(cluster)
        peer = await server.accept()
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\nabc")
        peer.close()
        await call.until("end")
        assert call.events == ["ready", "200", "end"]
        assert call.received == b"abc"
        assert "upstream_cx_active" not in w.counters()


async def test_what_is_held_back_outlives_the_connection() -> None:
    """A body that waits because its reader is slow is cut short only when it has been read."""
    async with world() as w, upstream() as server:
        cluster = w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
        call = Call().start(cluster)
        peer = await server.accept()
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")
        await call.until("200")
        assert call.encoder is not None
        assert call.connection is not None
        call.encoder.read_disable(True)
        peer.send(b"abc")
        await until(lambda: w.counters().get("upstream_cx_rx_bytes_total") == 41)
        peer.close()
        await until(lambda: isinstance(_codec_decoder(call), _LastDecoder))
        assert call.received == b""
        call.encoder.read_disable(False)
        await call.until(f"reset {RESET_PROTOCOL_ERROR}")
        assert call.received == b"abc"
        assert "upstream_rq_active" not in w.counters()


async def test_connection_close_is_obeyed() -> None:
    async with world() as w, upstream() as server:
        cluster = w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
        call = Call().start(cluster)
        peer = await server.accept()
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        await call.until("end")
        assert await peer.eof() == b""
        counters = w.counters()
        assert counters["upstream_cx_destroy_local"] == 1
        assert "upstream_cx_active" not in counters


async def test_a_connection_that_is_gone_is_freed_without_the_collector() -> None:
    async with world() as w, upstream() as server:
        cluster = w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
        with only_collected() as found:
            call = Call().start(cluster)
            peer = await server.accept()
            await peer.request()
            peer.send(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            await call.until("end")
            assert await peer.eof() == b""
            await until(lambda: "upstream_cx_active" not in w.counters())
            call.connection = call.encoder = None  # the test's own cycle
        assert found == []


async def test_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        async with world() as w:
            cluster = w.add(cluster_dict(endpoint("127.0.0.1", port)))
            calls = [Call().start(cluster), Call().start(cluster)]
            await until(lambda: all(call.events for call in calls))
            for call in calls:
                assert call.events == [f"failure {RESET_CONNECT_FAILURE} delayed connect error: Connection refused"]
            await until(lambda: w.counters().get("upstream_cx_connect_fail") == 2)
            counters = w.counters()
            assert counters["upstream_rq_pending_failure_eject"] == 2
            assert counters["upstream_cx_destroy"] == 2
            assert "upstream_rq_pending_active" not in counters
            assert "upstream_cx_active" not in counters
            assert cluster.hosts[0].stats.cx_connect_fail == 2


async def test_connect_timeout() -> None:
    """A full accept queue swallows the connection attempt."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
            async with world() as w:
                cluster = w.add(cluster_dict(endpoint("127.0.0.1", port), connect_timeout="0.02s"))
                call = Call().start(cluster)
                await until(lambda: call.events)
                assert call.events == [f"failure {RESET_CONNECT_TIMEOUT}"]
                counters = w.counters()
                assert counters["upstream_cx_connect_timeout"] == counters["upstream_cx_connect_fail"] == 1
        finally:
            for filler in fillers:
                filler.close()


async def test_max_connections_makes_requests_wait() -> None:
    async with world() as w, upstream() as server:
        cluster = w.add(cluster_dict(endpoint("127.0.0.1", server.port), **limits(max_connections=1)))
        first, second = Call().start(cluster), Call().start(cluster)
        peer = await server.accept()
        await peer.request()
        assert w.counters()["upstream_cx_overflow"] == 2  # when it was asked for, and when the first had its connection
        assert w.counters()["upstream_rq_pending_active"] == 1
        assert w.counters()["circuit_breakers.default.cx_open"] == 1
        peer.send(OK)
        await second.until("ready again")
        assert first.events == ["ready", "200", "end"]
        await peer.request()
        peer.send(OK)
        await second.until("end")
        assert server.waiting == 0
        assert "upstream_rq_pending_active" not in w.counters()


async def test_a_host_without_a_connection_gets_one_beyond_the_limit() -> None:
    async with world() as w, upstream() as one, upstream() as other:
        ends = [endpoint("127.0.0.1", one.port), endpoint("127.0.0.1", other.port)]
        cluster = w.add(cluster_dict(*ends, **limits(max_connections=1)))
        calls = [Call().start(cluster, host) for host in cluster.hosts]
        for server, call in zip((one, other), calls, strict=True):
            peer = await server.accept()
            await peer.request()
            peer.send(OK)
            await call.until("end")
        assert w.counters()["upstream_cx_overflow"] == 1


async def test_max_pending_requests() -> None:
    async with world() as w, upstream() as server:
        cluster = w.add(cluster_dict(endpoint("127.0.0.1", server.port), **limits(max_pending_requests=1)))
        first, second = Call().start(cluster), Call().start(cluster)
        assert second.events == [f"failure {RESET_OVERFLOW}"]
        assert first.events == []
        assert w.counters()["upstream_rq_pending_overflow"] == 1
        await server.accept()
        await first.until("ready")


async def test_max_requests() -> None:
    async with world() as w, upstream() as server:
        cluster = w.add(cluster_dict(endpoint("127.0.0.1", server.port), **limits(max_requests=1)))
        first, second = Call().start(cluster), Call().start(cluster)
        await until(lambda: first.events and second.events)
        assert first.events == ["ready"]
        assert second.events == [f"failure {RESET_OVERFLOW}"]
        assert w.counters()["circuit_breakers.default.rq_open"] == 1


async def test_priorities_have_limits_and_connections_of_their_own() -> None:
    async with world() as w, upstream() as server:
        cluster = w.add(cluster_dict(endpoint("127.0.0.1", server.port), **limits(max_pending_requests=0)))
        assert Call().start(cluster).events == [f"failure {RESET_OVERFLOW}"]
        call = Call().start(cluster, priority=1)
        await server.accept()
        await call.until("ready")


async def test_a_request_that_waits_can_be_cancelled() -> None:
    async with world() as w, upstream() as server:
        cluster = w.add(cluster_dict(endpoint("127.0.0.1", server.port), **limits(max_connections=1)))
        Call().start(cluster)
        waiting = Call().start(cluster)
        peer = await server.accept()
        await peer.request()
        assert waiting.pending is not None
        waiting.pending.cancel()
        waiting.pending.cancel()
        assert w.counters()["upstream_rq_cancelled"] == 1
        peer.send(OK)
        await until(lambda: "upstream_rq_active" not in w.counters())
        assert waiting.events == []


async def test_a_reset_closes_the_connection() -> None:
    async with world() as w, upstream() as server:
        cluster = w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
        call = Call().start(cluster)
        peer = await server.accept()
        await peer.request()
        assert call.encoder is not None
        call.encoder.reset(RESET_LOCAL)
        await peer.eof()
        assert call.events == ["ready"]
        counters = w.counters()
        assert counters["upstream_cx_destroy_local_with_active_rq"] == 1
        assert "upstream_rq_active" not in counters
        assert "upstream_cx_active" not in counters


async def test_max_requests_per_connection() -> None:
    options = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "common_http_protocol_options": {"max_requests_per_connection": 2},
            "explicit_http_config": {"http_protocol_options": {}},
        }
    }
    async with world() as w, upstream() as server:
        cluster = w.add(cluster_dict(endpoint("127.0.0.1", server.port), typed_extension_protocol_options=options))
        peers = []
        for number in range(3):
            call = Call().start(cluster)
            if number != 1:
                peers.append(await server.accept())
            await peers[-1].request()
            peers[-1].send(OK)
            await call.until("end")
        assert await peers[0].eof() == b""
        assert w.counters()["upstream_cx_max_requests"] == 1
        assert w.counters()["upstream_cx_total"] == 2


async def test_bytes_that_nobody_asked_for_close_the_connection() -> None:
    async with world() as w, upstream() as server:
        cluster = w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
        call = Call().start(cluster)
        peer = await server.accept()
        await peer.request()
        peer.send(OK)
        await call.until("end")
        peer.send(OK)
        await peer.eof()
        counters = w.counters()
        assert counters["upstream_cx_protocol_error"] == 1
        assert "upstream_cx_active" not in counters


async def test_a_malformed_response() -> None:
    async with world() as w, upstream() as server:
        cluster = w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
        call = Call().start(cluster)
        peer = await server.accept()
        await peer.request()
        peer.send(b"not HTTP at all\r\n\r\n")
        await call.until(f"reset {RESET_PROTOCOL_ERROR}")
        await peer.eof()
        assert w.counters()["upstream_cx_protocol_error"] == 1
        assert "upstream_rq_active" not in w.counters()


async def test_idle_connections_time_out() -> None:
    fields: dict[str, Any] = {"common_http_protocol_options": {"idle_timeout": "0.02s"}}
    async with world() as w, upstream() as server:
        cluster = w.add(cluster_dict(endpoint("127.0.0.1", server.port), **fields))
        call = Call().start(cluster)
        peer = await server.accept()
        await peer.request()
        peer.send(OK)
        await call.until("end")
        assert await peer.eof() == b""
        assert w.counters()["upstream_cx_idle_timeout"] == 1


async def test_old_connections_go_after_their_stream() -> None:
    fields: dict[str, Any] = {"common_http_protocol_options": {"max_connection_duration": "0.02s"}}
    async with world() as w, upstream() as server:
        cluster = w.add(cluster_dict(endpoint("127.0.0.1", server.port), **fields))
        call = Call().start(cluster)
        peer = await server.accept()
        await peer.request()
        await until(lambda: w.counters().get("upstream_cx_max_duration_reached"))
        peer.send(OK)
        await call.until("end")
        assert await peer.eof() == b""


async def test_draining_lets_streams_end() -> None:
    async with world() as w, upstream() as server:
        cluster = w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
        idle, busy = Call().start(cluster), Call().start(cluster)
        peers = [await server.accept(), await server.accept()]
        for peer in peers:
            await peer.request()
        peers[0].send(OK)
        await until(lambda: "end" in idle.events or "end" in busy.events)
        cluster.hosts[0].drain_pools()
        assert await peers[0].eof() == b""
        peers[1].send(OK)
        await until(lambda: "end" in idle.events and "end" in busy.events)
        assert await peers[1].eof() == b""
        assert "upstream_cx_active" not in w.counters()


async def test_draining_serves_who_waits() -> None:
    async with world() as w, upstream() as server:
        cluster = w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
        call = Call().start(cluster)
        cluster.hosts[0].drain_pools()
        peer = await server.accept()
        await peer.request()
        peer.send(OK)
        await call.until("end")
        assert await peer.eof() == b""


async def test_a_large_request_is_held_by_the_watermark() -> None:
    async with world() as w, upstream() as server:
        cluster = w.add(
            cluster_dict(endpoint("127.0.0.1", server.port), per_connection_buffer_limit_bytes=1024),
        )
        body = b"x" * 20_000_000
        call = Watching(b"POST", body)
        call.start(cluster)
        peer = await server.accept()
        await peer.request()
        await until(lambda: "above" in call.events)
        assert await peer.read(len(body)) == body
        await call.until("below")
        peer.send(OK)
        await call.until("end")
        assert w.counters()["upstream_flow_control_backed_up_total"] >= 1


async def test_what_answers_before_it_took_the_request_is_not_used_again() -> None:
    async with world() as w, upstream() as server:
        cluster = w.add(
            cluster_dict(endpoint("127.0.0.1", server.port), per_connection_buffer_limit_bytes=1024),
        )
        call = Watching(b"POST", b"x" * 20_000_000)
        call.start(cluster)
        peer = await server.accept()
        await peer.request()
        await until(lambda: "above" in call.events)
        peer.send(OK)
        await call.until("end")
        await until(lambda: "upstream_cx_active" not in w.counters())
        second = Call().start(cluster)
        await second.until("ready")
        assert await peer.read(20_000_000) == b"x" * 20_000_000
        assert await peer.eof() == b""


async def test_what_answers_and_never_takes_the_request_is_given_up() -> None:
    async with world() as w, upstream() as server:
        cluster = w.add(
            cluster_dict(endpoint("127.0.0.1", server.port), per_connection_buffer_limit_bytes=1024),
        )
        call = Watching(b"POST", b"x" * 20_000_000)
        call.start(cluster)
        peer = await server.accept()
        await peer.request()
        await until(lambda: "above" in call.events)
        assert call.connection is not None
        connection = call.connection.connection
        assert connection is not None
        peer.send(OK)
        await call.until("end")
        await until(lambda: connection.state == LINGERING)
        assert connection.write_buffer_bytes > 1024
        while connection.state != CLOSED:  # the kernel may still take some, but only so much
            connection.on_linger_timer()
            await asyncio.sleep(0)
        await until(lambda: not connection.connected)


def _codec_decoder(call: Call) -> object:
    """What the connection's codec decodes for: another since the end of the connection was told."""
    assert isinstance(call.connection, Http1UpstreamConnection)
    return call.connection._codec.decoder


class Watching(Call):
    def on_above_write_watermark(self) -> None:
        self.events.append("above")

    def on_below_write_watermark(self) -> None:
        self.events.append("below")


async def test_closing_everything_resets_streams() -> None:
    async with upstream() as server:
        async with world() as w:
            cluster = w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
            call = Call().start(cluster)
            peer = await server.accept()
            await peer.request()
        assert call.events == ["ready", f"reset {RESET_TERMINATION}"]
        await peer.eof()
        await asyncio.sleep(0)


async def test_connections_are_opened_ahead() -> None:
    policy: dict[str, Any] = {"preconnect_policy": {"per_upstream_preconnect_ratio": 2.0}}
    async with world() as w, upstream() as server:
        cluster = w.add(cluster_dict(endpoint("127.0.0.1", server.port), **policy))
        first = Call().start(cluster)
        peers = [await server.accept(), await server.accept()]
        await first.until("ready")
        await until(lambda: "upstream_rq_pending_active" not in w.counters())
        second = Call().start(cluster)
        await second.until("ready")
        peers += [await server.accept(), await server.accept()]  # two requests are active: four connections
        assert w.counters()["upstream_cx_total"] == 4
        assert server.waiting == 0
        w.manager.remove("c")
        idle = [peer for peer in peers if not (await _began(peer))]
        assert len(idle) == 2


async def _began(peer: Peer) -> bool:
    """Whether a request came on the connection, which ends where none did."""
    data = await peer.read_some()
    return bool(data)


async def test_none_are_opened_ahead_to_an_unhealthy_host() -> None:
    policy: dict[str, Any] = {"preconnect_policy": {"per_upstream_preconnect_ratio": 3.0}}
    async with world() as w, upstream() as server:
        unhealthy = endpoint("127.0.0.1", server.port, health_status="UNHEALTHY")
        cluster = w.add(cluster_dict(unhealthy, **policy))
        call = Call().start(cluster)
        await server.accept()
        await call.until("ready")
        assert w.counters()["upstream_cx_total"] == 1
