"""Field lines to fields: httptools, used so that it never frames a message.

A block of field lines is fed behind the status line of a 304, which has no body and no upgrade whatever its fields say
(RFC 9112 section 6.3). So the parser is back at its start after every block, none of its own rules about bodies,
upgrades and keep-alive can part from ours, and one parser serves the whole process. What a block is, where it ends, and
what its fields mean for framing is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import httptools

from meshproxy.codec.headers import HOST, Field, spelling
from meshproxy.codec.http1.details import CODEC_ERROR
from meshproxy.errors import ProtocolError

_START: Final = b"HTTP/1.1 304 N\r\n"
_SPACE: Final = 0x20
_LEARNT_LIMIT: Final = 2048  # lines that are remembered, in all,
_LEARNT_BYTES: Final = 128  # each of at most this length: memory stays bounded, whatever peers send


class _Line:
    """What a field line means. The field is shared by all messages that have the line."""

    def __init__(self, field: Field, bits: int) -> None:
        self.field: Final[Any] = field  # as Any it stays one object: mypyc would unpack it, and make a new one
        self.bits: Final = bits  # of its name, see codec.headers


class FieldLines:
    """A parser of field lines. Not for several threads; `parse` is one synchronous call.

    Peers send the same lines again and again, and what a line means depends on no other: a line that httptools has
    accepted once is looked up, and only the others are parsed.
    """

    def __init__(self) -> None:
        self.hosts: int = 0  # how many of the fields are Host,
        self.host_at: int = -1  # and the index of the last
        self.all_learnt: bool = False  # no line of the last block was new
        self._learnt: dict[bytes, _Line] = {}
        self._parsed: list[_Line] = []
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
        if value:
            if value[-1] <= _SPACE:  # a space or a tab: llhttp refuses everything else below
                value = value.rstrip(b" \t")  # which it leaves there (RFC 9110 section 5.5)
        self._parsed.append(_Line((name, value), bits))

    def on_message_complete(self) -> None:
        """httptools: the empty line."""
        self._complete = True

    def parse(self, block: bytes, fields: list[Field]) -> int:
        """Append the fields of `block` to `fields` and return their bits.

        `block` holds field lines, each with its CRLF, and the CRLF of the empty line.
        Raises ProtocolError for what RFC 9112 section 5 and RFC 9110 section 5.5 do not allow.
        """
        self.hosts = 0
        known = 0
        all_fields: list[Any] = fields
        unseen: list[bytes] | None = None
        learnt = self._learnt
        first = len(fields)
        lines = block.split(b"\r\n")
        for i in range(len(lines) - 2):
            found = learnt.get(lines[i])
            if found is None:
                if unseen is None:
                    unseen = []
                unseen.append(lines[i])
                all_fields.append(None)
                continue
            bits = found.bits
            if bits:
                known |= bits
                if bits == HOST:
                    self._count_host(len(all_fields))
            all_fields.append(found.field)
        self.all_learnt = unseen is None
        return known if unseen is None else known | self._fill_in(unseen, all_fields, first)

    def _fill_in(self, lines: list[bytes], fields: list[Any], first: int) -> int:
        """Parse `lines`, put each field where one is missing in `fields`, and return their bits."""
        parsed = self._parse_lines(lines)
        known = 0
        at = first
        for i in range(len(lines)):
            found = parsed[i]
            while fields[at] is not None:
                at += 1
            fields[at] = found.field
            known |= found.bits
            if found.bits == HOST:
                self._count_host(at)
            if len(lines[i]) <= _LEARNT_BYTES:
                if len(self._learnt) >= _LEARNT_LIMIT:
                    self._learnt.clear()
                self._learnt[lines[i]] = found
        return known

    def _count_host(self, at: int) -> None:
        self.hosts += 1
        if at > self.host_at or self.hosts == 1:
            self.host_at = at

    def _parse_lines(self, lines: list[bytes]) -> list[_Line]:
        parsed: list[_Line] = []
        self._parsed = parsed
        self._complete = False
        try:
            self._feed(_START + b"\r\n".join(lines) + b"\r\n\r\n")
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._feed = self._new_feed()
            raise ProtocolError(400, CODEC_ERROR, str(error)) from None
        if not self._complete or len(parsed) != len(lines):
            self._feed = self._new_feed()
            raise ProtocolError(400, CODEC_ERROR, "malformed field lines")
        return parsed


FIELD_LINES: Final = FieldLines()
