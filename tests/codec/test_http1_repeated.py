"""Heads that are remembered mean what they meant when they were parsed, whatever came between."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshproxy.codec.http1.settings import Http1Settings
from tests.codec.recorder import Downstream, Upstream, output

REQUESTS = (
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /p?q=1 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nX: 1\r\n\r\n",
    b"GET /other HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nX: 1\r\n\r\n",
    b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab",
    b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /second HTTP/1.1\r\nHost: a\r\n\r\n",
)
LAST_REQUESTS = (
    b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /a\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /# HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET  HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET a HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET / HTTP/1.0\r\nHost: a\r\n\r\n",
    b"GET /\r\nX: / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /" + b"x" * 61_440 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
)
RESPONSES = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\nX: 1\r\n\r\nok",
    b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
)
LAST_RESPONSES = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok surplus",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
    b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nX: 1\r\n\r\nuntil the end",
)
REQUEST = [(b":authority", b"a"), (b":path", b"/"), (b":method", b"GET"), (b":scheme", b"http")]

# Few different ones, so that they come again.
some_requests = st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=3).flatmap(
    lambda few: st.lists(st.sampled_from(few), max_size=12)
)
some_responses = st.lists(st.sampled_from(RESPONSES), min_size=1, max_size=2).flatmap(
    lambda few: st.lists(st.sampled_from(few), max_size=10)
)


def asked(downstream: Downstream, request: bytes) -> tuple[list[str], bytes, int]:
    """What is told and answered, and the bytes of fields that are counted."""
    counted = downstream.connection.field_bytes_received
    downstream.log.clear()
    downstream.connection.receive_data(request)
    return downstream.log.copy(), output(downstream.connection), downstream.connection.field_bytes_received - counted


def answered(upstream: Upstream, response: bytes, method: bytes) -> tuple[list[str], int]:
    counted = upstream.connection.field_bytes_received
    upstream.log.clear()
    upstream.request([(name, method if name == b":method" else value) for name, value in REQUEST])
    output(upstream.connection)
    upstream.connection.receive_data(response)
    return upstream.log.copy(), upstream.connection.field_bytes_received - counted


def test_what_is_repeated_is_remembered() -> None:
    downstream, upstream = Downstream(Http1Settings(), answer=True), Upstream(Http1Settings())
    for _ in range(3):
        asked(downstream, REQUESTS[0])
        answered(upstream, RESPONSES[0], b"GET")
    assert downstream.connection.last_head == REQUESTS[0]
    assert upstream.connection.last_head == RESPONSES[0][:-2]


@given(some_requests, st.sampled_from(REQUESTS + LAST_REQUESTS))
def test_a_request_means_the_same_after_any_others(before: list[bytes], last: bytes) -> None:
    warm = Downstream(Http1Settings(), answer=True)
    for request in [*before, last]:
        assert asked(warm, request) == asked(Downstream(Http1Settings(), answer=True), request)


@given(some_responses, st.sampled_from(RESPONSES + LAST_RESPONSES), st.sampled_from([b"GET", b"HEAD"]))
def test_a_response_means_the_same_after_any_others(before: list[bytes], last: bytes, method: bytes) -> None:
    warm = Upstream(Http1Settings())
    for response in before:
        assert answered(warm, response, b"GET") == answered(Upstream(Http1Settings()), response, b"GET")
    assert answered(warm, last, method) == answered(Upstream(Http1Settings()), last, method)
