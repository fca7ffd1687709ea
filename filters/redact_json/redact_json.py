"""Takes the values of some fields out of JSON responses as they stream past, whatever their size."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from meshproxy import CONTINUE, STOP, HeaderMap, HttpFilter, Result, Stream

_STRUCTURE = re.compile(rb'["{}\[\],:]')
_IN_STRING = re.compile(rb'["\\]')
_SCALAR = re.compile(rb"[^\s,\]}]+")
_LONGEST_KEY = 1024  # bytes, as written; a longer key is none of ours


@dataclass(frozen=True)
class Config:
    """`fields` are names of object members, at any depth; `replacement` is any JSON value."""

    fields: list[str]
    replacement: Any = "***"

    def __post_init__(self) -> None:
        if not self.fields:
            raise ValueError("fields: at least one")


class Redactor:
    """JSON in, in any pieces; JSON out. It keeps the nesting and a key, never a value.

    What is no JSON passes as it is: this is no validator.
    """

    def __init__(self, fields: frozenset[str], replacement: bytes) -> None:
        self._fields = fields
        self._replacement = replacement
        self._objects: list[bool] = []  # of the containers that we are in: whether it is an object
        self._key_next = False  # a string that begins now is a key
        self._string = False
        self._key: bytearray | None = None  # the key that we are in, or have just left
        self._escaped = False
        self._redact_next = False  # the value that begins now goes
        self._depth = -1  # how deep in a value that goes; -1: in none; 0: in a scalar or string

    def feed(self, data: bytes) -> bytes:
        out = bytearray()
        at = 0
        while at < len(data):
            at = self._in_string(data, at, out) if self._string else self._outside(data, at, out)
        return bytes(out)

    def _in_string(self, data: bytes, at: int, out: bytearray) -> int:
        begin = at
        closed = False
        if self._escaped:
            self._escaped = False
            at += 1
        while True:
            match = _IN_STRING.search(data, at)
            if match is None:
                at = len(data)
                break
            at = match.end()
            if match[0] == b'"':
                closed = True
                break
            if at == len(data):
                self._escaped = True
                break
            at += 1
        piece = data[begin:at]
        if self._depth < 0:
            out += piece
        if self._key is not None and len(self._key) <= _LONGEST_KEY:
            self._key += piece
        if closed:
            self._string = False
            if self._key is None and self._depth == 0:
                self._depth = -1
        return at

    def _outside(self, data: bytes, at: int, out: bytearray) -> int:
        match = _STRUCTURE.search(data, at)
        end = len(data) if match is None else match.start()
        self._between(data[at:end], out)
        if match is None:
            return end
        self._structure(match[0], out)
        return match.end()

    def _between(self, text: bytes, out: bytearray) -> None:
        """White space, and numbers, true, false and null."""
        if self._redact_next and _SCALAR.search(text):
            self._redact_next = False
            self._depth = 0
            out += self._replacement
        elif self._depth < 0:
            out += text

    def _structure(self, byte: bytes, out: bytearray) -> None:
        if self._depth == 0 and byte in b",]}":
            self._depth = -1  # the scalar has ended
        if byte == b'"':
            self._begin_string(out)
        elif byte in b"{[":
            self._open(byte, out)
        elif byte in b"}]":
            self._close(byte, out)
        else:
            if byte == b":":
                self._redact_next = self._depth < 0 and self._is_redacted()
                self._key = None
            elif self._depth < 0:
                self._key_next = bool(self._objects) and self._objects[-1]
            if self._depth < 0:
                out += byte

    def _begin_string(self, out: bytearray) -> None:
        self._string = True
        if self._redact_next:
            self._redact_next = False
            self._depth = 0
            out += self._replacement
        elif self._depth < 0:
            out += b'"'
            if self._key_next:
                self._key_next = False
                self._key = bytearray(b'"')

    def _open(self, byte: bytes, out: bytearray) -> None:
        if self._redact_next:
            self._redact_next = False
            self._depth = 1
            out += self._replacement
        elif self._depth > 0:
            self._depth += 1
        else:
            self._objects.append(byte == b"{")
            self._key_next = byte == b"{"
            out += byte

    def _close(self, byte: bytes, out: bytearray) -> None:
        if self._depth > 0:
            self._depth -= 1
            if self._depth == 0:
                self._depth = -1
            return
        if self._objects:
            self._objects.pop()
        self._key_next = False
        out += byte

    def _is_redacted(self) -> bool:
        """A key may be written with escapes: it is compared as what it means."""
        if self._key is None or len(self._key) > _LONGEST_KEY:
            return False
        try:
            return json.loads(bytes(self._key)) in self._fields
        except ValueError:
            return False


class RedactJson(HttpFilter):
    """Redacts responses whose content type is JSON."""

    config: Config

    @classmethod
    def on_start(cls, context: Any) -> None:
        config: Config = context.config
        context.state = frozenset(config.fields), json.dumps(config.replacement).encode()

    def __init__(self) -> None:
        self._redactor: Redactor | None = None

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> None:
        del headers[b"accept-encoding"]  # what is compressed cannot be looked into
        del headers[b"range"]  # nor what begins in the middle

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        if end or stream.local_reply or not _is_json(headers):
            return CONTINUE
        if headers.get(b"content-encoding") not in (None, b"identity"):
            stream.send_local_reply(502, b"", "redact_json_cannot_read")
            return STOP
        self._redactor = Redactor(*self.context.state)
        del headers[b"content-length"]
        del headers[b"etag"]  # of what the upstream sent
        return CONTINUE

    def on_response_data(self, stream: Stream, data: bytes, end: bool) -> bytes:
        return data if self._redactor is None else self._redactor.feed(data)


def _is_json(headers: HeaderMap) -> bool:
    kind = (headers.get(b"content-type") or b"").partition(b";")[0].strip().lower()
    return kind == b"application/json" or kind.endswith(b"+json") or kind == b"application/x-ndjson"
