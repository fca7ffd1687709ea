"""The gRPC-JSON transcoder in a chain: what is kept and for how long, what is refused, and its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from envoy.extensions.filters.http.grpc_json_transcoder.v3.transcoder_pb2 import GrpcJsonTranscoder
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from meshproxy.codec.headers import HeaderMap
from meshproxy.filters.http.grpc_json_transcoder import build_override, build_transcoder
from meshproxy.http.filter import CONTINUE, STOP
from meshproxy.http.grpc.messages import frame
from meshproxy.http.stream import Stream
from tests.http.harness import Downstream, Harness, ScriptedUpstream, get, head
from tests.support.library import DESCRIPTOR_SET, SERVICE, encoded

BOOK = frame(encoded("Book", id="7", title="Emma"))
JSON = '{"id":"7","title":"Emma"}'
HEAD = [(b":status", b"200"), (b"content-type", b"application/grpc")]
FINE = HeaderMap([(b"grpc-status", b"0")])


class Called(ScriptedUpstream):
    """Stands for the upstream: keeps what comes, and is told what to answer."""

    def __init__(self) -> None:
        super().__init__(None)
        self.received = b""
        self.whole = False
        self.trailers: list[tuple[bytes, bytes]] = []

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> int:
        super().on_request_headers(stream, headers, end)
        return CONTINUE

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> bytes:
        self.received += data
        self.whole = end
        return b""

    def on_request_trailers(self, stream: Stream, trailers: HeaderMap) -> int:
        self.whole = True
        self.trailers = list(trailers.fields)
        return STOP

    @property
    def stream(self) -> Stream:
        return self.streams[-1]

    def begin(self) -> None:
        """The head of a response."""
        self.stream.send_response_headers(HeaderMap(list(HEAD)), False)

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.stream.send_response_data(piece, False)

    def answer(self, *pieces: bytes) -> None:
        """A whole response."""
        self.begin()
        self.send(*pieces)
        self.stream.send_response_trailers(FINE)


class Transcoding(Harness):
    """A chain with a transcoder; fields of its configuration as keywords."""

    def __init__(self, routes: dict[str, Any] | None = None, **fields: Any) -> None:
        self.called = Called()
        super().__init__(routes, upstream=self.called)
        self.add(build_transcoder(configuration(**fields), "t", self.context), "transcoder")

    def begin(self, request: bytes) -> Downstream:
        """Send a request, which may go on."""
        downstream = self.connect()
        assert downstream.send(request) == b""
        return downstream


def configuration(**fields: Any) -> Any:
    return GrpcJsonTranscoder(**{"proto_descriptor_bin": DESCRIPTOR_SET, "services": [SERVICE], **fields})


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def upload(path: str) -> bytes:
    """The head of a request whose body is to come."""
    return get(path, ("transfer-encoding", "chunked"), method="POST")


def post(path: str, body: bytes) -> bytes:
    return get(path, ("content-length", str(len(body))), method="POST") + body


def whole(fields: str = "") -> bytes:
    """The response of a unary call."""
    more = (("grpc-status", "0"), ("content-length", str(len(JSON))))
    return head("200 OK", ("content-type", "application/json"), *more, body=JSON)


def test_a_call() -> None:
    made = Transcoding()
    downstream = made.begin(get("/v1/shelves/poems/books/7?page_size=3"))
    assert made.called.received == frame(encoded("Request", shelf="poems", book_id="7", page_size=3))
    assert made.called.whole
    fields = dict(made.called.seen[0])
    assert fields[b":path"] == b"/test.library.Library/GetBook"
    assert fields[b":method"] == b"POST"
    assert fields[b"content-type"] == b"application/grpc"
    assert fields[b"te"] == b"trailers"
    assert fields[b"x-envoy-original-path"] == b"/v1/shelves/poems/books/7?page_size=3"
    assert fields[b"x-envoy-original-method"] == b"GET"
    made.called.answer(BOOK)
    assert downstream.received() == whole()


def test_the_upstream_is_not_asked_before_the_body_is_there() -> None:
    made = Transcoding()
    downstream = made.begin(upload("/v1/shelves/poems/books"))
    assert downstream.send(chunk(b'{"tit')) == b""
    assert made.called.seen == []
    downstream.send(chunk(b'le":"x"}') + b"0\r\nx-t: 1\r\n\r\n")
    assert made.called.received == frame(encoded("Request", shelf="poems", book={"title": "x"}))
    assert made.called.trailers == [(b"x-t", b"1")]


def test_the_head_of_the_response_waits_for_its_status() -> None:
    made = Transcoding()
    downstream = made.begin(get("/v1/find"))
    made.called.begin()
    made.called.send(BOOK[:7], BOOK[7:])
    assert downstream.received() == b""
    made.called.stream.send_response_trailers(HeaderMap([(b"grpc-status", b"5"), (b"grpc-message", b"no")]))
    assert downstream.received().startswith(b"HTTP/1.1 404 Not Found\r\n")


def test_messages_of_a_stream_go_on_one_by_one() -> None:
    made = Transcoding()
    downstream = made.begin(get("/v1/list/poems"))
    made.called.begin()
    start = head("200 OK", ("content-type", "application/json"), ("transfer-encoding", "chunked"))
    assert downstream.received() == start
    made.called.send(BOOK[:7])
    assert downstream.received() == b""
    made.called.send(BOOK[7:])
    assert downstream.received() == chunk(f"[{JSON}".encode())
    made.called.send(BOOK + BOOK)
    assert downstream.received() == chunk(f",{JSON},{JSON}".encode())
    made.called.stream.send_response_trailers(FINE)
    assert downstream.received() == chunk(b"]") + b"0\r\ngrpc-status: 0\r\n\r\n"


def test_messages_go_both_ways_at_once() -> None:
    made = Transcoding()
    downstream = made.begin(upload("/v1/chat"))
    assert made.called.seen
    downstream.feed(chunk(b'[{"id":1}'))
    assert made.called.received == frame(encoded("Book", id="1"))
    made.called.begin()
    made.called.send(BOOK)
    assert downstream.received().endswith(chunk(f"[{JSON}".encode()))
    downstream.feed(chunk(b',{"id":2') + chunk(b"}]") + b"0\r\n\r\n")
    assert made.called.received == frame(encoded("Book", id="1")) + frame(encoded("Book", id="2"))
    assert made.called.whole


def test_a_raw_body_goes_up_in_pieces() -> None:
    made = Transcoding()
    downstream = made.begin(upload("/v1/stream/x"))
    downstream.feed(chunk(b"a" * (1 << 20) + b"b"))
    first = encoded("Request", shelf="x", file={"data": "YWFh" * 349525 + "YQ=="})
    assert made.called.received.count(b"a" * (1 << 20)) == 1
    assert len(made.called.received) == len(frame(first)) + 2 + len(frame(b"B\x03\x12\x01b"))  # 2: an empty HttpBody
    assert made.called.received.endswith(frame(b"B\x03\x12\x01b"))
    downstream.feed(chunk(b"c") + b"0\r\n\r\n")
    assert made.called.received.endswith(frame(b"B\x03\x12\x01c"))
    assert made.called.whole


def test_the_head_of_a_raw_stream_waits_for_its_first_message() -> None:
    made = Transcoding()
    downstream = made.begin(get("/v1/stream/x"))
    page = frame(encoded("google.api.HttpBody", content_type="text/html", data="PGI+"))
    made.called.begin()
    made.called.send(frame(b""), page[:6])
    assert downstream.received() == b""
    made.called.send(page[6:])
    start = head("200 OK", ("content-type", "text/html"), ("transfer-encoding", "chunked"))
    assert downstream.received() == start + chunk(b"<b>")


def test_a_stream_that_was_cut_is_reset() -> None:
    made = Transcoding()
    downstream = made.begin(get("/v1/list/poems"))
    made.called.begin()
    made.called.send(BOOK, BOOK[:7])
    made.called.stream.send_response_trailers(FINE)
    assert downstream.received().endswith(chunk(f"[{JSON}".encode()))
    assert downstream.transport.closed
    assert made.called.stream.info.response_code_details == "grpc_json_transcode_failure{INTERNAL}"


# -- limits


@pytest.mark.parametrize(("size", "status"), [(90, b""), (91, b"HTTP/1.1 413 Payload Too Large")])
def test_a_request_is_kept_up_to_its_limit(size: int, status: bytes) -> None:
    made = Transcoding(max_request_body_size={"value": 102})
    body = b'{"title":"' + b"x" * size + b'"}'
    downstream = made.connect()
    answered = downstream.send(upload("/v1/shelves/poems/books") + chunk(body[:50]))
    assert answered == b""
    answered = downstream.send(chunk(body[50:]) + b"0\r\n\r\n")
    assert answered.split(b"\r\n")[0] == status
    assert bool(made.called.seen) == (not status)


def test_of_a_stream_each_message_is_held_to_the_limit() -> None:
    made = Transcoding(max_request_body_size={"value": 100})
    downstream = made.begin(upload("/v1/upload"))
    for _ in range(10):
        downstream.feed(chunk(b'[{"title":"' + b"x" * 60 + b'"}') if not made.called.received else chunk(b',{"id":1}'))
    assert downstream.received() == b""
    assert downstream.send(chunk(b',{"title":"' + b"x" * 101)).startswith(b"HTTP/1.1 413 ")


def test_the_connection_says_how_much_where_nothing_else_does() -> None:
    made = Transcoding()
    downstream = made.begin(upload("/v1/shelves/poems/books"))
    piece = b"x" * 65536
    for _ in range(16):
        assert downstream.send(chunk(piece)) == b""
    assert downstream.send(chunk(piece)).startswith(b"HTTP/1.1 413 ")


def test_a_response_is_kept_up_to_its_limit() -> None:
    made = Transcoding(max_response_body_size={"value": 100})
    downstream = made.begin(get("/v1/find"))
    made.called.begin()
    made.called.send(frame(b"\x12\x63" + b"x" * 99)[:5])
    answered = downstream.received()
    assert answered.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    details = "grpc_json_transcode_failure{response_buffer_size_limit_reached}"
    assert made.called.stream.info.response_code_details == details


# -- what is refused


@pytest.mark.parametrize(
    ("request_bytes", "details"),
    [
        (get("/v1/find?book_id=x"), "early_grpc_json_transcode_failure{INVALID_ARGUMENT}"),
        (post("/v1/shelves/a/books", b"{"), "grpc_json_transcode_failure{INVALID_ARGUMENT}"),
        (post("/v1/shelves/a/books", b'{"id":"x"}'), "grpc_json_transcode_failure{INVALID_ARGUMENT}"),
        (post("/v1/upload", b"{}"), "grpc_json_transcode_failure{INVALID_ARGUMENT}"),
        (get("/v1/file/x?book_id=x", method="POST"), "grpc_json_transcode_failure{INVALID_ARGUMENT}"),
    ],
)
def test_a_bad_request(request_bytes: bytes, details: str) -> None:
    made = Transcoding()
    made.filters.insert(0, watch := Watching())
    answered = made.exchange(request_bytes)
    assert answered.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"content-type: text/plain" in answered
    assert watch.details == details


class Watching(ScriptedUpstream):
    """Sees how streams end."""

    name = "watching"
    details = ""

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> int:
        return CONTINUE

    def on_stream_done(self, stream: Stream) -> None:
        self.details = stream.info.response_code_details


@pytest.mark.parametrize(
    ("message", "details"),
    [(frame(b"x", 1), "INTERNAL"), (frame(b"\xff\xff"), "INVALID_ARGUMENT"), (BOOK[:7], "INTERNAL")],
)
def test_a_bad_response(message: bytes, details: str) -> None:
    made = Transcoding()
    downstream = made.begin(get("/v1/find"))
    made.called.answer(message)
    assert downstream.received().startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert made.called.stream.info.response_code_details == f"grpc_json_transcode_failure{{{details}}}"


# -- configuration


def errors(**fields: Any) -> list[tuple[str, str]]:
    made = Harness()
    assert build_transcoder(configuration(**fields), "t", made.context) is None or made.errors.items
    return [(error.path, error.reason) for error in made.errors.items]


def test_without_services_nothing_is_done() -> None:
    made = Transcoding(services=[])
    assert made.begin(get("/v1/find"))
    assert dict(made.called.seen[0])[b":path"] == b"/v1/find"


def test_a_set_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "library.pb"
    path.write_bytes(DESCRIPTOR_SET)
    made = Harness()
    message = GrpcJsonTranscoder(proto_descriptor=str(path), services=[SERVICE])
    assert build_transcoder(message, "t", made.context) is not None
    assert list(made.context.files) == [str(path)]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    made = Harness()
    message = GrpcJsonTranscoder(proto_descriptor=str(tmp_path / "none.pb"), services=[SERVICE])
    assert build_transcoder(message, "t", made.context) is None
    assert [error.path for error in made.errors.items] == ["t.proto_descriptor.filename"]


def test_what_is_no_descriptor_set() -> None:
    assert [path for path, _ in errors(proto_descriptor_bin=b"\xff")] == ["t"]


def test_a_service_that_is_not_there() -> None:
    assert errors(services=[SERVICE, "x.Y"]) == [("t.services[1]", "Could not find 'x.Y' in the proto descriptor")]


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"get": "v1"}, "'v1': / expected at 0"),
        ({"get": "/v1/{shelf=**}/*"}, "'/v1/{shelf=**}/*': only literals may follow **"),
        ({"post": "/v1", "body": "colour"}, 'Could not find field "colour" in the type "test.library.Request".'),
        ({"get": "/v1", "response_body": "title"}, '"response_body" is supported for fields of google.api.HttpBody only'),
        ({"get": "/v1", "additional_bindings": [{"get": "/{"}]}, "'/{': a variable without a name"),
    ],
)  # fmt: skip
def test_a_bad_rule(rule: dict[str, Any], reason: str) -> None:
    from google.api import annotations_pb2, http_pb2

    files = FileDescriptorSet.FromString(DESCRIPTOR_SET)
    method = files.file[-1].service[0].method[1]
    method.options.Extensions[annotations_pb2.http].CopyFrom(http_pb2.HttpRule(**rule))
    where = f"Cannot register '{SERVICE}.FindBook': {reason}"
    assert errors(proto_descriptor_bin=files.SerializeToString()) == [("t.services[0]", where)]


def test_an_override_without_services_turns_it_off() -> None:
    made = Harness()
    override = build_override(GrpcJsonTranscoder(proto_descriptor_bin=b""), "o", made.context)
    assert override is not None
    assert made.errors.items == []
