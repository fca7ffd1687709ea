"""The upstream's end: requests out, responses in."""

from __future__ import annotations

from typing import Final

from mypy_extensions import mypyc_attr

from meshproxy.codec.content_length import NO_LENGTH, content_length_to_send
from meshproxy.codec.headers import (
    CONNECTION,
    CONTENT_LENGTH,
    PROXY_CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderMap,
)
from meshproxy.codec.http1.connection import DEAD, HEAD, LEARNT_HEAD_BYTES, UNTIL_EOF, WAITING, Http1Connection
from meshproxy.codec.http1.details import (
    CODEC_ERROR,
    CONTENT_LENGTH_NOT_ALLOWED,
    TOO_MANY_HEADERS,
    TRANSFER_ENCODING_NOT_ALLOWED,
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
    one_line,
)
from meshproxy.codec.http1.fields import FIELD_LINES
from meshproxy.codec.http1.framing import CHUNKED as CHUNKED_BODY
from meshproxy.codec.http1.framing import (
    body_length,
    connection_tokens,
    content_length,
    keeps_alive,
)
from meshproxy.codec.http1.request_target import is_plain_target
from meshproxy.codec.http1.settings import Http1Settings
from meshproxy.codec.http1.start_lines import BODILESS_METHODS, METHOD_FIELDS, parse_status_line
from meshproxy.codec.stream import StreamDecoder, StreamEncoder
from meshproxy.errors import RESET_PROTOCOL_ERROR, RESET_TERMINATION, ProtocolError

_FRAMING: Final = CONTENT_LENGTH | TRANSFER_ENCODING


@mypyc_attr(allow_interpreted_subclasses=True)
class ClientConnectionCallbacks:
    """What the codec tells the connection pool."""

    def on_stream_complete(self, reusable: bool) -> None:
        """The response is received in full, and its decoder has been told.

        `reusable`: the connection may take another request; else it is of no more use, and is to be closed.
        """
        raise NotImplementedError

    def on_send_pending(self) -> None:
        """The output went from empty to something: fetch it with `data_to_send()` before the turn ends."""
        raise NotImplementedError

    def on_protocol_error(self, error: ProtocolError) -> None:
        """The upstream broke the protocol (or sent bytes nobody asked for): close.

        The stream's decoder, if there was one, has been reset with RESET_PROTOCOL_ERROR.
        """
        raise NotImplementedError

    def on_abort(self) -> None:
        """The stream was reset from our side, before its end: close at once."""
        raise NotImplementedError

    def on_reading_wanted(self) -> None:
        """`reading_wanted`, which was False after `receive_data`, is True again."""


class _Nobody(ClientConnectionCallbacks):
    """Hears what is said of a connection that is gone."""

    def on_stream_complete(self, reusable: bool) -> None:
        return

    def on_send_pending(self) -> None:
        return

    def on_abort(self) -> None:
        return


_NOBODY: Final = _Nobody()


