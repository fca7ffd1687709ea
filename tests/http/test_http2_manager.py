"""The connection manager on HTTP/2: which version it speaks, what it does to connections, and what it counts."""

from __future__ import annotations

from typing import Any

import pytest

from meshproxy.codec.headers import HeaderMap
from meshproxy.codec.http2.settings import Http2Settings
from meshproxy.config.http2_options import KeepaliveSettings
from meshproxy.http.http2_limits import PrematureResets, ResetLimits
from meshproxy.http.manager_config import AUTO, HTTP1, HTTP2, ConnectionManagerConfig
from tests.codec.http2_frames import PREFACE, Reader, Writer
from tests.http.harness import Downstream, Harness, ScriptedUpstream

GET = ":method=GET :scheme=http :authority=a :path=/"
POST = GET.replace("GET", "POST")
OK_LINE = "HEADERS 1 :status=200"


class Peer:
    """A client of HTTP/2 on a connection of the harness."""

    def __init__(self, harness: Harness, config: ConnectionManagerConfig | None = None, peer: str = "SETTINGS") -> None:
        self.harness = harness
        self.connection: Downstream = harness.connect(config)
        self._writer = Writer()
        self._reader = Reader()
        self.greeting = self.send("PREFACE", peer, "SETTINGS ack")

    def send(self, *lines: str) -> list[str]:
        """Frames in, and what is answered."""
        self.connection.feed(b"".join(self._writer.frames(line) for line in lines))
        return self.received()

    def received(self) -> list[str]:
        """What came since the last call, without the fields that no test is about."""
        self.harness.run_soon()
        written, self.connection.transport.written = self.connection.transport.written, b""
        return [without_own_fields(line) for line in self._reader.lines(written)]

    @property
    def is_closed(self) -> bool:
        """Whether we have closed."""
        return self.connection.transport.closed


def without_own_fields(line: str) -> str:
    return " ".join(word for word in line.split(" ") if not word.startswith(("date=", "server=")))


def waiting() -> ScriptedUpstream:
    """An upstream that says nothing by itself."""
    return ScriptedUpstream(None)


# -- which version


@pytest.mark.parametrize("codec_type", [AUTO, HTTP2])
def test_http2_by_prior_knowledge(codec_type: int) -> None:
    harness = Harness()
    config = harness.config()
    config.codec_type = codec_type
    peer = Peer(harness, config)
    assert peer.greeting[0].startswith("SETTINGS ")
    assert peer.send(f"HEADERS 1 {GET} end") == [f"{OK_LINE} end"]
    assert harness.stats.downstream_cx_http2_total == harness.stats.downstream_cx_http2_active == 1
    assert harness.stats.downstream_rq_http2_total == 1
    assert harness.stats.downstream_cx_http1_total == 0
    peer.connection.leave()
    assert harness.stats.downstream_cx_http2_active == harness.stats.downstream_cx_active == 0


