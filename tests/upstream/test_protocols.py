"""What connections speak: as configured, as the downstream does, or as TLS agrees (ALPN)."""

from __future__ import annotations

import ssl
import tempfile
from typing import Any

import pytest

from meshproxy.codec.headers import HeaderMap
from meshproxy.net.address import Address
from meshproxy.observe.stream_info import ConnectionInfo
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.config import AUTO, HTTP1, HTTP2
from meshproxy.upstream.pool import ConnectionPool
from tests.tls.certificates import world as certificates
from tests.upstream.harness import (
    OK,
    Call,
    Upstream,
    World,
    any_of,
    build,
    cluster_dict,
    endpoint,
    errors_of,
    until,
    upstream,
    world,
)
from tests.upstream.http2_peer import HTTP, accept_http2, http_options, speaking_http2

TLS = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
RAW = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
PROXY = "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport"
CONNECTION = ConnectionInfo(1, Address("10.0.0.1", 1), Address("10.0.0.2", 80))


def socket_of(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": "x", "typed_config": any_of(name, **fields)}


def tls(*configured: str) -> dict[str, Any]:
    """A cluster's `transport_socket`."""
    return {"transport_socket": socket_of(TLS, common_tls_context={"alpn_protocols": list(configured)})}


def server_context(*protocols: str) -> ssl.SSLContext:
    """Of a server that chooses among these, in its order."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued = certificates().server
    with tempfile.NamedTemporaryFile() as file:
        file.write(issued.pem + issued.key_pem)
        file.flush()
        context.load_cert_chain(file.name)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


def add(w: World, server: Upstream, *options: dict[str, Any]) -> Cluster:
    fields: dict[str, Any] = {}
    for each in options:
        fields |= each
    return w.add(cluster_dict(endpoint("127.0.0.1", server.port), **fields))


AUTO_CONFIG = http_options(auto_config={})


async def test_the_peer_chooses_http2() -> None:
    async with world() as w, upstream(server_context("h2", "http/1.1")) as server:
        cluster = add(w, server, tls(), AUTO_CONFIG)
        calls = [Call().start(cluster), Call().start(cluster)]
        assert "upstream_cx_http2_total" not in w.counters()
        peer = await accept_http2(server)
        streams = [await peer.request(), await peer.request()]
        for stream_id in streams:
            peer.answer(stream_id)
        for call in calls:
            await call.until("end")
        assert calls[0].connection is calls[1].connection
        counters = w.counters()
        assert counters["upstream_cx_http2_total"] == counters["upstream_cx_total"] == 1
        assert "upstream_cx_http1_total" not in counters


async def test_of_one_request_there_is_one_connection() -> None:
    async with world() as w, upstream(server_context("h2")) as server:
        cluster = add(w, server, tls(), AUTO_CONFIG)
        first = Call().start(cluster)
        peer = await accept_http2(server)
        await peer.request()
        second = Call().start(cluster)
        assert second.events == ["ready again"]
        assert second.connection is first.connection
        assert w.counters()["upstream_cx_total"] == 1


@pytest.mark.parametrize("protocols", [("http/1.1",), ()])
async def test_the_peer_chooses_http1(protocols: tuple[str, ...]) -> None:
    """A first connection is thought to speak HTTP/2; when it does not, those that wait get others, and so do later
    ones from the start."""
    async with world() as w, upstream(server_context(*protocols)) as server:
        cluster = add(w, server, tls(), AUTO_CONFIG)
        calls = [Call().start(cluster), Call().start(cluster), Call().start(cluster)]
        assert w.counters()["upstream_cx_total"] == 1
        peers = [await server.accept(), await server.accept(), await server.accept()]
        for peer in peers:
            assert await peer.request() == b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
        more = [Call().start(cluster), Call().start(cluster)]
        assert w.counters()["upstream_cx_total"] == 5
        for peer in [*peers, await server.accept(), await server.accept()]:
            peer.send(OK)
        for call in [*calls, *more]:
            await call.until("end")
        assert w.counters()["upstream_cx_http1_total"] == 5
        assert "upstream_cx_http2_total" not in w.counters()


async def test_a_connection_that_is_given_up_before_it_is_chosen() -> None:
    async with world() as w, upstream(server_context("h2")) as server:
        cluster = add(w, server, tls(), AUTO_CONFIG)
        call = Call().start(cluster)
        cluster.hosts[0].drain_pools()
        assert call.pending is not None
        call.pending.cancel()
        counters = w.counters()
        assert "upstream_cx_active" not in counters
        assert "upstream_rq_pending_active" not in counters
        assert counters["upstream_cx_destroy_local"] == 1


@pytest.mark.parametrize(
    ("options", "offered"),
    [
        ({}, "http/1.1"),
        (speaking_http2(), "h2"),
        (AUTO_CONFIG, "h2"),
        (AUTO_CONFIG | tls("http/1.1"), "http/1.1"),
        (tls("h2", "x"), "x"),
    ],
)
async def test_what_tls_offers(options: dict[str, Any], offered: str) -> None:
    """What is configured goes before what would be spoken."""
    async with world() as w, upstream(server_context("x", "h2", "http/1.1")) as server:
        cluster = add(w, server, tls(), options)
        Call().start(cluster)
        assert (await server.accept()).application_protocol == offered


# -- as the downstream does


def as_downstream(http2: dict[str, Any] | None) -> dict[str, Any]:
    return http_options(use_downstream_protocol_config={} if http2 is None else {"http2_protocol_options": http2})


def pool_for(cluster: Cluster, protocol: int) -> ConnectionPool:
    demand = cluster.config.demands.of_request(HeaderMap([(b":authority", b"a")]), CONNECTION, protocol)
    pool = cluster.hosts[0].keyed_pool(cluster, 0, demand)
    assert pool is not None
    return pool


async def test_as_the_downstream_does() -> None:
    async with world() as w, upstream() as server:
        cluster = add(w, server, as_downstream(None))
        assert cluster.keys_pools
        one, other, oldest = Call(), Call(), Call()
        pool_for(cluster, 11).new_stream(one)
        peer = await server.accept()
        assert (await peer.request()).startswith(b"GET / HTTP/1.1\r\n")
        peer.send(OK)
        await one.until("end")
        pool_for(cluster, 20).new_stream(other)
        http2 = await accept_http2(server)
        http2.answer(await http2.request())
        await other.until("end")
        pool_for(cluster, 10).new_stream(oldest)
        assert oldest.connection is one.connection
        assert pool_for(cluster, 20).connections == [other.connection]


@pytest.mark.parametrize(("http2", "protocol"), [(None, HTTP1), ({}, HTTP2)])
async def test_where_there_is_no_downstream(http2: dict[str, Any] | None, protocol: int) -> None:
    config = build(cluster_dict(endpoint("10.0.0.1"), **as_downstream(http2)))
    assert config.protocol == protocol
    assert config.demands.by_protocol


# -- the configuration


def test_places_of_the_options() -> None:
    http2 = {"max_concurrent_streams": 7, "connection_keepalive": {"interval": "3s", "timeout": "2s"}}
    old = cluster_dict(endpoint("10.0.0.1"), http2_protocol_options=http2)
    new = cluster_dict(endpoint("10.0.0.1"), **speaking_http2(http2, max_headers_count=5, max_response_headers_kb=6))
    for fields in (old, new):
        config = build(fields)
        assert config.protocol == HTTP2
        assert not config.demands.by_protocol
        assert config.http2.max_concurrent_streams == 7
        assert config.http2_keepalive is not None
        assert config.http2_keepalive.interval_ms == 3000.0
    limits = build(new).http2
    assert limits.max_headers_count == 5
    assert limits.max_headers_bytes == 6 * 1024
    options = http_options(auto_config={"http2_protocol_options": http2})
    auto = build(cluster_dict(endpoint("10.0.0.1"), **tls(), **options))
    assert auto.protocol == AUTO
    assert auto.http2.max_concurrent_streams == 7
    assert build(cluster_dict(endpoint("10.0.0.1"))).protocol == HTTP1
    downstream = cluster_dict(endpoint("10.0.0.1"), protocol_selection="USE_DOWNSTREAM_PROTOCOL")
    assert build(downstream).demands.by_protocol


def test_what_is_refused() -> None:
    where = f"c.typed_extension_protocol_options[{HTTP}]"
    secure, plain = socket_of(TLS), socket_of(RAW)
    matches = [{"name": "a", "match": {}, "transport_socket": plain}]
    http3: dict[str, Any] = {"http3_protocol_options": {}}
    for options, path in (
        (http_options(explicit_http_config=http3), "explicit_http_config.http3_protocol_options"),
        (http_options(use_downstream_protocol_config=http3), "use_downstream_protocol_config.http3_protocol_options"),
        (AUTO_CONFIG, "auto_config"),
        (AUTO_CONFIG | {"transport_socket": plain}, "auto_config"),
        (AUTO_CONFIG | {"transport_socket": secure, "transport_socket_matches": matches}, "auto_config"),
        (http_options(auto_config=http3) | tls(), "auto_config.http3_protocol_options"),
        (
            http_options(auto_config={"alternate_protocols_cache_options": {"name": "x"}}) | tls(),
            "auto_config.alternate_protocols_cache_options",
        ),
    ):
        assert set(errors_of(cluster_dict(endpoint("10.0.0.1"), **options))) == {f"{where}.{path}"}
    both = cluster_dict(endpoint("10.0.0.1"), http2_protocol_options={}, http_protocol_options={})
    assert set(errors_of(both)) == {"c.http2_protocol_options"}
    behind = socket_of(PROXY, transport_socket=secure)
    assert build(cluster_dict(endpoint("10.0.0.1"), transport_socket=behind, **AUTO_CONFIG)).protocol == AUTO


async def test_a_peer_that_speaks_another_version(caplog: pytest.LogCaptureFixture) -> None:
    """HTTP/2 as configured, to a server that takes it for garbage: the request fails, and nothing else does."""
    async with world() as w, upstream() as server:
        cluster = add(w, server, speaking_http2())
        call = Call().start(cluster)
        peer = await server.accept()
        assert (await peer.request()).startswith(b"PRI * HTTP/2.0")
        peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await until(lambda: call.events[-1].startswith("reset"))
        assert not caplog.records
