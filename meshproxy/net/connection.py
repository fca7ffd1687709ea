"""One connected socket, either side: bytes in as they come, bytes out once a turn, watermarks, and one end.

A `Connection` is the asyncio protocol that uvloop calls; a `ConnectionHandler` is what speaks on it (an HTTP codec with
its manager, a raw relay …). The handler keeps its output until the turn ends and is then asked for it: so a small head
and its body, or many frames, leave in one write.
"""

from __future__ import annotations

import logging
import socket
import struct
from typing import Any, Final

from mypy_extensions import mypyc_attr

from meshproxy.net.address import Address, address_of
from meshproxy.net.dispatcher import Dispatcher, Flushable
from meshproxy.net.timers import CallTimer
from meshproxy.net.transport_socket import TransportSocket

_log = logging.getLogger("meshproxy.connection")

OPEN: Final = 0
CLOSING: Final = 1  # no more from the handler; what is buffered still goes out
LINGERING: Final = 2  # all is sent and our side is shut; what the peer still sends is thrown away
CLOSED: Final = 3


@mypyc_attr(allow_interpreted_subclasses=True)
class ConnectionHandler:
    """What speaks on a connection."""

    def on_connected(self, connection: Connection) -> None:
        """Bytes can go both ways: the socket is connected (accepted, or connect succeeded), and so is its transport
        socket, where it has one."""

    def on_data(self, data: bytes) -> None:
        raise NotImplementedError

    def on_eof(self) -> None:
        """The peer shut its sending side. Our side stays open until `close`."""

    def on_close(self, error: str) -> None:
        """The connection is gone: exactly once. `error` is empty for an orderly close, by us or by the peer."""

    def data_to_send(self) -> bytes | list[bytes]:
        """Take all the output there is."""
        return b""

    def on_above_write_watermark(self) -> None:
        """More than the buffer limit waits to be sent."""

    def on_below_write_watermark(self) -> None:
        """Less than half the limit waits now."""


