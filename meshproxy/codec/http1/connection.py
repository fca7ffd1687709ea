"""What both ends of an HTTP/1 connection share: bytes in, cut into heads and bodies, and bytes out."""

from __future__ import annotations

import re
from typing import Final

from meshproxy.codec.connection import CodecConnection
from meshproxy.codec.http1.chunked import ChunkedDecoder
from meshproxy.codec.http1.details import CODEC_ERROR, HEADERS_TOO_LARGE, INVALID_CHARACTERS
from meshproxy.codec.http1.settings import Http1Settings
from meshproxy.codec.stream import StreamDecoder, StreamEncoder
from meshproxy.errors import ProtocolError

# What the next received byte belongs to.
HEAD: Final = 0
LENGTH: Final = 1  # a body of `_left` bytes more
CHUNKED: Final = 2
UNTIL_EOF: Final = 3  # a body that the end of the connection delimits, or a tunnel
WAITING: Final = 4  # nothing that may be read yet: it stays in the buffer
DEAD: Final = 5  # nothing, ever: it is thrown away

_BLANK_LINE: Final = b"\r\n\r\n"
_CR: Final = 0x0D
_LF: Final = 0x0A
# What no head can contain, wherever it stands: a broken one is refused before its blank line comes (TLS on a plain
# port, bare CR or LF). A CR at the end may still get its LF.
_NEVER_IN_A_HEAD: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?=[^\n])")

LEARNT_HEAD_BYTES: Final = 1024  # heads up to this size are remembered, one of each connection