def test_http1_on_the_same_listener() -> None:
    harness = Harness()
    assert harness.exchange(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").startswith(b"HTTP/1.1 200 OK\r\n")
    assert (harness.stats.downstream_cx_http1_total, harness.stats.downstream_cx_http2_total) == (1, 0)


def test_a_listener_for_http1_refuses_the_preface() -> None:
    harness = Harness()
    config = harness.config()
    config.codec_type = HTTP1
    assert harness.connect(config).send(PREFACE).startswith(b"HTTP/1.1 ")
    assert harness.stats.downstream_cx_protocol_error == 1


def test_a_listener_for_http2_refuses_http1() -> None:
    harness = Harness()
    config = harness.config()
    config.codec_type = HTTP2
    connection = harness.connect(config)
    connection.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    lines = Reader().lines(connection.received())
    assert lines[-1] == "GOAWAY 0 PROTOCOL_ERROR"
    assert connection.transport.closed
    assert harness.stats.downstream_cx_protocol_error == 1


def test_the_preface_in_pieces() -> None:
    """Its first 14 bytes decide, in one read, as in Envoy; the rest may come byte by byte."""
    harness = Harness()
    connection = harness.connect()
    connection.feed(PREFACE[:14])
    for at in range(14, len(PREFACE)):
        connection.feed(PREFACE[at : at + 1])
    writer = Writer()
    connection.feed(writer.frames("SETTINGS") + writer.frames(f"HEADERS 1 {GET} end"))
    assert any(line.startswith("HEADERS 1 :status=200") for line in Reader().lines(connection.received()))


# -- streams


def test_streams_are_independent() -> None:
    upstream = waiting()
    harness = Harness(upstream=upstream)
    peer = Peer(harness)
    assert peer.send(f"HEADERS 1 {POST}", f"HEADERS 3 {GET} end") == []
    assert harness.stats.downstream_rq_active == 2
    first, second = upstream.streams
    second.send_response_headers(HeaderMap([(b":status", b"204")]), True)
    assert peer.received() == ["HEADERS 3 :status=204 end"]
    assert peer.send("RST_STREAM 1 CANCEL") == []
    assert first.was_reset
    assert (harness.stats.downstream_rq_active, harness.stats.downstream_rq_rx_reset) == (0, 1)
    assert not peer.is_closed


def test_a_client_that_leaves_resets_its_streams() -> None:
    upstream = waiting()
    harness = Harness(upstream=upstream)
    peer = Peer(harness)
    peer.send(f"HEADERS 1 {GET} end", f"HEADERS 3 {GET} end")
    peer.connection.leave()
    assert [stream.was_reset for stream in upstream.streams] == [True, True]
    assert upstream.done == 2
    assert harness.stats.downstream_rq_active == harness.stats.downstream_cx_active == 0


def test_a_broken_connection() -> None:
    upstream = waiting()
    harness = Harness(upstream=upstream)
    peer = Peer(harness)
    peer.send(f"HEADERS 1 {GET} end")
    assert peer.send("RAW 0 0 0 x") == ["GOAWAY 1 PROTOCOL_ERROR"]
    assert peer.is_closed
    assert upstream.done == 1
    assert harness.stats.downstream_cx_protocol_error == 1


def test_what_a_client_does_not_take_waits_in_its_streams() -> None:
    upstream = waiting()
    harness = Harness(upstream=upstream)
    peer = Peer(harness, peer="SETTINGS 4=5")
    peer.send(f"HEADERS 1 {GET} end")
    (stream,) = upstream.streams
    stream.send_response_headers(HeaderMap([(b":status", b"200")]), False)
    stream.send_response_data(b"hello world", True)
    assert peer.received() == [OK_LINE, "DATA 1 hello"]
    assert peer.send("WINDOW_UPDATE 1 100") == ["DATA 1  world end"]


# -- ends


def test_idle_connections_end_by_a_drain() -> None:
    """A notice, then, after `drain_timeout`, the last stream's identifier, and the end."""
    harness = Harness()
    config = harness.config()
    config.idle_timeout_ms, config.drain_timeout_ms = 10_000.0, 1_000.0
    peer = Peer(harness, config)
    peer.send(f"HEADERS 1 {GET} end")
    harness.advance(10_100)
    assert peer.received() == ["GOAWAY 2147483647 NO_ERROR"]
    assert harness.stats.downstream_cx_idle_timeout == 1
    assert not peer.is_closed
    harness.advance(1_100)
    assert peer.received() == ["GOAWAY 1 NO_ERROR"]
    assert peer.is_closed


def test_streams_that_are_under_way_end_before_their_connection() -> None:
    upstream = waiting()
    harness = Harness(upstream=upstream)
    config = harness.config()
    config.max_connection_duration_ms, config.drain_timeout_ms = 5_000.0, 1_000.0
    peer = Peer(harness, config)
    peer.send(f"HEADERS 1 {GET} end")
    harness.advance(5_100)
    assert peer.received() == ["GOAWAY 2147483647 NO_ERROR"]
    assert peer.send(f"HEADERS 3 {GET} end") == []  # it was on its way
    harness.advance(1_100)
    assert peer.received() == ["GOAWAY 3 NO_ERROR"]
    assert peer.send(f"HEADERS 5 {GET} end") == []
    assert len(upstream.streams) == 2
    for stream in upstream.streams:
        assert not peer.is_closed
        stream.send_response_headers(HeaderMap([(b":status", b"200")]), True)
    assert peer.received() == ["HEADERS 1 :status=200 end", "HEADERS 3 :status=200 end"]
    assert peer.is_closed


def test_as_many_requests_as_a_connection_may_have() -> None:
    """`max_requests_per_connection`: a drain begins with the last of them."""
    harness = Harness()
    config = harness.config()
    config.max_requests_per_connection, config.drain_timeout_ms = 2, 1_000.0
    peer = Peer(harness, config)
    assert peer.send(f"HEADERS 1 {GET} end") == ["HEADERS 1 :status=200 end"]
    lines = peer.send(f"HEADERS 3 {GET} end")
    assert sorted(lines) == ["GOAWAY 2147483647 NO_ERROR", "HEADERS 3 :status=200 end"]
    assert harness.stats.downstream_cx_max_requests_reached == 1
    harness.advance(1_100)
    assert peer.is_closed


# -- pings (`connection_keepalive`)


def keeping(harness: Harness) -> ConnectionManagerConfig:
    config = harness.config()
    config.http2_keepalive = KeepaliveSettings(10_000.0, 2_000.0, 0.0, 0.0)
    return config


def test_pings_that_are_answered() -> None:
    harness = Harness()
    peer = Peer(harness, keeping(harness))
    for _ in range(3):
        harness.advance(9_000)
        assert peer.received() == []
        harness.advance(1_100)
        (line,) = peer.received()
        assert line.startswith("PING ")
        assert peer.send(f"{line} ack") == []
    harness.advance(2_100)
    assert not peer.is_closed


def test_pings_that_are_not_answered() -> None:
    upstream = waiting()
    harness = Harness(upstream=upstream)
    config = keeping(harness)
    peer = Peer(harness, config)
    peer.send(f"HEADERS 1 {GET} end")
    harness.advance(10_100)
    assert [line[:5] for line in peer.received()] == ["PING "]
    peer.send("PING 12345678 ack")  # of another ping
    harness.advance(2_100)
    assert peer.is_closed
    assert upstream.done == 1
    assert config.http2_stats.counts().keepalive_timeout == 1


def test_without_keepalive_no_pings() -> None:
    harness = Harness()
    peer = Peer(harness)
    harness.advance(100_000)
    assert peer.received() == []


# -- what is left of an answer (`stream_flush_timeout`)


def flushing(flush_ms: float, routes: dict[str, Any] | None = None) -> tuple[Harness, ConnectionManagerConfig, Peer]:
    """A peer that has taken the first five bytes of an answer of eleven."""
    upstream = waiting()
    harness = Harness(routes, upstream=upstream)
    config = harness.config()
    config.stream_flush_timeout_ms = flush_ms
    config.stream_idle_timeout_ms = 20_000.0
    peer = Peer(harness, config, "SETTINGS 4=5")
    peer.send(f"HEADERS 1 {GET} end")
    (stream,) = upstream.streams
    stream.send_response_headers(HeaderMap([(b":status", b"200")]), False)
    stream.send_response_data(b"hello world", True)
    assert peer.received() == [OK_LINE, "DATA 1 hello"]
    return harness, config, peer


@pytest.mark.parametrize(("flush_ms", "after_ms"), [(3_000.0, 3_000), (-1.0, 20_000)])
def test_an_answer_that_is_not_taken(flush_ms: float, after_ms: int) -> None:
    """Without the field it is the idle timeout's time; that some of it is taken does not help (measured)."""
    harness, config, peer = flushing(flush_ms)
    harness.advance(after_ms - 100)
    assert peer.send("WINDOW_UPDATE 1 1") == ["DATA 1  "]
    harness.advance(200)
    assert peer.received() == ["RST_STREAM 1 INTERNAL_ERROR"]
    assert config.http2_stats.counts().tx_flush_timeout == 1
    assert not peer.is_closed


def test_an_answer_that_is_taken_in_time() -> None:
    harness, config, peer = flushing(3_000.0)
    assert peer.send("WINDOW_UPDATE 1 100") == ["DATA 1  world end"]
    harness.advance(30_000)
    assert peer.received() == []
    assert config.http2_stats.counts().tx_flush_timeout == 0


def test_an_answer_that_may_wait_for_ever() -> None:
    harness, _, peer = flushing(0.0)
    harness.advance(100_000)
    assert peer.received() == []
    assert peer.send("WINDOW_UPDATE 1 100") == ["DATA 1  world end"]


def test_the_route_s_flush_timeout_comes_first() -> None:
    action = {"cluster": "a", "flush_timeout": "1s"}
    routes = {
        "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": action}]}]
    }
    harness, config, peer = flushing(50_000.0, routes)
    harness.advance(1_100)
    assert peer.received() == ["RST_STREAM 1 INTERNAL_ERROR"]
    assert config.http2_stats.counts().tx_flush_timeout == 1


