"""A call for tasks, over a GrpcStream: it keeps few messages, and the server waits while nobody takes them."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from meshproxy.codec import grpc
from meshproxy.codec.headers import HeaderMap
from meshproxy.http.grpc.client import RpcCall, RpcError, RpcStatus
from meshproxy.net.dispatcher import new_future
from meshproxy.rpc.stream import GrpcStream, StreamEvents

_HIGH_BYTES: Final = 256 * 1024  # of messages that nobody has taken: with more, the server is to wait
_LOW_BYTES: Final = _HIGH_BYTES // 2


class ClusterCall(RpcCall):
    """A call on one of our clusters. `begin` before anything else."""

    def __init__(self) -> None:
        self._inbox = Inbox()

    def begin(self, stream: GrpcStream, headers: HeaderMap, timeout_ms: float) -> None:
        self._inbox.stream = stream
        stream.start(headers, timeout_ms)

    @property
    def inbox(self) -> Inbox:
        """Who is told of the stream."""
        return self._inbox

    async def send(self, message: bytes) -> bool:
        inbox = self._inbox
        while inbox.stream is not None and not inbox.stream.writable:
            await inbox.changed()
        if inbox.stream is None:
            return False
        inbox.stream.send(message, False)
        return True

    def end(self) -> None:
        if self._inbox.stream is not None:
            self._inbox.stream.end()

    async def receive(self) -> bytes | None:
        inbox = self._inbox
        while not inbox.messages:
            if inbox.status is not None:
                if inbox.status.code != grpc.OK:
                    raise RpcError(inbox.status)
                return None
            await inbox.changed()
        return inbox.take()

    async def headers(self) -> HeaderMap:
        inbox = self._inbox
        while inbox.headers is None and inbox.status is None:
            await inbox.changed()
        if inbox.headers is not None:
            return inbox.headers
        if inbox.status is not None and inbox.status.code != grpc.OK:
            raise RpcError(inbox.status)
        return HeaderMap()

    @property
    def trailers(self) -> HeaderMap:
        status = self._inbox.status
        return HeaderMap() if status is None else status.trailers

    def cancel(self) -> None:
        stream = self._inbox.stream
        if stream is not None:
            stream.cancel()
            self._inbox.on_close(RpcStatus(grpc.CANCELLED, "the call was given up"))


class Inbox(StreamEvents):
    """What has come for a call, and the tasks that wait for something to happen to it."""

    def __init__(self) -> None:
        self.stream: GrpcStream | None = None  # while the call is open
        self.messages: deque[bytes] = deque()
        self.headers: HeaderMap | None = None
        self.status: RpcStatus | None = None  # once the call is over
        self.full: bool = False  # the server has to wait
        self._bytes: int = 0
        self._waiters: list[Any] = []

    def on_initial_metadata(self, headers: HeaderMap) -> None:
        self.headers = headers
        self._wake()

    def on_message(self, message: bytes) -> None:
        self.messages.append(message)
        self._bytes += len(message)
        if self._bytes > _HIGH_BYTES and not self.full and self.stream is not None:
            self.full = True
            self.stream.read_disable(True)
        self._wake()

    def on_writable(self) -> None:
        self._wake()

    def on_close(self, status: RpcStatus) -> None:
        self.status = status
        self.stream = None
        self._wake()

    def take(self) -> bytes:
        """The oldest message; there is one."""
        message = self.messages.popleft()
        self._bytes -= len(message)
        if self.full and self._bytes <= _LOW_BYTES and self.stream is not None:
            self.full = False
            self.stream.read_disable(False)
        return message

    async def changed(self) -> None:
        """Wait until something has happened."""
        waiter = new_future()
        self._waiters.append(waiter)
        await waiter

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
