"""Hosts that requests name: when they are made, how many, and when they go."""

from __future__ import annotations

from typing import Any

from meshproxy.codec.headers import HeaderMap
from meshproxy.net.address import Address
from meshproxy.observe.stream_info import ConnectionInfo, StreamInfo
from meshproxy.upstream.host import LbContext
from tests.upstream.harness import OK, Call, errors_of, until, upstream, world

HEADER = b"x-envoy-original-dst-host"


def cluster(**fields: Any) -> dict[str, Any]:
    return {"name": "c", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", **fields}


def context(local: str = "", port: int = 80, *headers: tuple[bytes, bytes]) -> LbContext:
    """Of a request on a connection that was bound for `local` (empty: that was not redirected)."""
    info = ConnectionInfo(1, Address("10.0.0.1", 5), Address(local or "127.0.0.1", port))
    info.local_restored = bool(local)
    made = LbContext()
    made.info = StreamInfo(info, 0.0)
    made.headers = HeaderMap(list(headers))
    return made


async def test_a_host_is_made_once() -> None:
    async with world() as w:
        made = w.add(cluster())
        assert made.needs_context
        host = made.choose_host(context("10.9.9.9"))
        assert host is not None
        assert host.address.text == "10.9.9.9:80"
        assert made.choose_host(context("10.9.9.9")) is host
        assert made.choose_host(context("10.9.9.9", 81)) is not host
        assert made.choose_host(context()) is None
        assert w.counters()["membership_total"] == w.counters()["membership_change"] == 2


async def test_what_names_it_first() -> None:
    key = {"key": "ns", "path": [{"key": "a"}, {"key": "b"}]}
    async with world() as w:
        made = w.add(cluster(original_dst_lb_config={"use_http_header": True, "metadata_key": key}))
        asked = context("10.0.0.1", 80, (HEADER, b"10.0.0.2:80"))
        found = made.choose_host(asked)
        assert found is not None
        assert found.address.text == "10.0.0.2:80"
        assert asked.info is not None
        asked.info.connection.dynamic_metadata = {"ns": {"a": {"b": "[::3]:80"}}}
        found = made.choose_host(asked)
        assert found is not None
        assert found.address.text == "[::3]:80"
        asked.info.dynamic_metadata = {"ns": {"a": {"b": "10.0.0.4:80"}}}
        found = made.choose_host(asked)
        assert found is not None
        assert found.address.text == "10.0.0.4:80"


async def test_who_is_not_asked_for_goes() -> None:
    async with world() as w, upstream() as server:
        made = w.add(cluster())
        idle = made.choose_host(context("127.0.0.9", server.port))
        used = made.choose_host(context("127.0.0.1", server.port))
        assert idle is not None
        call = Call().start(made, used)
        peer = await server.accept()
        await peer.request()
        made.sweep_hosts()
        assert made.hosts == [idle, used]  # asked for since the last sweep: since they were made
        made.sweep_hosts()
        assert made.hosts == [used]  # it has a connection
        peer.send(OK)
        await call.until("end")
        made.sweep_hosts()
        assert made.hosts == [used]
        peer.close()
        assert used is not None
        await until(lambda: used.stats.cx_active == 0)
        made.sweep_hosts()
        assert made.hosts == []
        assert "membership_total" not in w.counters()
        assert w.counters()["membership_change"] == 4


async def test_there_is_an_end_to_their_number() -> None:
    async with world() as w:
        made = w.add(cluster())
        assert made.config.original_dst is not None
        made.config.original_dst.most_hosts = 2
        hosts = [made.choose_host(context(f"10.0.0.{number}")) for number in range(3)]
        assert [host is None for host in hosts] == [False, False, True]
        made.sweep_hosts()
        made.sweep_hosts()
        assert made.choose_host(context("10.0.0.2")) is not None


def test_what_is_refused() -> None:
    assert errors_of(cluster(load_assignment={"cluster_name": "c"})) == {
        "c.load_assignment": "an ORIGINAL_DST cluster has no endpoints of its own"
    }
    assert set(errors_of(cluster(lb_policy="ROUND_ROBIN"))) == {"c.lb_policy"}
    assert set(errors_of(cluster(original_dst_lb_config={"http_header_name": "x"}))) == {
        "c.original_dst_lb_config.http_header_name"
    }