# -- resets, one after the other


def test_rapid_resets_end_the_connection() -> None:
    """Envoy's defaults: 500 streams, most of them reset without an answer within their first second."""
    harness = Harness(upstream=waiting())
    peer = Peer(harness)
    for stream_id in range(1, 501, 2):
        assert not peer.is_closed
        peer.send(f"HEADERS {stream_id} {GET} end", f"RST_STREAM {stream_id} CANCEL")
    assert peer.is_closed
    assert harness.stats.downstream_rq_too_many_premature_resets == 1
    assert harness.stats.downstream_rq_active == 0


def test_resets_of_streams_that_were_answered_do_not_count() -> None:
    upstream = waiting()
    harness = Harness(upstream=upstream)
    peer = Peer(harness)
    for number in range(600):
        stream_id = 2 * number + 1
        peer.send(f"HEADERS {stream_id} {GET} end")
        upstream.streams[-1].send_response_headers(HeaderMap([(b":status", b"200")]), False)
        peer.send(f"RST_STREAM {stream_id} CANCEL")
    assert not peer.is_closed
    assert harness.stats.downstream_rq_too_many_premature_resets == 0


class Value:
    """What a runtime says."""

    def __init__(self, value: int) -> None:
        self.value = value


@pytest.mark.parametrize(
    ("events", "at"),
    [
        # (reset without an answer, seconds); the number of the stream with which it is enough
        ([(True, 0.0)] * 10, 5),  # half of ten, though not so many have ended
        ([(True, 1.9)] * 10, 5),  # whole seconds, more than one of them
        ([(True, 2.0)] * 100, 0),
        ([(False, 0.0)] * 100, 0),
        ([(False, 0.0), (True, 0.0)] * 50, 10),
        ([(False, 0.0), (False, 0.0), (True, 0.0)] * 50, 0),
        ([(False, 0.0)] * 20 + [(True, 0.0)] * 30, 40),
    ],
)
def test_when_resets_are_too_many(events: list[tuple[bool, float]], at: int) -> None:
    """At least half of what has ended, or of the first ten (`overload.premature_reset_total_stream_count`)."""
    limits = ResetLimits(Value(10), Value(1))  # type: ignore[arg-type]
    count = PrematureResets(limits)
    told = [number for number, event in enumerate(events, 1) if count.on_stream_end(*event)]
    assert (told[0] if told else 0) == at