class Http1Connection(CodecConnection):
    """Base of the server's and the client's connection. No I/O; `receive_data` and `receive_eof` never raise.

    One message is read at a time; everything behind it waits in the buffer. Callbacks may call back in any order, since
    the loop that reads is entered once only and keeps its state in attributes.
    """

    def __init__(self, settings: Http1Settings, max_blank_lines: int) -> None:
        super().__init__()
        self.settings: Final = settings
        self.head_prefix: bytes = b""  # what every head begins with
        self._max_blank_lines: Final = max_blank_lines
        self.decoder: StreamDecoder | None = None  # of the present stream
        self.encoder: StreamEncoder | None = None
        self.state: int = HEAD
        self._buffer: bytes = b""
        self._at: int = 0  # where the unread part of the buffer begins
        self._scanned: int = 0  # up to here no blank line was found
        self._blank_lines: int = 0
        self.last_head: bytes = b""  # a head that was read, which the next may repeat; empty: none
        self._left: int = 0
        self._chunked: ChunkedDecoder | None = None
        self._reading: bool = False
        self._read_disabled: int = 0
        self._reading_unwanted: bool = False
        self._eof: bool = False

    # -- bytes in

    def receive_data(self, data: bytes) -> None:
        """Take what the peer sent, in any split. Callbacks happen before this returns, unless reading is disabled."""
        if self.state == DEAD:
            return
        at = self._at
        if at < len(self._buffer):
            self._buffer = self._buffer[at:] + data
            self._scanned -= at
        else:
            self._buffer = data
            self._scanned = 0
        self._at = 0
        if not self._reading:
            self.read()
        if not self.reading_wanted:
            self._reading_unwanted = True

    def receive_eof(self) -> None:
        """The peer sends no more. A message that this cuts short is reset; the connection's owner decides the rest."""
        if self._eof or self.state == DEAD:
            return
        self._eof = True
        if not self._reading:
            self.read()

    @property
    def buffered_bytes(self) -> int:
        """Received bytes that wait to be read."""
        return len(self._buffer) - self._at

    @property
    def reading_wanted(self) -> bool:
        """False while so much waits that the socket should pause; `on_reading_wanted` tells when it may go on."""
        return len(self._buffer) - self._at <= self.settings.max_buffered_bytes

    def read_disable(self, disable: bool) -> None:
        """`StreamEncoder.read_disable` of the present stream."""
        if disable:
            self._read_disabled += 1
        elif self._read_disabled:
            self._read_disabled -= 1
            if not self._read_disabled and not self._reading:
                self.read()

    def read(self) -> None:
        """Deliver what can be delivered of the buffer."""
        self._reading = True
        try:
            while self._at < len(self._buffer) and not self._read_disabled and self._read_some():
                pass
            if self._eof and not self._read_disabled:
                self._read_eof()
        except ProtocolError as error:
            self.on_broken(error)
        finally:
            self._reading = False
        if self._at >= len(self._buffer):
            self._buffer = b""
            self._at = 0
        if self._reading_unwanted and self.reading_wanted:
            self._reading_unwanted = False
            self.on_reading_wanted()

    def _read_some(self) -> bool:
        state = self.state
        if state == HEAD:
            return self._read_head()
        if state == LENGTH:
            return self._read_length()
        if state == CHUNKED:
            return self._read_chunks()
        if state == UNTIL_EOF:
            data = self._buffer[self._at :] if self._at else self._buffer
            self._at = len(self._buffer)
            self._deliver(data)
            return True
        if state == DEAD:
            self._at = len(self._buffer)
        return False

    def _read_head(self) -> bool:
        buffer = self._buffer
        at = self._at
        if at == 0 and self.last_head:
            end = self.repeated_head(buffer)
            if end > 0:
                self._at = end
                self._scanned = 0
                self._blank_lines = 0
                self.on_repeated_head()
                return True
        if buffer[at] == _CR:
            at = self._skip_blank_lines()
            if at == len(buffer):
                return False
        prefix = self.head_prefix
        if prefix and not buffer.startswith(prefix, at) and not prefix.startswith(buffer[at:]):
            raise ProtocolError(400, CODEC_ERROR, "not HTTP/1")
        start = self._scanned - 3
        end = buffer.find(_BLANK_LINE, start if start > at else at)
        if end < 0:
            self._check_partial_head(at)
            return False
        end += 4
        if end - at > self.settings.max_headers_bytes:
            raise ProtocolError(431, HEADERS_TOO_LARGE)
        self._at = end
        self._scanned = 0
        self._blank_lines = 0
        try:
            self.on_head(buffer, at, end)
        except ProtocolError:
            check_bytes(buffer, at, at, end)  # a head that comes in pieces fails for these first
            raise
        return True

    def _skip_blank_lines(self) -> int:
        """A server ignores a few empty lines in front of a request (RFC 9112 section 2.2)."""
        while self._buffer.startswith(b"\r\n", self._at):
            self._at += 2
            self._blank_lines += 1
            if self._blank_lines > self._max_blank_lines:
                raise ProtocolError(400, CODEC_ERROR, "too many empty lines")
        return self._at

    def _check_partial_head(self, at: int) -> None:
        buffer = self._buffer
        # One more than was scanned: whether a CR is bare shows with the byte behind it.
        start = self._scanned - 1 if self._scanned - 1 > at else at
        check_bytes(buffer, at, start, len(buffer))
        if len(buffer) - at > self.settings.max_headers_bytes:
            raise ProtocolError(431, HEADERS_TOO_LARGE)
        self._scanned = len(buffer)

    def _read_length(self) -> bool:
        buffer = self._buffer
        at = self._at
        end = min(at + self._left, len(buffer))
        data = buffer if at == 0 and end == len(buffer) else buffer[at:end]
        self._at = end
        self._left -= end - at
        if self._left:
            self._deliver(data)
        else:
            self._deliver_end(data)
        return True

    def _read_chunks(self) -> bool:
        chunked = self._chunked
        assert chunked is not None
        at = self._at
        try:
            self._at = chunked.feed(self._buffer, at)
        except ProtocolError:
            self._deliver_parts(chunked)  # what came before the fault, as if it had come alone
            raise
        if not chunked.done:
            self._deliver_parts(chunked)
            return self._at > at
        self._chunked = None
        trailers = chunked.trailers
        if trailers is None or not self.settings.enable_trailers:
            self._deliver_end(b"".join(chunked.parts))
            return True
        self._deliver_parts(chunked)
        self.field_bytes_received += trailers.size() + 3 * len(trailers.fields)
        self.state = WAITING
        decoder = self.decoder
        self.on_received()
        if decoder is not None:
            decoder.on_trailers(trailers)
        self.on_delivered()
        return True

    def _deliver_parts(self, chunked: ChunkedDecoder) -> None:
        parts = chunked.parts
        if parts:
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            chunked.parts = []
            self._deliver(data)

    def _deliver(self, data: bytes) -> None:
        decoder = self.decoder
        if decoder is not None:
            decoder.on_data(data, False)

    def _deliver_end(self, data: bytes) -> None:
        self.state = WAITING
        decoder = self.decoder
        self.on_received()
        if decoder is not None:
            decoder.on_data(data, True)
        self.on_delivered()

    def start_body(self, length: int) -> None:
        """The head announced a body of `length` bytes, or `framing.CHUNKED`."""
        if length >= 0:
            self.state = LENGTH
            self._left = length
        else:
            self.state = CHUNKED
            settings = self.settings
            self._chunked = ChunkedDecoder(settings.max_headers_bytes, settings.max_headers_count)

    def _read_eof(self) -> None:
        if self.state != DEAD:
            self.on_end_of_input(self._at < len(self._buffer))

    # -- what the two ends do differently

    def repeated_head(self, buffer: bytes) -> int:
        """The length of the head that `buffer` begins with, if it is `last_head` again; else 0."""
        last_head = self.last_head
        return len(last_head) if buffer.startswith(last_head) else 0

    def on_repeated_head(self) -> None:
        """As `on_head`, for what `repeated_head` found."""
        raise NotImplementedError

    def on_head(self, buffer: bytes, at: int, end: int) -> None:
        """A complete head stands in buffer[at:end], its blank line included."""
        raise NotImplementedError

    def on_received(self) -> None:
        """The present message is received in full, and its end about to be delivered."""

    def on_delivered(self) -> None:
        """The end of the present message has been delivered."""

    def on_end_of_input(self, partial: bool) -> None:
        """Nothing more will come, and everything that can be is delivered; `partial`: bytes are left over."""
        raise NotImplementedError

    def on_broken(self, error: ProtocolError) -> None:
        """The peer broke the protocol."""
        raise NotImplementedError

    def on_reading_wanted(self) -> None:
        """`reading_wanted` is True again."""
        raise NotImplementedError

    def on_sent(self) -> None:
        """The encoder sent the end of its message."""
        raise NotImplementedError

    def on_abort(self) -> None:
        """The message that is being sent cannot be completed: the connection is of no more use."""
        raise NotImplementedError


def check_bytes(buffer: bytes, at: int, start: int, end: int) -> None:
    """Raise ProtocolError when what stands from `start` to `end`, in a head that begins at `at`, can be in no head."""
    if buffer[at] == _LF:  # a CR in front of it would be another message's
        raise ProtocolError(400, CODEC_ERROR, "invalid byte in a head")
    match = _NEVER_IN_A_HEAD.search(buffer, start, end)
    if match is None:
        return
    in_a_field = match.group() not in (b"\r", b"\n") and 0 <= buffer.find(b"\r\n", at) < match.start()
    raise ProtocolError(400, INVALID_CHARACTERS if in_a_field else CODEC_ERROR, "invalid byte in a head")
