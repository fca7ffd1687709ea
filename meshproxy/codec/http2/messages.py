"""What a field block says, by the rules of RFC 9113 section 8, in the form that the proxy has for every version.

Where RFC and Envoy leave the choice, what a proxy cannot pass on as HTTP/1.1 is refused.
"""

from __future__ import annotations

import re
from typing import Any, Final

from meshproxy.codec.content_length import INVALID, NO_LENGTH, content_length_to_send
from meshproxy.codec.headers import (
    CONNECTION,
    CONTENT_LENGTH,
    COOKIE,
    FRAGMENT,
    HOST,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderMap,
)
from meshproxy.codec.http1.request_target import AUTHORITY_BYTES, is_plain_target
from meshproxy.codec.http1.start_lines import METHOD_FIELDS
from meshproxy.codec.http2.details import INVALID_HEADER_FIELD, MESSAGING

_LEARNT_BLOCKS: Final = 8  # heads that a connection remembers,
_LEARNT_BLOCK_BYTES: Final = 1024  # each up to this size

_COLON: Final = 0x3A
_SLASH: Final = 0x2F
_ZERO: Final = 0x30
_SCHEMES: Final[dict[bytes, Any]] = {b"http": (b":scheme", b"http"), b"https": (b":scheme", b"https")}
_SCHEME: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*")
_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_MAY_BE_FORBIDDEN: Final = CONNECTION | TRANSFER_ENCODING | UPGRADE | TE
_FORBIDDEN: Final = frozenset((b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"))
_UPGRADE_FIELD: Final[Any] = (b"connection", b"upgrade")
_CONNECT: Final[Any] = (b":method", b"CONNECT")
_GET: Final[Any] = (b":method", b"GET")
_SWITCHED: Final[Any] = (b":status", b"101")
_OK: Final[Any] = (b":status", b"200")


class Message:
    """A head that is in order; one that its peer repeats to the byte need not be read again."""

    def __init__(self, fields: list[Any], known: int, sensitive: frozenset[bytes] | None) -> None:
        self.fields: Final = fields
        self.known: Final = known
        self.sensitive: Final = sensitive
        self.length: int = NO_LENGTH  # of content-length
        self.status: int = 0  # of a response
        self.is_head: bool = False  # a request whose method is HEAD
        self.is_connect: bool = False  # … or CONNECT
        self.protocol: bytes = b""  # that an extended CONNECT asks for

    def headers(self) -> HeaderMap:
        """A block that its taker may change."""
        headers = HeaderMap(self.fields.copy(), self.known)
        headers.sensitive = self.sensitive
        return headers


class LearntHeads:
    """Peers repeat their heads: a block means the same as long as the HPACK table is what it was."""

    def __init__(self) -> None:
        self._messages: dict[bytes, Message] = {}
        self._version: int = -1

    def find(self, version: int, block: bytes) -> Message | None:
        """`version` is the decoder's, before the block."""
        if version != self._version:
            self._version = version
            self._messages.clear()
        return self._messages.get(block)

    def learn(self, version: int, block: bytes, message: Message) -> None:
        """Of a block that was not found; `version` is the decoder's behind it: one that changes the table does so each
        time."""
        if version != self._version or len(block) > _LEARNT_BLOCK_BYTES:
            return
        if len(self._messages) >= _LEARNT_BLOCKS:
            self._messages.clear()
        self._messages[block] = message


class Refused:
    """A message that is malformed."""

    def __init__(self, details: str, reason: str) -> None:
        self.details: Final = details
        self.reason: Final = reason


_PSEUDO_LATE: Final = Refused(INVALID_HEADER_FIELD, "a pseudo-header behind a field")
_FORBIDDEN_FIELD: Final = Refused(INVALID_HEADER_FIELD, "a connection-specific field")
_BAD_LENGTH: Final = Refused(INVALID_HEADER_FIELD, "invalid content-length")
_BAD_FIELD: Final = Refused(INVALID_HEADER_FIELD, "an invalid field")
_BAD_PSEUDO: Final = Refused(INVALID_HEADER_FIELD, "an invalid, unknown or repeated pseudo-header")
_NO_PSEUDO: Final = Refused(MESSAGING, "a pseudo-header is missing, or one too many")
_BAD_PATH: Final = Refused(MESSAGING, "the path does not begin with a slash")
_TWO_HOSTS: Final = Refused(INVALID_HEADER_FIELD, "more than one host")


def check_fields(fields: list[Any], begin: int, known: int) -> Refused | None:
    """What no field behind the pseudo-headers may be (sections 8.2.2 and 8.3); None when all are in order."""
    for at in range(begin, len(fields)):
        name: bytes = fields[at][0]
        if name[0] == _COLON:
            return _PSEUDO_LATE
        if known & _MAY_BE_FORBIDDEN:
            if name in _FORBIDDEN:
                return _FORBIDDEN_FIELD
            if name == b"te":
                value: bytes = fields[at][1]
                if value.lower() != b"trailers":
                    return _FORBIDDEN_FIELD
    return None


def read_request(
    fields: list[Any], known: int, invalid: int, sensitive: frozenset[bytes] | None, allow_connect: bool
) -> Message | Refused:
    """A request as HTTP/1 would have it: `:authority`, `:path`, `:method`, `:scheme`, then the others; an extended
    CONNECT (RFC 8441) becomes an upgrade."""
    if invalid >= 0:
        return _BAD_FIELD
    authority = path = method = scheme = protocol = _ABSENT
    begin = 0
    for begin in range(len(fields) + 1):  # ends where the pseudo-headers do
        if begin == len(fields):
            break
        field: Any = fields[begin]
        name: bytes = field[0]
        if name[0] != _COLON:
            break
        if name == b":method" and method is _ABSENT:
            method = field
        elif name == b":path" and path is _ABSENT:
            path = field
        elif name == b":authority" and authority is _ABSENT:
            authority = field
        elif name == b":scheme" and scheme is _ABSENT:
            scheme = field
        elif name == b":protocol" and protocol is _ABSENT and allow_connect:
            protocol = field
        else:
            return _BAD_PSEUDO
    refused = check_fields(fields, begin, known)
    if refused is not None:
        return refused
    rest = fields[begin:]
    if known & HOST:
        hosts = [field for field in rest if field[0] == b"host"]
        if len(hosts) > 1:
            return _TWO_HOSTS
        rest = [field for field in rest if field[0] != b"host"]
        if hosts and authority is _ABSENT:
            authority = (b":authority", hosts[0][1])
        known &= ~HOST
    refused = _check_pseudo(method, path, authority, scheme, protocol)
    if refused is not None:
        return refused
    if known & COOKIE:
        rest = _join_cookies(rest)
    if scheme is not _ABSENT and scheme[1] not in _SCHEMES:  # Envoy knows two, however they are written
        scheme = _SCHEMES.get(scheme[1].lower(), _SCHEMES[b"http"])
    tunnel = method[1] == b"CONNECT"
    if not tunnel:
        whole: list[Any] = [authority, path, method, scheme]
    elif protocol is _ABSENT:
        whole = [authority, _CONNECT, _SCHEMES[b"http"]]
    else:
        whole = [authority, path, _GET, scheme]
        rest = [*rest, (b"upgrade", protocol[1]), _UPGRADE_FIELD]
        known |= CONNECTION
    whole.extend(rest)
    if tunnel:
        known |= UPGRADE
    else:
        known &= ~(CONNECTION | TRANSFER_ENCODING | UPGRADE)
    path_value: bytes = path[1]
    if 0x23 in path_value:
        known |= FRAGMENT
    message = Message(whole, known, sensitive)
    message.is_head = method[1] == b"HEAD"
    message.is_connect = method[1] == b"CONNECT"
    if protocol is not _ABSENT:
        message.protocol = protocol[1]
    return _with_length(message)


_ABSENT: Final[Any] = (b"", b"")


def _with_length(message: Message) -> Message | Refused:
    if message.known & CONTENT_LENGTH:
        message.length = content_length_to_send(HeaderMap(message.fields, message.known))
        if message.length == INVALID:
            return _BAD_LENGTH
    return message


def _check_pseudo(method: Any, path: Any, authority: Any, scheme: Any, protocol: Any) -> Refused | None:
    """Section 8.3.1, and 8.5 for CONNECT."""
    if method is _ABSENT or authority is _ABSENT:
        return _NO_PSEUDO
    if method[1] not in METHOD_FIELDS and _TOKEN.fullmatch(method[1]) is None:
        return _BAD_PSEUDO
    host: bytes = authority[1]
    if not host or host.translate(None, AUTHORITY_BYTES):
        return _BAD_PSEUDO
    connect = method[1] == b"CONNECT"
    if protocol is not _ABSENT and not (connect and protocol[1] and _TOKEN.fullmatch(protocol[1]) is not None):
        return _BAD_PSEUDO
    if connect and protocol is _ABSENT:
        return None if path is _ABSENT and scheme is _ABSENT else _NO_PSEUDO
    if path is _ABSENT or scheme is _ABSENT:
        return _NO_PSEUDO
    if scheme[1] not in _SCHEMES and _SCHEME.fullmatch(scheme[1]) is None:
        return _BAD_PSEUDO
    return _check_path(method[1], path[1])


def _check_path(method: bytes, path: bytes) -> Refused | None:
    if not path:
        return _BAD_PSEUDO
    if path[0] != _SLASH and not (path == b"*" and method == b"OPTIONS"):
        return _BAD_PATH
    if not is_plain_target(path) and not is_plain_target(path.replace(b"#", b"")):
        return _BAD_PSEUDO
    return None


def _join_cookies(fields: list[Any]) -> list[Any]:
    """Crumbs of one cookie field (section 8.2.3); they come last, as Envoy has it."""
    crumbs: list[bytes] = [field[1] for field in fields if field[0] == b"cookie"]
    if len(crumbs) < 2:
        return fields
    joined: list[Any] = [field for field in fields if field[0] != b"cookie"]
    joined.append((b"cookie", b"; ".join(crumbs)))
    return joined


def read_response(
    fields: list[Any], known: int, invalid: int, sensitive: frozenset[bytes] | None
) -> Message | Refused:
    """A response, interim or final (section 8.3.2)."""
    if invalid >= 0:
        return _BAD_FIELD
    if not fields or fields[0][0] != b":status":
        return _NO_PSEUDO
    refused = check_fields(fields, 1, known)
    if refused is not None:
        return refused
    status = _status(fields[0][1])
    if known & COOKIE:
        fields = _join_cookies(fields)
    if known & CONTENT_LENGTH and (status < 200 or status == 204):  # where none may be (RFC 9110 section 8.6):
        if status < 200 or _NO_CONTENT not in fields:
            return _BAD_LENGTH
        fields = [field for field in fields if field != _NO_CONTENT]  # Envoy lets this one pass, and drops it
    message = Message(fields, known & ~(CONNECTION | TRANSFER_ENCODING | UPGRADE), sensitive)
    message.status = status
    if not 100 <= message.status < 600 or message.status == 101:  # section 8.6: nobody switches protocols
        return _BAD_PSEUDO
    return _with_length(message)


_NO_CONTENT: Final[Any] = (b"content-length", b"0")


def _status(digits: bytes) -> int:
    if len(digits) != 3:
        return 0
    status = 0
    for digit in digits:
        if not _ZERO <= digit <= _ZERO + 9:
            return 0
        status = status * 10 + digit - _ZERO
    return status


def check_trailers(fields: list[Any], known: int, invalid: int) -> Refused | None:
    """Trailers have no pseudo-headers (section 8.1)."""
    return _BAD_FIELD if invalid >= 0 else check_fields(fields, 0, known)


def clean(headers: HeaderMap) -> None:
    """Take out of a message what HTTP/2 does not carry (section 8.2.2)."""
    if headers.known & (CONNECTION | TRANSFER_ENCODING | UPGRADE | HOST):
        headers.remove_names(_NEVER_SENT)
        headers.known &= ~(TRANSFER_ENCODING | UPGRADE | HOST)


_NEVER_SENT: Final = _FORBIDDEN | {b"host"}


def to_extended_connect(headers: HeaderMap) -> bytes:
    """Make a request for an upgrade an extended CONNECT (RFC 8441 section 4), as Envoy does; the protocol, b"" if it
    is none."""
    protocol = headers.get(b"upgrade")
    if protocol is None or headers.get(b":method") == b"CONNECT":
        return b""
    fields: list[Any] = headers.fields
    for at in range(len(fields)):
        if headers.fields[at][0] == b":method":
            fields[at] = _CONNECT
            fields.insert(at, (b":protocol", protocol))
            break
    headers.remove(b"content-length")
    return protocol


def to_switched(headers: HeaderMap, protocol: bytes) -> None:
    """Make the answer that opens an extended CONNECT's tunnel the one that HTTP/1 has for an upgrade."""
    headers.replace(_SWITCHED, 0)
    headers.remove(b"content-length")
    headers.append((b"upgrade", protocol), UPGRADE)
    headers.append(_UPGRADE_FIELD, CONNECTION)


def to_opened(headers: HeaderMap) -> None:
    """… and the reverse."""
    headers.replace(_OK, 0)
