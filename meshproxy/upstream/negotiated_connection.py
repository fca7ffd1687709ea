"""A pool's connection whose protocol TLS is yet to settle (`auto_config`): the peer chooses by ALPN."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshproxy.codec.stream import StreamEncoder
from meshproxy.net.connection import Connection
from meshproxy.observe.wire import WireBytes
from meshproxy.upstream.config import AUTO, HTTP1
from meshproxy.upstream.connection import CLOSED, CONNECTING, UpstreamConnection
from meshproxy.upstream.connection_counts import ConnectionCounts
from meshproxy.upstream.http1_connection import Http1UpstreamConnection
from meshproxy.upstream.http2_connection import Http2UpstreamConnection

if TYPE_CHECKING:
    from meshproxy.upstream.pool import ConnectionPool


class NegotiatedConnection(UpstreamConnection):
    """Connects; then a connection of the version that was chosen takes its place. Until then it is thought to be one
    of HTTP/2, unless the last one was not."""

    def __init__(self, pool: ConnectionPool, counts: ConnectionCounts) -> None:
        super().__init__(pool, counts, AUTO)
        if pool.negotiated != HTTP1:
            self.expected = min(pool.config.http2.max_concurrent_streams, self.remaining)

    def on_connected(self, connection: Connection) -> None:
        if self.state != CONNECTING:
            connection.abort()
            return
        self.state = CLOSED
        self.counts.connected()
        version: UpstreamConnection = (
            Http2UpstreamConnection(self.pool, self.counts)
            if _application_protocol(connection) == "h2"
            else Http1UpstreamConnection(self.pool, self.counts)
        )
        connection.set_handler(version)
        self.pool.on_negotiated(self, version)
        version.take_over(connection)

    @property
    def streams(self) -> int:
        return 0

    def end_stream(self, encoder: StreamEncoder) -> None:
        """There is none."""

    def wire_bytes(self, encoder: StreamEncoder) -> WireBytes:
        return WireBytes()

    def on_data(self, data: bytes) -> None:
        """There is none before the connection is established."""

    def drain(self) -> None:
        self.abort()

    def abort(self) -> None:
        if self.state == CONNECTING:
            self.give_up()


def _application_protocol(connection: Connection) -> str:
    """What the handshake agreed on; empty where there was nothing to agree on."""
    socket = connection.transport_socket
    return "" if socket is None or socket.facts is None else str(socket.facts.application_protocol)
