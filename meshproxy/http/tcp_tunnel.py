"""The upstream side of a CONNECT that ends here: its payload is a raw connection's, and the 200 is made up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshproxy.codec.headers import HeaderMap
from meshproxy.codec.stream import StreamEncoder
from meshproxy.errors import RESET_OVERFLOW, RESET_TERMINATION
from meshproxy.net.proxy_protocol import ProxyHeader, v1_header, v2_header
from meshproxy.observe.stream_info import StreamInfo
from meshproxy.observe.wire import WireBytes
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.host import Host
from meshproxy.upstream.tcp import TcpUpstream, TcpUpstreamCallbacks

if TYPE_CHECKING:
    from meshproxy.http.upstream_request import UpstreamRequest
    from meshproxy.net.dispatcher import Dispatcher

_V1: Final = 1


class TcpTunnel(TcpUpstreamCallbacks):
    """One raw connection that stands for an attempt's pooled one."""

    def __init__(
        self, dispatcher: Dispatcher, cluster: Cluster, host: Host, attempt: UpstreamRequest, preface: bytes
    ) -> None:
        self.attempt = attempt
        self.upstream = TcpUpstream(dispatcher, cluster, host, self, attempt.router.demand, attempt.priority)
        self._cluster = cluster
        self._preface = preface  # goes before the payload
        self.wire = WireBytes()

    def open(self) -> None:
        """The attempt hears what becomes of it."""
        if not self._cluster.breakers(self.attempt.priority).connections.can_acquire():
            self._cluster.stats.upstream_cx_overflow += 1
            self.on_upstream_failed(RESET_OVERFLOW, "")
            return
        self.upstream.open()

    def send(self, data: bytes) -> None:
        self.wire.sent += len(data)
        self.upstream.send(data)

    def close(self) -> None:
        """After what is pending is sent; the attempt hears nothing more."""
        self.upstream.close()

    def on_upstream_connected(self) -> None:
        connection = self.upstream.connection
        assert connection is not None
        if self._preface:
            self.send(self._preface)
        self.attempt.on_tunnel_ready(TunnelEncoder(self), connection)
        self.attempt.on_headers(HeaderMap([(b":status", b"200")]), False)

    def on_upstream_failed(self, reason: int, details: str) -> None:
        if reason == RESET_OVERFLOW:
            self.attempt.on_reset(reason, details)  # logs name no host: none was asked
        else:
            self.attempt.on_pool_failure(reason, details, self.upstream.host)

    def on_upstream_data(self, data: bytes) -> None:
        self.wire.received += len(data)
        self.attempt.on_data(data, False)

    def on_upstream_eof(self) -> None:
        self.attempt.on_data(b"", True)
        self.upstream.close(local=False)

    def on_upstream_closed(self, error: str) -> None:
        self.attempt.on_reset(RESET_TERMINATION, "")

    def on_upstream_above_watermark(self) -> None:
        self.attempt.on_above_write_watermark()

    def on_upstream_below_watermark(self) -> None:
        self.attempt.on_below_write_watermark()


class TunnelEncoder(StreamEncoder):
    """Sends the payload. Heads say nothing to a raw connection."""

    def __init__(self, tunnel: TcpTunnel) -> None:
        self._tunnel = tunnel
        self._upstream = tunnel.upstream

    def send_headers(self, headers: HeaderMap, end: bool) -> None:
        if end:
            self._upstream.end_output()

    def send_informational(self, headers: HeaderMap) -> None:
        """Requests have none."""

    def send_data(self, data: bytes, end: bool) -> None:
        if data:
            self._tunnel.send(data)
        if end:
            self._upstream.end_output()

    def send_trailers(self, trailers: HeaderMap) -> None:
        self._upstream.end_output()

    def reset(self, reason: int) -> None:
        self._upstream.close()

    def read_disable(self, disable: bool) -> None:
        self._upstream.read_disable(disable)


def proxy_preface(version: int, info: StreamInfo) -> bytes:
    """The PROXY protocol header for the downstream's addresses; empty for version 0."""
    if not version:
        return b""
    connection = info.connection
    header = ProxyHeader(connection.remote, connection.local, [])
    return v1_header(header) if version == _V1 else v2_header(header, [])
