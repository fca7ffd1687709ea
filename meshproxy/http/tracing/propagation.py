"""How a trace goes from one process to the next: W3C `traceparent` and `tracestate`, and B3 in one header or several.

W3C is what is always sent on. A request without a `traceparent` may bring B3
(https://github.com/openzipkin/b3-propagation): then its trace goes on, in B3 as well. `baggage` passes as it is.
"""

from __future__ import annotations

import os
import random
from typing import Final

from meshproxy.codec.headers import HeaderMap

B3_NONE: Final = 0
B3_SINGLE: Final = 1  # `b3`
B3_MULTI: Final = 2  # `x-b3-traceid`, `x-b3-spanid`, `x-b3-sampled` …

_TRACEPARENT_BYTES: Final = 55  # `00-<32 hex>-<16 hex>-<2 hex>`
_ZERO_TRACE: Final = b"0" * 32
_ZERO_SPAN: Final = b"0" * 16
_DASH: Final = 0x2D


class RemoteContext:
    """The trace that a request is part of already, as its sender tells. Ids are in lower-case hexadecimal."""

    def __init__(self, trace_id: bytes, span_id: bytes, sampled: bool, b3: int) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.sampled = sampled
        self.b3 = b3
        self.state: bytes = b""


class _Ids:
    """Random traceparents, unsampled, from a generator that the kernel seeded. Many are made at once: alone each would
    cost three times as much."""

    def __init__(self) -> None:
        self._random: Final = random.Random(os.urandom(32))
        self._text: bytes = b""
        self._at: int = 0

    def new(self) -> bytes:
        """`00-<trace id>-<span id>-00`. That an id is all zeros is less likely than that no request ever comes."""
        at = self._at
        end = at + _TRACEPARENT_BYTES
        if end > len(self._text):
            self._text = self._make()
            at, end = 0, _TRACEPARENT_BYTES
        self._at = end
        return self._text[at:end]

    def span(self) -> bytes:
        """A span's id, 16 hexadecimal digits."""
        return self.new()[36:52]

    def _make(self) -> bytes:
        text = bytearray(self._random.randbytes(_TRACEPARENT_BYTES * _AT_ONCE).translate(_AS_DIGITS))
        for i in range(_TRACEPARENT_BYTES):
            fixed = _TEMPLATE[i : i + 1]
            if fixed != b"x":
                text[i::_TRACEPARENT_BYTES] = fixed * _AT_ONCE
        return bytes(text)


_TEMPLATE: Final = b"00-" + b"x" * 32 + b"-" + b"x" * 16 + b"-00"
_AS_DIGITS: Final = b"0123456789abcdef" * 16
_AT_ONCE: Final = 256
IDS: Final = _Ids()


def traceparent(trace_id: bytes, span_id: bytes, sampled: bool) -> bytes:
    """https://www.w3.org/TR/trace-context/#traceparent-header"""
    return b"".join((b"00-", trace_id, b"-", span_id, b"-01" if sampled else b"-00"))


def read_context(headers: HeaderMap) -> RemoteContext | None:
    """The context of a `traceparent`, or of B3 where there is none; NO_CONTEXT where neither is there, None where what
    is there cannot be read (then, as in Envoy, the request is not traced)."""
    value = headers.get(b"traceparent")
    if value is None:
        return _read_b3(headers)
    found = _parse_traceparent(value)
    if found is not None:
        found.state = headers.joined(b"tracestate") or b""
    return found


def _parse_traceparent(value: bytes) -> RemoteContext | None:
    """Envoy's rules: any version, of the form of version 00, and hexadecimal digits in upper or lower case."""
    if len(value) != _TRACEPARENT_BYTES or value[2] != _DASH or value[35] != _DASH or value[52] != _DASH:
        return None
    trace_id, span_id, flags = value[3:35].lower(), value[36:52].lower(), value[53:55]
    if not (_is_hex(value[:2]) and _is_hex(trace_id) and _is_hex(span_id) and _is_hex(flags)):
        return None
    if trace_id == _ZERO_TRACE or span_id == _ZERO_SPAN:
        return None
    return RemoteContext(trace_id, span_id, int(flags, 16) & 1 != 0, B3_NONE)


def _is_hex(text: bytes) -> bool:
    return len(text.translate(None, b"0123456789abcdefABCDEF")) == 0


NO_CONTEXT: Final = RemoteContext(b"", b"", True, B3_NONE)
_NOT_SAMPLED: Final = RemoteContext(b"", b"", False, B3_MULTI)


def _read_b3(headers: HeaderMap) -> RemoteContext:
    single = headers.get(b"b3")
    if single is not None:
        return _parse_b3(single)
    trace_id = headers.get(b"x-b3-traceid")
    span_id = headers.get(b"x-b3-spanid")
    sampled = headers.get(b"x-b3-sampled") not in (b"0", b"false") or headers.get(b"x-b3-flags") == b"1"
    if trace_id is None or span_id is None:
        return NO_CONTEXT if sampled else _NOT_SAMPLED
    return _b3_context(trace_id, span_id, sampled, B3_MULTI)


def _parse_b3(value: bytes) -> RemoteContext:
    """`{trace}-{span}[-{sampled}[-{parent}]]`, or nothing but the decision. What is neither begins a new trace."""
    if value in (b"0", b"1", b"d"):
        return RemoteContext(b"", b"", value != b"0", B3_SINGLE)
    parts = value.split(b"-")
    if not 2 <= len(parts) <= 4:
        return NO_CONTEXT
    return _b3_context(parts[0], parts[1], len(parts) == 2 or parts[2] != b"0", B3_SINGLE)


def _b3_context(trace_id: bytes, span_id: bytes, sampled: bool, form: int) -> RemoteContext:
    trace_id, span_id = trace_id.lower(), span_id.lower()
    if len(trace_id) == 16:
        trace_id = _ZERO_SPAN + trace_id
    if len(trace_id) != 32 or len(span_id) != 16 or not _is_hex(trace_id) or not _is_hex(span_id):
        return NO_CONTEXT
    if trace_id == _ZERO_TRACE or span_id == _ZERO_SPAN:
        return NO_CONTEXT
    return RemoteContext(trace_id, span_id, sampled, form)


def write_b3(headers: HeaderMap, form: int, trace_id: bytes, span_id: bytes, parent_id: bytes, sampled: bool) -> None:
    """As the request came."""
    decision = b"1" if sampled else b"0"
    if form == B3_SINGLE:
        parent = b"-" + parent_id if parent_id else b""
        headers.set(b"b3", b"".join((trace_id, b"-", span_id, b"-", decision, parent)))
        return
    headers.set(b"x-b3-traceid", trace_id)
    headers.set(b"x-b3-spanid", span_id)
    headers.set(b"x-b3-sampled", decision)
    headers.remove(b"x-b3-flags")
    if parent_id:
        headers.set(b"x-b3-parentspanid", parent_id)
