"""One call on one of our HTTP/2 streams: its messages in, its answers out, its status (gRPC's PROTOCOL-HTTP2)."""

from __future__ import annotations

import logging
from asyncio import CancelledError
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from meshproxy.clock import monotonic
from meshproxy.codec import grpc
from meshproxy.codec.headers import HeaderMap
from meshproxy.codec.stream import StreamDecoder, StreamEncoder
from meshproxy.errors import RESET_LOCAL
from meshproxy.http.grpc.messages import COMPRESSED, MessageReader, MessageTooLongError, frame
from meshproxy.net.dispatcher import Task, new_future
from meshproxy.net.timers import CallTimer
from meshproxy.rpc.server.call import Handler, Peer, RpcFailure

if TYPE_CHECKING:
    from meshproxy.rpc.server.connection import RpcConnection

_log = logging.getLogger("meshproxy.rpc")

_HIGH_BYTES: Final = 64 * 1024  # of messages that the handler has not taken: with more, the caller is to wait
_LOW_BYTES: Final = _HIGH_BYTES // 2
_MESSAGE_BYTES: Final = 64  # that each costs besides its own
_LONGEST_REASON: Final = 1024
_CONTENT_TYPE: Final = (b"content-type", b"application/grpc")


class ServerStream(StreamDecoder):
    """What a handler gets: see `ServerCall`."""

    def __init__(self, connection: RpcConnection, encoder: StreamEncoder) -> None:
        core = connection.core
        self.peer: Peer = connection.peer
        self.began_s: float = monotonic()
        self.answered: bool = False  # a head was sent
        self._connection = connection
        self._core = core
        self._encoder: StreamEncoder | None = encoder  # None: the call is over
        self._head = HeaderMap()
        self._reader = MessageReader(core.limits.max_message_bytes)
        self._messages: deque[bytes] = deque()
        self._waiting_bytes = 0  # of `_messages`
        self.held_bytes: int = 0  # of them and of what is not whole yet, as counted in `core`
        self._ended = False  # the caller has no more
        self._full = False  # the caller has to wait
        self._backed_up = False  # we have to wait
        self._task: Task[Any] | None = None
        self._timer: CallTimer | None = None
        self._waiters: list[Any] = []

    # -- for the handler

    @property
    def metadata(self) -> Mapping[str, Sequence[str]]:
        found: dict[str, list[str]] = {}
        for name, value in self._head.fields:
            if not name.startswith(b":") and not name.endswith(b"-bin"):
                found.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
        return found

    async def receive(self) -> bytes | None:
        while not self._messages:
            if self._encoder is None:
                raise CancelledError
            if self._ended:
                return None
            await self._changed()
        return self._take()

    async def send(self, message: bytes) -> None:
        encoder = self._encoder
        if encoder is None:
            raise CancelledError
        if not self.answered:
            self.answered = True
            encoder.send_headers(HeaderMap([(b":status", b"200"), _CONTENT_TYPE]), False)
        encoder.send_data(frame(message), False)
        while self._backed_up:
            await self._changed()
            if self._encoder is None:
                raise CancelledError

    # -- what arrives

    def on_headers(self, headers: HeaderMap, end: bool) -> None:
        self._head = headers
        self._ended = end
        if headers.get(b":method") != b"POST":
            self._refuse_http(b"405")
        elif not grpc.is_grpc(headers):
            self._refuse_http(b"415")
        else:
            self._begin(headers)

    def _begin(self, headers: HeaderMap) -> None:
        path = (headers.get(b":path") or b"").decode("latin-1")
        handler = self._core.handlers.get(path)
        if handler is None:
            self._end(grpc.UNIMPLEMENTED, f"there is no method {path[:256]}")
            return
        if headers.get(b"grpc-timeout") is not None:
            timeout_ms = grpc.timeout_ms(headers)
            if timeout_ms is None:
                self._end(grpc.INTERNAL, "grpc-timeout is malformed")
                return
            self._timer = CallTimer(self._on_deadline)
            self._core.dispatcher.timers.arm(self._timer, timeout_ms)
        self._run(handler)

    def _run(self, handler: Handler) -> None:
        task = self._core.dispatcher.run(_answer(handler, self), "rpc call", self._on_task_done)
        if self._encoder is not None:
            self._task = task

    def on_data(self, data: bytes, end: bool) -> None:
        if self._encoder is None:
            return
        if not self._core.has_room(self, len(data)):
            return
        try:
            messages = self._reader.feed(data)
        except MessageTooLongError as error:
            self._end(grpc.RESOURCE_EXHAUSTED, str(error))
            return
        for flags, message in messages:
            if flags & COMPRESSED:
                self._end(grpc.UNIMPLEMENTED, "a message is compressed, which nobody offered")
                return
            self._messages.append(message)
            self._waiting_bytes += len(message) + _MESSAGE_BYTES
        if end and self._reader.partial:
            self._end(grpc.INTERNAL, "the request ended within a message")
            return
        self._ended = end
        self._count_held()
        self._hold_up()
        self._wake()

    def on_trailers(self, trailers: HeaderMap) -> None:
        self._ended = True
        self._wake()

    def on_reset(self, reason: int, details: str) -> None:
        self._encoder = None
        self._over()

    def on_above_write_watermark(self) -> None:
        self._backed_up = True

    def on_below_write_watermark(self) -> None:
        self._backed_up = False
        self._wake()

    def _take(self) -> bytes:
        message = self._messages.popleft()
        self._waiting_bytes -= len(message) + _MESSAGE_BYTES
        self._count_held()
        if self._full and self._waiting_bytes <= _LOW_BYTES and self._encoder is not None:
            self._full = False
            self._encoder.read_disable(False)
        return message

    def _hold_up(self) -> None:
        if self._waiting_bytes > _HIGH_BYTES and not self._full and self._encoder is not None:
            self._full = True
            self._encoder.read_disable(True)

    def _count_held(self) -> None:
        held = self._waiting_bytes + self._reader.kept_bytes if self._encoder is not None else 0
        self._core.held_bytes += held - self.held_bytes
        self.held_bytes = held

    # -- the end

    def fail(self, status: int, message: str) -> None:
        """End the call, whatever its handler does."""
        self._end(status, message)

    def _refuse_http(self, status: bytes) -> None:
        encoder = self._encoder
        if encoder is not None:
            self._encoder = None
            self.answered = True
            encoder.send_headers(HeaderMap([(b":status", status)]), True)
            self._over()

    def _end(self, status: int, message: str) -> None:
        encoder = self._encoder
        if encoder is None:
            return
        trailers = [(b"grpc-status", b"%d" % status)]
        if message:
            trailers.append((b"grpc-message", grpc.encode_message(message[:_LONGEST_REASON].encode())))
        self._encoder = None  # before anything is sent: what the codec tells meanwhile finds the call over
        if self.answered:
            encoder.send_trailers(HeaderMap(trailers))
        else:
            self.answered = True
            encoder.send_headers(HeaderMap([(b":status", b"200"), _CONTENT_TYPE, *trailers]), True)
        statuses = self._core.stats.statuses
        statuses[status] = statuses.get(status, 0) + 1
        self._over()

    def _on_deadline(self) -> None:
        encoder = self._encoder
        self._end(grpc.DEADLINE_EXCEEDED, "the deadline is over")
        if encoder is not None:
            encoder.reset(RESET_LOCAL)  # what waits to be sent is of no use any more; a no-op where all has gone out

    def _on_task_done(self, task: Task[Any]) -> None:
        self._task = None
        if task.cancelled():
            self._end(grpc.UNAVAILABLE, "the server is going away")
            return
        error = task.exception()
        if error is None:
            self._end(grpc.OK, "")
        elif isinstance(error, RpcFailure):
            self._end(error.status, error.message)
        else:
            _log.error("a handler of %s failed", self._head.get(b":path"), exc_info=error)
            self._end(grpc.INTERNAL, "internal error")

    def _over(self) -> None:
        """Nothing more can be sent: the handler is told, and all is given back."""
        task, self._task = self._task, None
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.disarm()
        if task is not None:
            task.cancel()
        self._messages.clear()
        self._waiting_bytes = 0
        self._count_held()
        self._wake()
        self._connection.on_call_over(self)

    # -- waiting

    async def _changed(self) -> None:
        waiter = new_future()
        self._waiters.append(waiter)
        await waiter

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


async def _answer(handler: Handler, call: ServerStream) -> None:
    await handler(call)
