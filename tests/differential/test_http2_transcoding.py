"""The gRPC-JSON transcoder in front of an HTTP/2 upstream, for clients of both versions."""

import json
from dataclasses import replace

from tests.differential.cases import get, post
from tests.differential.http2 import Head, Http2Pair, Http2Topic, Over, Request1, Row
from tests.differential.test_transcoding import BOOK, HTML, listener
from tests.support.http2_upstream import Http2Answer, frames_of
from tests.support.http2_wire import data, headers, reset

TO_H = "match: { prefix: / }\nroute: { cluster: h }"
HEAD = [(":status", "200"), ("content-type", "application/grpc")]
OK = [("grpc-status", "0")]


def begun(stream: int) -> bytes:
    """The head of a response."""
    return headers(stream, HEAD)


def sized(stream: int) -> bytes:
    """A head that tells the body's length."""
    return headers(stream, [*HEAD, ("content-length", str(len(BOOK)))])


def book(stream: int) -> bytes:
    """A message."""
    return data(stream, BOOK)


def html(stream: int) -> bytes:
    """A message that is a body."""
    return data(stream, HTML)


def half(stream: int) -> bytes:
    """Not all of a message."""
    return data(stream, BOOK[:7])


def last(stream: int) -> bytes:
    """A message that ends the body."""
    return data(stream, BOOK, end=True)


def fine(stream: int) -> bytes:
    """Trailers."""
    return headers(stream, OK, end=True)


def given_up(stream: int) -> bytes:
    """RST_STREAM."""
    return reset(stream, 2)


def failed(stream: int) -> bytes:
    """Trailers of a call that failed."""
    return headers(stream, [("grpc-status", "5"), ("grpc-message", "no%20such"), ("x-more", "1")], end=True)


def trailers_only(status: str, *more: tuple[str, str]) -> Http2Answer:
    """A response that is its head."""
    return frames_of(lambda stream: headers(stream, [*HEAD, ("grpc-status", status), *more], end=True))


def both(name: str, target: str, *answers: Http2Answer, body: object = None, on: str = "main") -> list[Row]:
    """A request of each version."""
    text = None if body is None else json.dumps(body).encode()
    plain = get(target) if text is None else post(target, text)
    head = Head(path=target, method="GET" if text is None else "POST", end=text is None)
    steps = (head, Over()) if text is None else (head, data(1, text, end=True), Over())
    return [
        Row(f"{name}_http1", (Request1(plain),), TO_H, listener=on, answers=answers, opening=None, stats=False),
        Row(f"{name}_http2", steps, TO_H, listener=on, answers=answers, stats=False),
    ]


OWN_WORDS = ("body:", "content-length:", "log:")  # what is wrong is said in words of our own
UNARY = frames_of(begun, book, fine)
LIST = frames_of(begun, book, book, fine)
ROWS = [
    *both("unary", "/v1/find?shelf=a", UNARY),
    *both("unary_with_body", "/v1/shelves/a/books", UNARY, body={"title": "x"}),
    *both("unary_without_trailers", "/v1/find", frames_of(begun, last)),
    *both("unary_with_length", "/v1/find", frames_of(sized, book, fine)),
    *both("error", "/v1/find", frames_of(begun, failed)),
    *both("error_after_message", "/v1/find", frames_of(begun, book, failed)),
    *both("trailers_only", "/v1/find", trailers_only("5", ("grpc-message", "no"))),
    *both("trailers_only_ok", "/v1/find", trailers_only("0")),
    *(replace(row, ignore=OWN_WORDS) for row in both("cut", "/v1/find", frames_of(begun, half, fine))),
    *both("reset", "/v1/find", frames_of(begun, half, given_up)),
    *both("list", "/v1/list/a", LIST),
    *both("list_error", "/v1/list/a", frames_of(begun, book, failed)),
    *both("list_trailers_only", "/v1/list/a", trailers_only("5")),
    *both("list_trailers_only_ok", "/v1/list/a", trailers_only("0")),
    *both("list_trailers_only_lines", "/v1/list/a", trailers_only("5"), on="lines"),
    *both("list_reset", "/v1/list/a", frames_of(begun, book, given_up)),
    *both("upload", "/v1/upload", UNARY, body=[{"id": 1}, {"id": 2}]),
    *both("file", "/v1/file/a", frames_of(begun, html, fine)),
    *both("files", "/v1/stream/a", frames_of(begun, html, html, fine)),
    *both("converted", "/v1/find", frames_of(begun, failed), on="converted"),
    *both("converted_trailers_only", "/v1/find", trailers_only("5", ("grpc-message", "no")), on="converted"),
    *both("converted_list", "/v1/list/a", frames_of(begun, failed), on="converted"),
    *both("bad_query", "/v1/find?book_id=x", UNARY),
    *both("unknown", "/v2/x", UNARY),
    Row(
        "chat",
        (
            Head(path="/v1/chat", method="POST", end=False),
            data(1, b'[{"id":1}'),
            data(1, b',{"id":2}]', end=True),
            Over(),
        ),
        TO_H,
        answers=(LIST,),
        stats=False,
    ),
]
HTTP2 = Http2Topic(
    ROWS,
    {
        "main": listener(),
        "lines": listener("print_options: { stream_newline_delimited: true }"),
        "converted": listener("convert_grpc_status: true"),
    },
)


def test_row(http2_pair: Http2Pair, row: Row) -> None:
    """Both proxies do the same."""
    http2_pair.check(row)
