"""What the connections of one gRPC server share."""

from __future__ import annotations

from asyncio import Event
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from meshproxy.codec import grpc
from meshproxy.codec.http2.settings import Http2Settings
from meshproxy.codec.http2.stats import Http2Stats
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.rpc.server.call import Handlers

if TYPE_CHECKING:
    from meshproxy.rpc.server.connection import RpcConnection
    from meshproxy.rpc.server.stream import ServerStream

_BUFFER_BYTES: Final = 256 * 1024  # of one stream's answers, and of one connection's, that wait for the caller


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What callers may ask of a server, whoever they are."""

    max_connections: int = 1_000
    max_streams: int = 100  # at once, of one connection
    max_message_bytes: int = 1024 * 1024
    max_held_bytes: int = 64 * 1024 * 1024  # of messages that no handler has taken yet, of all callers together
    hello_timeout_s: float = 10.0  # until a connection has shaken hands, and said something
    idle_timeout_s: float = 300.0  # of a connection without a call
    keepalive_interval_s: float = 30.0
    keepalive_timeout_s: float = 20.0


@dataclass(slots=True)
class ServerStats:
    """Counters, but for the first two."""

    connections_active: int = 0
    calls_active: int = 0
    connections: int = 0
    connections_evicted: int = 0  # they had no call when there were too many
    connections_refused: int = 0  # there were too many, and all had calls
    peers_refused: int = 0  # by `allow`, or there was no TLS to be had
    connection_errors: int = 0  # the peer broke the protocol, or flooded
    calls: int = 0
    statuses: dict[int, int] = field(default_factory=dict)  # calls that we have ended, by gRPC status
    held_refused: int = 0  # calls that ended since `max_held_bytes` were held


class ServerCore:
    """One per server. `connections` are all that are open, those that shake hands among them."""

    def __init__(self, dispatcher: Dispatcher, handlers: Handlers, limits: ServerLimits) -> None:
        self.dispatcher = dispatcher
        self.handlers = handlers
        self.limits = limits
        self.stats = ServerStats()
        self.http2_stats = Http2Stats()
        self.http2 = Http2Settings(
            max_concurrent_streams=limits.max_streams,
            stream_window_bytes=256 * 1024,
            connection_window_bytes=1024 * 1024,
            max_headers_bytes=64 * 1024,
            stream_error_on_invalid_message=True,
            buffer_limit_bytes=_BUFFER_BYTES,
        )
        self.buffer_limit_bytes: int = _BUFFER_BYTES
        self.connections: dict[RpcConnection, None] = {}
        self.emptied: Event | None = None  # set when there is no connection any more: somebody waits for it
        self.held_bytes: int = 0  # of messages that no handler has taken yet

    def make_room(self) -> bool:
        """Whether one more is taken: where there are too many, in the place of the oldest that has no call. So whoever
        only holds connections open keeps nobody out."""
        if len(self.connections) < self.limits.max_connections:
            return True
        idle = next((each for each in self.connections if each.is_idle), None)
        if idle is None:
            self.stats.connections_refused += 1
            return False
        self.stats.connections_evicted += 1
        self.on_connection_closed(idle)
        idle.abort()
        return True

    def has_room(self, call: ServerStream, size: int) -> bool:
        """Whether `call` may hold `size` bytes more; else it has ended. Where there is no room, the calls that hold
        most end first: so whoever only holds messages back keeps nobody out."""
        while self.held_bytes + size > self.limits.max_held_bytes:
            most, most_bytes = call, call.held_bytes + size
            for connection in self.connections:
                for each in connection.calls:
                    if each.held_bytes > most_bytes:
                        most, most_bytes = each, each.held_bytes
            self.stats.held_refused += 1
            most.fail(grpc.RESOURCE_EXHAUSTED, "too many messages wait here")
            if most is call:
                return False
        return True

    def on_connection_closed(self, connection: RpcConnection) -> None:
        """No-op where it was told before."""
        if connection not in self.connections:
            return
        del self.connections[connection]
        self.stats.connections_active -= 1
        if self.emptied is not None and not self.connections:
            self.emptied.set()
