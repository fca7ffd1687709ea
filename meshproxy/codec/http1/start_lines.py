"""Methods, status codes and their lines (RFC 9112 sections 3 and 4)."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final

from meshproxy.codec.headers import Field
from meshproxy.codec.http1.details import CODEC_ERROR
from meshproxy.errors import ProtocolError

# The methods that Envoy's codec knows; `allow_custom_methods` admits every token.
METHOD_FIELDS: Final[dict[bytes, Field]] = {
    method: (b":method", method)
    for method in (
        b"GET HEAD POST PUT DELETE CONNECT OPTIONS TRACE PATCH ACL BIND CHECKOUT COPY LINK LOCK MERGE MKACTIVITY "
        b"MKCALENDAR MKCOL MOVE MSEARCH NOTIFY PROPFIND PROPPATCH PURGE REBIND REPORT SEARCH SOURCE SUBSCRIBE UNBIND "
        b"UNLINK UNLOCK UNSUBSCRIBE"
    ).split()
}
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# A request with one of these and no body says nothing of its length (RFC 9110 section 8.6; the list is Envoy's).
BODILESS_METHODS: Final = frozenset((b"GET", b"HEAD", b"DELETE", b"TRACE", b"CONNECT"))

# The reason phrases are Envoy's; it has none for 418 and 451.
_REASONS: Final[dict[int, str]] = {
    **{status.value: status.phrase for status in HTTPStatus if status.value not in (102, 103, 418, 451)},
    413: "Payload Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Entity",
    599: "Last Unassigned Server Error Code",
}
_STATUS_LINES: Final[dict[bytes, bytes]] = {
    b"%d" % code: b"HTTP/1.1 %d %b\r\n" % (code, reason.encode()) for code, reason in _REASONS.items()
}
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*)?")
_LEARNT_LIMIT: Final = 256

# A received status line -> (its :status field, the code, whether the version is 1.0)
_LEARNT: dict[bytes, tuple[Field, int, bool]] = {}


def method_field(method: bytes, allow_custom_methods: bool) -> Field:
    """The `:method` field; raises ProtocolError for a method that is unknown or no token."""
    known = METHOD_FIELDS.get(method)
    if known is not None:
        return known
    if allow_custom_methods and _TOKEN.fullmatch(method) is not None:
        return (b":method", method)
    raise ProtocolError(400, CODEC_ERROR, "unknown method")


def status_line(status: bytes, http_10: bool) -> bytes:
    """The line that a response begins with; the reason is ours, whatever the upstream said."""
    line = _STATUS_LINES.get(status)
    if line is None:
        line = b"HTTP/1.1 %b Unknown\r\n" % status.replace(b"\r", b" ").replace(b"\n", b" ")
    return b"HTTP/1.0" + line[8:] if http_10 else line


def parse_status_line(line: bytes) -> tuple[Field, int, bool]:
    """Field, code and whether it is HTTP/1.0, of a received status line without its CRLF; raises ProtocolError.

    Codes from 600 on are passed through as Envoy does; those below 100 do not exist (RFC 9110 section 15).
    """
    found = _LEARNT.get(line)
    if found is None:
        match = _STATUS_LINE.fullmatch(line)
        if match is None:
            raise ProtocolError(502, CODEC_ERROR, "malformed status line")
        status = match.group(2)
        found = ((b":status", status), int(status), match.group(1) == b"0")
        if len(_LEARNT) < _LEARNT_LIMIT and len(line) <= 64:
            _LEARNT[line] = found
    return found


def reason_phrase(status: int) -> bytes:
    """The text behind a status code, which is also the body of a codec's local reply."""
    return _REASONS.get(status, "Unknown").encode()
