"""Reading the first message of a TLS client off its bytes, without doing TLS (RFC 8446 §4.1.2, §5.1).

Only the form is looked at, and the extensions that choose a filter chain: server_name (RFC 6066 §3) and ALPN (RFC 7301
§3.1). What TLS itself thinks of the rest, the handshake will tell. Failures have BoringSSL's words, as Envoy logs them.
"""

from __future__ import annotations

from typing import Final

HTTP_REQUEST: Final = "1000009c:SSL routines:OPENSSL_internal:HTTP_REQUEST"
HTTPS_PROXY_REQUEST: Final = "1000009b:SSL routines:OPENSSL_internal:HTTPS_PROXY_REQUEST"
WRONG_VERSION_NUMBER: Final = "100000f7:SSL routines:OPENSSL_internal:WRONG_VERSION_NUMBER"
UNEXPECTED_RECORD: Final = "100000e1:SSL routines:OPENSSL_internal:UNEXPECTED_RECORD"
ENCRYPTED_LENGTH_TOO_LONG: Final = "10000092:SSL routines:OPENSSL_internal:ENCRYPTED_LENGTH_TOO_LONG"
TOO_MANY_EMPTY_FRAGMENTS: Final = "100000d6:SSL routines:OPENSSL_internal:TOO_MANY_EMPTY_FRAGMENTS"
UNEXPECTED_MESSAGE: Final = "100000df:SSL routines:OPENSSL_internal:UNEXPECTED_MESSAGE"
EXCESSIVE_MESSAGE_SIZE: Final = "10000096:SSL routines:OPENSSL_internal:EXCESSIVE_MESSAGE_SIZE"
CLIENTHELLO_PARSE_FAILED: Final = "10000083:SSL routines:OPENSSL_internal:CLIENTHELLO_PARSE_FAILED"
ERROR_PARSING_EXTENSION: Final = "10000095:SSL routines:OPENSSL_internal:ERROR_PARSING_EXTENSION"
CONNECTION_REJECTED: Final = "10000085:SSL routines:OPENSSL_internal:CONNECTION_REJECTED"

SERVER_NAME: Final = 0
ALPN: Final = 16

_OTHER_PROTOCOLS: Final = (
    (b"GET ", HTTP_REQUEST),
    (b"POST ", HTTP_REQUEST),
    (b"HEAD ", HTTP_REQUEST),
    (b"PUT ", HTTP_REQUEST),
    (b"CONNE", HTTPS_PROXY_REQUEST),
)

_HANDSHAKE: Final = 22
_OTHER_RECORDS: Final = frozenset({20, 21, 23})
_CLIENT_HELLO: Final = 1
_RECORD_HEADER: Final = 5
_MESSAGE_HEADER: Final = 4
_MAX_RECORD: Final = 16384 + 256
_MAX_MESSAGE: Final = 16384
_MAX_EMPTY_RECORDS: Final = 32
_MAX_SERVER_NAME: Final = 255


class ClientHello:
    """What a client offers; its numbers as they came, GREASE (RFC 8701) among them."""

    def __init__(self, version: int, cipher_suites: list[int], extensions: dict[int, bytes]) -> None:
        self.version = version  # legacy_version
        self.cipher_suites = cipher_suites
        self.extensions = extensions  # in the client's order


class ClientHelloReader:
    """Takes records until they hold a whole ClientHello (`hello`), or cannot (`failure`)."""

    def __init__(self) -> None:
        self.hello: ClientHello | None = None
        self.failure: str = ""
        self.processed: int = 0  # bytes of the data that are done with
        self._message = bytearray()
        self._empty_records = 0

    def receive(self, data: bytes) -> None:
        """Take all that has come, from the first byte on: every call has at least the data of the one before."""
        while self.hello is None and not self.failure:
            at = self.processed
            header = data[at : at + _RECORD_HEADER]
            self.failure = _why_no_record(header, data)
            if len(header) < _RECORD_HEADER or self.failure:
                if self.failure:
                    self.processed = min(at + _RECORD_HEADER, len(data))
                return
            end = at + _RECORD_HEADER + int.from_bytes(header[3:], "big")
            if len(data) < end:
                return
            self.processed = end
            self._take(data[at + _RECORD_HEADER : end])

    def _take(self, fragment: bytes) -> None:
        """One record of handshake data; the message may go over several."""
        self._empty_records = 0 if fragment else self._empty_records + 1
        if self._empty_records > _MAX_EMPTY_RECORDS:
            self.failure = TOO_MANY_EMPTY_FRAGMENTS
        message = self._message
        message += fragment
        if len(message) < _MESSAGE_HEADER:
            return
        length = int.from_bytes(message[1:_MESSAGE_HEADER], "big")
        if message[0] != _CLIENT_HELLO:
            self.failure = UNEXPECTED_MESSAGE
        elif length > _MAX_MESSAGE:
            self.failure = EXCESSIVE_MESSAGE_SIZE
        elif len(message) >= _MESSAGE_HEADER + length:
            self.hello = parse_client_hello(bytes(message[_MESSAGE_HEADER : _MESSAGE_HEADER + length]))
            if self.hello is None:
                self.failure = CLIENTHELLO_PARSE_FAILED


