"""A stream with everything known of it: what the tests of formats and filters look at."""

from meshproxy.codec.headers import HeaderMap
from meshproxy.net.address import Address
from meshproxy.observe.stream_info import (
    PROTOCOL_HTTP11,
    ClusterInfo,
    ConnectionInfo,
    RouteInfo,
    StreamInfo,
    UpstreamInfo,
)
from meshproxy.observe.wire import WireBytes


def make_stream() -> StreamInfo:
    """POST /p/q?a=1&b=xyz%20q&a=2 answered by an upstream with 200."""
    connection = ConnectionInfo(7, Address("10.0.0.9", 4242), Address("127.0.0.1", 8080))
    connection.direct_local = Address("127.0.0.1", 8081)
    connection.filter_chain_name = "chain"
    connection.listener_name = "listener"
    info = StreamInfo(connection, 1000.0)
    info.request_headers = HeaderMap([
        (b":method", b"POST"),
        (b":path", b"/p/q?a=1&b=xyz%20q&a=2"),
        (b":authority", b"h.example"),
        (b"user-agent", b"ua"),
        (b"x-a", b"abcdef"),
        (b"x-a", b"second"),
        (b"x-request-id", b"b9159d70-1145-4340-bcc7-ba12364292e9"),
    ])  # fmt: skip
    info.response_headers = HeaderMap([(b":status", b"200"), (b"content-type", b"text/plain")])
    info.response_code = 200
    info.response_code_details = "via_upstream"
    info.bytes_received, info.bytes_sent = 4, 5
    info.request_end, info.response_start, info.end = 1000.0625, 1000.375, 1000.5
    info.request_id = b"b9159d70-1145-4340-bcc7-ba12364292e9"
    info.route = RouteInfo("rt", {"rm": {"k": {"a": [1.0, 2.5, True, None, "x"]}}}, {"vm": {"k": "w"}})
    info.log_type = "DownstreamEnd"
    info.wire = WireBytes()
    info.wire.received, info.wire.fields_received, info.wire.sent, info.wire.fields_sent = 104, 90, 205, 180
    upstream = UpstreamInfo()
    upstream.cluster = ClusterInfo("c", "calt", {"cm": {"k": "v", "n": 3.0}})
    upstream.wire = WireBytes()
    upstream.wire.sent, upstream.wire.fields_sent, upstream.wire.received, upstream.wire.fields_received = 9, 8, 7, 6
    upstream.host, upstream.host_name = Address("127.0.0.1", 18999), "hn"
    upstream.local = Address("127.0.0.1", 59714)
    upstream.remote = upstream.host
    upstream.protocol, upstream.attempts, upstream.connection_id = PROTOCOL_HTTP11, 1, 1
    upstream.host_metadata = {"um": {"k": 7.0}}
    upstream.first_byte_sent, upstream.last_byte_sent = 1000.125, 1000.1875
    upstream.first_byte_received, upstream.last_byte_received = 1000.25, 1000.375
    info.upstream = upstream
    return info


def make_bare_stream() -> StreamInfo:
    """A stream of which nothing but its connection and start is known."""
    return StreamInfo(ConnectionInfo(0, Address("10.0.0.9", 4242), Address("127.0.0.1", 8080)), 1000.0)
