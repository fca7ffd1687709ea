"""One connection of the admin: requests in order, each answered piece by piece as the client takes it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from email.utils import formatdate
from http import HTTPStatus
from time import monotonic  # slices are measured within a turn, where meshproxy.clock stands still
from typing import Final

from meshproxy.codec.connection import ServerConnectionCallbacks
from meshproxy.codec.headers import HeaderMap
from meshproxy.codec.http1.server import Http1ServerConnection
from meshproxy.codec.http1.settings import Http1Settings
from meshproxy.codec.stream import StreamDecoder, StreamEncoder
from meshproxy.errors import RESET_LOCAL, ProtocolError
from meshproxy.http.path import merge_slashes, normalize
from meshproxy.net.connection import Connection, ConnectionHandler
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.net.timers import CallTimer
from meshproxy.observe import response_flags as flags
from meshproxy.observe.access_log import AccessLog
from meshproxy.server.admin.access_record import HANDLED, AccessRecord
from meshproxy.server.admin.exchange import AdminRequest, AdminResponse

Handle = Callable[[AdminRequest], Awaitable[AdminResponse]]

MAX_BODY_BYTES: Final = 1024 * 1024
REQUEST_TIMEOUT_MS: Final = 10_000.0  # for a request to arrive, once it began
STALL_TIMEOUT_MS: Final = 60_000.0  # without a request, or with an answer that nobody reads
LINGER_MS: Final = 2_000.0
PIECE_BYTES: Final = 16 * 1024
TURN_BYTES: Final = 64 * 1024
# How long one answer may be written before the data path gets its turn.
SLICE_S: Final = 0.001

SETTINGS: Final = Http1Settings(max_buffered_bytes=64 * 1024)
_log: Final = logging.getLogger("meshproxy.admin")


class AdminConnection(ConnectionHandler):
    """Speaks HTTP/1.1 on one accepted socket."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        handle: Handle,
        on_end: Callable[[AdminConnection], None],
        access_logs: Sequence[AccessLog] = (),
    ) -> None:
        self._access_logs = access_logs
        self._record: AccessRecord | None = None
        self._dispatcher = dispatcher
        self._handle = handle
        self._on_end = on_end
        self._codec = Http1ServerConnection(_CodecCallbacks(self), SETTINGS)
        self._connection: Connection | None = None
        self._timer = CallTimer(self._on_timeout)
        self._task: asyncio.Task[AdminResponse] | None = None
        self._encoder: StreamEncoder | None = None
        self._pieces: Iterator[str] | None = None
        self._pump_posted = False
        self._blocked = False  # the client does not take what was written
        self._receiving = False

    # -- the socket

    def on_connected(self, connection: Connection) -> None:
        self._connection = connection
        self._await_request()

    def on_data(self, data: bytes) -> None:
        if not self._receiving and self._encoder is None:
            self._receiving = True
            self._dispatcher.timers.arm(self._timer, REQUEST_TIMEOUT_MS)
        self._codec.receive_data(data)
        if not self._codec.reading_wanted and self._connection is not None:
            self._connection.read_disable(True)

    def on_eof(self) -> None:
        self._codec.receive_eof()
        if self._encoder is None:
            self.close()

    def on_close(self, error: str) -> None:
        self._timer.disarm()
        self._end_record(flags.DOWNSTREAM_CONNECTION_TERMINATION)
        self._forget_exchange()
        self._connection = None
        self._on_end(self)

    def data_to_send(self) -> bytes | list[bytes]:
        return self._codec.data_to_send()

    def on_above_write_watermark(self) -> None:
        self._blocked = True

    def on_below_write_watermark(self) -> None:
        self._blocked = False
        self._pump()

    def close(self, linger_ms: float = 0.0) -> None:
        """Send what is pending, then close."""
        if self._connection is not None:
            self._connection.close(linger_ms)

    def shut_down(self) -> None:
        """Finish the answer that is under way, then close."""
        if self._encoder is None:
            self.close()
        else:
            self._codec.close_after_response = True

    def abort(self) -> None:
        """End at once."""
        if self._connection is not None:
            self._connection.abort()

    def _on_timeout(self) -> None:
        if self._receiving:
            self._codec.fail(ProtocolError(408, "request_timeout"))
        elif self._encoder is None:
            self.close()
        else:
            self.abort()

    # -- the codec

    def on_send_pending(self) -> None:
        """There is output."""
        if self._connection is not None:
            self._connection.send_pending()

    def on_reading_wanted(self) -> None:
        """There is room for input again."""
        if self._connection is not None:
            self._connection.read_disable(False)

    def on_new_stream(self) -> None:
        """A request begins."""
        if self._access_logs and self._connection is not None:
            self._record = AccessRecord(self._access_logs, self._connection)

    def on_request(self, request: AdminRequest, headers: HeaderMap, encoder: StreamEncoder) -> None:
        """A request is complete."""
        if self._record is not None:
            self._record.request(headers, request.target.encode("utf-8", "surrogateescape"), len(request.body))
        self._receiving = False
        self._encoder = encoder
        self._dispatcher.timers.arm(self._timer, STALL_TIMEOUT_MS)
        self._task = self._dispatcher.run(self._answer(request), f"admin {request.path}", self._on_answer)

    def refuse(
        self, encoder: StreamEncoder, status: int, text: str, details: str = HANDLED, response_flags: int = 0
    ) -> None:
        """Answer what is no request that could be handled, and close."""
        self._receiving = False
        self._codec.close_after_response = True
        body = text.encode()
        headers = HeaderMap([(b":status", b"%d" % status), (b"content-length", b"%d" % len(body))])
        if body:
            headers.add(b"content-type", b"text/plain")
        _add_date(headers)
        if self._record is not None:
            self._record.response(headers, status, details, response_flags)
            self._record.info.bytes_sent = len(body)
        encoder.send_headers(headers, not body)
        if body:
            encoder.send_data(body, True)

    def on_response_sent(self) -> None:
        """The last byte of an answer is in the output."""
        self._encoder = None
        self._pieces = None
        self._end_record()
        if self._codec.should_close or self._codec.close_after_response:
            self.close(LINGER_MS)
            return
        self._await_request()
        self._dispatcher.post(self._read_next)

    def _read_next(self) -> None:
        self._codec.read_next()
        if self._encoder is None and self._codec.should_close:
            self.close(LINGER_MS)

    def _await_request(self) -> None:
        self._receiving = False
        self._dispatcher.timers.arm(self._timer, STALL_TIMEOUT_MS)

    # -- the answer

    async def _answer(self, request: AdminRequest) -> AdminResponse:
        try:
            return await self._handle(request)
        except Exception as error:  # noqa: BLE001  a bug in a handler is a 500, not a dead admin
            _log.error("%s %s failed", request.method, request.path, exc_info=error)
            return AdminResponse(f"internal error: {type(error).__name__}\n", 500)

    def _on_answer(self, task: asyncio.Task[AdminResponse]) -> None:
        if task.cancelled() or self._encoder is None:
            return
        self._task = None
        response = task.result()
        encoder = self._encoder
        headers = HeaderMap(
            [
                (b":status", b"%d" % response.status),
                (b"content-type", response.content_type.encode()),
                (b"cache-control", b"no-cache, max-age=0"),
                (b"x-content-type-options", b"nosniff"),
            ]
        )
        _add_date(headers)
        if self._record is not None:
            self._record.response(headers, response.status, HANDLED)
        encoder.send_headers(headers, False)
        self._pieces = iter(() if self._codec.method == b"HEAD" else response.body)
        self._pump()

    def _pump(self) -> None:
        """Write pieces for one slice of time; go on in a later turn, or when the client has taken some."""
        encoder, pieces = self._encoder, self._pieces
        if encoder is None or pieces is None or self._blocked or self._pump_posted:
            return
        try:
            data, at_end = _take(pieces, monotonic() + SLICE_S)
        except Exception as error:  # noqa: BLE001  the head is gone: all that is left is not to end the body
            _log.error("an answer broke off", exc_info=error)
            encoder.reset(RESET_LOCAL)
            return
        self._dispatcher.timers.arm(self._timer, STALL_TIMEOUT_MS)
        if self._record is not None:
            self._record.info.bytes_sent += len(data)
        if at_end:
            encoder.send_data(data, True)
            return
        if data:
            encoder.send_data(data, False)
        self._pump_posted = True
        self._dispatcher.post(self._pump_again)

    def _pump_again(self) -> None:
        self._pump_posted = False
        self._pump()

    def _end_record(self, response_flags: int = 0) -> None:
        record, self._record = self._record, None
        if record is not None:
            record.write(response_flags)

    def _forget_exchange(self) -> None:
        self._encoder = None
        self._pieces = None
        task, self._task = self._task, None
        if task is not None:
            task.cancel()


