"""The downstream's end: requests in, responses out."""

from __future__ import annotations

from typing import Any, Final

from meshproxy.codec.connection import ServerConnectionCallbacks
from meshproxy.codec.content_length import NO_LENGTH, content_length_to_send
from meshproxy.codec.headers import (
    CONNECTION,
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
    UPGRADE,
    Field,
    HeaderMap,
)
from meshproxy.codec.http1.connection import DEAD, HEAD, LEARNT_HEAD_BYTES, UNTIL_EOF, WAITING, Http1Connection
from meshproxy.codec.http1.details import (
    BODY_DISALLOWED,
    CODEC_ERROR,
    INVALID_TRANSFER_ENCODING,
    INVALID_URL,
    LOW_VERSION,
    MISSING_HOST,
    TOO_MANY_HEADERS,
)
from meshproxy.codec.http1.encoder import (
    CHUNKED,
    DONE,
    LENGTH,
    NO_BODY,
    NOT_STARTED,
    RAW,
    MessageEncoder,
    SentHead,
    encode_head,
)
from meshproxy.codec.http1.fields import FIELD_LINES
from meshproxy.codec.http1.framing import (
    body_length,
    connection_tokens,
    keeps_alive,
)
from meshproxy.codec.http1.request_target import (
    SLASH,
    check_authority,
    check_connect_target,
    check_target,
    is_plain_target,
    split_absolute,
)
from meshproxy.codec.http1.settings import Http1Settings
from meshproxy.codec.http1.start_lines import METHOD_FIELDS, method_field, status_line
from meshproxy.errors import RESET_TERMINATION, ProtocolError

_FRAMING: Final = CONTENT_LENGTH | TRANSFER_ENCODING
_UNUSUAL: Final = _FRAMING | CONNECTION | UPGRADE
_PSEUDO_HEADERS: Final = 4  # that every request but CONNECT has
_NO_FIELD: Final[Field] = (b"", b"")


class _Nobody(ServerConnectionCallbacks):
    """Hears what is said of a connection that is gone."""

    def on_send_pending(self) -> None:
        return


_NOBODY: Final = _Nobody()