# -- limits of the codec, as the manager counts them


def test_a_flood_is_no_protocol_error() -> None:
    harness = Harness()
    config = harness.config()
    config.http2 = Http2Settings(max_empty_frames=3)
    peer = Peer(harness, config)
    peer.send(f"HEADERS 1 {POST}")
    peer.send(*["RAW 0 0 1 "] * 10)
    assert peer.is_closed
    assert config.http2_stats.counts().inbound_empty_frames_flood == 1
    assert harness.stats.downstream_cx_protocol_error == 0


# -- names with underscores


def test_a_request_with_an_underscore_is_reset() -> None:
    """`headers_with_underscores_action: REJECT_REQUEST`: on HTTP/1 that is 400."""
    harness = Harness()
    config = harness.config()
    config.headers_with_underscores_action = 1
    peer = Peer(harness, config)
    assert peer.send(f"HEADERS 1 {GET} a_b=c end") == ["RST_STREAM 1 INTERNAL_ERROR"]
    assert peer.send(f"HEADERS 3 {GET} end") == [f"{OK_LINE.replace('1', '3')} end"]
    assert config.http2_stats.counts().requests_rejected_with_underscores_in_headers == 1
    assert harness.stats.downstream_cx_protocol_error == 0


def test_fields_with_underscores_are_dropped() -> None:
    harness = Harness()
    config = harness.config()
    config.headers_with_underscores_action = 2
    peer = Peer(harness, config)
    assert peer.send(f"HEADERS 1 {GET} a_b=c d_e=f end") == [f"{OK_LINE} end"]
    assert config.http2_stats.counts().dropped_headers_with_underscores == 2