class Connection(Flushable):
    """A connected socket."""

    def __init__(self, dispatcher: Dispatcher, handler: ConnectionHandler, buffer_limit_bytes: int) -> None:
        self.dispatcher = dispatcher
        self.handler = handler
        self.buffer_limit_bytes = buffer_limit_bytes
        self.id: int = dispatcher.next_connection_id()
        self.state: int = OPEN
        self.bytes_received: int = 0
        self.bytes_sent: int = 0
        self.transport_socket: TransportSocket | None = None
        self.remote: Address = _NOWHERE
        self.local: Address = _NOWHERE
        self._transport: Any = None
        self._write: Any = None
        self._dirty: bool = False
        self._read_disabled: int = 0
        self._backed_up: int = 0  # how many have said that too much waits to be sent
        self._linger_ms: float = 0.0
        self._linger_timer: CallTimer | None = None
        self._unsent_bytes: int = 0  # while lingering, when the timer was last set
        self._closed_told: bool = False
        self._eof_told: bool = False
        self._ends_output: bool = False  # our side is shut once its output is written; we go on reading
        self._failure: str = ""  # of the transport socket

    def as_protocol(self) -> Connection:
        """The protocol factory of this one connection."""
        return self

    # -- what uvloop calls

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._write = transport.write
        remote = transport.get_extra_info("peername")
        local = transport.get_extra_info("sockname")
        self.remote = address_of(remote)
        self.local = address_of(local)
        if self.buffer_limit_bytes > 0:
            transport.set_write_buffer_limits(self.buffer_limit_bytes, self.buffer_limit_bytes // 2)
        self.dispatcher.begin_turn()
        try:
            if self.transport_socket is None:
                self.handler.on_connected(self)
            else:
                self._start_transport_socket(self.transport_socket)
        except Exception as error:  # noqa: BLE001  a bug in one connection must not end the process
            self._on_bug(error)
        self.dispatcher.end_turn()

    def data_received(self, data: bytes) -> None:
        if self.state != OPEN:
            return
        self.bytes_received += len(data)
        dispatcher = self.dispatcher
        dispatcher.begin_turn()
        try:
            if self.transport_socket is None:
                self.handler.on_data(data)
            else:
                self._receive(self.transport_socket, data)
        except Exception as error:  # noqa: BLE001
            self._on_bug(error)
        dispatcher.end_turn()

    def eof_received(self) -> bool:
        if self.state == LINGERING:
            return False  # the peer is done too: close
        if self.state == OPEN:
            self.dispatcher.begin_turn()
            try:
                if self.transport_socket is None:
                    self._tell_eof()
                else:
                    self._receive_eof(self.transport_socket)
            except Exception as error:  # noqa: BLE001
                self._on_bug(error)
            self.dispatcher.end_turn()
        return True  # we decide when to close

    def connection_lost(self, error: Exception | None) -> None:
        self.state = CLOSED
        if self._linger_timer is not None:
            self._linger_timer.disarm()
            self._linger_timer = None
        self.dispatcher.begin_turn()
        self._tell_closed(self._failure or _error_text(error))
        self.dispatcher.end_turn()

    def pause_writing(self) -> None:
        """More waits to be sent than should: here, or in a transport socket that holds it back."""
        self._backed_up += 1
        if self._backed_up == 1 and self.state == OPEN:
            self.handler.on_above_write_watermark()

    def resume_writing(self) -> None:
        self._backed_up -= 1
        if self._backed_up == 0 and self.state == OPEN:
            self.dispatcher.begin_turn()
            try:
                self.handler.on_below_write_watermark()
            except Exception as error:  # noqa: BLE001
                self._on_bug(error)
            self.dispatcher.end_turn()

    # -- what the handler calls

    def send_pending(self) -> None:
        """The handler has output: it is asked for it when the turn ends."""
        if not self._dirty:
            self._dirty = True
            self.dispatcher.mark_dirty(self)

    def send_gathered(self) -> None:
        """As `send_pending`, together with what the other sockets that are ready now have for this one."""
        if not self._dirty:
            self._dirty = True
            self.dispatcher.mark_gathering(self)

    def flush(self) -> None:
        self._dirty = False
        if self._transport is None or self.state > CLOSING:
            return
        try:
            if self.transport_socket is None:
                data = self.handler.data_to_send()
            else:
                data = self._output_of(self.transport_socket)
        except Exception as error:  # noqa: BLE001
            self._on_bug(error)
            return
        if isinstance(data, bytes):
            if data:
                self.bytes_sent += len(data)
                self._write(data)
        else:
            for part in data:
                self.bytes_sent += len(part)
            if data:
                self._transport.writelines(data)
        if self.state == CLOSING or self._ends_output:
            self._end_output()

    def _end_output(self) -> None:
        transport_socket = self.transport_socket
        if transport_socket is not None and transport_socket.holds_output():
            return  # there will be another flush
        if self.state == CLOSING:
            self._shut()
        elif not self._transport.is_closing():
            self._transport.write_eof()

    def read_disable(self, disable: bool) -> None:
        """Stop reading the socket, or go on: counted, as several may ask.

        A socket that is not read reports neither FIN nor RST: disable only while a buffer is over its limit.
        """
        if self.state != OPEN or self._transport is None:
            return
        if disable:
            self._read_disabled += 1
            if self._read_disabled == 1:
                self._transport.pause_reading()
        elif self._read_disabled > 0:
            self._read_disabled -= 1
            if self._read_disabled == 0:
                self._transport.resume_reading()

    def close(self, linger_ms: float = 0.0) -> None:
        """Send what is pending, then close.

        With `linger_ms` our side is shut first and the rest of what the peer sends is read and thrown away for so long:
        else the kernel answers it with a reset, which can destroy our last answer at the peer (RFC 9112 section 9.6).
        The time begins anew as long as the peer takes what is still to be sent (as Envoy's delayed_close_timeout does).
        """
        if self.state != OPEN:
            return
        self.state = CLOSING
        self._linger_ms = linger_ms
        self.send_pending()

    def end_output(self) -> None:
        """Send what is pending, then shut our side; the peer's stays open."""
        if not self._ends_output:
            self._ends_output = True
            self.send_pending()

    def abort(self) -> None:
        """Close at once; what is pending is lost."""
        if self.state == CLOSED:
            return
        self.state = CLOSED
        if self._transport is not None:
            self._transport.abort()

    def reset(self) -> None:
        """As `abort`, with a TCP reset: the peer learns that it is no orderly end."""
        sock = self.get_extra_info("socket")
        if sock is not None and self.state != CLOSED and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.abort()

    def fail(self, details: str) -> None:
        """As `reset`; `details` say to the handler that it is no orderly end."""
        if self.state != CLOSED:
            self._failure = details
            self.reset()

    def set_handler(self, handler: ConnectionHandler) -> None:
        """Let another handler speak from now on (an upgrade, a listener filter's hand-over)."""
        self.handler = handler

    def get_extra_info(self, name: str) -> Any:
        return None if self._transport is None else self._transport.get_extra_info(name)

    @property
    def established(self) -> bool:
        """Whether plain bytes can go both ways."""
        return self.transport_socket is None or self.transport_socket.established

    @property
    def connected(self) -> bool:
        """Whether it has a socket."""
        return self._transport is not None

    @property
    def write_buffer_bytes(self) -> int:
        return 0 if self._transport is None else int(self._transport.get_write_buffer_size())

    # -- the transport socket

    def start_transport_socket(self, transport_socket: TransportSocket) -> None:
        """Put it before the handler of an open connection, which hears `on_connected` when it is established."""
        self.transport_socket = transport_socket
        self._start_transport_socket(transport_socket)

    def _start_transport_socket(self, transport_socket: TransportSocket) -> None:
        transport_socket.start()
        self._after(transport_socket, False)

    def receive(self, data: bytes) -> None:
        """Within a turn: take bytes of the socket that somebody else has read (listener filters)."""
        if self.state != OPEN:
            return
        if self.transport_socket is None:
            self.handler.on_data(data)
        else:
            self._receive(self.transport_socket, data)

    def _receive(self, transport_socket: TransportSocket, data: bytes) -> None:
        established = transport_socket.established
        if not established and transport_socket.costly_handshake and not self.dispatcher.handshakes.has_time():
            self.read_disable(True)  # nothing more until it is this part's turn: memory stays bounded
            self.dispatcher.handshakes.add(self, data)
            return
        self._take_in(transport_socket, data)

    def _receive_eof(self, transport_socket: TransportSocket) -> None:
        transport_socket.receive_eof()
        if not transport_socket.established:
            self.close()  # the handshake will never end
        elif transport_socket.buffers:
            self._take_in(transport_socket, b"")
        else:
            self._tell_eof()

    def take_in(self, data: bytes) -> None:
        """Within a turn: a part of a handshake, whose turn has come."""
        transport_socket = self.transport_socket
        if self.state != OPEN or transport_socket is None:
            return
        self.read_disable(False)
        try:
            self._take_in(transport_socket, data)
        except Exception as error:  # noqa: BLE001
            self._on_bug(error)

    def _take_in(self, transport_socket: TransportSocket, data: bytes) -> None:
        established = transport_socket.established
        pieces = transport_socket.receive(data)
        self._after(transport_socket, established)
        for piece in pieces:
            if self.state != OPEN:
                return
            self.handler.on_data(piece)
        if transport_socket.at_end and self.state == OPEN:
            self._tell_eof()

    def _after(self, transport_socket: TransportSocket, was_established: bool) -> None:
        """Something came in, or it began: what it wants to say goes out, and the handler hears what is new."""
        self.send_pending()
        if transport_socket.failure:
            self._failure = transport_socket.failure
            self.close()
        elif transport_socket.established and not was_established:
            self.handler.on_connected(self)

    def _output_of(self, transport_socket: TransportSocket) -> bytes | list[bytes]:
        if transport_socket.established and not transport_socket.failure:
            data = self.handler.data_to_send()
            if isinstance(data, bytes):
                if data:
                    transport_socket.send(data)
            else:
                for part in data:
                    transport_socket.send(part)
            if self.state == CLOSING or self._ends_output:
                transport_socket.shut()
        return transport_socket.take_output()

    # -- the end

    def _tell_eof(self) -> None:
        if not self._eof_told:
            self._eof_told = True
            self.handler.on_eof()

    def _shut(self) -> None:
        transport = self._transport
        if self._linger_ms <= 0.0:
            self.state = CLOSED
            transport.close()
            return
        self.state = LINGERING
        if self._read_disabled > 0:
            self._read_disabled = 0
            transport.resume_reading()
        if not transport.is_closing():
            transport.write_eof()
        self._linger_timer = CallTimer(self.on_linger_timer)
        self._unsent_bytes = self.write_buffer_bytes
        self.dispatcher.timers.arm(self._linger_timer, self._linger_ms)

    def on_linger_timer(self) -> None:
        """The linger time is over."""
        unsent = self.write_buffer_bytes
        if self._linger_timer is not None and unsent < self._unsent_bytes:
            self._unsent_bytes = unsent
            self.dispatcher.timers.arm(self._linger_timer, self._linger_ms)
        else:
            self.abort()

    def _on_bug(self, error: BaseException) -> None:
        _log.error("connection %d: closed by an internal error", self.id, exc_info=error)
        self.abort()

    def _tell_closed(self, error: str) -> None:
        if self._closed_told:
            return
        self._closed_told = True
        try:
            if self.transport_socket is not None:
                self.transport_socket.on_close()
            self.handler.on_close(error)
        except Exception as bug:  # noqa: BLE001
            _log.error("connection %d: error while closing", self.id, exc_info=bug)
        self._transport = None
        self._write = None
        self.handler = _NOBODY  # who points back here: no cycle is left


_NOWHERE: Final = Address("", 0, "-")
_NOBODY: Final = ConnectionHandler()
_NO_LINGER: Final = struct.pack("ii", 1, 0)  # close() drops what is unsent and sends RST


def _error_text(error: Exception | None) -> str:
    if error is None:
        return ""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
