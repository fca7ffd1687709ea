"""Local replies: their texts, details and flags, and their form for gRPC (recorded from Envoy 1.40)."""

from __future__ import annotations

import pytest

from meshproxy import errors
from meshproxy.codec.grpc import is_grpc
from meshproxy.codec.headers import HeaderMap
from meshproxy.http.local_reply import reset_details, upstream_reset_reply
from meshproxy.observe.response_flags import short_names
from tests.http.harness import Harness, ScriptedUpstream, get, head

TEXT = "upstream connect error or disconnect/reset before headers. "


@pytest.mark.parametrize(
    ("reason", "status", "words", "flag"),
    [
        (errors.RESET_CONNECT_FAILURE, 503, "remote connection failure", "UF"),
        (errors.RESET_CONNECT_TIMEOUT, 503, "connection timeout", "UF"),
        (errors.RESET_TERMINATION, 503, "connection termination", "UC"),
        (errors.RESET_OVERFLOW, 503, "overflow", "UO"),
        (errors.RESET_REMOTE, 503, "remote reset", "UR"),
        (errors.RESET_REMOTE_REFUSED, 503, "remote refused stream reset", "UR"),
        (errors.RESET_LOCAL, 503, "local reset", "LR"),
        (errors.RESET_PROTOCOL_ERROR, 502, "protocol error", "UPE"),
    ],
)
def test_an_upstream_reset(reason: int, status: int, words: str, flag: str) -> None:
    made = upstream_reset_reply(reason, "", False)
    assert (made.status, made.body.decode()) == (status, f"{TEXT}reset reason: {words}")
    assert made.details == f"upstream_reset_before_response_started{{{words.replace(' ', '_')}}}"
    assert short_names(made.response_flags) == flag


def test_a_retried_reset_with_its_cause() -> None:
    made = upstream_reset_reply(errors.RESET_CONNECT_FAILURE, "delayed connect error: Connection refused", True)
    assert made.body.decode() == f"{TEXT}retried and the latest reset reason: remote connection failure"
    assert made.details == (
        "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}"
    )


def test_details_of_a_reset_amid_a_response() -> None:
    details = reset_details("upstream_reset_after_response_started", errors.RESET_TERMINATION, "")
    assert details == "upstream_reset_after_response_started{connection_termination}"


def reply(status: int, body: bytes = b"", grpc_status: int = -1, *, grpc: bool = False) -> bytes:
    """What goes out when a filter answers by itself."""
    made = Harness(upstream=ScriptedUpstream(None))
    connection = made.connect()
    connection.send(get("/", *([("content-type", "application/grpc")] if grpc else [])))
    made.upstream.streams[0].send_local_reply(status, body, "why", 0, None, grpc_status)
    return connection.received()


def test_a_reply() -> None:
    assert reply(404) == head("404 Not Found", ("content-length", "0"))
    text = [("content-length", "4"), ("content-type", "text/plain")]
    assert reply(503, b"text") == head("503 Service Unavailable", *text, body="text")
    assert reply(200, b"text", 5) == head("200 OK", *text, body="text")


@pytest.mark.parametrize(
    ("content_type", "grpc"),
    [
        ("application/grpc", True),
        ("application/grpc+proto", True),
        ("application/grpc;x=1", False),
        ("application/grpc-web", False),
        ("Application/GRPC", False),
        ("text/plain", False),
    ],
)
def test_what_is_a_grpc_request(content_type: str, grpc: bool) -> None:
    assert is_grpc(HeaderMap([(b"content-type", content_type.encode())])) == grpc
    assert not is_grpc(HeaderMap([(b":path", b"/")]))


@pytest.mark.parametrize(
    ("status", "grpc_status"),
    [
        (200, 2),
        (302, 2),
        (400, 13),
        (401, 16),
        (403, 7),
        (404, 12),
        (408, 2),
        (413, 2),
        (429, 14),
        (431, 2),
        (500, 2),
        (501, 2),
        (502, 14),
        (503, 14),
        (504, 14),
        (505, 2),
    ],
)
def test_the_grpc_status_of_an_http_status(status: int, grpc_status: int) -> None:
    expected = [("content-type", "application/grpc"), ("grpc-status", str(grpc_status)), ("content-length", "0")]
    if status == 400:
        expected.insert(2, ("connection", "close"))  # Envoy's: a bad request is the connection's last
    assert reply(status, grpc=True) == head("200 OK", *expected)


def test_the_text_of_a_grpc_reply_is_its_message() -> None:
    answer = reply(503, "a b%ü\n~/é'\"x".encode(), grpc=True)
    assert answer == head(
        "200 OK",
        ("content-type", "application/grpc"),
        ("grpc-status", "14"),
        ("grpc-message", "a b%25%C3%BC%0A%7E/%C3%A9'\"x"),
        ("content-length", "0"),
    )
    assert b"grpc-status: 5\r\n" in reply(503, b"", 5, grpc=True)
