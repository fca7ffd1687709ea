"""The chunked transfer coding (RFC 9112 section 7.1)."""

from __future__ import annotations

import re
from typing import Final

from meshproxy.codec.headers import Field, HeaderMap
from meshproxy.codec.http1.details import CODEC_ERROR, TOO_MANY_TRAILERS, TRAILERS_TOO_LARGE
from meshproxy.codec.http1.fields import FIELD_LINES
from meshproxy.errors import ProtocolError

_SIZE: Final = 0  # where the decoder stands: in a chunk-size line,
_DATA: Final = 1  # in the data of a chunk,
_DATA_END: Final = 2  # at the CRLF behind it,
_TRAILERS: Final = 3  # in the trailer section,
_DONE: Final = 4  # behind the message

_HEX_DIGITS: Final = b"0123456789abcdefABCDEF"
_MAX_SIZE_DIGITS: Final = 15
_MAX_LINE_BYTES: Final = 1024
_MAX_EXTENSION_BYTES: Final = 16 * 1024  # of all chunks of a message together: extensions are dropped, not free
_SIZE_WITH_EXTENSION: Final = re.compile(rb"([0-9A-Fa-f]+)[ \t]*;[\t\x20-\x7e\x80-\xff]*")

# What may not arrive behind the body: framing, routing, request modifiers, authentication, response control and how the
# body is to be read (RFC 9110 section 6.5.1).
_FORBIDDEN_TRAILERS: Final = frozenset(
    b"authorization cache-control connection content-encoding content-length content-range content-type cookie expect "
    b"forwarded host keep-alive location max-forwards proxy-authenticate proxy-authorization proxy-connection range "
    b"retry-after set-cookie te trailer transfer-encoding upgrade vary www-authenticate x-forwarded-for "
    b"x-forwarded-host x-forwarded-port x-forwarded-proto".split()
)


class ChunkedDecoder:
    """Decodes one body: `parts` fills with its pieces, `done` and `trailers` (None without any) tell of its end."""

    def __init__(self, max_trailers_bytes: int, max_trailers_count: int) -> None:
        self.parts: list[bytes] = []
        self.done: bool = False
        self.trailers: HeaderMap | None = None
        self._state: int = _SIZE
        self._left: int = 0  # bytes of the present chunk still to come
        self._extension_bytes: int = 0
        self._max_trailers_bytes: Final = max_trailers_bytes
        self._max_trailers_count: Final = max_trailers_count

    def feed(self, data: bytes, at: int) -> int:
        """Decode `data` from `at` on and return where it stopped: what lies behind is incomplete, or the next message.

        Raises ProtocolError for everything that section 7.1 does not allow.
        """
        while at < len(data):
            state = self._state
            if state == _SIZE:
                new = self._feed_size(data, at)
            elif state == _DATA:
                new = self._feed_data(data, at)
            elif state == _DATA_END:
                new = self._feed_data_end(data, at)
            elif state == _TRAILERS:
                new = self._feed_trailers(data, at)
            else:
                return at
            if new == at:
                return at
            at = new
        return at

    def _feed_size(self, data: bytes, at: int) -> int:
        end = data.find(b"\r\n", at, at + _MAX_LINE_BYTES)
        if end < 0:
            if len(data) - at >= _MAX_LINE_BYTES or data.find(b"\n", at) >= 0:
                raise ProtocolError(400, CODEC_ERROR, "malformed chunk size")
            return at
        self._left = self._size_of(data[at:end])
        self._state = _DATA if self._left else _TRAILERS
        return end + 2

    def _size_of(self, line: bytes) -> int:
        digits = line
        if line.translate(None, _HEX_DIGITS):
            match = _SIZE_WITH_EXTENSION.fullmatch(line)
            if match is None:
                raise ProtocolError(400, CODEC_ERROR, "malformed chunk size")
            digits = match.group(1)
            self._extension_bytes += len(line) - len(digits)
            if self._extension_bytes > _MAX_EXTENSION_BYTES:
                raise ProtocolError(400, CODEC_ERROR, "chunk extensions are too large")
        if not digits or len(digits) > _MAX_SIZE_DIGITS:
            raise ProtocolError(400, CODEC_ERROR, "malformed chunk size")
        return int(digits, 16)

    def _feed_data(self, data: bytes, at: int) -> int:
        end = min(at + self._left, len(data))
        self.parts.append(data[at:end])
        self._left -= end - at
        if not self._left:
            self._state = _DATA_END
        return end

    def _feed_data_end(self, data: bytes, at: int) -> int:
        end = data[at : at + 2]
        if end == b"\r\n":
            self._state = _SIZE
            return at + 2
        if end != b"\r":
            raise ProtocolError(400, CODEC_ERROR, "chunk data is longer than its size")
        return at

    def _feed_trailers(self, data: bytes, at: int) -> int:
        if data.startswith(b"\r\n", at):
            self._finish()
            return at + 2
        end = data.find(b"\r\n\r\n", at)
        length = (len(data) if end < 0 else end + 4) - at
        if length > self._max_trailers_bytes:
            raise ProtocolError(431, TRAILERS_TOO_LARGE)
        if end < 0:
            return at
        self._read_trailers(data[at : end + 4])
        self._finish()
        return end + 4

    def _read_trailers(self, block: bytes) -> None:
        fields: list[Field] = []
        FIELD_LINES.parse(block, fields)
        if len(fields) > self._max_trailers_count:
            raise ProtocolError(431, TOO_MANY_TRAILERS)
        allowed = [field for field in fields if field[0] not in _FORBIDDEN_TRAILERS]
        if allowed:
            self.trailers = HeaderMap(allowed)

    def _finish(self) -> None:
        self._state = _DONE
        self.done = True


def encode_chunk(data: bytes) -> bytes:
    """`data`, not empty, as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def chunk_head(length: int) -> bytes:
    """The chunk-size line of a chunk whose data follows as it is."""
    return b"%x\r\n" % length
