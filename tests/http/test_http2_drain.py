"""What a drain, and a head that does not end, do to a connection of HTTP/2."""

from __future__ import annotations

import pytest

from tests.codec.http2_frames import PREFACE
from tests.http.harness import Harness, Owner
from tests.http.test_http2_manager import GET, Peer, waiting
from tests.support.garbage import only_collected
from tests.support.http2_wire import headers

NOTICE = "GOAWAY 2147483647 NO_ERROR"
FIELDS = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")]


def peer_of(harness: Harness, **timeouts: float) -> Peer:
    """A connection, after its greeting."""
    config = harness.config()
    config.drain_timeout_ms = 1_000.0
    for name, value in timeouts.items():
        setattr(config, name, value)
    return Peer(harness, config)


def test_a_drain_tells_the_client_at_once() -> None:
    harness = Harness(upstream=waiting())
    peer = peer_of(harness)
    peer.send(f"HEADERS 1 {GET} end")
    peer.connection.manager.handler.start_drain(0.0)
    assert peer.received() == [NOTICE]
    assert harness.stats.downstream_cx_drain_close == 1
    peer.connection.manager.handler.start_drain(0.0)
    assert peer.received() == []
    assert harness.stats.downstream_cx_drain_close == 1
    harness.advance(1_100)
    assert peer.received() == ["GOAWAY 1 NO_ERROR"]
    assert not peer.is_closed
    peer.connection.leave()


def test_a_gradual_drain_tells_it_later() -> None:
    harness = Harness(upstream=waiting())
    peer = peer_of(harness)
    peer.send(f"HEADERS 1 {GET} end")
    peer.connection.manager.handler.start_drain(5_000.0)
    harness.advance(4_000)
    assert peer.received() == []
    harness.advance(1_200)
    assert peer.received() == [NOTICE]
    peer.connection.leave()


def test_the_end_of_the_process_does_not_wait_for_a_gradual_drain() -> None:
    harness = Harness(upstream=waiting())
    peer = peer_of(harness)
    peer.send(f"HEADERS 1 {GET} end")
    peer.connection.manager.handler.start_drain(50_000.0)
    peer.connection.manager.handler.start_drain(0.0)
    assert peer.received() == [NOTICE]
    peer.connection.leave()


def test_a_drain_waits_for_an_answer_of_http1() -> None:
    harness = Harness(upstream=waiting())
    downstream = harness.connect()
    downstream.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    downstream.manager.handler.start_drain(0.0)
    assert harness.stats.downstream_cx_drain_close == 0
    assert not downstream.transport.closed
    downstream.leave()


def test_a_client_that_has_said_nothing_yet_is_not_told() -> None:
    harness = Harness()
    downstream = harness.connect()
    downstream.manager.handler.start_drain(0.0)
    assert downstream.received() == b""
    assert not downstream.transport.closed
    assert downstream.send(PREFACE) != b""
    downstream.leave()


def test_an_idle_connection_that_is_closed_says_what_it_has_looked_at() -> None:
    harness = Harness()
    peer = peer_of(harness)
    peer.send(f"HEADERS 1 {GET} end")
    peer.connection.manager.handler.close_idle(0.0)
    assert peer.received() == ["GOAWAY 1 NO_ERROR"]
    assert peer.is_closed


LIMITS = ["request_headers_timeout_ms", "request_timeout_ms", "stream_idle_timeout_ms"]
COUNTERS = ["downstream_rq_header_timeout", "downstream_rq_timeout", "downstream_rq_idle_timeout"]


@pytest.mark.parametrize(("limit", "counter"), list(zip(LIMITS, COUNTERS, strict=True)))
@pytest.mark.parametrize("size", [10, 30])
def test_a_head_that_does_not_end(limit: str, counter: str, size: int) -> None:
    harness = Harness()
    peer = peer_of(harness, **{**dict.fromkeys(LIMITS, 60_000.0), limit: 5_000.0})
    peer.connection.feed(headers(1, FIELDS, end=True)[:size])
    harness.advance(4_000)
    assert peer.received() == []
    harness.advance(1_200)
    assert peer.received() == ["GOAWAY 0 NO_ERROR"]
    assert peer.is_closed
    assert [getattr(harness.stats, name) for name in COUNTERS] == [int(name == counter) for name in COUNTERS]


def test_a_head_that_ends_in_time() -> None:
    harness = Harness()
    peer = peer_of(harness, stream_idle_timeout_ms=5_000.0)
    head = headers(1, FIELDS, end=True)
    for stream in (1, 3):
        peer.connection.feed(head[:5])  # not even the frame's kind is known to be whole
        peer.connection.feed(head[5:20])
        harness.advance(4_000)
        peer.connection.feed(head[20:])
        assert peer.received()[0].startswith(f"HEADERS {stream} :status=200")
        head = headers(3, FIELDS, end=True)
    harness.advance(60_000)
    assert not peer.is_closed
    peer.connection.leave()


def test_streams_that_are_cancelled_leave_nothing_for_the_collector() -> None:
    harness = Harness(upstream=waiting())
    peer = peer_of(harness)
    with only_collected() as left:
        for stream in range(1, 41, 2):
            peer.send(f"HEADERS {stream} {GET} end")
        harness.upstream.streams.clear()
        for stream in range(1, 41, 2):
            peer.send(f"RST_STREAM {stream} CANCEL")
        assert harness.stats.downstream_rq_active == 0
    assert left == []
    assert not peer.is_closed
    peer.connection.leave()


def test_the_owner_is_asked_when_an_answer_begins() -> None:
    """Of a connection that is new in a drain."""
    harness = Harness()
    peer = peer_of(harness)
    owner = peer.connection.manager.owner
    assert isinstance(owner, Owner)
    owner.draining = True
    lines = peer.send(f"HEADERS 1 {GET} end")
    assert sorted(lines) == [NOTICE, "HEADERS 1 :status=200 end"]
    peer.connection.leave()
