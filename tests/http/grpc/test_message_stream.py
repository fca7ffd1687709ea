"""The messages that filters read and write."""

from __future__ import annotations

import gzip
import zlib

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.duration_pb2 import DESCRIPTOR as DURATION_FILE
from google.protobuf.duration_pb2 import Duration

from meshproxy.codec.headers import HeaderMap
from meshproxy.errors import MeshProxyError
from meshproxy.http.grpc.descriptors import GrpcServices
from meshproxy.http.grpc.message_stream import GrpcMessageError, GrpcMessages
from meshproxy.http.grpc.messages import COMPRESSED, MessageTooLongError, frame


def head(**fields: str) -> HeaderMap:
    return HeaderMap([(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()])


def test_bytes_are_read_dropped_and_added() -> None:
    headers = head(content_length="12")
    messages = GrpcMessages(headers)
    assert headers.fields == []
    assert messages.read(frame(b"a") + frame(b"bc")[:3]) == [b"a"]
    assert messages.partial
    assert messages.read(frame(b"bc")[3:]) == [b"bc"]
    assert messages.write([b"x", b""]) == frame(b"x") + frame(b"")
    assert messages.write([]) == b""


def test_a_body_that_ends_with_a_message() -> None:
    messages = GrpcMessages(head())
    messages.read(frame(b"a"))
    assert not messages.partial


def test_messages_of_a_type() -> None:
    messages = GrpcMessages(head(), Duration)
    (duration,) = messages.read(frame(Duration(seconds=5).SerializeToString()))
    duration.seconds = 6
    assert messages.write([duration]) == frame(Duration(seconds=6).SerializeToString())
    with pytest.raises(GrpcMessageError, match=r"no google\.protobuf\.Duration"):
        messages.read(frame(b"\xff"))


@pytest.mark.parametrize(
    ("encoding", "compressed"), [("gzip", gzip.compress(b"hello", mtime=0)), ("deflate", zlib.compress(b"hello"))]
)
def test_compressed_messages(encoding: str, compressed: bytes) -> None:
    messages = GrpcMessages(head(grpc_encoding=encoding), limit_bytes=100)
    assert messages.read(frame(compressed, COMPRESSED) + frame(b"plain")) == [b"hello", b"plain"]


@pytest.mark.parametrize(
    ("encoding", "compressed"),
    [
        ("gzip", b"nonsense"),
        ("gzip", gzip.compress(b"hello", mtime=0)[:-3]),
        ("br", b"x"),
        ("identity", b"x"),
    ],
)
def test_what_cannot_be_decompressed(encoding: str, compressed: bytes) -> None:
    with pytest.raises(GrpcMessageError):
        GrpcMessages(head(grpc_encoding=encoding)).read(frame(compressed, COMPRESSED))


def test_limits_hold_for_what_is_compressed() -> None:
    assert GrpcMessages(head(), limit_bytes=10).read(frame(bytes(10))) == [bytes(10)]
    with pytest.raises(MessageTooLongError):
        GrpcMessages(head(), limit_bytes=10).read(frame(bytes(11)))
    bomb = frame(gzip.compress(bytes(1_000_000)), COMPRESSED)
    with pytest.raises(MessageTooLongError):
        GrpcMessages(head(grpc_encoding="gzip"), limit_bytes=10_000).read(bomb)


def services() -> FileDescriptorSet:
    file = FileDescriptorProto(name="s.proto", package="a.b", syntax="proto3", dependency=[DURATION_FILE.name])
    file.message_type.append(DescriptorProto(name="Empty"))
    service = file.service.add(name="S")
    service.method.add(name="Wait", input_type=".google.protobuf.Duration", output_type=".a.b.Empty")
    service.method.add(
        name="Tick", input_type=".a.b.Empty", output_type=".google.protobuf.Duration", server_streaming=True
    )
    made = FileDescriptorSet(file=[file])
    DURATION_FILE.CopyToProto(made.file.add())
    made.file.reverse()  # what is imported stands first
    return made


def test_the_methods_of_a_descriptor_set() -> None:
    known = GrpcServices(services().SerializeToString())
    method = known.method(HeaderMap([(b":path", b"/a.b.S/Tick?x")]))
    assert method is not None
    assert (method.service, method.name) == ("a.b.S", "Tick")
    assert (method.client_streaming, method.server_streaming) == (False, True)
    assert method.request.DESCRIPTOR.full_name == "a.b.Empty"
    assert method.response.DESCRIPTOR.full_name == "google.protobuf.Duration"
    assert known.method(HeaderMap([(b":path", b"/a.b.S/Other")])) is None
    assert known.method(HeaderMap()) is None


def test_what_is_no_descriptor_set() -> None:
    with pytest.raises(MeshProxyError, match="no descriptor set"):
        GrpcServices(b"\xff")
    without_import = services()
    del without_import.file[0]
    with pytest.raises(MeshProxyError, match="no descriptor set"):
        GrpcServices(without_import.SerializeToString())
