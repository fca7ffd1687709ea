from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from meshproxy.testing import (
    AccessLoggerTest,
    Answer,
    ConfigError,
    FilterTest,
    ListenerFilterTest,
    LoadBalancerTest,
    NetworkFilterTest,
    Request,
)

FILE = Path(__file__).with_name("all_kinds.py")


@pytest.mark.parametrize(("network", "closed"), [("127.0.0.0/8", True), ("192.0.2.0/24", False)])
async def test_networks_are_turned_away(network: str, closed: bool) -> None:
    async with ListenerFilterTest(FILE, {"blocked": [network]}, class_name="Blocklist") as t:
        client = t.connect()
        if closed:
            assert await client.read_all() == b""
        else:
            client.send("x")
            assert await (await t.accept()).read(1) == b"x"


async def test_what_is_no_network_is_told() -> None:
    with pytest.raises(ConfigError, match="'nowhere' does not appear to be an IPv4 or IPv6 network"):
        await ListenerFilterTest(FILE, {"blocked": ["nowhere"]}, class_name="Blocklist").start()


async def test_a_connection_has_a_quota() -> None:
    async with NetworkFilterTest(FILE, {"bytes": 5}, class_name="ByteQuota") as t:
        client, server = t.connect(), await t.accept()
        client.send("12345")
        assert await server.read(5) == b"12345"
        client.send("6")
        assert await client.read_all() == b""
        assert await server.read_all() == b""
        assert t.stats()["over_quota"] == 1


async def test_a_request_has_a_tenant() -> None:
    async with FilterTest(FILE, class_name="Tenant") as t:
        assert (await t.request("GET", "/", {"x-tenant": "ann"})).metadata == {"tenants": {"tenant": "ann"}}


async def test_without_a_tenant_the_idlest_host_is_taken() -> None:
    async with LoadBalancerTest(FILE, class_name="Home") as t:
        waiting = asyncio.Event()

        async def wait(request: Request) -> Answer:
            await waiting.wait()
            return Answer()

        t.hosts[0].handler = wait
        first = asyncio.ensure_future(t.request("GET", "/"))
        async with asyncio.timeout(10):
            while not t.hosts[0].requests:
                await asyncio.sleep(0)
        await t.request("GET", "/")
        assert len(t.hosts[1].requests) == 1
        waiting.set()
        await first


async def test_records_are_shipped() -> None:
    async with AccessLoggerTest(FILE, {"cluster": "upstream", "every_ms": 1}, class_name="Shipper") as t:
        await t.request("GET", "/x")
        async with asyncio.timeout(10):
            while not (shipped := [one for one in t.upstream.requests if one.path == "/records"]):
                await asyncio.sleep(0)
        record = json.loads(shipped[0].body)
        assert (record["status"], record["tenant"], record["host"]) == (200, "", "127.0.0.1:10000")
