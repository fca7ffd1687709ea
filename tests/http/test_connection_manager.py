"""The end of a downstream connection: idle and maximum times, and the drain sequence that follows them."""

from __future__ import annotations

import pytest

from meshproxy.http.manager_config import ConnectionManagerConfig
from meshproxy.observe.access_log import AccessLog
from meshproxy.observe.stream_info import StreamInfo
from tests.http.harness import Harness, ScriptedUpstream, get
from tests.support.garbage import only_collected


class Records(AccessLog):
    """Keeps what was logged: the kind of record, and the bytes on the wire."""

    measures = True

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int, int, int]] = []

    def log(self, info: StreamInfo) -> None:
        assert info.wire is not None
        wire = info.wire
        self.seen.append((info.log_type, wire.received, wire.fields_received, wire.sent, wire.fields_sent))


def limited(made: Harness, by: str, drain_ms: float) -> ConnectionManagerConfig:
    """A configuration that ends connections after 100 ms, by idleness or age."""
    config = made.config()
    config.idle_timeout_ms = 100.0 if by == "idle" else 0.0
    config.max_connection_duration_ms = 100.0 if by == "age" else 0.0
    config.drain_timeout_ms = drain_ms
    config.delayed_close_timeout_ms = 0.0
    return config


@pytest.mark.parametrize("by", ["idle", "age"])
def test_a_connection_that_was_never_used_ends_at_once(by: str) -> None:
    made = Harness()
    downstream = made.connect(limited(made, by, 5_000.0))
    made.advance(110)
    assert downstream.transport.closed


@pytest.mark.parametrize("by", ["idle", "age"])
def test_a_used_connection_waits_for_a_request_on_its_way(by: str) -> None:
    made = Harness()
    downstream = made.connect(limited(made, by, 5_000.0))
    assert b"connection: close" not in downstream.send(get())
    made.advance(110)
    assert not downstream.transport.closed
    assert b"connection: close" in downstream.send(get())
    assert downstream.transport.closed


@pytest.mark.parametrize("by", ["idle", "age"])
def test_a_used_connection_ends_after_the_drain_timeout(by: str) -> None:
    made = Harness()
    downstream = made.connect(limited(made, by, 50.0))
    downstream.send(get())
    made.advance(110)
    assert not downstream.transport.closed
    made.advance(60)
    assert downstream.transport.closed


def test_a_stream_outlives_the_drain_timeout() -> None:
    made = Harness(upstream=ScriptedUpstream(None))
    downstream = made.connect(limited(made, "age", 50.0))
    downstream.send(get())
    made.advance(110)
    made.advance(60)
    assert not downstream.transport.closed
    made.upstream.streams[0].send_local_reply(204)
    assert b"connection: close" in downstream.received()
    assert downstream.transport.closed


def test_a_safe_maximum_duration_waits_however_long() -> None:
    made = Harness()
    config = limited(made, "age", 0.0)
    config.safe_max_connection_duration = True
    downstream = made.connect(config)
    downstream.send(get())
    made.advance(100_000)
    assert not downstream.transport.closed
    assert b"connection: close" in downstream.send(get())
    assert downstream.transport.closed


@pytest.mark.parametrize("pipelined", [True, False])
def test_who_does_not_take_answers_is_not_asked_for_more(pipelined: bool) -> None:
    made = Harness(upstream=ScriptedUpstream(None))
    downstream = made.connect()
    downstream.send(get("/1") + get("/2") if pipelined else get("/1"))
    downstream.take_nothing()
    made.upstream.streams[0].send_local_reply(204)
    made.run_soon()
    if not pipelined:
        downstream.send(get("/2"))
    assert len(made.upstream.streams) == 1
    downstream.take_all()
    made.run_soon()
    assert len(made.upstream.streams) == 2


def test_what_waits_when_the_peer_leaves_is_never_read() -> None:
    made = Harness(upstream=ScriptedUpstream(None))
    downstream = made.connect()
    downstream.send(get("/1") + get("/2"))
    downstream.take_nothing()
    made.upstream.streams[0].send_local_reply(204)
    downstream.leave()
    downstream.take_all()
    made.run_soon()
    assert len(made.upstream.streams) == 1


def test_the_time_for_a_head_does_not_run_while_none_is_read() -> None:
    made = Harness()
    config = made.config()
    config.request_headers_timeout_ms = 100.0
    downstream = made.connect(config)
    downstream.send(get())
    downstream.take_nothing()
    downstream.send(get())
    downstream.send(get())
    made.advance(110)
    assert downstream.received() == b""
    downstream.take_all()
    assert downstream.received().startswith(b"HTTP/1.1 200 OK")


def test_pipelined_requests_leave_others_their_turn() -> None:
    made = Harness()
    downstream = made.connect()
    at_once = downstream.feed_in_one_turn(get() * 100)
    assert 0 < at_once.count(b"HTTP/1.1 200 OK") <= 16
    assert (at_once + downstream.received()).count(b"HTTP/1.1 200 OK") == 100


def test_what_a_stream_had_on_the_wire() -> None:
    """Envoy counts all of a sent field line, and all but the space behind the colon of a received one."""
    made = Harness(upstream=ScriptedUpstream(None))
    config = made.config()
    records = Records()
    config.access_logs = (records,)
    config.measures = True
    config.access_log_on_new_request = True
    downstream = made.connect(config)
    received = sum(len(line) + 2 - 1 for line in ("host: h", "x-a: 1"))
    for path in ("/", "/longer"):
        request = get(path, ("x-a", "1"))
        downstream.feed(request)
        made.upstream.streams[-1].send_local_reply(200, b"hello")
        made.run_soon()
        written, downstream.transport.written = downstream.transport.written, b""
        fields = written.split(b"\r\n\r\n")[0].partition(b"\r\n")[2] + b"\r\n"
        assert records.seen[0] == ("DownstreamStart", len(request), received, 0, 0)
        assert records.seen[1] == ("DownstreamEnd", len(request), received, len(written), len(fields))
        records.seen.clear()


def test_a_connection_that_is_gone_is_freed_without_the_collector() -> None:
    made = Harness()
    config = limited(made, "idle", 5_000.0)
    config.request_headers_timeout_ms = 1_000.0
    downstream = made.connect(config)
    with only_collected() as found:
        downstream.leave()
        del downstream
    assert found == []
