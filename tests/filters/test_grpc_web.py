"""grpc_web: both directions, in text and in binary. Compared with Envoy in tests/differential/test_grpc_filters.py."""

from __future__ import annotations

from base64 import b64decode, b64encode

import pytest
from envoy.extensions.filters.http.grpc_web.v3.grpc_web_pb2 import GrpcWeb
from hypothesis import given
from hypothesis import strategies as st

from meshproxy.filters.http.grpc_web import TextEncoder, build_grpc_web, decode_base64
from meshproxy.http.grpc.messages import TRAILERS, MessageReader, frame
from tests.filters.grpc_calls import GRPC, Call, parts

BINARY = ("content-type", "application/grpc-web+proto")
TEXT = ("content-type", "application/grpc-web-text")
ACCEPT_TEXT = ("accept", "application/grpc-web-text")
END = ((b"grpc-status", b"5"), (b"grpc-message", b"none"))
LAST = frame(b"grpc-status:5\r\ngrpc-message:none\r\n", TRAILERS)


def web() -> Call:
    return Call(build_grpc_web, GrpcWeb())


def test_a_binary_call() -> None:
    call = web()
    call.request(frame(b"hello"), headers=(BINARY,))
    assert call.upstream.body == frame(b"hello")
    assert call.seen[b"content-type"] == b"application/grpc"
    assert call.seen[b"grpc-accept-encoding"] == b"identity"
    start, headers, body = parts(call.answer(frame(b"a"), trailers=END))
    assert (start, headers["content-type"]) == ("HTTP/1.1 200 OK", "application/grpc-web+proto")
    assert body == frame(b"a") + LAST
    assert "grpc-status" not in headers
    assert call.counters() == {"grpc-web.s.S.M.5": 1, "grpc-web.s.S.M.failure": 1, "grpc-web.s.S.M.total": 1}


@pytest.mark.parametrize("cut", [1, 3, 4, 7, 13])
def test_a_call_in_text(cut: int) -> None:
    call = web()
    sent = b64encode(frame(b"hello")) + b64encode(frame(b"x"))
    call.request(sent[:cut], sent[cut:], headers=(TEXT, ACCEPT_TEXT))
    assert call.upstream.body == frame(b"hello") + frame(b"x")
    message = frame(b"abcd")
    _, headers, body = parts(call.answer(message[:cut], message[cut:], trailers=END))
    assert headers["content-type"] == "application/grpc-web-text+proto"
    assert body == b64encode(message) + b64encode(LAST)


def test_what_is_no_grpc_web_passes() -> None:
    call = web()
    call.request(frame(b"x"), headers=(GRPC,))
    assert call.seen[b"content-type"] == b"application/grpc"
    _, headers, body = parts(call.answer(frame(b"a"), trailers=END))
    assert (headers["grpc-status"], body) == ("5", frame(b"a"))


@pytest.mark.parametrize(
    ("body", "details"),
    [(b"AAA", "grpc_base_64_decode_failed_bad_size"), (b"$$$$", "grpc_base_64_decode_failed")],
)
def test_what_is_no_base64(body: bytes, details: str) -> None:
    call = web()
    start, headers, _ = parts(call.request(body, headers=(TEXT,)))
    assert start == "HTTP/1.1 400 Bad Request"
    assert headers["grpc-status"] == "13"
    assert headers["grpc-message"] == "Bad gRPC-web request, invalid base64 data."
    assert call.stream.info.response_code_details == details
    assert call.upstream.body == b""


def test_a_response_that_is_no_grpc_becomes_a_head() -> None:
    call = web()
    call.request(frame(b"x"), headers=(BINARY,))
    start, headers, body = parts(call.answer(b"it is ", b"100%", status=b"503"))
    assert (start, body) == ("HTTP/1.1 503 Service Unavailable", b"")
    assert (headers["grpc-status"], headers["grpc-message"]) == ("14", "it is 100%25")
    assert headers["content-type"] == "application/grpc-web+proto"


def test_a_long_response_that_is_no_grpc_is_cut() -> None:
    call = web()
    call.request(frame(b"x"), headers=(BINARY,))
    _, headers, _ = parts(call.answer(b"a" * 10_000, b"b" * 10_000, b"c" * 2_000_000, status=b"500"))
    assert headers["grpc-message"] == "a" * 10_000 + "b" * 6_384


def test_a_response_of_trailers_only() -> None:
    call = web()
    call.request(frame(b"x"), headers=(BINARY,))
    _, headers, body = parts(call.answer(head=END))
    assert (headers["grpc-status"], body) == ("5", b"")


@given(st.lists(st.binary(max_size=20), max_size=4))
def test_blocks_of_base64(blocks: list[bytes]) -> None:
    assert decode_base64(b"".join(b64encode(block) for block in blocks)) == b"".join(blocks)


@pytest.mark.parametrize("text", [b"AB==", b"A===", b"====", b"AAA\n", b"AA=A", b"-_-_"])
def test_what_is_no_block_of_base64(text: bytes) -> None:
    assert decode_base64(text) is None
    assert decode_base64(b"AAAA" + text) is None


@given(st.lists(st.binary(max_size=20), max_size=4), st.data())
def test_any_split_is_the_same_text(messages: list[bytes], data: st.DataObject) -> None:
    body = b"".join(frame(message) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=6)))
    encoder, text = TextEncoder(), b""
    for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        text += encoder.encode(body[start:end], False)
    assert text + encoder.finish() == b"".join(b64encode(frame(message)) for message in messages)


def test_a_message_cut_short_is_encoded_as_far_as_it_came() -> None:
    encoder = TextEncoder()
    text = encoder.encode(frame(b"abc")[:7], False)
    assert b64decode(text + encoder.finish()) == frame(b"abc")[:7]
    assert MessageReader().feed(frame(b"abc")[:7]) == []
