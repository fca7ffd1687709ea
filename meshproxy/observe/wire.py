"""Bytes on the wire: what a connection has carried so far, and how much of that was one stream's."""

from __future__ import annotations

from meshproxy.codec.connection import CodecConnection
from meshproxy.codec.http2.stream import Http2Stream
from meshproxy.net.connection import Connection


class WireBytes:
    """A reading of a connection, or the difference of two. `received` is what the codec has taken so far.

    `fields_*` is the part that field lines had of it, which Envoy calls header bytes: all of a line that is sent, all
    but the space behind the colon of one that is received; neither start lines nor blank lines.
    """

    def __init__(self) -> None:
        self.received: int = 0
        self.sent: int = 0
        self.fields_received: int = 0
        self.fields_sent: int = 0

    def add(self, now: WireBytes, before: WireBytes) -> None:
        """Add what came between two readings of a connection."""
        self.received += now.received - before.received
        self.sent += now.sent - before.sent
        self.fields_received += now.fields_received - before.fields_received
        self.fields_sent += now.fields_sent - before.fields_sent


def read_wire(connection: Connection, codec: CodecConnection) -> WireBytes:
    """What the connection has carried so far; what it is about to send counts as sent."""
    wire = WireBytes()
    wire.received = connection.bytes_received - codec.buffered_bytes
    wire.sent = connection.bytes_sent + codec.output_bytes
    wire.fields_received = codec.field_bytes_received
    wire.fields_sent = codec.field_bytes_sent
    return wire


def wire_of(stream: Http2Stream) -> WireBytes:
    """What an HTTP/2 stream has had of its connection so far, field blocks as they are compressed."""
    wire = WireBytes()
    wire.received = stream.wire_received
    wire.sent = stream.wire_sent
    wire.fields_received = stream.fields_received
    wire.fields_sent = stream.fields_sent
    return wire
