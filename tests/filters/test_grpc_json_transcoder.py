"""The gRPC-JSON transcoder in a chain: what is kept and for how long, what is refused, and its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from envoy.extensions.filters.http.grpc_json_transcoder.v3.transcoder_pb2 import GrpcJsonTranscoder
from google.api import annotations_pb2, http_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from meshproxy.codec.headers import HeaderMap
from meshproxy.filters.http.grpc_json_transcoder import build_override, build_transcoder
from meshproxy.http.filter import CONTINUE
from meshproxy.http.grpc.messages import frame
from meshproxy.http.stream import Stream
from tests.http.harness import Downstream, Harness, ScriptedUpstream, get
from tests.support.library import DESCRIPTOR_SET, SERVICE, encoded


class Transcoding(Harness):
    """A chain with a transcoder; fields of its configuration as keywords."""

    def __init__(self, upstream: ScriptedUpstream | None = None, **fields: Any) -> None:
        super().__init__(upstream=upstream)
        self.add(build_transcoder(configuration(**fields), "t", self.context), "transcoder")

    def begin(self, request: bytes) -> Downstream:
        """Send the head of a request whose body is to come."""
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


# -- limits


@pytest.mark.parametrize(("size", "status"), [(90, b"200 OK"), (91, b"413 Payload Too Large")])
def test_a_request_is_kept_up_to_its_limit(size: int, status: bytes) -> None:
    made = Transcoding(max_request_body_size={"value": 102})
    body = b'{"title":"' + b"x" * size + b'"}'
    downstream = made.begin(upload("/v1/shelves/poems/books") + chunk(body[:50]))
    assert made.upstream.seen == []
    answered = downstream.send(chunk(body[50:]) + b"0\r\n\r\n")
    assert answered.split(b"\r\n")[0] == b"HTTP/1.1 " + status
    assert len(made.upstream.seen) == (status == b"200 OK")


class Taking(ScriptedUpstream):
    """Takes a request bit by bit, and never its end."""

    def __init__(self) -> None:
        super().__init__(None)
        self.received = b""

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> int:
        super().on_request_headers(stream, headers, end)
        stream.let_request_wait()
        return CONTINUE

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> bytes:
        self.received += data
        return b""


def test_messages_of_a_stream_go_on_one_by_one() -> None:
    made = Transcoding(taking := Taking())
    downstream = made.begin(upload("/v1/chat"))
    assert len(taking.seen) == 1
    assert downstream.send(chunk(b'[{"id":1}')) == b""
    assert taking.received == frame(b"\x08\x01")
    assert downstream.send(chunk(b',{"id":2},{"id"')) == b""
    assert taking.received == frame(b"\x08\x01") + frame(b"\x08\x02")


def test_a_raw_stream_goes_on_in_pieces() -> None:
    made = Transcoding(taking := Taking())
    downstream = made.begin(upload("/v1/stream/x") + chunk(b"a"))
    assert taking.received == frame(b"B\x00\n\x01xB\x03\x12\x01a")  # the body's field twice: an empty one first
    assert downstream.send(chunk(b"b")) == b""
    assert taking.received.endswith(frame(b"B\x03\x12\x01b"))
    assert downstream.send(chunk(b"c" * ((1 << 20) + 2))) == b""
    assert taking.received.endswith(frame(b"B\x04\x12\x02cc"))
    assert taking.received.count(b"c" * (1 << 20)) == 1


@pytest.mark.parametrize("last", [b',{"title":"' + b"x" * 101, b',{"title":"' + b"x" * 101 + b'"}'])
def test_of_a_stream_each_message_is_held_to_the_limit(last: bytes) -> None:
    made = Transcoding(taking := Taking(), max_request_body_size={"value": 100})
    downstream = made.begin(upload("/v1/upload") + chunk(b'[{"title":"' + b"x" * 60 + b'"}'))
    for _ in range(10):
        assert downstream.send(chunk(b',{"title":"' + b"x" * 60 + b'"}')) == b""
    assert taking.received == 11 * frame(encoded("Book", title="x" * 60))
    assert downstream.send(chunk(last)).startswith(b"HTTP/1.1 413 Payload Too Large\r\n")


def test_what_is_kept_is_told() -> None:
    made = Transcoding(Taking())
    downstream = made.begin(upload("/v1/shelves/poems/books") + chunk(b"x" * 7))
    downstream.feed(chunk(b"x" * 5))
    streams = made.begin(upload("/v1/upload") + chunk(b"[{"))
    assert kept(made) == 13
    downstream.leave()
    assert kept(made) == 1
    streams.feed(chunk(b"}"))
    assert kept(made) == 0


def kept(made: Transcoding) -> int:
    return made.registry.snapshot().gauges["http.test.transcoder_request_buffer_bytes"]


def test_the_connection_says_how_much_where_nothing_else_does() -> None:
    made = Transcoding()
    downstream = made.begin(upload("/v1/shelves/poems/books"))
    piece = b"x" * 65536
    for _ in range(16):
        assert downstream.send(chunk(piece)) == b""
    assert downstream.send(chunk(piece)).startswith(b"HTTP/1.1 413 ")


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
    made = Transcoding(Taking())
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


# -- configuration


def errors(**fields: Any) -> list[tuple[str, str]]:
    made = Harness()
    assert build_transcoder(configuration(**fields), "t", made.context) is None or made.errors.items
    return [(error.path, error.reason) for error in made.errors.items]


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
        ({"get": "/v1", "response_body": "title"},
         '"response_body" is supported for fields of google.api.HttpBody only'),
        ({"get": "/v1", "additional_bindings": [{"get": "/{"}]}, "'/{': a variable without a name"),
    ],
)  # fmt: skip
def test_a_bad_rule(rule: dict[str, Any], reason: str) -> None:
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