class Http1ClientConnection(Http1Connection):
    """Sends one request at a time and reads its response, whose fields begin with `:status`."""

    def __init__(self, callbacks: ClientConnectionCallbacks, settings: Http1Settings) -> None:
        super().__init__(settings, max_blank_lines=0)
        self.head_prefix = b"HTTP/1."
        self._callbacks = callbacks
        self._request: RequestEncoder | None = None
        self.sent_head: Final = SentHead()
        self._last: _ResponseHead | None = None  # what `last_head` says
        self._closing: bool = False  # one of both sides said that it closes
        self.peer_closes: bool = False  # the head of a response said that it is the last

    def forget_callbacks(self) -> None:
        """The connection is gone: nobody is told any more (else codec and callbacks kept each other alive)."""
        self._callbacks = _NOBODY

    def new_stream(self, decoder: StreamDecoder) -> StreamEncoder:
        """Begin a request: the first on the connection, or one after `on_stream_complete(True)`."""
        assert self.encoder is None
        encoder = RequestEncoder(self)
        self.decoder = decoder
        self.encoder = encoder
        self._request = encoder
        self._read_disabled = 0
        self.state = HEAD
        return encoder

    # -- responses

    def receive_data(self, data: bytes) -> None:
        if self.encoder is None and self.state != DEAD:
            self.on_broken(ProtocolError(502, CODEC_ERROR, "bytes without a request"))
            return
        super().receive_data(data)

    def on_head(self, buffer: bytes, at: int, end: int) -> None:
        line_end = buffer.find(b"\r\n", at)
        status_field, status, http_10 = parse_status_line(buffer[at:line_end])
        headers = HeaderMap()
        fields = headers.fields
        fields.append(status_field)
        headers.known = FIELD_LINES.parse(buffer[line_end + 2 : end], fields)
        if len(fields) - 1 > self.settings.max_headers_count:
            raise ProtocolError(502, TOO_MANY_HEADERS)
        count = len(fields) - 1
        field_bytes = end - line_end - 4 - count if count else 3  # 3 is what Envoy counts for none
        self.field_bytes_received += field_bytes
        if status < 200 and status != 101:
            self._on_informational(headers)
            return
        request = self._started_request()
        known = headers.known
        if (known & CONNECTION or http_10) and (
            not keeps_alive(headers, http_10) or (known & PROXY_CONNECTION and proxy_closes(headers))
        ):
            self._closing = self.peer_closes = True
        tunnel = status == 101 or (request.is_connect and 200 <= status < 300)
        length = NO_LENGTH
        if known & _FRAMING and not tunnel:
            length = body_length(headers, known, http_10, self.settings.allow_chunked_length)
        if FIELD_LINES.all_learnt and end - at <= LEARNT_HEAD_BYTES and not (tunnel or self._closing):
            self.last_head = buffer[at:end]
            self._last = _ResponseHead(headers, status, length, field_bytes)
        self._on_final_head(headers, status, length, request, tunnel)

    def repeated_head(self, buffer: bytes) -> int:
        request = self._request
        if request is None or request.is_connect:
            return 0
        return super().repeated_head(buffer)

    def on_repeated_head(self) -> None:
        last = self._last
        assert last is not None
        self.field_bytes_received += last.field_bytes
        headers = HeaderMap(last.fields.copy(), last.known)
        self._on_final_head(headers, last.status, last.length, self._started_request(), False)

    def _started_request(self) -> RequestEncoder:
        request = self._request
        assert request is not None
        if request.framing == NOT_STARTED:
            raise ProtocolError(502, CODEC_ERROR, "a response before its request")
        return request

    def _on_informational(self, headers: HeaderMap) -> None:
        if headers.known & TRANSFER_ENCODING:
            raise ProtocolError(502, TRANSFER_ENCODING_NOT_ALLOWED)
        if headers.known & CONTENT_LENGTH:
            check_no_content(headers, content_length(headers))
        decoder = self.decoder
        if decoder is not None:
            decoder.on_informational(headers)

    def _on_final_head(
        self, headers: HeaderMap, status: int, length: int, request: RequestEncoder, tunnel: bool
    ) -> None:
        end = self._frame(headers, status, length, request, tunnel)
        if end:
            self.state = WAITING
        decoder = self.decoder
        if decoder is not None:
            decoder.on_headers(headers, end)
        if end and self._request is request:
            self.on_delivered()

    def _frame(self, headers: HeaderMap, status: int, length: int, request: RequestEncoder, tunnel: bool) -> bool:
        """Choose the state for the body (RFC 9112 section 6.3); True when there is none."""
        if tunnel:
            if status == 101:
                self._check_switch(headers, request)
            self.state = UNTIL_EOF
            self._closing = True
            request.start_tunnel()
            return False
        if status == 204:
            check_no_content(headers, length)
            return True
        if status == 304 or request.is_head:
            return True
        if length != NO_LENGTH:
            if length:
                self.start_body(length)
            return length == 0
        self.state = UNTIL_EOF
        self._closing = True
        return False

    def _check_switch(self, headers: HeaderMap, request: RequestEncoder) -> None:
        """A 101 answers an Upgrade, says so twice (RFC 9110 section 7.8), and has no coding (RFC 9112 section 6.1)."""
        if headers.known & TRANSFER_ENCODING:
            raise ProtocolError(502, TRANSFER_ENCODING_NOT_ALLOWED)
        if not (request.wants_upgrade and b"upgrade" in headers and b"upgrade" in connection_tokens(headers)):
            raise ProtocolError(502, CODEC_ERROR, "101 without an upgrade")

    def on_delivered(self) -> None:
        """The response ended: the stream is complete."""
        request = self._request
        if request is None:
            return
        reusable = not self._closing and request.framing == DONE and self._at >= len(self._buffer) and not self._eof
        request.framing = DONE
        self._forget_stream()
        self.state = HEAD if reusable else DEAD
        self._callbacks.on_stream_complete(reusable)

    @property
    def has_surplus(self) -> bool:
        """Whether bytes stand behind a response that was not the last: nobody asked for them."""
        return not self._closing and self._at < len(self._buffer)

    @property
    def peer_closed(self) -> bool:
        """Whether the peer has ended the connection."""
        return self._eof

    def on_sent(self) -> None:
        """The request is complete: its response ends the stream."""

    def say_close(self) -> None:
        """The request said `connection: close`."""
        self._closing = True

    # -- the end

    def on_end_of_input(self, partial: bool) -> None:
        decoder = self.decoder
        request = self._request
        if request is None or decoder is None:
            self.state = DEAD
            return
        if self.state == UNTIL_EOF and not request.tunnels:
            self._deliver_end(b"")
            return
        # As Envoy: a response that was cut short is a protocol error, one that never began, or a tunnel, a termination.
        cut = partial or (self.state != HEAD and not request.tunnels)
        reason = RESET_PROTOCOL_ERROR if cut else RESET_TERMINATION
        self._kill()
        decoder.on_reset(reason, CODEC_ERROR if reason == RESET_PROTOCOL_ERROR else "")

    def on_broken(self, error: ProtocolError) -> None:
        decoder = self.decoder
        self._kill()
        if decoder is not None:
            decoder.on_reset(RESET_PROTOCOL_ERROR, error.details)
        self._callbacks.on_protocol_error(ProtocolError(502, error.details, error.reason))

    def on_abort(self) -> None:
        self._kill()
        self._callbacks.on_abort()

    def _kill(self) -> None:
        if self._request is not None:
            self._request.framing = DONE
        self._forget_stream()
        self.state = DEAD

    def _forget_stream(self) -> None:
        self._request = None
        self.encoder = None
        self.decoder = None

    def on_send_pending(self) -> None:
        self._callbacks.on_send_pending()

    def on_reading_wanted(self) -> None:
        self._callbacks.on_reading_wanted()


