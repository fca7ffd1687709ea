"""How long a received body is (RFC 9112 section 6), and what of its fields goes on."""

from __future__ import annotations

from typing import Final

from meshproxy.codec.content_length import content_length_to_send
from meshproxy.codec.headers import CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, HeaderMap
from meshproxy.codec.http1.details import CHUNKED_CONTENT_LENGTH, CODEC_ERROR, INVALID_TRANSFER_ENCODING
from meshproxy.errors import ProtocolError

CHUNKED: Final = -1  # in place of a length


def content_length(headers: HeaderMap) -> int:
    """The value of the one Content-Length; raises ProtocolError when there are several or it is no number.

    Repeated equal values are refused too, as RFC 9112 section 6.3 rule 5 permits and Envoy does.
    """
    length = content_length_to_send(headers)
    if length < 0:
        raise ProtocolError(400, CODEC_ERROR, "invalid Content-Length")
    return length


def check_transfer_encoding(headers: HeaderMap) -> None:
    """Raise ProtocolError unless the transfer coding is `chunked`, once and nothing else.

    501 for a coding that we do not know (RFC 9112 section 6.1), 400 where `chunked` is applied twice or not last,
    since the end of the message cannot be told (section 6.3 rule 4).
    """
    codings = [coding.strip(b" \t").lower() for coding in b",".join(headers.get_all(b"transfer-encoding")).split(b",")]
    if codings == [b"chunked"]:
        return
    unknown = any(coding not in (b"chunked", b"") for coding in codings)
    if unknown and b"chunked" not in codings[:-1]:
        raise ProtocolError(501, INVALID_TRANSFER_ENCODING, "unknown transfer coding")
    raise ProtocolError(400, INVALID_TRANSFER_ENCODING, "malformed transfer coding")


def body_length(headers: HeaderMap, known: int, http_10: bool, allow_chunked_length: bool) -> int:
    """Bytes of the body that Transfer-Encoding or Content-Length (one of them is there) announce, or `CHUNKED`.

    Takes Transfer-Encoding out of `headers`: it belongs to the connection it came on (RFC 9110 section 7.6.1).
    Raises ProtocolError for every ambiguity.
    """
    if not known & TRANSFER_ENCODING:
        return content_length(headers)
    if http_10:  # RFC 9112 section 6.1: the framing is to be treated as faulty
        raise ProtocolError(400, INVALID_TRANSFER_ENCODING, "Transfer-Encoding in an HTTP/1.0 message")
    check_transfer_encoding(headers)
    if known & CONTENT_LENGTH:
        if not allow_chunked_length:
            raise ProtocolError(400, CHUNKED_CONTENT_LENGTH, "Transfer-Encoding with Content-Length")
        headers.remove(b"content-length")
    headers.remove(b"transfer-encoding")
    headers.known &= ~(TRANSFER_ENCODING | CONTENT_LENGTH)
    return CHUNKED


def connection_tokens(headers: HeaderMap) -> list[bytes]:
    """The options of Connection in lower case; none for other fields that share its bit."""
    if not headers.known & CONNECTION:
        return []
    joined = headers.joined(b"connection")
    return [] if joined is None else [token.strip(b" \t") for token in joined.lower().split(b",")]


def keeps_alive(headers: HeaderMap, http_10: bool) -> bool:
    """Whether the sender of this head leaves the connection open (RFC 9112 section 9.3)."""
    if not headers.known & CONNECTION:
        return not http_10
    if headers.joined(b"connection") == b"keep-alive":
        return True
    tokens = connection_tokens(headers)
    if b"close" in tokens:
        return False
    return not http_10 or b"keep-alive" in tokens
