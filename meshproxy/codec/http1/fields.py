"""Field lines to fields: httptools, used so that it never frames a message.

A block of field lines is fed behind the status line of a 304, which has no body and no upgrade whatever its fields say
(RFC 9112 section 6.3). So the parser is back at its start after every block, none of its own rules about bodies,
upgrades and keep-alive can part from ours, and one parser serves the whole process. What a block is, where it ends, and
what its fields mean for framing is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import httptools

from meshproxy.codec.headers import HOST, Field, spelling
from meshproxy.codec.http1.details import CODEC_ERROR
from meshproxy.errors import ProtocolError

_START: Final = b"HTTP/1.1 304 N\r\n"
_SPACE: Final = 0x20


class FieldLines:
    """A parser of field lines. Not for several threads; `parse` is one synchronous call."""

    def __init__(self) -> None:
        self.fields: list[Field] = []
        self.known: int = 0  # bits of the names, see codec.headers
        self.hosts: int = 0  # how many of them are Host,
        self.host_at: int = -1  # and the index of the last
        self._complete: bool = False
        self._feed: Callable[[bytes], None] = self._new_feed()

    def _new_feed(self) -> Callable[[bytes], None]:
        parser = httptools.HttpResponseParser(self)
        # Both are judged by framing.py, with the status that fits.
        parser.set_dangerous_leniencies(lenient_keep_alive=True, lenient_chunked_length=True)
        feed: Callable[[bytes], None] = parser.feed_data
        return feed

    def on_header(self, raw: bytes, value: bytes) -> None:
        """httptools: one field line."""
        name, bits = spelling(raw)
        if bits:
            self.known |= bits
            if bits == HOST:
                self.hosts += 1
                self.host_at = len(self.fields)
        if value:
            if value[-1] <= _SPACE:  # a space or a tab: llhttp refuses everything else below
                value = value.rstrip(b" \t")  # which it leaves there (RFC 9110 section 5.5)
        self.fields.append((name, value))

    def on_message_complete(self) -> None:
        """httptools: the empty line."""
        self._complete = True

    def parse(self, block: bytes, fields: list[Field]) -> int:
        """Append the fields of `block` to `fields` and return their bits.

        `block` holds field lines, each with its CRLF, and the CRLF of the empty line.
        Raises ProtocolError for what RFC 9112 section 5 and RFC 9110 section 5.5 do not allow.
        """
        self.fields = fields
        self.known = 0
        self.hosts = 0
        self._complete = False
        try:
            self._feed(_START + block)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._feed = self._new_feed()
            raise ProtocolError(400, CODEC_ERROR, str(error)) from None
        if not self._complete:
            self._feed = self._new_feed()
            raise ProtocolError(400, CODEC_ERROR, "malformed field lines")
        return self.known


FIELD_LINES: Final = FieldLines()