def _take(pieces: Iterator[str], deadline: float) -> tuple[bytes, bool]:
    """As much as one turn may write, and whether that was the last of it."""
    taken: list[bytes] = []
    part: list[str] = []
    size = part_size = 0
    at_end = True
    for piece in pieces:
        part.append(piece)
        part_size += len(piece)
        if part_size >= PIECE_BYTES:
            taken.append(_encode(part))
            size += part_size
            part_size = 0
        if size >= TURN_BYTES or monotonic() > deadline:
            at_end = False
            break
    taken.append(_encode(part))
    return b"".join(taken), at_end


def _encode(part: list[str]) -> bytes:
    data = "".join(part).encode("utf-8", "replace")
    part.clear()
    return data


def _add_date(headers: HeaderMap) -> None:
    headers.add(b"date", formatdate(usegmt=True).encode())
    headers.add(b"server", b"envoy")


class _CodecCallbacks(ServerConnectionCallbacks):
    def __init__(self, admin: AdminConnection) -> None:
        self._admin = admin
        self._newest: StreamEncoder | None = None

    def new_stream(self, encoder: StreamEncoder) -> StreamDecoder:
        self._newest = encoder
        self._admin.on_new_stream()
        return _RequestDecoder(self._admin, encoder)

    def on_stream_complete(self) -> None:
        self._newest = None
        self._admin.on_response_sent()

    def on_send_pending(self) -> None:
        self._admin.on_send_pending()

    def on_protocol_error(self, error: ProtocolError) -> None:
        if self._newest is not None:
            # Envoy's codec answers with the status' words; the checks that come after it answer with nothing.
            checked = error.details == "missing_host_header"
            text = "" if checked else HTTPStatus(error.status).phrase
            flag = 0 if checked else flags.DOWNSTREAM_PROTOCOL_ERROR
            self._admin.refuse(self._newest, error.status, text, error.details, flag)

    def on_abort(self) -> None:
        self._admin.abort()

    def on_reading_wanted(self) -> None:
        self._admin.on_reading_wanted()


