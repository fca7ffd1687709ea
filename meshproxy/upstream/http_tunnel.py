"""`tcp_proxy.tunneling_config`: a raw connection inside an HTTP request, CONNECT or POST, to a proxy upstream.

It takes the place of a `TcpUpstream`: established when the proxy has answered 2xx. As in Envoy, HTTP/1 knows no half
close in a CONNECT tunnel: when one side ends, the connection to the proxy ends. On HTTP/2 a tunnel is a stream of a
connection that others share, and each side ends by itself.
"""

from __future__ import annotations

from typing import Any

from meshproxy.codec.headers import HeaderMap, status_code
from meshproxy.codec.stream import StreamEncoder
from meshproxy.config.errors import ConfigErrors, child
from meshproxy.errors import RESET_CONNECT_FAILURE, RESET_LOCAL, RESET_OVERFLOW
from meshproxy.net.connection import Connection
from meshproxy.observe.formatter import FormatError, Formatter, parse_format
from meshproxy.observe.stream_info import StreamInfo
from meshproxy.observe.wire import WireBytes
from meshproxy.route.header_ops import HeaderOperations, build_header_operations
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.config import HTTP2
from meshproxy.upstream.connection import UpstreamConnection
from meshproxy.upstream.host import Host
from meshproxy.upstream.pool import PendingStream, PooledStream
from meshproxy.upstream.tcp import TcpUpstreamCallbacks


class TunnelingConfig:
    """How the request for a tunnel looks."""

    def __init__(self, hostname: Formatter, operations: HeaderOperations | None) -> None:
        self.hostname = hostname
        self.operations = operations
        self.post_path: bytes = b""  # "": CONNECT

    def request(self, info: StreamInfo) -> HeaderMap:
        """The head, for one downstream connection."""
        authority = (b":authority", self.hostname.format(info))
        if self.post_path:
            headers = HeaderMap([authority, (b":path", self.post_path), (b":method", b"POST"), (b":scheme", b"http")])
        else:
            headers = HeaderMap([authority, (b":method", b"CONNECT")])
        if self.operations is not None:
            self.operations.apply(headers, info)
        return headers


