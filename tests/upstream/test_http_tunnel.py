"""Raw connections inside streams of a shared HTTP/2 connection to a proxy (`tunneling_config`)."""

from __future__ import annotations

import h2.events
import pytest

from meshproxy.errors import RESET_CONNECT_FAILURE
from meshproxy.net.address import Address
from meshproxy.observe.formatter import parse_format
from meshproxy.observe.stream_info import ConnectionInfo, StreamInfo
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.http_tunnel import HttpTunnel, TunnelingConfig
from meshproxy.upstream.tcp import TcpUpstreamCallbacks
from tests.upstream.harness import Upstream, World, cluster_dict, endpoint, until, upstream, world
from tests.upstream.http2_peer import Http2Peer, accept_http2, speaking_http2


class Downstream(TcpUpstreamCallbacks):
    """Who passes a connection on: what it was told, as words."""

    def __init__(self, cluster: Cluster, post_path: bytes = b"") -> None:
        config = TunnelingConfig(parse_format("h.test:1"), None)
        config.post_path = post_path
        info = StreamInfo(ConnectionInfo(1, Address("10.0.0.1", 1), Address("10.0.0.2", 2)), 0.0)
        self.tunnel = HttpTunnel(config, cluster, cluster.hosts[0], info, self)
        self.events: list[str] = []
        self.received = b""
        self.tunnel.open()

    def on_upstream_connected(self) -> None:
        self.events.append("connected")

    def on_upstream_failed(self, reason: int, details: str) -> None:
        self.events.append(f"failed {reason} {details}".rstrip())

    def on_upstream_data(self, data: bytes) -> None:
        self.received += data

    def on_upstream_closed(self, error: str) -> None:
        self.events.append("closed")

    def on_upstream_above_watermark(self) -> None:
        self.events.append("above")

    def on_upstream_below_watermark(self) -> None:
        self.events.append("below")


def add(w: World, server: Upstream) -> Cluster:
    return w.add(cluster_dict(endpoint("127.0.0.1", server.port), **speaking_http2()))


async def opened(peer: Http2Peer, downstream: Downstream) -> int:
    """Let the proxy agree; the tunnel's stream."""
    stream_id = (await peer.next(h2.events.RequestReceived)).stream_id
    peer.h2.send_headers(stream_id, [(b":status", b"200")])
    peer.flush()
    await until(lambda: "connected" in downstream.events)
    return stream_id


@pytest.mark.parametrize(
    ("post_path", "head"),
    [
        (b"", {b":method": b"CONNECT", b":authority": b"h.test:1"}),
        (b"/t", {b":method": b"POST", b":authority": b"h.test:1", b":path": b"/t", b":scheme": b"http"}),
    ],
)
async def test_each_side_ends_by_itself(post_path: bytes, head: dict[bytes, bytes]) -> None:
    async with world() as w, upstream() as server:
        downstream = Downstream(add(w, server), post_path)
        peer = await accept_http2(server)
        request = await peer.next(h2.events.RequestReceived)
        assert dict(request.headers or ()) == head
        peer.events.append(request)
        stream_id = await opened(peer, downstream)
        downstream.tunnel.send(b"up")
        assert (await peer.next(h2.events.DataReceived)).data == b"up"
        downstream.tunnel.end_output()
        await peer.next(h2.events.StreamEnded)
        peer.h2.send_data(stream_id, b"down", end_stream=True)
        peer.flush()
        await until(lambda: "closed" in downstream.events)
        assert downstream.received == b"down"
        counters = w.counters()
        assert counters["upstream_cx_active"] == 1
        assert "upstream_rq_tx_reset" not in counters
        assert "upstream_rq_active" not in counters


async def test_tunnels_share_a_connection() -> None:
    async with world() as w, upstream() as server:
        cluster = add(w, server)
        one, other = Downstream(cluster), Downstream(cluster)
        peer = await accept_http2(server)
        streams = [await opened(peer, one), await opened(peer, other)]
        one.tunnel.close()
        assert (await peer.next(h2.events.StreamReset)).stream_id == streams[0]
        peer.h2.send_data(streams[1], b"down")
        peer.flush()
        await until(lambda: other.received == b"down")
        assert w.counters()["upstream_cx_total"] == 1
        assert other.tunnel.wire_bytes().received > one.tunnel.wire_bytes().received


async def test_a_proxy_that_refuses() -> None:
    async with world() as w, upstream() as server:
        downstream = Downstream(add(w, server))
        peer = await accept_http2(server)
        stream_id = (await peer.next(h2.events.RequestReceived)).stream_id
        peer.h2.send_headers(stream_id, [(b":status", b"403")], end_stream=True)
        peer.flush()
        await until(lambda: downstream.events)
        assert downstream.events == [f"failed {RESET_CONNECT_FAILURE} tunnel_response:403"]
        assert (await peer.next(h2.events.StreamReset)).stream_id == stream_id
        assert w.counters()["upstream_cx_active"] == 1


async def test_a_tunnel_that_breaks() -> None:
    async with world() as w, upstream() as server:
        downstream = Downstream(add(w, server))
        peer = await accept_http2(server)
        peer.reset(await opened(peer, downstream), 8)
        await until(lambda: "closed" in downstream.events)
        assert w.counters()["upstream_rq_rx_reset"] == 1
