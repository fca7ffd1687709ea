"""Answers that the proxy gives itself: one place that says which status, flags, details and text a failure has."""

from __future__ import annotations

from typing import Final

from meshproxy.codec import grpc
from meshproxy.codec.headers import HeaderMap
from meshproxy.errors import (
    RESET_CONNECT_FAILURE,
    RESET_CONNECT_TIMEOUT,
    RESET_LOCAL,
    RESET_LOCAL_CONNECT_FAILURE,
    RESET_OVERFLOW,
    RESET_PROTOCOL_ERROR,
    RESET_REMOTE,
    RESET_REMOTE_REFUSED,
    RESET_TERMINATION,
)
from meshproxy.observe import response_flags as flags

# reason of a reset -> (Envoy's words, response flag)
_RESETS: Final[dict[int, tuple[str, int]]] = {
    RESET_LOCAL: ("local reset", flags.LOCAL_RESET),
    RESET_REMOTE: ("remote reset", flags.UPSTREAM_REMOTE_RESET),
    RESET_REMOTE_REFUSED: ("remote refused stream reset", flags.UPSTREAM_REMOTE_RESET),
    RESET_CONNECT_FAILURE: ("remote connection failure", flags.UPSTREAM_CONNECTION_FAILURE),
    RESET_LOCAL_CONNECT_FAILURE: ("local connection failure", flags.UPSTREAM_CONNECTION_FAILURE),
    RESET_CONNECT_TIMEOUT: ("connection timeout", flags.UPSTREAM_CONNECTION_FAILURE),
    RESET_TERMINATION: ("connection termination", flags.UPSTREAM_CONNECTION_TERMINATION),
    RESET_OVERFLOW: ("overflow", flags.UPSTREAM_OVERFLOW),
    RESET_PROTOCOL_ERROR: ("protocol error", flags.UPSTREAM_PROTOCOL_ERROR),
}

_TOLD_BY_CODEC: Final = (RESET_PROTOCOL_ERROR, RESET_REMOTE, RESET_REMOTE_REFUSED)


def reset_flag(reason: int) -> int:
    """The response flag of an upstream reset."""
    return _RESETS[reason][1]


def reset_words(reason: int) -> str:
    """Envoy's words for a reset, e.g. `connection termination`."""
    return _RESETS[reason][0]


class LocalReply:
    """What to send, and what the access log says of it."""

    def __init__(self, status: int, body: bytes, details: str, response_flags: int = 0) -> None:
        self.status = status
        self.body = body
        self.details = details
        self.response_flags = response_flags


def upstream_reset_reply(reason: int, transport_failure: str, retried: bool) -> LocalReply:
    """The reply for an attempt that failed before its response began."""
    words, flag = _RESETS[reason]
    text = (
        "upstream connect error or disconnect/reset before headers. "
        f"{'retried and the latest ' if retried else ''}reset reason: {words}"
    )
    status = 502 if reason == RESET_PROTOCOL_ERROR else 503
    return LocalReply(
        status,
        text.encode(),
        reset_details("upstream_reset_before_response_started", reason, transport_failure),
        flag,
    )


def reset_details(basic: str, reason: int, transport_failure: str) -> str:
    """Response-code details of an upstream reset, e.g.
    `upstream_reset_before_response_started{connection_termination}`."""
    words = _RESETS[reason][0]
    if reason in _TOLD_BY_CODEC:
        transport_failure = ""  # what the codec found is for the log, not for whoever asks
    inner = f"{words}|{transport_failure}" if transport_failure else words
    return f"{basic}{{{inner}}}".replace(" ", "_")


def complete_reply_headers(headers: HeaderMap, body: bytes, content_type: bytes = b"") -> None:
    """What a local reply's head says of its body: plain text, unless `content_type` or the headers so far say
    otherwise."""
    if body:
        headers.set(b"content-length", b"%d" % len(body))
        if content_type:
            headers.set(b"content-type", content_type)
        else:
            headers.set_default(b"content-type", b"text/plain")


def complete_grpc_reply_headers(headers: HeaderMap, status: int, body: bytes, grpc_status: int) -> None:
    """Make a local reply one to a gRPC request: trailers only, with the text as its message."""
    headers.set(b":status", b"200")
    headers.set(b"content-type", b"application/grpc")
    code = grpc_status if grpc_status >= 0 else grpc.status_of_http(status)
    headers.set_default(b"grpc-status", b"%d" % code)
    headers.remove(b"content-length")
    if body:
        headers.set(b"grpc-message", grpc.encode_message(body))