class HttpTunnel(PooledStream):
    """One tunnel through one host."""

    def __init__(
        self, config: TunnelingConfig, cluster: Cluster, host: Host, info: StreamInfo, callbacks: TcpUpstreamCallbacks
    ) -> None:
        self.host = host
        self.connection: Connection | None = None
        self._pooled: UpstreamConnection | None = None
        self._before = WireBytes()  # what the connection had carried when the tunnel began
        self._carried: WireBytes | None = None  # by the tunnel, once it is over
        self._config = config
        self._cluster = cluster
        self._info = info
        self._callbacks = callbacks
        self._pending: PendingStream | None = None
        self._encoder: StreamEncoder | None = None
        self._established: bool = False
        self._done: bool = False  # the callbacks hear nothing more
        self._sent_all: bool = False

    def open(self) -> None:
        """Ask for a connection, then for the tunnel; the callbacks hear what becomes of it."""
        cluster, host = self._cluster, self.host
        if not cluster.keys_pools:
            self._pending = host.pool(cluster, 0).new_stream(self)
            return
        pool = host.keyed_pool(cluster, 0, cluster.config.demands.of_connection(self._info.connection))
        if pool is None:
            self._fail(RESET_OVERFLOW, "")
        else:
            self._pending = pool.new_stream(self)

    # -- from the pool

    def on_pool_ready(self, encoder: StreamEncoder, connection: UpstreamConnection, host: Host) -> None:
        self._pending = None
        self._encoder = encoder
        self.connection = connection.connection
        self._pooled = connection
        self._before = connection.wire_bytes(encoder)
        encoder.send_headers(self._config.request(self._info), False)

    def on_pool_failure(self, reason: int, details: str, host: Host) -> None:
        self._pending = None
        self._fail(reason, details)

    def _fail(self, reason: int, details: str) -> None:
        if not self._done:
            self._finish()
            self._callbacks.on_upstream_failed(reason, details)

    # -- from the upstream codec

    def on_headers(self, headers: HeaderMap, end: bool) -> None:
        status = status_code(headers)
        if end or not 200 <= status < 300:
            encoder = self._encoder
            self._fail(RESET_CONNECT_FAILURE, f"tunnel_response:{status}")
            if encoder is not None:
                encoder.reset(RESET_LOCAL)
            return
        self._established = True
        self._callbacks.on_upstream_connected()

    def on_data(self, data: bytes, end: bool) -> None:
        if data and not self._done:
            self._callbacks.on_upstream_data(data)
        if end:
            self._on_end()

    def on_trailers(self, trailers: HeaderMap) -> None:
        self._on_end()

    def _on_end(self) -> None:
        """The proxy's response is complete: without the whole request its connection is of no more use."""
        if not self._sent_all and self._encoder is not None:
            self._encoder.reset(RESET_LOCAL)
        self._tell_closed()

    def on_reset(self, reason: int, details: str) -> None:
        if self._established:
            self._tell_closed()
        else:
            self._fail(RESET_CONNECT_FAILURE, "")

    def _tell_closed(self) -> None:
        if not self._done:
            self._finish()
            self._callbacks.on_upstream_closed("")

    def on_above_write_watermark(self) -> None:
        if not self._done:
            self._callbacks.on_upstream_above_watermark()

    def on_below_write_watermark(self) -> None:
        if not self._done:
            self._callbacks.on_upstream_below_watermark()

    # -- from the one who passes a connection on, as of a `TcpUpstream`

    def send(self, data: bytes) -> None:
        if self._encoder is not None:
            self._encoder.send_data(data, False)

    def end_output(self) -> None:
        """The downstream sends no more."""
        if not (self._config.post_path or self._half_closes()):
            self.close()
            self._callbacks.on_upstream_closed("")
        elif self._encoder is not None and not self._sent_all:
            self._sent_all = True
            self._encoder.send_data(b"", True)

    def _half_closes(self) -> bool:
        """Whether a CONNECT tunnel can end one way only."""
        return self._pooled is not None and self._pooled.protocol == HTTP2

    def read_disable(self, disable: bool) -> None:
        if self._encoder is not None:
            self._encoder.read_disable(disable)

    def close(self, local: bool = True) -> None:
        """Close after what is pending is sent; give up what is not open yet. No more callbacks."""
        pooled, encoder = self._pooled, self._encoder
        if not self._established or pooled is None or encoder is None:
            self.reset()
            return
        if not self._sent_all:
            self._sent_all = True
            encoder.send_data(b"", True)
        self._finish()
        pooled.end_stream(encoder)

    def reset(self) -> None:
        """As `close`, at once."""
        self._finish()
        if self._pending is not None:
            self._pending.cancel()
        elif self._encoder is not None:
            self._encoder.reset(RESET_LOCAL)

    def _finish(self) -> None:
        if not self._done:
            self._carried = self.wire_bytes()
            self._done = True

    def wire_bytes(self) -> WireBytes:
        """What the connection has carried for this tunnel, heads and framing included."""
        if self._carried is not None:
            return self._carried
        wire = WireBytes()
        if self._pooled is not None and self._encoder is not None:
            wire.add(self._pooled.wire_bytes(self._encoder), self._before)
        return wire


def build_tunneling(message: Any, path: str, errors: ConfigErrors) -> TunnelingConfig | None:
    """From a `TunnelingConfig` message; None after an error."""
    try:
        hostname = parse_format(message.hostname)
    except FormatError as error:
        errors.add(child(path, "hostname"), str(error))
        return None
    config = TunnelingConfig(hostname, build_header_operations(message.headers_to_add, (), path, errors))
    if message.use_post:
        config.post_path = (message.post_path or "/").encode()
    elif message.post_path:
        errors.add(child(path, "post_path"), "is for use_post only")
    return config
