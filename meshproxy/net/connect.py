"""Connecting to a host: one attempt, one outcome, within its time."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

from mypy_extensions import mypyc_attr

from meshproxy.errors import RESET_CONNECT_FAILURE, RESET_CONNECT_TIMEOUT, RESET_LOCAL_CONNECT_FAILURE
from meshproxy.net.address import Address, socket_name
from meshproxy.net.connection import Connection, ConnectionHandler
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.net.timers import Timer
from meshproxy.net.transport_socket import TransportSocket

SocketOption = tuple[int, int, int | bytes]  # level, name, value


@mypyc_attr(allow_interpreted_subclasses=True)
class ConnectHandler(ConnectionHandler):
    """A handler whose connection we open: `on_connected`, or `on_connect_failure` instead."""

    def on_connect_failure(self, reason: int, details: str) -> None:
        """`reason` is RESET_CONNECT_FAILURE, RESET_LOCAL_CONNECT_FAILURE or RESET_CONNECT_TIMEOUT."""
        raise NotImplementedError

    def on_another_attempt(self) -> None:
        """Another of the host's addresses is tried too, see net.happy_eyeballs."""


class ConnectAttempt(Timer):
    """An attempt under way; it is its own timeout, the transport socket's handshake included."""

    def __init__(self, dispatcher: Dispatcher, handler: ConnectHandler) -> None:
        super().__init__()
        self._dispatcher = dispatcher
        self._handler: ConnectHandler | None = handler
        self._task: asyncio.Task[Any] | None = None
        self.connection: Connection | None = None

    def start(
        self, address: Address, timeout_ms: float, options: tuple[SocketOption, ...], bind: Address | None
    ) -> None:
        self._dispatcher.timers.arm(self, timeout_ms)
        self._task = self._dispatcher.spawn(self._connect(address, options, bind), f"connect {address.text}")

    def cancel(self) -> None:
        """Give up; the handler hears nothing. No-op when it is connected: then it is the connection's to end."""
        if self._finish() is not None:
            self._stop()

    def _stop(self) -> None:
        connection = self.connection
        if connection is not None and connection.connected:
            connection.abort()
        elif self._task is not None and not self._task.done():
            self._task.cancel()

    def on_timer(self) -> None:
        self._fail(RESET_CONNECT_TIMEOUT, "")

    def _finish(self) -> ConnectHandler | None:
        self.disarm()
        handler, self._handler = self._handler, None
        return handler

    def on_connected(self, connection: Connection) -> None:
        """Within a turn: the handler takes over."""
        handler = self._finish()
        if handler is None:
            connection.abort()
            return
        connection.set_handler(handler)
        handler.on_connected(connection)

    def on_closed(self, error: str) -> None:
        """Within a turn: the socket was connected, and its transport socket will not be."""
        handler = self._finish()
        if handler is not None:
            handler.on_connect_failure(RESET_CONNECT_FAILURE, error)

    def _fail(self, reason: int, details: str) -> None:
        """Outside of turns."""
        handler = self._finish()
        if reason == RESET_CONNECT_TIMEOUT:
            self._stop()
        if handler is not None:
            self._dispatcher.begin_turn()
            try:
                handler.on_connect_failure(reason, details)
            finally:
                self._dispatcher.end_turn()

    async def _connect(self, address: Address, options: tuple[SocketOption, ...], bind: Address | None) -> None:
        family = socket.AF_UNIX if address.path else socket.AF_INET6 if ":" in address.ip else socket.AF_INET
        sock: socket.socket | None = None
        local = True  # no failure has to do with the peer yet
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            if family != socket.AF_UNIX:  # which has none of them in Envoy either: TCP's would be refused
                for level, name, value in options:
                    sock.setsockopt(level, name, value)
            if bind is not None:
                sock.bind(socket_name(bind))
            local = False
            if family == socket.AF_UNIX:
                sock.connect(socket_name(address))  # at once; or EAGAIN: the peer's queue is full, nothing is under way
            else:
                await self._dispatcher.loop.sock_connect(sock, socket_name(address))
            await self._take_over(sock, family)
        except OSError as error:
            if sock is not None:
                sock.close()
            reason = os.strerror(error.errno) if error.errno else str(error)
            if local:
                self._fail(RESET_LOCAL_CONNECT_FAILURE, "")
                return
            self._fail(RESET_CONNECT_FAILURE, f"delayed connect error: {reason}")
        except asyncio.CancelledError:
            if sock is not None:
                sock.close()
            raise

    async def _take_over(self, sock: socket.socket, family: int) -> None:
        """Give the socket to the loop; `on_connected` is called by it, before this goes on."""
        connection = self.connection
        assert connection is not None
        loop = self._dispatcher.loop
        factory: Any = connection.as_protocol
        try:
            if family == socket.AF_UNIX:
                await loop.create_unix_connection(factory, sock=sock)
            else:
                await loop.create_connection(factory, sock=sock)
        finally:
            # The descriptor is uvloop's, which only learns of `sock` after `on_connected`: closed before that, it would
            # be closed by `sock` again, when it may be another connection's already.
            sock.detach()


class _Connecting(ConnectionHandler):
    """Stands for the handler until the connection is established."""

    def __init__(self, attempt: ConnectAttempt) -> None:
        self._attempt = attempt

    def on_connected(self, connection: Connection) -> None:
        self._attempt.on_connected(connection)

    def on_data(self, data: bytes) -> None:
        """There is none before the connection is established."""

    def on_close(self, error: str) -> None:
        self._attempt.on_closed(error)


def connect(
    dispatcher: Dispatcher,
    address: Address,
    handler: ConnectHandler,
    timeout_ms: float,
    buffer_limit_bytes: int,
    options: tuple[SocketOption, ...] = (),
    bind: Address | None = None,
    transport_socket: TransportSocket | None = None,
) -> ConnectAttempt:
    """Open a connection to `address` for `handler`. It hears of the outcome in a later turn, unless it cancels."""
    attempt = ConnectAttempt(dispatcher, handler)
    connection = attempt.connection = Connection(dispatcher, _Connecting(attempt), buffer_limit_bytes)
    connection.transport_socket = transport_socket
    attempt.start(address, timeout_ms, options, bind)
    return attempt


def keepalive_options(probes: int, time_s: int, interval_s: int) -> tuple[SocketOption, ...]:
    """The options of core.v3.TcpKeepalive; 0 leaves the kernel's default."""
    options: list[SocketOption] = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if probes:
        options.append((socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes))
    if time_s:
        options.append((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, time_s))
    if interval_s:
        options.append((socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval_s))
    return tuple(options)