class _ResponseHead:
    """What a final head says: a response that repeats it to the byte need not be parsed."""

    def __init__(self, headers: HeaderMap, status: int, length: int, field_bytes: int) -> None:
        self.fields: Final = headers.fields.copy()
        self.known: Final = headers.known
        self.status: Final = status
        self.length: Final = length
        self.field_bytes: Final = field_bytes


class RequestEncoder(MessageEncoder):
    """Sends a request on a client's connection. Wants `:method`, `:authority` and, but for CONNECT, `:path`."""

    def __init__(self, client: Http1ClientConnection) -> None:
        super().__init__(client)
        self._client: Final = client
        self.is_head: bool = False
        self.is_connect: bool = False
        self.wants_upgrade: bool = False
        self.tunnels: bool = False  # the upstream has switched protocols

    def send_informational(self, headers: HeaderMap) -> None:
        """Requests have none."""

    def send_headers(self, headers: HeaderMap, end: bool) -> None:
        if self.framing != NOT_STARTED:
            return
        method, target = self._start(headers)
        extra = self._frame(method, headers, end)
        if self.framing == DONE:
            self.on_mismatch()
            return
        if headers.known & CONNECTION and b"close" in connection_tokens(headers):
            self._client.say_close()
        line = b"%b %b HTTP/1.1\r\n" % (method, target)
        head = encode_head(line, headers, extra, self._client.settings.proper_case, self._client.sent_head)
        self._client.field_bytes_sent += len(head) - len(line) - 2
        self._client.write(head)
        if end:
            self.end()

    def _start(self, headers: HeaderMap) -> tuple[bytes, bytes]:
        """Method and target; a space in one of them (a filter's mistake) cannot move the parts of the line."""
        method = target = b""
        authority = b""
        for name, value in headers.fields:
            if name == b":path":
                target = value
            elif name == b":method":
                method = value
            elif name == b":authority":
                authority = value
            elif name[0] != 0x3A:
                break
        self.is_head = method == b"HEAD"
        self.is_connect = method == b"CONNECT"
        if headers.known & UPGRADE:
            self.wants_upgrade = b"upgrade" in headers
        if self.is_connect:
            target = authority
        elif self._client.settings.send_fully_qualified_url:
            target = b"%b://%b%b" % (headers.get(b":scheme") or b"http", authority, target)
        if not is_plain_target(target):
            target = one_line(target).replace(b" ", b"%20")
        if method not in METHOD_FIELDS:
            method = one_line(method).replace(b" ", b"")
        return method, target or b"/"

    def _frame(self, method: bytes, headers: HeaderMap, end: bool) -> bytes:
        """Set the framing and return the line that the head needs for it; DONE when the length cannot be right."""
        if headers.known & CONTENT_LENGTH:
            length = content_length_to_send(headers)
            if length != NO_LENGTH:
                self.left = length
                self.framing = LENGTH if length >= 0 and not (end and length) else DONE
                return b""
        if end:
            self.framing = NO_BODY
            return b"" if method == b"GET" or method in BODILESS_METHODS else b"content-length: 0\r\n"
        if self.is_connect or self.wants_upgrade:
            self.framing = NO_BODY  # until the response switches protocols
            return b""
        self.framing = CHUNKED
        return b"transfer-encoding: chunked\r\n"

    def start_tunnel(self) -> None:
        """The upstream switched protocols: what is sent from here on goes out as it is."""
        self.tunnels = True
        self.framing = RAW


def proxy_closes(headers: HeaderMap) -> bool:
    """Whether Proxy-Connection, which no standard knows, says `close` (Envoy heeds it)."""
    value = headers.joined(b"proxy-connection")
    return value is not None and b"close" in [token.strip() for token in value.lower().split(b",")]


def check_no_content(headers: HeaderMap, length: int) -> None:
    """A 204 or 1xx has no length and no coding (RFC 9110 section 8.6); `content-length: 0` is dropped."""
    if length > 0:
        raise ProtocolError(502, CONTENT_LENGTH_NOT_ALLOWED)
    if length == CHUNKED_BODY:
        raise ProtocolError(502, TRANSFER_ENCODING_NOT_ALLOWED)
    headers.remove(b"content-length")
