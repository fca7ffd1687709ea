"""A stream's life: refused requests, timeouts, disconnects, routes that are picked anew, and its one end."""

from __future__ import annotations

from typing import Any

import pytest

from meshproxy.codec.headers import HeaderMap
from meshproxy.http.access_log import AccessLog
from meshproxy.http.filter import CONTINUE, STOP, HttpFilter
from meshproxy.http.stream import Stream
from meshproxy.observe.response_flags import short_names
from meshproxy.observe.stream_info import StreamInfo
from tests.http.harness import TO_A, Harness, ScriptedUpstream, get, head

OK = head("200 OK", ("content-length", "0"))


class Log(AccessLog):
    """Keeps code, flags and details of every stream."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, info: StreamInfo) -> None:
        self.lines.append(f"{info.response_code} {short_names(info.response_flags)} {info.response_code_details}")


def waiting(**settings: Any) -> tuple[Harness, Any, Log]:
    """A connection manager whose upstream never answers, with these settings; and its access log."""
    made = Harness(upstream=ScriptedUpstream(None))
    config = made.config()
    log = Log()
    config.access_logs = (log,)
    for name, value in settings.items():
        setattr(config, name, value)
    return made, config, log


def test_a_stream_is_logged_and_told_once() -> None:
    made = Harness()
    config = made.config()
    log = Log()
    config.access_logs = (log,)
    connection = made.connect(config)
    assert connection.send(get("/")) == OK
    connection.leave()
    assert [line.split(" ")[0] for line in log.lines] == ["200"]
    assert made.upstream.done == 1
    assert made.stats.downstream_rq_active == 0
    assert made.stats.downstream_rq_2xx == 1


@pytest.mark.parametrize(
    ("request_bytes", "status", "log_line"),
    [
        (get("/", ("connection", "host")), b"400", None),
    ],
)
def test_a_request_that_never_reaches_the_filters(request_bytes: bytes, status: bytes, log_line: str | None) -> None:
    made, config, log = waiting()
    assert made.connect(config).send(request_bytes).split(b" ")[1] == status
    assert made.upstream.seen == []
    assert made.upstream.done == 0
    assert len(log.lines) == 1
    if log_line is not None:
        assert log.lines == [log_line]


def test_a_stream_that_is_idle_for_too_long() -> None:
    """Recorded from Envoy 1.40: 504 once the request is complete."""
    made, config, log = waiting(stream_idle_timeout_ms=1_000.0)
    connection = made.connect(config)
    connection.send(get("/"))
    made.advance(900)
    assert connection.received() == b""
    made.advance(1_100)
    assert connection.received() == head(
        "504 Gateway Timeout", ("content-length", "14"), ("content-type", "text/plain"), body="stream timeout"
    )
    assert log.lines == ["504 SI stream_idle_timeout"]
    assert made.stats.downstream_rq_idle_timeout == 1


def test_a_request_that_stops_coming() -> None:
    made, config, log = waiting(stream_idle_timeout_ms=1_000.0)
    connection = made.connect(config)
    connection.send(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\n")
    made.advance(1_100)
    assert connection.received().startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert log.lines == ["408 SI stream_idle_timeout"]


def test_a_request_that_takes_too_long_to_come() -> None:
    made, config, log = waiting(request_timeout_ms=1_000.0)
    connection = made.connect(config)
    connection.send(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\n")
    made.advance(1_100)
    answer = connection.received()
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert answer.endswith(b"request timeout")
    assert log.lines == ["408 - request_overall_timeout"]
    complete = made.connect(config)
    complete.send(get("/"))
    made.advance(3_000)
    assert complete.received() == b""


def test_a_stream_that_lives_too_long() -> None:
    made, config, log = waiting(max_stream_duration_ms=1_000.0)
    connection = made.connect(config)
    connection.send(get("/"))
    made.advance(1_100)
    assert connection.received().startswith(b"HTTP/1.1 504 Gateway Timeout\r\n")
    assert [line.split(" ")[:2] for line in log.lines] == [["504", "-"]]


def test_a_response_that_has_begun_is_cut_off_by_a_timeout() -> None:
    made, config, log = waiting(stream_idle_timeout_ms=1_000.0)
    connection = made.connect(config)
    connection.send(get("/"))
    made.upstream.streams[0].send_response_headers(HeaderMap([(b":status", b"200"), (b"content-length", b"9")]), False)
    assert connection.received().startswith(b"HTTP/1.1 200 OK\r\n")
    made.advance(1_100)
    assert connection.received() == b""
    assert connection.transport.closed
    assert log.lines == ["200 SI stream_idle_timeout"]


def test_a_downstream_that_leaves_ends_the_stream_at_once() -> None:
    made, config, log = waiting()
    connection = made.connect(config)
    connection.send(get("/"))
    connection.leave()
    assert made.upstream.done == 1
    assert log.lines == ["0 DC downstream_remote_disconnect"]
    made.upstream.streams[0].send_response_headers(HeaderMap([(b":status", b"200")]), True)
    assert made.upstream.done == 1


def test_only_the_first_local_reply_counts() -> None:
    made, config, log = waiting()
    connection = made.connect(config)
    connection.send(get("/"))
    stream = made.upstream.streams[0]
    stream.send_local_reply(418, b"", "first")
    stream.send_local_reply(500, b"", "second")
    assert connection.received().startswith(b"HTTP/1.1 418 ")
    assert log.lines == ["418 - first"]


def test_a_local_reply_amid_a_response_cuts_it() -> None:
    made, config, log = waiting()
    connection = made.connect(config)
    connection.send(get("/"))
    stream = made.upstream.streams[0]
    stream.send_response_headers(HeaderMap([(b":status", b"200"), (b"content-length", b"9")]), False)
    connection.received()
    stream.send_local_reply(500, b"", "too late")
    assert connection.received() == b""
    assert connection.transport.closed
    assert log.lines == ["200 - too_late"]


def test_an_answer_before_the_whole_request_is_the_connections_last() -> None:
    made, config, _ = waiting()
    connection = made.connect(config)
    connection.send(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\nabc")
    made.upstream.streams[0].send_local_reply(413, b"", "too large")
    assert b"connection: close\r\n" in connection.received()
    assert connection.transport.closed
    assert made.stats.downstream_rq_response_before_rq_complete == 1


def test_a_local_reply_may_carry_headers_of_its_own() -> None:
    made, config, _ = waiting()
    connection = made.connect(config)
    connection.send(get("/"))
    made.upstream.streams[0].send_local_reply(302, b"", "", 0, HeaderMap([(b"location", b"/x")]))
    assert connection.received() == head("302 Found", ("location", "/x"), ("content-length", "0"))


def test_pipelined_requests_are_answered_in_order() -> None:
    made, config, _ = waiting()
    connection = made.connect(config)
    connection.send(get("/1") + get("/2"))
    assert [dict(fields)[b":path"] for fields in made.upstream.seen] == [b"/1"]
    made.upstream.streams[0].send_local_reply(201, b"", "")
    assert connection.received().startswith(b"HTTP/1.1 201 ")
    made.upstream.streams[1].send_local_reply(202, b"", "")
    assert connection.received().startswith(b"HTTP/1.1 202 ")


class Canary(HttpFilter):
    """Sends the request to another route."""

    def __init__(self, *, clear: bool) -> None:
        self.clear = clear

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> int:
        headers.set(b"x-canary", b"1")
        if self.clear:
            stream.clear_route_cache()
        return CONTINUE


@pytest.mark.parametrize(("clear", "expected"), [(False, "all"), (True, "canary")])
def test_the_route_is_picked_before_the_filters_and_again_when_one_asks_for_it(clear: bool, expected: str) -> None:
    canary = {"name": "canary", "match": {"prefix": "/", "headers": [{"name": "x-canary"}]}, "route": {"cluster": "b"}}
    routes = {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [canary, {"name": "all", **TO_A}]}]}
    made = Harness(routes)
    made.add(Canary(clear=clear), "canary")
    made.exchange(get("/"))
    route = made.upstream.streams[0].current_route()
    assert route is not None
    assert route.name == expected


def switched(disabled: bool) -> dict[str, Any]:
    kind = "type.googleapis.com/envoy.config.route.v3.FilterConfig"
    return {"canary": {"@type": kind, **({"disabled": True} if disabled else {"config": {}})}}


def test_a_route_may_disable_a_filter() -> None:
    off = {"match": {"prefix": "/off"}, "route": {"cluster": "a"}, "typed_per_filter_config": switched(True)}
    made = Harness({"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [off, TO_A]}]})
    made.add(Canary(clear=False), "canary")
    made.exchange(get("/off"))
    made.exchange(get("/on"))
    assert [b"x-canary" in dict(fields) for fields in made.upstream.seen] == [False, True]


class StateOfItsOwn(HttpFilter):
    """Counts in the stream, not in itself."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> int:
        before = stream.state[self.slot]
        stream.state[self.slot] = 1 if before is None else before + 1
        return CONTINUE

    def on_stream_done(self, stream: Stream) -> None:
        self.counts.append(stream.state[self.slot])


