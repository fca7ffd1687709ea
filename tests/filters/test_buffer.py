"""The buffer filter: a request goes on in one piece, with its length. What is expected was recorded from Envoy 1.40."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.extensions.filters.http.buffer.v3.buffer_pb2 import Buffer, BufferPerRoute

from meshproxy.codec.headers import HeaderMap
from meshproxy.filters.http import buffer
from meshproxy.http.filter import CONTINUE, STOP
from meshproxy.http.stream import Stream
from tests.http.harness import TO_A, Downstream, Harness, ScriptedUpstream, get, head, parse

KIND = "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.BufferPerRoute"
PASSED = head("200 OK", ("content-length", "0"))
TOO_LARGE = head("413 Payload Too Large", ("content-length", "17"), ("content-type", "text/plain"))
TOO_LARGE_BODY = b"Payload Too Large"


class Taking(ScriptedUpstream):
    """Takes a request whole, and answers it."""

    def __init__(self) -> None:
        super().__init__(None)
        self.bodies: list[tuple[bytes, bool]] = []

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> int:
        super().on_request_headers(stream, headers, end)
        stream.buffer_request(1 << 20)
        return self._answer(stream) if end else CONTINUE

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> int:
        self.bodies.append((data, end))
        return self._answer(stream)

    def _answer(self, stream: Stream) -> int:
        stream.send_response_headers(HeaderMap([(b":status", b"200")]), True)
        return STOP


class Buffered(Harness):
    """A chain whose buffer filter takes ten bytes; on /off none, on /more twenty."""

    def __init__(self) -> None:
        self.taking = Taking()
        routes = [
            {"match": {"prefix": "/off"}, "route": {"cluster": "a"}, **override({"disabled": True})},
            {
                "match": {"prefix": "/more"},
                "route": {"cluster": "a"},
                **override({"buffer": {"max_request_bytes": 20}}),
            },
            TO_A,
        ]
        table = {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes}]}
        super().__init__(table, upstream=self.taking)
        self.add(buffer.build_buffer(parse({"max_request_bytes": 10}, Buffer()), "b", self.context), "buffer")

    def lengths(self) -> list[bytes]:
        """Every content-length that went on."""
        return [value for name, value in self.taking.seen[-1] if name == b"content-length"]


def override(config: dict[str, Any]) -> dict[str, Any]:
    return {"typed_per_filter_config": {"buffer": {"@type": KIND, **config}}}


def post(body: bytes, path: str = "/") -> bytes:
    return get(path, ("content-length", str(len(body))), method="POST") + body


def chunked(path: str = "/") -> bytes:
    return get(path, ("transfer-encoding", "chunked"), method="POST")


def begun(made: Buffered, path: str = "/") -> Downstream:
    """A chunked request that goes on for ever."""
    downstream = made.connect()
    downstream.send(chunked(path) + b"3\r\nabc\r\n")
    return downstream


def test_nothing_goes_on_before_the_end() -> None:
    made = Buffered()
    downstream = begun(made)
    assert downstream.send(b"2\r\nde\r\n") == b""
    assert made.taking.seen == []
    assert downstream.send(b"0\r\n\r\n") == PASSED
    assert made.taking.bodies == [(b"abcde", True)]
    assert made.lengths() == [b"5"]


def test_a_length_that_is_there_stays() -> None:
    made = Buffered()
    assert made.exchange(post(b"x" * 10)) == PASSED
    assert made.taking.bodies == [(b"x" * 10, True)]
    assert made.lengths() == [b"10"]


def test_a_request_without_a_body() -> None:
    made = Buffered()
    assert made.exchange(get("/")) == PASSED
    assert made.taking.bodies == []
    assert made.lengths() == []


def test_trailers_follow_the_body() -> None:
    made = Buffered()
    downstream = begun(made)
    assert downstream.send(b"0\r\nx-t: 1\r\n\r\n") == PASSED
    assert made.taking.bodies == [(b"abc", False)]
    assert made.lengths() == [b"3"]


def test_too_much_is_answered_at_once() -> None:
    made = Buffered()
    downstream = begun(made)
    answer = downstream.send(b"8\r\n12345678\r\n")
    assert answer.startswith(TOO_LARGE[:-2] + b"connection: close\r\n")
    assert answer.endswith(TOO_LARGE_BODY)
    assert made.taking.seen == []
    assert made.stats.downstream_rq_too_large == 1


def test_a_connection_whose_request_was_read_stays() -> None:
    assert Buffered().exchange(post(b"x" * 11)) == TOO_LARGE + TOO_LARGE_BODY


def test_off_on_a_route() -> None:
    made = Buffered()
    begun(made, "/off")
    assert made.lengths() == []
    assert made.exchange(post(b"x" * 30, "/off")) == PASSED


@pytest.mark.parametrize(("size", "passes"), [(20, True), (21, False)])
def test_a_limit_of_a_route(size: int, passes: bool) -> None:
    assert (Buffered().exchange(post(b"x" * size, "/more")) == PASSED) == passes


@pytest.mark.parametrize(("config", "path"), [({}, "r"), ({"buffer": {}}, "r.buffer.max_request_bytes")])
def test_an_override_that_says_nothing(config: dict[str, Any], path: str) -> None:
    made = Harness()
    buffer.build_per_route(parse(config, BufferPerRoute()), "r", made.context)
    assert [error.path for error in made.errors.items] == [path]
