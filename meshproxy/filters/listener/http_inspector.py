"""`envoy.filters.listener.http_inspector`: which HTTP a plain connection begins with, as an application protocol.

The request line decides, or HTTP/2's connection preface (RFC 9113 §3.4). The rules are those of Envoy's parser, which
is lax: any byte up to a space separates, and any version but 1.1 counts as 1.0.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Final

from envoy.extensions.filters.listener.http_inspector.v3.http_inspector_pb2 import HttpInspector

from meshproxy.config.context import BuildContext
from meshproxy.filters.listener_filter import (
    CLOSE,
    CONTINUE,
    LISTENER_FILTERS,
    NEEDS_DATA,
    AcceptedSocket,
    ListenerFilter,
    ListenerFilterFactory,
)
from meshproxy.observe.stats import StatsScope

MAX_REQUEST_LINE: Final = 64 * 1024
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# A byte that is neither of a token (RFC 9110 §5.6.2) nor behind the method tells early that this is not HTTP.
_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.0-9A-Z^_`a-z|~]*")
_BEHIND_METHOD: Final = b"\t\n\x0b\x0c\r "
_BLANK: Final = bytes(range(0x21))
_BLANKS: Final = re.compile(rb"[\x00-\x20]+")
_VERSION: Final = re.compile(rb"HTTP/[0-9]\.[0-9]")
_HOST: Final = rb"(?:[!$%&'()*+,\-.0-9:;=A-Z\[\]_a-z~]|@(?!@))*(?:[/?][\x21-\x7e]*)?"
_PATH: Final = re.compile(rb"[/*][\x21-\x7e]*")
_ABSOLUTE: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+\-.]*://" + _HOST)
_AUTHORITY: Final = re.compile(_HOST)


class HttpInspectorStats(StatsScope):
    """Under `http_inspector.`."""

    COUNTERS: ClassVar[tuple[str, ...]] = (
        "http10_found",
        "http11_found",
        "http2_found",
        "http_not_found",
        "read_error",
    )

    def __init__(self) -> None:
        super().__init__()
        self.http10_found: int = 0
        self.http11_found: int = 0
        self.http2_found: int = 0
        self.http_not_found: int = 0
        self.read_error: int = 0


class HttpInspectorFilter(ListenerFilter):
    """Consumes nothing. What tls_inspector found to be TLS is not looked at."""

    max_read_bytes = MAX_REQUEST_LINE

    def __init__(self, stats: HttpInspectorStats) -> None:
        self._stats = stats
        self._searched: int = 0  # no end of the line in so many bytes
        self._in_method: bool = True

    def on_accept(self, accepted: AcceptedSocket) -> int:
        return NEEDS_DATA if accepted.transport_protocol in ("", "raw_buffer") else CONTINUE

    def on_data(self, accepted: AcceptedSocket, data: bytes) -> int:
        if PREFACE.startswith(data[: len(PREFACE)]):
            return NEEDS_DATA if len(data) < len(PREFACE) else self._found(accepted, "h2c")
        if self._in_method and not self._is_method(data):
            return self._not_found()
        end = data.find(b"\n", self._searched)
        if end >= 0:
            protocol = request_protocol(data[:end])
            return self._found(accepted, protocol) if protocol else self._not_found()
        self._searched = len(data)
        if len(data) < MAX_REQUEST_LINE:
            return NEEDS_DATA
        self._stats.read_error += 1
        return CLOSE

    def _is_method(self, data: bytes) -> bool:
        """False when the data cannot begin with a method."""
        match = _TOKEN.match(data, self._searched)
        end = match.end() if match is not None else 0
        self._in_method = end == len(data)
        return self._in_method or (end > 0 and data[end] in _BEHIND_METHOD)

    def _found(self, accepted: AcceptedSocket, protocol: str) -> int:
        stats = self._stats
        if protocol == "http/1.1":
            stats.http11_found += 1
        elif protocol == "http/1.0":
            stats.http10_found += 1
        else:
            stats.http2_found += 1
        accepted.application_protocols = [protocol]
        return CONTINUE

    def _not_found(self) -> int:
        self._stats.http_not_found += 1
        return CONTINUE


def request_protocol(line: bytes) -> str:
    """http/1.1 or http/1.0, which stands for all the others; "" if it is no request line."""
    line = line.rstrip(_BLANK)
    method, *rest = _BLANKS.split(line, 2)
    if not rest or not _is_target(rest[0], method == b"CONNECT"):
        return ""
    if len(rest) > 1 and not _VERSION.fullmatch(rest[1]):
        return ""
    return "http/1.1" if line.endswith(b"HTTP/1.1") else "http/1.0"


def _is_target(target: bytes, connect: bool) -> bool:
    other = _AUTHORITY if connect else _ABSOLUTE
    return _PATH.fullmatch(target) is not None or other.fullmatch(target) is not None


class HttpInspectorFactory(ListenerFilterFactory):
    def __init__(self, stats: HttpInspectorStats) -> None:
        self._stats = stats

    def new(self) -> ListenerFilter:
        return HttpInspectorFilter(self._stats)


def build_http_inspector(message: Any, path: str, context: BuildContext) -> ListenerFilterFactory:
    return HttpInspectorFactory(context.scope("http_inspector.", HttpInspectorStats))


LISTENER_FILTERS.register(HttpInspector, build_http_inspector)