class Http1ServerConnection(Http1Connection):
    """Reads one request at a time and sends its response.

    A request's fields begin with `:authority`, `:path`, `:method`, `:scheme`, in this order (CONNECT has no `:path`);
    Host is not among the others. `scheme` is what a request without one (all but the absolute form) gets.
    """

    def __init__(self, callbacks: ServerConnectionCallbacks, settings: Http1Settings, scheme: bytes = b"http") -> None:
        super().__init__(settings, max_blank_lines=8)
        self._callbacks = callbacks
        self._scheme_field: Final[Field] = (b":scheme", scheme)
        self.http_10: bool = False  # of the present request
        self.method: bytes = b""
        self.request_complete: bool = False  # received in full
        self.should_close: bool = False  # no further request will be read
        self.close_after_response: bool = False  # set it before the response's headers: they say `connection: close`
        self._may_upgrade: bool = False
        self._authority: bytes = b""  # the last that passed its check
        self.sent_head: Final = SentHead()
        self._served: bool = False  # a request before this one
        self._last: _RequestHead | None = None  # what `last_head` says
        self._other_path: Any = None  # the `:path` field of a head that repeats the last but for its target

    def forget_callbacks(self) -> None:
        """The connection is gone: nobody is told any more (else codec and callbacks kept each other alive)."""
        self._callbacks = _NOBODY

    # -- requests

    def on_head(self, buffer: bytes, at: int, end: int) -> None:
        self.method = b""
        self.http_10 = False
        line_end = buffer.find(b"\r\n", at)
        parts = buffer[at:line_end].split(b" ")
        if len(parts) != 3:
            raise ProtocolError(400, CODEC_ERROR, "malformed request line")
        method = parts[0]
        self.http_10 = parts[2] != b"HTTP/1.1" and self._is_http_10(parts[2])
        method_pair = METHOD_FIELDS.get(method)
        if method_pair is None:
            method_pair = method_field(method, self.settings.allow_custom_methods)
        self.method = method
        headers = HeaderMap()
        fields = headers.fields
        fields.append(_NO_FIELD)
        fields.append(_NO_FIELD)
        fields.append(method_pair)
        fields.append(self._scheme_field)
        headers.known = FIELD_LINES.parse(buffer[line_end + 2 : end], fields)
        if len(fields) - _PSEUDO_HEADERS > self.settings.max_headers_count:
            raise ProtocolError(431, TOO_MANY_HEADERS)
        field_bytes = end - line_end - len(fields)  # CRLF twice makes up for the pseudo-headers
        self.field_bytes_received += field_bytes
        self._set_target(fields, parts[1])
        length = self._judge(headers)
        tunnel = self._may_upgrade
        if FIELD_LINES.all_learnt and self._served and end - at <= LEARNT_HEAD_BYTES and not tunnel:
            self._remember(headers, length, buffer[at:end], field_bytes)
        self._served = True
        self._begin_stream(headers, length, tunnel)

    def repeated_head(self, buffer: bytes) -> int:
        last = self._last
        assert last is not None
        self._other_path = None
        if buffer.startswith(self.last_head):
            return len(self.last_head)
        start, rest = last.start, last.rest
        size = len(buffer)
        if (
            not buffer.endswith(rest)
            or not buffer.startswith(start)
            or not len(start) + len(rest) < size <= self.settings.max_headers_bytes
        ):
            return 0
        target = buffer[len(start) : size - len(rest)]
        if target[0] != SLASH or not is_plain_target(target):
            return 0
        self._other_path = (b":path", target)
        return size

    def on_repeated_head(self) -> None:
        last = self._last
        assert last is not None
        self.method = last.method
        self.http_10 = False
        self._read_disabled = 0
        self._may_upgrade = False
        if last.known & CONNECTION:
            self.should_close = False
        self.field_bytes_received += last.field_bytes
        headers = HeaderMap(last.fields.copy(), last.known)
        if self._other_path is not None:
            fields: list[Any] = headers.fields
            fields[1] = self._other_path
        self._begin_stream(headers, last.length, False)

    def _is_http_10(self, version: bytes) -> bool:
        """For versions other than HTTP/1.1."""
        if version != b"HTTP/1.0":
            raise ProtocolError(400, CODEC_ERROR, "unsupported version")
        if not self.settings.accept_http_10:
            raise ProtocolError(426, LOW_VERSION)
        return True

    def _set_target(self, fields: list[Field], target: bytes) -> None:
        """Fill in the pseudo-headers; Host moves to the front as `:authority`."""
        if FIELD_LINES.hosts == 1:
            authority = fields.pop(FIELD_LINES.host_at)[1]
            if authority != self._authority:
                check_authority(authority)
                self._authority = authority
        elif FIELD_LINES.hosts:
            raise ProtocolError(400, CODEC_ERROR, "more than one Host")
        else:
            authority = self._default_host(target)
        if target and target[0] == SLASH and self.method != b"CONNECT":
            if not is_plain_target(target):
                check_target(target)
            fields[0] = (b":authority", authority)
            fields[1] = (b":path", target)
        else:
            self._set_other_target(fields, target, authority)

    def _default_host(self, target: bytes) -> bytes:
        """Without a Host: refused on 1.1 (RFC 9112 section 3.2)."""
        if not self.http_10:
            raise ProtocolError(400, MISSING_HOST)
        default = self.settings.default_host_for_http_10
        if not default and b"://" not in target:
            raise ProtocolError(400, MISSING_HOST)
        return default

    def _set_other_target(self, fields: list[Field], target: bytes, authority: bytes) -> None:
        check_target(target)
        if self.method == b"CONNECT":
            check_connect_target(target)
            fields[0] = (b":authority", target)
            del fields[1]
            return
        if target == b"*":
            if self.method != b"OPTIONS":
                raise ProtocolError(400, INVALID_URL, "the target * is for OPTIONS")
            fields[0] = (b":authority", authority)
            fields[1] = (b":path", target)
            return
        scheme, authority, path = split_absolute(target)
        if not self.settings.allow_absolute_url:
            raise ProtocolError(400, CODEC_ERROR, "a request target in absolute form is not allowed")
        fields[0] = (b":authority", authority)
        fields[1] = (b":path", path)
        fields[3] = (b":scheme", scheme)

    def _judge(self, headers: HeaderMap) -> int:
        """What the head says of the connection, and the length of the body."""
        known = headers.known
        length = 0
        if known & _FRAMING:
            length = body_length(headers, known, self.http_10, self.settings.allow_chunked_length)
        self._read_disabled = 0
        self._may_upgrade = False
        if known & CONNECTION or self.http_10:
            self.should_close = not keeps_alive(headers, self.http_10)
        tunnel = self.method == b"CONNECT" or (known & UPGRADE != 0 and self._wants_upgrade(headers))
        if tunnel and length:  # what follows could be read as the body, or as the other protocol's first bytes
            if length < 0:
                raise ProtocolError(501, INVALID_TRANSFER_ENCODING, "a request for a tunnel with a coding")
            raise ProtocolError(400, BODY_DISALLOWED, "a request for a tunnel with a body")
        if tunnel:
            headers.known |= UPGRADE
            if self.method == b"CONNECT":
                headers.remove(b"content-length")
        self._may_upgrade = tunnel
        return length

    def _remember(self, headers: HeaderMap, length: int, head: bytes, field_bytes: int) -> None:
        """Clients repeat their heads to the byte, or but for the target: such a one need not be parsed again."""
        start = self.method + b" "
        target = headers.get(b":path") or b""
        if self.should_close or self.http_10 or not head.startswith(start + target + b" "):
            return  # among others a target in absolute form
        self.last_head = head
        self._last = _RequestHead(headers, self.method, length, start, head[len(start) + len(target) :], field_bytes)

    def _begin_stream(self, headers: HeaderMap, length: int, tunnel: bool) -> None:
        encoder = ResponseEncoder(self)
        self.encoder = encoder
        self.request_complete = False
        if length:
            self.start_body(length)
        else:
            self.state = WAITING
            self.request_complete = not tunnel
        decoder = self._callbacks.new_stream(encoder)
        if self.encoder is encoder:
            self.decoder = decoder
            decoder.on_headers(headers, self.request_complete)

    def _wants_upgrade(self, headers: HeaderMap) -> bool:
        """Whether the request stays open for a tunnel, until the response decides; else it has no Upgrade any more.

        HTTP/1.0 knows none (RFC 9110 section 7.8); to h2c nobody upgrades any more (RFC 9113 section 3.1), as in Envoy.
        """
        protocol = headers.joined(b"upgrade")
        ignored = self.settings.ignored_upgrades
        if (
            protocol is not None
            and not self.http_10
            and protocol.lower() != b"h2c"
            and b"upgrade" in connection_tokens(headers)
            and (ignored is None or not ignored.ignores(protocol))
        ):
            return True
        headers.remove(b"upgrade")
        return False

    def on_received(self) -> None:
        self.request_complete = True

    # -- responses

    def on_sent(self) -> None:
        self.encoder = None
        self.decoder = None
        if not self.request_complete:
            self.should_close = True
        if self.should_close:
            self._stop_reading()
        self._callbacks.on_stream_complete()

    def read_next(self) -> None:
        """Go on with the next request; nothing happens while a stream is in progress or when `should_close`."""
        if self.encoder is None and self.state == WAITING and not self.should_close:
            self.state = HEAD
            self._read_disabled = 0
            if not self._reading:
                self.read()

    def start_tunnel(self) -> None:
        """The response switched protocols: from here on raw bytes go both ways (RFC 9110 sections 7.8 and 9.3.6)."""
        self.should_close = True
        if self.state == WAITING:
            self.state = UNTIL_EOF
            self.request_complete = False
            if not self._reading:
                self.read()

    @property
    def may_switch_protocols(self) -> bool:
        """Whether the present request asked for a tunnel (CONNECT, or an upgrade)."""
        return self._may_upgrade

    def decline_tunnel(self) -> None:
        """The final response declined: what follows may already be meant for the tunnel, and is never read."""
        self._may_upgrade = False
        self.should_close = True

    def _stop_reading(self) -> None:
        self.state = DEAD
        self._buffer = b""
        self._at = 0

    # -- the end

    def on_end_of_input(self, partial: bool) -> None:
        state = self.state
        if state == WAITING and not self._may_upgrade:
            # The request is complete; whether its response is still wanted, the owner decides.
            self.should_close = self.should_close or not partial
            return
        self.should_close = True
        if state == UNTIL_EOF:
            self._deliver_end(b"")
            return
        decoder = self.decoder
        self._stop_reading()
        if decoder is not None:
            self.decoder = None
            decoder.on_reset(RESET_TERMINATION, "")

    def fail(self, error: ProtocolError) -> None:
        """End reading for `error`, as if the codec had found it (a request whose head took too long: 408)."""
        if self.state != DEAD:
            self.on_broken(error)

    def on_broken(self, error: ProtocolError) -> None:
        self.should_close = True
        self._stop_reading()
        self.decoder = None
        if self.encoder is None:
            self.method = b""  # what was read of a head that is refused says nothing
            self.http_10 = False
            self.request_complete = False
            self._may_upgrade = False
            encoder = ResponseEncoder(self)
            self.encoder = encoder
            self._callbacks.new_stream(encoder)
        self._callbacks.on_protocol_error(error)

    @property
    def protocol(self) -> int:
        """Version of the present request: 10 or 11."""
        return 10 if self.http_10 else 11

    def on_abort(self) -> None:
        self.should_close = True
        self.encoder = None
        self.decoder = None
        self._stop_reading()
        self._callbacks.on_abort()

    def on_send_pending(self) -> None:
        self._callbacks.on_send_pending()

    def on_reading_wanted(self) -> None:
        self._callbacks.on_reading_wanted()