def test_streams_do_not_share_a_filters_state() -> None:
    made = Harness()
    counter = StateOfItsOwn()
    made.add(counter, "counter")
    connection = made.connect()
    for _ in range(3):
        connection.send(get("/"))
    assert counter.counts == [1, 1, 1]


class FormatsResponse(HttpFilter):
    """Looks at what the stream knows of its response."""

    def __init__(self) -> None:
        self.seen: list[bytes | None] = []

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> int:
        known = stream.info.response_headers
        self.seen.append(None if known is None else known.get(b"x-up"))
        return CONTINUE


def test_the_response_is_known_to_formatters_while_it_passes_the_filters() -> None:
    made = Harness(upstream=ScriptedUpstream([(b":status", b"200"), (b"x-up", b"1")]))
    looks = FormatsResponse()
    made.add(looks, "looks")
    made.exchange(get("/"))
    assert looks.seen == [b"1"]


def test_a_request_that_is_held_does_not_keep_a_disconnect_from_being_seen() -> None:
    made, _, _ = waiting()

    class Holds(HttpFilter):
        def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> int:
            return STOP

    made.add(Holds(), "holds")
    connection = made.connect()
    connection.send(get("/"))
    assert not connection.transport.paused
    connection.leave()
    assert made.upstream.done == 1
