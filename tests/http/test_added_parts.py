"""Data that a filter adds before trailers, and trailers that it adds behind the last data.

Here for responses; tests/differential/test_compression.py has requests.
"""

from __future__ import annotations

from typing import Any

import pytest

from meshproxy.codec.headers import HeaderMap
from meshproxy.http.filter import CONTINUE, STOP
from meshproxy.http.stream import Stream
from tests.http.harness import Downstream, head
from tests.http.test_chain import Chain


def trailers(name: bytes) -> HeaderMap:
    return HeaderMap([(name, b"1")])


def add_data(stream: Stream, part: Any, end: bool) -> int:
    stream.add_to_response(b"added")
    return CONTINUE


def add_trailers(stream: Stream, part: Any, end: bool) -> bytes:
    if end:
        stream.add_to_response(trailers(b"x-added"))
    return bytes(part).upper()


def begin(made: Chain) -> Downstream:
    """A connection whose response, of unknown length, has begun."""
    connection = made.connect()
    connection.send(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
    made.stream.send_response_headers(HeaderMap([(b":status", b"200")]), False)
    assert connection.received() == head("200 OK", ("transfer-encoding", "chunked"))
    made.log.clear()
    return connection


def test_data_goes_before_the_trailers_through_the_filters_behind() -> None:
    made = Chain({}, {"response_trailers": add_data}, {}, answer=False)
    connection = begin(made)
    made.stream.send_response_data(b"x", False)
    made.stream.send_response_trailers(trailers(b"x-t"))
    assert connection.received() == b"1\r\nx\r\n5\r\nadded\r\n0\r\nx-t: 1\r\n\r\n"
    assert made.log[:7] == [
        "c.response_data(x)",
        "b.response_data(x)",
        "a.response_data(x)",
        "c.response_trailers.",
        "b.response_trailers.",
        "a.response_data(added)",
        "a.response_trailers.",
    ]


def test_trailers_go_behind_the_last_data_through_the_filters_behind() -> None:
    made = Chain({}, {"response_data": add_trailers}, {}, answer=False)
    connection = begin(made)
    made.stream.send_response_data(b"x", True)
    assert connection.received() == b"1\r\nX\r\n0\r\nx-added: 1\r\n\r\n"
    assert made.log[:4] == [
        "c.response_data(x).",
        "b.response_data(x).",
        "a.response_data(X)",
        "a.response_trailers.",
    ]


def test_trailers_behind_data_that_was_swallowed() -> None:
    made = Chain({}, {"response_data": add_trailers}, answer=False)
    connection = begin(made)
    made.stream.send_response_data(b"", True)
    assert connection.received() == b"0\r\nx-added: 1\r\n\r\n"
    assert made.log[:2] == ["b.response_data.", "a.response_trailers."]


@pytest.mark.parametrize("hook", ["response_trailers", "response_data"])
def test_a_filter_behind_that_holds_what_was_added(hook: str) -> None:
    held = [STOP]
    adds = {hook: add_data if hook == "response_trailers" else add_trailers}
    made = Chain({"response_data": lambda *_: held.pop() if held else CONTINUE}, adds, answer=False)
    connection = begin(made)
    if hook == "response_trailers":
        made.stream.send_response_trailers(trailers(b"x-added"))
    else:
        made.stream.send_response_data(b"added", True)
    assert connection.received() == b""
    made.stream.resume_response()
    assert connection.received().lower() == b"5\r\nadded\r\n0\r\nx-added: 1\r\n\r\n"
    assert made.log[-3] == "a.response_trailers."


def test_a_body_goes_behind_headers_that_have_none_through_its_own_filter_too() -> None:
    made = Chain({}, {"response_headers": add_data, "response_data": add_trailers}, {}, answer=False)
    connection = made.connect()
    connection.send(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
    made.log.clear()
    made.stream.send_response_headers(HeaderMap([(b":status", b"200")]), True)
    assert connection.received() == head("200 OK", ("transfer-encoding", "chunked")) + (
        b"5\r\nADDED\r\n0\r\nx-added: 1\r\n\r\n"
    )
    assert made.log[:6] == [
        "c.response_headers.",
        "b.response_headers.",
        "a.response_headers",
        "b.response_data(added).",
        "a.response_data(ADDED)",
        "a.response_trailers.",
    ]


def test_a_body_cannot_be_added_to_headers_that_have_one() -> None:
    made = Chain({}, {"response_headers": add_data}, {}, answer=False)
    connection = made.connect()
    connection.send(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
    made.stream.send_response_headers(HeaderMap([(b":status", b"200")]), False)
    assert connection.received().startswith(b"HTTP/1.1 500 ")
