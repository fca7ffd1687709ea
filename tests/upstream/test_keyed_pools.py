"""Pools that not everybody shares: whose connections are whose, and how many pools there may be."""

from __future__ import annotations

from typing import Any

from meshproxy.codec.headers import HeaderMap
from meshproxy.net.address import Address
from meshproxy.observe.stream_info import ConnectionInfo
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.demand import ConnectionDemand
from meshproxy.upstream.pool import ConnectionPool
from tests.upstream.harness import OK, Call, Peer, Upstream, World, cluster_dict, endpoint, until, upstream, world

HTTP = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def connection(number: int) -> ConnectionInfo:
    return ConnectionInfo(number, Address("10.0.0.1", number), Address("10.0.0.2", 80))


def own_pools(w: World, server: Upstream, **fields: Any) -> Cluster:
    """A cluster with a pool for each downstream connection."""
    return w.add(
        cluster_dict(endpoint("127.0.0.1", server.port), connection_pool_per_downstream_connection=True, **fields)
    )


def demand_of(cluster: Cluster, number: int) -> ConnectionDemand:
    return cluster.config.demands.of_request(HeaderMap([(b":authority", b"a.test")]), connection(number), 11)


def pool_of(cluster: Cluster, number: int) -> ConnectionPool | None:
    return cluster.hosts[0].keyed_pool(cluster, 0, demand_of(cluster, number))


async def served(cluster: Cluster, server: Upstream, number: int) -> tuple[Call, Peer]:
    """A request of downstream connection `number` on a new connection, to its end."""
    pool = pool_of(cluster, number)
    assert pool is not None
    call = Call()
    call.pending = pool.new_stream(call)
    peer = await server.accept()
    await peer.request()
    peer.send(OK)
    await call.until("end")
    return call, peer


async def test_a_pool_for_each_downstream_connection() -> None:
    async with world() as w, upstream() as server:
        cluster = own_pools(w, server)
        assert cluster.keys_pools
        first, _ = await served(cluster, server, 1)
        second, _ = await served(cluster, server, 2)
        assert first.connection is not second.connection
        pool = pool_of(cluster, 1)
        assert pool is not None
        assert pool.connections == [first.connection]


async def test_a_pool_without_connections_is_forgotten() -> None:
    async with world() as w, upstream() as server:
        cluster = own_pools(w, server)
        _, peer = await served(cluster, server, 1)
        host = cluster.hosts[0]
        assert len(host.pools()) == cluster.breakers(0).pools.in_use == 1
        peer.close()
        await until(lambda: not host.pools())
        assert cluster.breakers(0).pools.in_use == 0


async def test_one_that_was_only_looked_for_is_not_kept() -> None:
    async with world() as w, upstream() as server:
        cluster = own_pools(w, server)
        assert pool_of(cluster, 1) is not None
        assert cluster.hosts[0].pools() == []


async def test_an_idle_pool_makes_room() -> None:
    async with world() as w, upstream() as server:
        cluster = own_pools(w, server, circuit_breakers={"thresholds": [{"max_connection_pools": 1}]})
        _, first = await served(cluster, server, 1)
        await served(cluster, server, 2)
        assert await first.eof() == b""
        assert cluster.breakers(0).pools.in_use == 1
        assert "upstream_cx_pool_overflow" not in w.counters()


async def test_busy_pools_do_not() -> None:
    async with world() as w, upstream() as server:
        cluster = own_pools(w, server, circuit_breakers={"thresholds": [{"max_connection_pools": 1}]})
        call = Call()
        pool = pool_of(cluster, 1)
        assert pool is not None
        call.pending = pool.new_stream(call)
        assert pool_of(cluster, 2) is None  # it connects
        peer = await server.accept()
        await peer.request()
        assert pool_of(cluster, 2) is None  # it is in use
        assert w.counters()["upstream_cx_pool_overflow"] == 2
        peer.send(OK)
        await call.until("end")
        assert pool_of(cluster, 2) is not None


async def test_draining_closes_them_too() -> None:
    async with world() as w, upstream() as server:
        cluster = own_pools(w, server)
        _, peer = await served(cluster, server, 1)
        w.manager.remove("c")
        assert await peer.eof() == b""


def named(**options: Any) -> dict[str, Any]:
    """A cluster that takes names from requests."""
    made = {"@type": f"type.googleapis.com/{HTTP}", "upstream_http_protocol_options": options}
    made["explicit_http_config"] = {"http_protocol_options": {}}
    return cluster_dict(endpoint("127.0.0.1"), typed_extension_protocol_options={HTTP: made})


async def test_names_of_requests() -> None:
    async with world() as w:
        rules = w.add(named(auto_sni=True, auto_san_validation=True)).config.demands
        for authority, server_name, expected in (
            (b"a.test", "a.test", "a.test"),
            (b"a.test:80", "a.test", "a.test"),
            (b"127.0.0.1:80", "", "127.0.0.1"),
            (b"[::1]:80", "", "::1"),
            (b"[::1]", "", "::1"),
            (b"", "", ""),
        ):
            demand = rules.of_request(HeaderMap([(b":authority", authority)]), connection(1), 11)
            assert (demand.server_name, demand.demanded_name) == (server_name, expected), authority


async def test_other_clusters_have_one_pool() -> None:
    async with world() as w:
        assert not w.add(cluster_dict(endpoint("127.0.0.1"))).keys_pools