class _RequestHead:
    """What a head says. It is `start`, the target, and `rest`."""

    def __init__(
        self, headers: HeaderMap, method: bytes, length: int, start: bytes, rest: bytes, field_bytes: int
    ) -> None:
        self.fields: Final = headers.fields.copy()
        self.known: Final = headers.known
        self.method: Final = method
        self.length: Final = length  # of the body; `framing.CHUNKED`
        self.start: Final = start
        self.rest: Final = rest
        self.field_bytes: Final = field_bytes


class ResponseEncoder(MessageEncoder):
    """Sends a response (and interim ones before it) on a server's connection."""

    def __init__(self, server: Http1ServerConnection) -> None:
        super().__init__(server)
        self._server: Final = server

    def send_informational(self, headers: HeaderMap) -> None:
        """100, 103 …: never to an HTTP/1.0 client (RFC 9110 section 15.2)."""
        if self.framing == NOT_STARTED and not self._server.http_10:
            line = status_line(status_of(headers), False)
            self._server.write(encode_head(line, headers, b"", self._server.settings.proper_case, SentHead()))

    def send_headers(self, headers: HeaderMap, end: bool) -> None:
        if self.framing != NOT_STARTED:
            return
        server = self._server
        status = status_of(headers)
        if server.may_switch_protocols:
            if status == b"101" or (server.method == b"CONNECT" and status[0] == 0x32):
                self._send_switch(status, headers, end)
                return
            server.decline_tunnel()
        framing_line = self._frame(status, headers, end)
        if self.framing == DONE:
            self.on_mismatch()
            return
        extra = self._connection_line(headers) + framing_line
        line = status_line(status, server.http_10)
        head = encode_head(line, headers, extra, server.settings.proper_case, server.sent_head)
        server.field_bytes_sent += len(head) - len(line) - 2
        server.write(head)
        if end:
            self.end()

    def _frame(self, status: bytes, headers: HeaderMap, end: bool) -> bytes:
        """Set the framing (RFC 9112 section 6), return its line of the head; DONE when the length cannot be right."""
        server = self._server
        bodiless = status == b"204" or status == b"304" or status[0] == 0x31  # noqa: PLR1714  a tuple is searched slowly
        length = content_length_to_send(headers) if headers.known & CONTENT_LENGTH else NO_LENGTH
        has_length = length != NO_LENGTH
        if bodiless or server.method == b"HEAD":
            self.framing = NO_BODY
            if status == b"204" and has_length:
                headers.remove(b"content-length")
            return b"" if bodiless or has_length or server.http_10 else b"transfer-encoding: chunked\r\n"
        if has_length:
            self.left = length
            self.framing = LENGTH if length >= 0 and not (end and length) else DONE
            return b""
        if end:
            self.framing = NO_BODY
            return b"content-length: 0\r\n"
        if server.http_10:
            self.framing = RAW
            server.should_close = True
            return b""
        self.framing = CHUNKED
        return b"transfer-encoding: chunked\r\n"

    def _connection_line(self, headers: HeaderMap) -> bytes:
        """`connection: close` when this is the last response (RFC 9112 section 9.6), keep-alive for HTTP/1.0."""
        server = self._server
        connection = headers.get(b"connection") if headers.known & CONNECTION else None
        if connection is not None:
            if connection == b"close":
                server.should_close = True
                return b""
            if b"close" in connection_tokens(headers):
                server.should_close = True
            headers.remove(b"connection")
        if server.close_after_response:
            server.should_close = True
        if server.should_close:
            return b"connection: close\r\n"
        return b"connection: keep-alive\r\n" if server.http_10 else b""

    def _send_switch(self, status: bytes, headers: HeaderMap, end: bool) -> None:
        server = self._server
        headers.remove(b"content-length")  # RFC 9110 sections 8.6 and 9.3.6: neither a 101 nor a 2xx to CONNECT has one
        self.framing = RAW
        line = status_line(status, server.http_10)
        server.write(encode_head(line, headers, b"", server.settings.proper_case, server.sent_head))
        if end:
            self.end()
        else:
            server.start_tunnel()


def status_of(headers: HeaderMap) -> bytes:
    """The `:status`, which comes first."""
    first = headers.fields[0]
    if first[0] == b":status":
        return first[1]
    return headers.get(b":status") or b"500"
