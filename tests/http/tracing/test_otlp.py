"""Spans on the wire, read back by the generated messages of opentelemetry-proto."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from meshproxy.http.tracing.otlp import KIND_CLIENT, SpanData, encode_request, encode_resource, encode_scope, varint


def decoded(data: SpanData) -> Any:
    message = trace_pb2.Span()
    message.ParseFromString(data.encode())
    return message


def span() -> SpanData:
    data = SpanData(b"0af7651916cd43dd8448eb211c80319c", b"b7ad6b7169203331", b"", b"")
    data.name = b"ingress"
    data.start_ns, data.end_ns = 1_700_000_000_123_456_789, 1_700_000_001_123_456_789
    return data


def test_a_span_with_everything() -> None:
    data = span()
    data.parent_id = b"00f067aa0ba902b7"
    data.state = b"a=1"
    data.kind = KIND_CLIENT
    data.attributes = {b"a": b"1", b"long": b"x" * 300}
    data.events = [(b"sent", 5)]
    data.failed = True
    message = decoded(data)
    assert message.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert message.span_id.hex() == "b7ad6b7169203331"
    assert message.parent_span_id.hex() == "00f067aa0ba902b7"
    assert message.trace_state == "a=1"
    assert message.name == "ingress"
    assert message.kind == trace_pb2.Span.SPAN_KIND_CLIENT
    assert message.start_time_unix_nano == data.start_ns
    assert message.end_time_unix_nano == data.end_ns
    assert {each.key: each.value.string_value for each in message.attributes} == {"a": "1", "long": "x" * 300}
    assert [(event.name, event.time_unix_nano) for event in message.events] == [("sent", 5)]
    assert message.status.code == trace_pb2.Status.STATUS_CODE_ERROR


def test_a_span_with_little() -> None:
    message = decoded(span())
    assert message.kind == trace_pb2.Span.SPAN_KIND_SERVER
    assert not message.HasField("status")
    assert message.parent_span_id == b""
    assert message.trace_state == ""


def test_a_header_that_is_no_utf8_becomes_text() -> None:
    data = span()
    data.attributes = {b"user_agent": b"caf\xe9", b"utf8": "é".encode()}
    values = [each.value.string_value for each in decoded(data).attributes]
    assert values == ["caf�", "é"]


def test_a_request() -> None:
    message: Any = trace_service_pb2.ExportTraceServiceRequest()
    resource = encode_resource({"service.name": "shop"})
    message.ParseFromString(encode_request(resource, encode_scope("n", "1"), [span().encode(), span().encode()]))
    (of_resource,) = message.resource_spans
    assert [(each.key, each.value.string_value) for each in of_resource.resource.attributes] == [
        ("service.name", "shop")
    ]
    (scope,) = of_resource.instrumentation_library_spans  # what `scope_spans` was called before; the number is the same
    assert (scope.instrumentation_library.name, scope.instrumentation_library.version) == ("n", "1")
    assert [each.name for each in scope.spans] == ["ingress", "ingress"]


@given(st.integers(min_value=0, max_value=2**63))
def test_a_varint_is_protobufs(number: int) -> None:
    message = trace_pb2.Span(dropped_attributes_count=number % 2**32)
    tag = varint(10 << 3)
    assert message.SerializeToString() == (tag + varint(number % 2**32) if number % 2**32 else b"")
