"""gRPC on one accepted connection: our HTTP/2 codec without a proxy around it."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Final

from meshproxy.clock import monotonic
from meshproxy.codec import grpc
from meshproxy.codec.connection import ServerConnectionCallbacks
from meshproxy.codec.http2.server import Http2ServerConnection
from meshproxy.codec.stream import StreamDecoder, StreamEncoder
from meshproxy.config.runtime import RuntimeInt
from meshproxy.errors import RESET_TERMINATION, ProtocolError
from meshproxy.http.http2_limits import PrematureResets, ResetLimits
from meshproxy.net.connection import Connection, ConnectionHandler
from meshproxy.net.keepalive import Keepalive, PingSender
from meshproxy.net.timers import CallTimer
from meshproxy.net.transport_socket import TransportSocketFactory
from meshproxy.rpc.server.call import Credentials, Peer
from meshproxy.rpc.server.core import ServerCore
from meshproxy.rpc.server.stream import ServerStream
from meshproxy.tls.x509 import URI, DerError

_OVER: Final = CallTimer(None)
_CREDENTIALS: Final = struct.Struct("iII")
_LINGER_MS: Final = 1_000.0
_RESETS: Final = ResetLimits(RuntimeInt("", 500), RuntimeInt("", 1))  # Envoy's numbers

Allow = Callable[[Credentials], bool]
Tls = Callable[[], TransportSocketFactory | None]


class RpcConnection(ServerConnectionCallbacks):
    """The calls of one peer."""

    def __init__(self, core: ServerCore, allow: Allow | None) -> None:
        self.core = core
        self.peer = Peer()
        self._allow = allow
        self._codec = Http2ServerConnection(self, core.http2, core.http2_stats)
        self._connection = Connection(core.dispatcher, _Handler(self), core.buffer_limit_bytes)
        self.calls: dict[ServerStream, None] = {}
        self._resets = PrematureResets(_RESETS)
        self._keepalive: Keepalive | None = None
        self._timer = CallTimer(self._on_timer)
        self._spoke = False
        self._draining = False
        self._closed = False

    def start(self, tls: Tls | None) -> Connection:
        """The protocol for the socket that was accepted."""
        core = self.core
        has_room = core.make_room()
        core.connections[self] = None
        core.stats.connections += 1
        core.stats.connections_active += 1
        core.dispatcher.timers.arm(self._timer, core.limits.hello_timeout_s * 1000.0)
        if not has_room:
            self._closed = True
        elif tls is not None:
            factory = tls()
            if factory is None:
                core.stats.peers_refused += 1
                self._closed = True
            else:
                self._connection.transport_socket = factory.new()
        return self._connection

    @property
    def is_idle(self) -> bool:
        """Whether it has no call."""
        return not self.calls

    # -- from the socket

    def on_connected(self) -> None:
        core, connection = self.core, self._connection
        if self._closed:  # it was refused when it came
            connection.abort()
            return
        self.peer = _peer_of(connection)
        credentials = self.peer.credentials
        if self._allow is not None and (credentials is None or not self._allow(credentials)):
            core.stats.peers_refused += 1
            self._closed = True
            connection.abort()
            return
        self._codec.start()
        limits = core.limits
        self._keepalive = Keepalive(
            _Pings(self),
            core.dispatcher.timers,
            limits.keepalive_interval_s * 1000.0,
            limits.keepalive_timeout_s * 1000.0,
            15.0,
            0.0,
        )
        self._keepalive.start(monotonic())

    def on_data(self, data: bytes) -> None:
        if self._closed:
            return
        if not self._spoke:
            self._spoke = True
            self._arm_idle()
        self._codec.receive_data(data)

    def on_eof(self) -> None:
        """The peer has left: nobody takes the answers."""
        self._closed = True
        self._codec.close_streams(RESET_TERMINATION)
        self._connection.close()

    def on_closed(self) -> None:
        self._closed = True
        self._timer.disarm()
        self._timer = _OVER  # no cycle is left
        if self._keepalive is not None:
            self._keepalive.stop()
            self._keepalive = None
        self._codec.close_streams(RESET_TERMINATION)
        self._codec.forget_callbacks()
        self.core.on_connection_closed(self)

    def data_to_send(self) -> bytes | list[bytes]:
        if not self._connection.write_buffer_bytes:
            self._codec.on_output_written()
        return self._codec.data_to_send()

    def on_above_write_watermark(self) -> None:
        self._codec.on_above_write_watermark()

    def on_below_write_watermark(self) -> None:
        self._codec.on_below_write_watermark()

    # -- from the codec

    def new_stream(self, encoder: StreamEncoder) -> StreamDecoder:
        self._timer.disarm()
        call = ServerStream(self, encoder)
        self.calls[call] = None
        self.core.stats.calls += 1
        self.core.stats.calls_active += 1
        return call

    def on_send_pending(self) -> None:
        self._connection.send_pending()

    def on_protocol_error(self, error: ProtocolError) -> None:
        self.core.stats.connection_errors += 1
        self._close()

    def on_stream_closed(self) -> None:
        self._close_if_drained()

    def on_ping_ack(self) -> None:
        if self._keepalive is not None:
            self._keepalive.on_ack()

    # -- calls

    def on_call_over(self, call: ServerStream) -> None:
        if call not in self.calls:
            return
        del self.calls[call]
        self.core.stats.calls_active -= 1
        if self._closed:
            return
        if self._resets.on_stream_end(not call.answered, monotonic() - call.began_s):
            self.core.stats.connection_errors += 1
            self._close()
            return
        if not self.calls:
            self._arm_idle()
        self._close_if_drained()

    # -- the end

    def drain(self) -> None:
        """Take no further call; the connection ends with the last one."""
        if not self._connection.established or not self._spoke:
            self._connection.abort()
        elif not self._draining:
            self._draining = True
            self._codec.goaway()
            self._close_if_drained()

    def end(self) -> None:
        """Every call ends now, and so does the connection."""
        for call in list(self.calls):
            call.fail(grpc.UNAVAILABLE, "the server is going away")
        self._close()

    def abort(self) -> None:
        self._connection.abort()

    def send_ping(self) -> None:
        self._codec.ping()

    def _arm_idle(self) -> None:
        self.core.dispatcher.timers.arm(self._timer, self.core.limits.idle_timeout_s * 1000.0)

    def _on_timer(self) -> None:
        """Nothing was said in time, or there was no call for long."""
        if self._spoke:
            self._codec.goaway()
            self._close()
        else:
            self._connection.abort()

    def _close_if_drained(self) -> None:
        if self._draining and not self.calls and not self._codec.streams:
            self._close()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._codec.stop_reading()
            self._codec.close_streams(RESET_TERMINATION)
            self._connection.close(_LINGER_MS)


class _Handler(ConnectionHandler):
    """The connection as its socket sees it (a native class has one base)."""

    def __init__(self, rpc: RpcConnection) -> None:
        self._rpc = rpc

    def on_connected(self, connection: Connection) -> None:
        self._rpc.on_connected()

    def on_data(self, data: bytes) -> None:
        self._rpc.on_data(data)

    def on_eof(self) -> None:
        self._rpc.on_eof()

    def on_close(self, error: str) -> None:
        self._rpc.on_closed()

    def data_to_send(self) -> bytes | list[bytes]:
        return self._rpc.data_to_send()

    def on_above_write_watermark(self) -> None:
        self._rpc.on_above_write_watermark()

    def on_below_write_watermark(self) -> None:
        self._rpc.on_below_write_watermark()


class _Pings(PingSender):
    """What finds out that a peer is gone without a word."""

    def __init__(self, rpc: RpcConnection) -> None:
        self._rpc = rpc

    def send_ping(self) -> None:
        self._rpc.send_ping()

    def on_ping_timeout(self) -> None:
        self._rpc.abort()


def _peer_of(connection: Connection) -> Peer:
    """Who is at the other end of a connection that is established."""
    sock = connection.get_extra_info("socket")
    if sock.family == socket.AF_UNIX:
        return Peer("unix:", credentials_of(sock))
    address = connection.remote.text
    if connection.transport_socket is None:
        return Peer(address)
    facts = connection.transport_socket.facts
    if not facts.peer_certificate_validated:
        return Peer(address, is_encrypted=True)
    try:
        uris = tuple(facts.peer_names(URI))
    except DerError:
        uris = ()  # it names nobody
    serial = 0 if facts.peer is None else int(facts.peer.serial, 16)
    return Peer(address, None, uris, serial, facts.peer_der, is_encrypted=True)


def credentials_of(sock: socket.socket) -> Credentials:
    """Of the process that made the connection (unix(7), SO_PEERCRED): the kernel's word, taken when it connected."""
    pid, uid, gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return Credentials(pid, uid, gid)