class _RequestDecoder(StreamDecoder):
    """Collects one request."""

    def __init__(self, admin: AdminConnection, encoder: StreamEncoder) -> None:
        self._admin = admin
        self._encoder = encoder
        self._headers = HeaderMap()
        self._body: list[bytes] = []
        self._size = 0

    def on_headers(self, headers: HeaderMap, end: bool) -> None:
        self._headers = headers
        if end:
            self._complete()
        elif headers.get(b":method") == b"CONNECT":
            self._admin.refuse(self._encoder, 404, "")
        elif (headers.get(b"expect") or b"").lower() == b"100-continue":
            self._encoder.send_informational(HeaderMap([(b":status", b"100")]))

    def on_data(self, data: bytes, end: bool) -> None:
        self._size += len(data)
        if self._size > MAX_BODY_BYTES:
            self._body.clear()
            self._admin.refuse(self._encoder, 413, "Payload Too Large")
            return
        self._body.append(data)
        if end:
            self._complete()

    def on_trailers(self, trailers: HeaderMap) -> None:
        self._complete()

    def on_reset(self, reason: int, details: str) -> None:
        self._admin.close()

    def _complete(self) -> None:
        headers = self._headers
        path = normalize(headers.get(b":path") or b"")
        if path is None:  # `OPTIONS *`, or an escaped NUL
            self._admin.refuse(self._encoder, 404, "")
            return
        request = AdminRequest(
            (headers.get(b":method") or b"").decode("latin-1"),
            merge_slashes(path).decode("utf-8", "surrogateescape"),
            (headers.get(b"content-type") or b"").decode("latin-1"),
            b"".join(self._body),
        )
        self._admin.on_request(request, headers, self._encoder)
