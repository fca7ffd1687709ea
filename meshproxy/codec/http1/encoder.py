"""Sending a message: field lines, and a body in the framing that its head announced."""

from __future__ import annotations

from typing import Any, Final

from meshproxy.codec.connection import PASS_ON_BYTES
from meshproxy.codec.headers import TRANSFER_ENCODING, HeaderMap
from meshproxy.codec.http1.chunked import chunk_head, encode_chunk
from meshproxy.codec.http1.connection import LEARNT_HEAD_BYTES, Http1Connection
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
_CR: Final = 0x0D
_LF: Final = 0x0A
_LOWER_A: Final = 0x61
_LOWER_Z: Final = 0x7A
_DIGIT_0: Final = 0x30
_DIGIT_9: Final = 0x39

_LEARNT_LIMIT: Final = 2048  # fields whose lines are remembered, in all,
_LEARNT_BYTES: Final = 64  # each with a value of at most this length: memory stays bounded, whatever is sent

# Field -> its line. Messages share most of their fields, so a head is joined from lines made, and checked, before.
_LINES: dict[Any, bytes] = {}
_PROPER_LINES: dict[Any, bytes] = {}  # … with names in proper case

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


class SentHead:
    """The last head that went out on a connection: most of its fields come again, at the same place."""

    def __init__(self) -> None:
        self.fields: list[Any] = []
        self.parts: list[bytes] = [b"", b"", b"\r\n"]  # the start line, a line for each field, others, the empty line

    def forget(self) -> None:
        """A connection keeps no large head."""
        self.fields = []
        self.parts = [b"", b"", b"\r\n"]


def encode_head(start_line: bytes, headers: HeaderMap, extra: bytes, proper: bool, sent: SentHead) -> bytes:
    """A whole head. `:authority` becomes Host, other pseudo-headers are left out, and so is Transfer-Encoding.

    `start_line` has its CRLF, and no other CR or LF; `extra` holds finished lines for the end. A CR or LF in a field (a
    filter's mistake) cannot split the message: it becomes a space.
    """
    if headers.known & TRANSFER_ENCODING:
        headers.remove(b"transfer-encoding")
    fields = headers.fields
    whole: list[Any] = fields  # as Any each stays the tuple that it is: mypyc would unpack it
    size = len(fields)
    if len(sent.fields) != size:
        sent.fields = [None] * size
        sent.parts = [*[b""] * (size + 2), b"\r\n"]
    before, parts = sent.fields, sent.parts
    parts[0] = start_line
    for at in range(size):
        field: Any = whole[at]
        if field is not before[at]:
            parts[at + 1] = _line_of(field, fields[at][0], proper)
            before[at] = field
    parts[size + 1] = extra
    head = b"".join(parts)
    if len(head) > LEARNT_HEAD_BYTES:
        sent.forget()
    return head


def _line_of(field: Any, name: bytes, proper: bool) -> bytes:
    """The line of a field; empty for what stands in no head."""
    if len(name) == 0 or (name[0] == _COLON and name != b":authority"):
        return b""
    if name == b"x-request-id" or name == b"traceparent":  # noqa: PLR1714  another one in every message
        return _new_line(name, field[1], proper)
    lines = _PROPER_LINES if proper else _LINES
    line = lines.get(field)
    if line is None:
        value: bytes = field[1]
        line = _new_line(b"host" if name == b":authority" else name, value, proper)
        if len(value) <= _LEARNT_BYTES:
            if len(lines) >= _LEARNT_LIMIT:
                lines.clear()
            lines[field] = line
    return line


def _new_line(name: bytes, value: bytes, proper: bool) -> bytes:
    # `in` with a number is one search for a byte; with bytes it raises and swallows a TypeError first
    if _CR in value or _LF in value or _CR in name or _LF in name:
        name, value = one_line(name).replace(b" ", b""), one_line(value)
    return b"%b: %b\r\n" % (proper_case(name) if proper else name, value) if len(name) > 0 else b""


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
            lines = encode_head(b"0\r\n", trailers, b"", settings.proper_case, SentHead())
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