def _why_no_record(header: bytes, data: bytes) -> str:
    """What is wrong with as much of a record's header as there is; "" when nothing is."""
    if len(header) >= 2 and header[1] != 3:
        return _name_protocol(data)
    if header and header[0] != _HANDSHAKE:
        return UNEXPECTED_RECORD if header[0] in _OTHER_RECORDS else _name_protocol(data)
    if len(header) == _RECORD_HEADER and int.from_bytes(header[3:], "big") > _MAX_RECORD:
        return ENCRYPTED_LENGTH_TOO_LONG
    return ""


def _name_protocol(data: bytes) -> str:
    """ "" while it may yet become one of those that have a name."""
    for start, name in _OTHER_PROTOCOLS:
        if data.startswith(start):
            return name
        if start.startswith(data):
            return ""
    return WRONG_VERSION_NUMBER


class _Malformed(Exception):
    """A vector is longer than what holds it."""


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise _Malformed
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        return self.take(self.number(size))

    def more(self) -> bool:
        return self._at < len(self._data)


def parse_client_hello(body: bytes) -> ClientHello | None:
    """The ClientHello in the body of a handshake message; None when it is malformed."""
    cursor = _Cursor(body)
    try:
        version = cursor.number(2)
        cursor.take(32)  # random
        session_id = cursor.vector(1)
        cipher_suites = cursor.vector(2)
        compression_methods = cursor.vector(1)
        extensions = _extensions(cursor.vector(2)) if cursor.more() else {}
    except _Malformed:
        return None
    if len(session_id) > 32 or not cipher_suites or len(cipher_suites) % 2 or not compression_methods or cursor.more():
        return None
    return ClientHello(version, numbers(cipher_suites), extensions) if extensions is not None else None


def _extensions(block: bytes) -> dict[int, bytes] | None:
    """The extensions by their types; None when one is there twice (RFC 8446 §4.2)."""
    cursor = _Cursor(block)
    found: dict[int, bytes] = {}
    while cursor.more():
        kind = cursor.number(2)
        if kind in found:
            return None
        found[kind] = cursor.vector(2)
    return found


def numbers(data: bytes) -> list[int]:
    """The 16-bit numbers in `data`; an odd byte at the end is left out."""
    return [int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data) - 1, 2)]


def server_name(hello: ClientHello) -> str | None:
    """The host name of the SNI, in lower case, "" without one; None when the extension is malformed."""
    data = hello.extensions.get(SERVER_NAME)
    if data is None:
        return ""
    cursor = _Cursor(data)
    try:
        names = _Cursor(cursor.vector(2))
        kind = names.number(1)
        name = names.vector(2)
    except _Malformed:
        return None
    if cursor.more() or names.more() or kind != 0 or b"\0" in name or not 0 < len(name) <= _MAX_SERVER_NAME:
        return None
    return name.lower().decode("latin-1")


def application_protocols(hello: ClientHello) -> list[str]:
    """The names in the ALPN extension, in the client's order; none when it is malformed."""
    cursor = _Cursor(hello.extensions.get(ALPN, b""))
    found: list[str] = []
    try:
        names = _Cursor(cursor.vector(2))
        while names.more():
            found.append(names.vector(1).decode("latin-1"))
    except _Malformed:
        return []
    return [] if cursor.more() or "" in found else found
