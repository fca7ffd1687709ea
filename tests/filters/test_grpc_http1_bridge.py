"""grpc_http1_bridge and its reverse. Compared with Envoy in tests/differential/test_grpc_filters.py."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.extensions.filters.http.grpc_http1_bridge.v3.config_pb2 import Config
from envoy.extensions.filters.http.grpc_http1_reverse_bridge.v3.config_pb2 import FilterConfig

from meshproxy.codec.headers import Field
from meshproxy.filters.http.grpc_http1_bridge import build_grpc_http1_bridge
from meshproxy.filters.http.grpc_http1_reverse_bridge import build_reverse_bridge
from meshproxy.http.grpc.messages import frame
from tests.filters.grpc_calls import Call, parts

PROTO = ("content-type", "application/x-protobuf")
OF_UPSTREAM = b"application/x-protobuf"


def bridge(**config: Any) -> Call:
    return Call(build_grpc_http1_bridge, Config(), config)


def status(value: bytes) -> tuple[Field, ...]:
    return ((b"grpc-status", value), (b"grpc-message", b"why"))


@pytest.mark.parametrize(("code", "start"), [(b"0", "200 OK"), (b"5", "503 Service Unavailable")])
def test_the_status_goes_into_the_head(code: bytes, start: str) -> None:
    call = bridge()
    call.request(frame(b"x"))
    line, headers, body = parts(call.answer(frame(b"a"), frame(b"b"), trailers=status(code)))
    assert line == f"HTTP/1.1 {start}"
    assert (headers["grpc-status"], headers["grpc-message"]) == (code.decode(), "why")
    assert headers["content-length"] == "12"
    assert body == frame(b"a") + frame(b"b")


def test_a_bare_message_is_framed() -> None:
    call = bridge(upgrade_protobuf_to_grpc=True)
    call.request(b"hel", b"lo", headers=(PROTO,))
    assert call.upstream.body == frame(b"hello")
    assert call.seen[b"content-type"] == b"application/grpc"
    _, headers, body = parts(call.answer(frame(b"world"), trailers=status(b"0")))
    assert (headers["content-length"], headers["grpc-status"], body) == ("5", "0", b"world")


def test_a_bare_message_stays_bare_unless_configured() -> None:
    call = bridge()
    call.request(b"hello", headers=(PROTO,))
    assert (call.upstream.body, call.seen[b"content-type"]) == (b"hello", b"application/x-protobuf")


def test_the_query_goes_where_it_is_to_be_ignored() -> None:
    call = bridge(ignore_query_parameters=True)
    call.request(frame(b"x"), path="/s.S/M?a=b")
    assert call.seen[b":path"] == b"/s.S/M"


def test_a_response_beyond_the_buffer_limit() -> None:
    call = bridge()
    call.connection.manager.buffer_limit_bytes = 100
    call.request(frame(b"x"))
    _, headers, _ = parts(call.answer(bytes(60), bytes(60), trailers=status(b"0")))
    assert headers["grpc-status"] == "2"


def reverse(**config: Any) -> Call:
    return Call(build_reverse_bridge, FilterConfig(), {"content_type": "application/x-protobuf", **config})


@pytest.mark.parametrize(
    ("code", "expected"), [(b"200", "0"), (b"404", "12"), (b"503", "14"), (b"500", "2"), (b"429", "14")]
)
def test_an_ordinary_response_becomes_a_call(code: bytes, expected: str) -> None:
    call = reverse(withhold_grpc_frames=True)
    call.request(frame(b"he")[:3], frame(b"he")[3:])
    assert call.upstream.body == b"he"
    assert (call.seen[b"content-type"], call.seen[b"accept"]) == (b"application/x-protobuf", b"application/x-protobuf")
    line, headers, body = parts(call.answer(b"wor", b"ld", status=code, content_type=OF_UPSTREAM))
    assert (line, headers["content-type"]) == ("HTTP/1.1 200 OK", "application/grpc")
    assert (headers["grpc-status"], body) == (expected, frame(b"world"))


def test_frames_pass_unless_they_are_withheld() -> None:
    call = reverse()
    call.request(frame(b"x"))
    assert call.upstream.body == frame(b"x")
    _, headers, body = parts(call.answer(frame(b"y"), content_type=OF_UPSTREAM))
    assert (headers["grpc-status"], body) == ("0", frame(b"y"))


def test_a_size_that_the_upstream_tells() -> None:
    call = reverse(withhold_grpc_frames=True, response_size_header="x-size")
    call.request(frame(b"x"))
    size: Field = (b"x-size", b"4")
    _, headers, body = parts(call.answer(b"wo", b"rd", content_type=OF_UPSTREAM, head=(size,)))
    assert (headers["content-length"], body) == ("9", frame(b"word"))


def test_no_body_is_an_empty_message() -> None:
    call = reverse(withhold_grpc_frames=True)
    call.request(frame(b"x"))
    _, headers, body = parts(call.answer(content_type=OF_UPSTREAM))
    assert (headers["content-length"], body) == ("5", frame(b""))


@pytest.mark.parametrize(
    ("content_type", "head", "expected", "text"),
    [
        (b"text/html", (), "2", "unsupported content-type text/html, status code 200"),
        (OF_UPSTREAM, (), "13", "upstream did not set content length"),
        (OF_UPSTREAM, ((b"x-size", b"many"),), "13", "upstream did not set content length"),
    ],
)
def test_what_is_no_such_response(content_type: bytes, head: tuple[Field, ...], expected: str, text: str) -> None:
    call = reverse(withhold_grpc_frames=True, response_size_header="x-size")
    call.request(frame(b"x"))
    _, headers, _ = parts(call.answer(b"y", content_type=content_type, head=head))
    assert headers["grpc-status"] == expected
    assert text in headers["grpc-message"]


def test_a_request_without_a_message() -> None:
    call = reverse(withhold_grpc_frames=True)
    _, headers, _ = parts(call.request(b"\0\0"))
    assert (headers["grpc-status"], headers["grpc-message"]) == ("2", "invalid request body")
