"""Sending a message: field lines, and a body in the framing that its head announced."""

from __future__ import annotations

from typing import Final

from meshproxy.codec.headers import TRANSFER_ENCODING, HeaderMap
from meshproxy.codec.http1.chunked import chunk_head, encode_chunk
from meshproxy.codec.http1.connection import PASS_ON_BYTES, Http1Connection
from meshproxy.codec.stream import StreamEncoder
from meshproxy.errors import RESET_LOCAL

# How the body is framed.
NOT_STARTED: Final = 0
LENGTH: Final = 1  # Content-Length: exactly `left` bytes more
CHUNKED: Final = 2
RAW: Final = 3  # until the connection closes: HTTP/1.0, tunnels
NO_BODY: Final = 4  # none whatever is sent: HEAD, 204, 304 (RFC 9112 section 6.3)
DONE: Final = 5

_COLON: Final = 0x3A
_LOWER_A: Final = 0x61
_LOWER_Z: Final = 0x7A
_DIGIT_0: Final = 0x30
_DIGIT_9: Final = 0x39

_PROPER_CASE_LIMIT: Final = 1024
_PROPER_CASE: dict[bytes, bytes] = {}


def proper_case(name: bytes) -> bytes:
    """`content-type` as `Content-Type`: a letter at the start, or behind what is no letter or digit, is upper case."""
    found = _PROPER_CASE.get(name)
    if found is None:
        letters = bytearray(name)
        capital = True
        for i in range(len(letters)):
            letter = letters[i]
            is_letter = _LOWER_A <= letter <= _LOWER_Z
            if capital and is_letter:
                letters[i] = letter - 32
            capital = not is_letter and not _DIGIT_0 <= letter <= _DIGIT_9
        found = bytes(letters)
        if len(_PROPER_CASE) < _PROPER_CASE_LIMIT:
            _PROPER_CASE[name] = found
    return found


def one_line(text: bytes) -> bytes:
    """`text` without what would end its line (RFC 9110 section 5.5: CR, LF and NUL become spaces)."""
    return text.replace(b"\r", b" ").replace(b"\n", b" ").replace(b"\0", b" ")


def encode_head(start_line: bytes, headers: HeaderMap, extra: bytes, proper: bool) -> bytes:
    """A whole head. `:authority` becomes Host, other pseudo-headers are left out, and so is Transfer-Encoding.

    `start_line` has its CRLF; `extra` holds finished lines for the end. A CR or LF in a field (a filter's mistake)
    cannot split the message: it becomes a space.
    """
    if headers.known & TRANSFER_ENCODING:
        headers.remove(b"transfer-encoding")
    parts: list[bytes] = [start_line]
    for name, value in headers.fields:
        if name[0] == _COLON:
            if name != b":authority":
                continue
            name = b"host"
        if proper:
            name = proper_case(name)
        parts.append(name)
        parts.append(b": ")
        parts.append(value)
        parts.append(b"\r\n")
    lines = len(parts) // 4 + 2
    parts.append(extra)
    parts.append(b"\r\n")
    head = b"".join(parts)
    if extra:
        lines += extra.count(b"\n")
    # Each line brings one CR and one LF; a field that has any of its own makes the sum larger.
    if len(head) - len(head.translate(None, b"\r\n")) != 2 * lines:
        return _encode_unclean_head(start_line, headers, extra, proper)
    return head


def _encode_unclean_head(start_line: bytes, headers: HeaderMap, extra: bytes, proper: bool) -> bytes:
    clean = HeaderMap()
    clean.fields = [(one_line(name).replace(b" ", b""), one_line(value)) for name, value in headers.fields]
    clean.fields = [field for field in clean.fields if field[0]]
    return encode_head(one_line(start_line[:-2]) + b"\r\n", clean, extra, proper)


class MessageEncoder(StreamEncoder):
    """The body's part of an encoder; subclasses send heads. Calls after the end or a reset are no-ops."""

    def __init__(self, connection: Http1Connection) -> None:
        self.connection: Final = connection
        self.framing: int = NOT_STARTED
        self.left: int = 0

    def send_data(self, data: bytes, end: bool) -> None:
        framing = self.framing
        if framing == LENGTH:
            self.left -= len(data)
            if self.left < 0 or (end and self.left):
                self.on_mismatch()
                return
            if data:
                self.connection.write(data)
        elif framing == CHUNKED:
            if data:
                self._send_chunk(data)
            if end:
                self.connection.write(b"0\r\n\r\n")
        elif framing == RAW:
            if data:
                self.connection.write(data)
        elif framing != NO_BODY:
            return
        if end:
            self.end()

    def _send_chunk(self, data: bytes) -> None:
        connection = self.connection
        if len(data) < PASS_ON_BYTES:
            connection.write(encode_chunk(data))
            return
        connection.write(chunk_head(len(data)))
        connection.write(data)
        connection.write(b"\r\n")

    def send_trailers(self, trailers: HeaderMap) -> None:
        """End the message; the trailers themselves go out only in a chunked body, and with `enable_trailers`."""
        settings = self.connection.settings
        if self.framing == CHUNKED and settings.enable_trailers:
            lines = encode_head(b"0\r\n", trailers, b"", settings.proper_case)
            self.connection.field_bytes_sent += len(lines) - len(b"0\r\n\r\n")
            self.connection.write(lines)
            self.end()
        else:
            self.send_data(b"", True)

    def reset(self, reason: int) -> None:
        """Give the stream up: an HTTP/1 connection goes with it, unless both messages are complete."""
        connection = self.connection
        if connection.encoder is self:
            self.framing = DONE
            connection.on_abort()

    def read_disable(self, disable: bool) -> None:
        if self.connection.encoder is self:
            self.connection.read_disable(disable)

    def end(self) -> None:
        """The last byte of the message is in the output."""
        self.framing = DONE
        self.connection.on_sent()

    def on_mismatch(self) -> None:
        """The body is not as long as Content-Length said: nobody may read the next message at the wrong place."""
        self.framing = DONE
        decoder = self.connection.decoder
        self.connection.on_abort()
        if decoder is not None:
            decoder.on_reset(RESET_LOCAL, "http1.content_length_mismatch")
