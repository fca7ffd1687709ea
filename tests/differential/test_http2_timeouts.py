"""What the clock does to HTTP/2 downstream: timeouts of streams, of answers that nobody takes, of connections; pings."""

import pytest

from tests.differential.http2 import (
    Bytes,
    Ended,
    Goaway,
    Head,
    Http2Pair,
    Http2Side,
    Http2Topic,
    Over,
    Parts,
    Reached,
    Row,
    Step,
    one,
)
from tests.support.http2_downstream import Http2Downstream
from tests.support.http2_upstream import SILENT, frames_of
from tests.support.http2_wire import PREFACE, data, headers, settings, window_update

SHORT = "0.3s"
LARGE = "direct_response: { status: 200, body: { inline_string: '" + "x" * 100 + "' } }"
ANSWER = f"match: {{ prefix: / }}\n{LARGE}"
TO_H = "match: { prefix: / }\nroute: { cluster: h%s }"
BODY = frames_of(lambda stream: headers(stream, [(":status", "200")]) + data(stream, b"y" * 100, end=True))
HALF_HEAD = headers(1, [(":method", "GET"), (":scheme", "http"), (":path", "/")], end=True, end_headers=False)
STALLED = PREFACE + settings((4, 10))  # ten bytes of each answer, and no more


def stalls(name: str, *steps: Step, **more: object) -> Row:
    """A request that the upstream does not answer."""
    return one(name, *(steps or (Head(),)), answers=(SILENT,), **more)


ROWS = [
    # an answer that is not taken
    one("flush", Head(), Parts(), route=ANSWER, opening=STALLED, listener="flush"),
    one("flush_as_idle", Head(), Parts(), route=ANSWER, opening=STALLED, listener="idle"),
    one("flush_while_it_is_taken", Head(), Parts(), Bytes(10), window_update(1, 1), Bytes(11),
        route=ANSWER, opening=STALLED, listener="flush"),
    one("flush_in_time", Head(), Parts(), Bytes(10), window_update(1, 1000), route=ANSWER, opening=STALLED, listener="flush"),
    one("flush_of_the_route", Head(), Parts(), opening=STALLED, listener="flush_long", answers=(BODY,),
        route=f"match: {{ prefix: / }}\nroute: {{ cluster: h, flush_timeout: {SHORT} }}"),
    # streams
    stalls("stream_idle", route=TO_H % ", timeout: 0s", listener="idle"),
    stalls("stream_idle_of_the_route", route=TO_H % f", timeout: 0s, idle_timeout: {SHORT}"),
    stalls("stream_idle_with_body", Head(method="POST", end=False), route=TO_H % ", timeout: 0s", listener="idle"),
    stalls("route_timeout", route=TO_H % f", timeout: {SHORT}"),
    stalls("max_stream_duration", route=TO_H % ", timeout: 0s", listener="stream_duration"),
    stalls("request_timeout", Head(method="POST", end=False), route=TO_H % "", listener="request"),
    Row("half_of_a_head", (HALF_HEAD, Over()), route=ANSWER, listener="idle", acknowledges=False, differs="half-head",
        envoy=(":status: 408",), ours=("goaway: NO_ERROR last=0",)),
    # connections
    Row("idle_connection", (Head(), Over(), Goaway(), Goaway(2), Ended()), route=ANSWER, listener="connection_idle"),
    Row("max_duration", (Head(), Over(), Goaway(), Goaway(2), Ended()), route=ANSWER, listener="connection_duration"),
    Row("max_duration_while_a_stream_is_open",
        (Head(end=False, method="POST"), Reached(), Goaway(), Goaway(2), b"\0\0\0\0\1\0\0\0\1", Over(), Ended()),
        route=TO_H % ", timeout: 0s", listener="connection_duration"),
    Row("max_requests", (Head(), Over(), Head(stream=3), Over((3,)), Goaway(), Goaway(2), Ended()),
        route=ANSWER, listener="two_requests"),
    Row("streams_behind_the_notice", (Head(), Over(), Goaway(), Head(stream=3), Over((3,)), Goaway(2), Ended()),
        route=ANSWER, listener="one_request"),
    # pings
    one("pings_that_are_answered", Head(), Parts(0), route=TO_H % f", timeout: {SHORT}", answers=(SILENT,), listener="keepalive"),
]  # fmt: skip
MUTE = """
route_config:
  virtual_hosts:
  - { name: any, domains: ['*'], routes: [{ match: { prefix: / }, route: { cluster: h, timeout: 0s } }] }
"""
COMMON = "common_http_protocol_options: {{ {} }}\ndrain_timeout: 0.3s"
HTTP2 = Http2Topic(
    ROWS,
    listeners={
        "main": "",
        "flush": f"stream_flush_timeout: {SHORT}",
        "flush_long": "stream_flush_timeout: 60s",
        "idle": f"stream_idle_timeout: {SHORT}",
        "stream_duration": f"common_http_protocol_options: {{ max_stream_duration: {SHORT} }}",
        "request": f"request_timeout: {SHORT}",
        "connection_idle": COMMON.format(f"idle_timeout: {SHORT}"),
        "connection_duration": COMMON.format(f"max_connection_duration: {SHORT}"),
        "one_request": COMMON.format("max_requests_per_connection: 1"),
        "two_requests": COMMON.format("max_requests_per_connection: 2"),
        "keepalive": "http2_protocol_options: { connection_keepalive: "
        "{ interval: 0.05s, timeout: 2s, interval_jitter: { value: 0 } } }",
        "mute": "http2_protocol_options: { connection_keepalive: "
        "{ interval: 0.2s, timeout: 0.2s, interval_jitter: { value: 0 } } }" + MUTE,
    },
)


def test_row(http2_pair: Http2Pair, row: Row) -> None:
    http2_pair.check(row)


def unanswered(side: Http2Side, *, request: bool) -> list[str]:
    """How a connection ends whose peer answers no PING."""
    side.stat_lines()
    with Http2Downstream(side.ports["mute"]) as downstream:
        downstream.answering = False
        if request:
            downstream.send(Head(path="/wait", over=((":authority", "mute.test"),)).encoded("mute.test"))
        downstream.wait_end()
        goaways = [code for code, _, _ in downstream.goaways]
    lines = [line for line in side.stat_lines() if "http2.keepalive" in line or "downstream" in line]
    return [f"goaways: {goaways}", *lines, *side.log_lines()]


@pytest.mark.parametrize("request_is_open", [False, True])
def test_pings_that_are_not_answered(http2_pair: Http2Pair, request_is_open: bool) -> None:
    http2_pair.reference.upstream.play((SILENT,))
    http2_pair.subject.upstream.play((SILENT,))
    expected = unanswered(http2_pair.reference, request=request_is_open)
    assert any(line.startswith("stat http2.keepalive_timeout: +1") for line in expected)
    assert unanswered(http2_pair.subject, request=request_is_open) == expected
