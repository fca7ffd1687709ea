"""Headers that wait at a filter until its other hooks let something pass."""

from __future__ import annotations

from typing import Any

import pytest

from meshproxy.codec.headers import HeaderMap
from meshproxy.http.filter import CONTINUE, STOP, HttpFilter
from meshproxy.http.stream import Stream
from tests.http.harness import Downstream, Harness, ScriptedUpstream, get, head


class Waiting(HttpFilter):
    """Lets the headers of both directions wait, and of the data only what is in upper case pass."""

    def __init__(self, said: Any = None) -> None:
        self.said = said  # what the data hook returns instead
        self.headers = HeaderMap()

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> int:
        stream.let_request_wait()
        return CONTINUE

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> bytes:
        return data if data.isupper() else b""

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> int:
        self.headers = headers
        stream.let_response_wait()
        return CONTINUE

    def on_response_data(self, stream: Stream, data: bytes, end: bool) -> Any:
        if self.said is not None:
            return self.said
        return data if data.isupper() else b""

    def on_response_trailers(self, stream: Stream, trailers: HeaderMap) -> int:
        self.headers.set(b":status", b"201")
        stream.add_to_response(b"added")
        return CONTINUE


class Following(HttpFilter):
    """Sees what passes."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes, bool]] = []

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> int:
        self.seen.append(("headers", headers[b":status"], end))
        return CONTINUE

    def on_response_data(self, stream: Stream, data: bytes, end: bool) -> int:
        self.seen.append(("data", data, end))
        return CONTINUE

    def on_response_trailers(self, stream: Stream, trailers: HeaderMap) -> int:
        self.seen.append(("trailers", b"", True))
        return CONTINUE


class Made(Harness):
    """Following stands before Waiting: it sees the response later."""

    def __init__(self, said: Any = None) -> None:
        super().__init__(upstream=ScriptedUpstream(None))
        self.add(following := Following(), "following")
        self.add(Waiting(said), "waiting")
        self.following = following

    def begin(self) -> Downstream:
        downstream = self.connect()
        assert downstream.send(get()) == b""
        self.stream.send_response_headers(HeaderMap([(b":status", b"200")]), False)
        return downstream

    @property
    def stream(self) -> Stream:
        return self.upstream.streams[-1]


def test_they_wait_until_data_passes() -> None:
    made = Made()
    downstream = made.begin()
    made.stream.send_response_data(b"a", False)
    assert downstream.received() == b""
    assert made.following.seen == []
    made.stream.send_response_data(b"B", False)
    assert made.following.seen == [("headers", b"200", False), ("data", b"B", False)]
    made.stream.send_response_data(b"C", True)
    assert downstream.received() == head("200 OK", ("transfer-encoding", "chunked")) + b"1\r\nB\r\n1\r\nC\r\n0\r\n\r\n"


def test_they_go_on_at_the_end() -> None:
    made = Made()
    made.begin()
    made.stream.send_response_data(b"a", True)
    assert made.following.seen == [("headers", b"200", False), ("data", b"", True)]


def test_the_trailers_hook_may_change_them() -> None:
    made = Made()
    made.begin()
    made.stream.send_response_data(b"a", False)
    made.stream.send_response_trailers(HeaderMap([(b"t", b"1")]))
    assert made.following.seen == [("headers", b"201", False), ("data", b"added", False), ("trailers", b"", True)]


def test_a_head_alone_does_not_wait() -> None:
    made = Made()
    downstream = made.connect()
    downstream.send(get())
    made.stream.send_response_headers(HeaderMap([(b":status", b"204")]), True)
    assert downstream.received() == head("204 No Content")


@pytest.mark.parametrize("said", [STOP, 5])
def test_nothing_may_be_held_meanwhile(said: Any) -> None:
    made = Made(said)
    downstream = made.begin()
    made.stream.send_response_data(b"A", False)
    assert downstream.received().startswith(b"HTTP/1.1 500 Internal Server Error\r\n")


def test_a_local_reply_takes_their_place() -> None:
    made = Made()
    downstream = made.begin()
    made.stream.send_response_data(b"a", False)
    made.stream.send_local_reply(503, b"NO")
    assert downstream.received().startswith(b"HTTP/1.1 503 Service Unavailable\r\n")


def test_the_request_waits_too() -> None:
    made = Made()
    downstream = made.connect()
    downstream.feed(get("/", ("transfer-encoding", "chunked"), method="POST") + b"1\r\na\r\n")
    assert made.upstream.seen == []
    downstream.feed(b"1\r\nB\r\n")
    assert len(made.upstream.seen) == 1
