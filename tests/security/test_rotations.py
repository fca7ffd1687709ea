"""Fifty certificates a sidecar, one a second, and a root that gives way to another meanwhile, under steady load on both
sides: nothing fails, nothing is refused, and nothing grows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509

from meshproxy.agent.agent import Agent
from tests.agent.harness import Quick, settings
from tests.integration.load import EchoUpstream, Load, echoed
from tests.integration.proxy import eventually
from tests.pilot.authority_mesh import Mesh
from tests.pilot.processes import PilotProcess
from tests.security.sidecars import START, Inbound, Outbound, Secrets, Way
from tests.security.streams import StreamLoad, echo
from tests.security.usage import Usage, usage
from tests.security.workloads import agent_flags
from tests.support.proxy import ProxyProcess

# Client, server, and how many workers each of them has.
PAIRS = [("meshproxy", "meshproxy", "1"), ("meshproxy", "envoy", "1"), ("envoy", "meshproxy", "1")]
PAIRS += [("meshproxy", "meshproxy", "2")]
# Connections that are kept, new ones for each request, and HTTP/2 whose connections are replaced now and then.
WAYS = (Way("kept", "web"), Way("fresh", "web", most=1, version="TLSv1_2"), Way("http2", "web", 20, http2=True))
ROTATIONS = 50
WARM = 10
DEADLINE_S = 300.0
_TIMES = ("--certificate-lifetime", "60s", "--longest-certificate-lifetime", "60s", "--root-overlap", "3s")
_RENEW_S = 1.0
_PAUSE_S = 0.05
_MEMORY_MIB = 8.0  # a leak of 6 KiB for each connection was 17
_DESCRIPTORS = 16  # connections come and go


@asynccontextmanager
async def agent(mesh: Mesh, pilot: PilotProcess, folder: Path, account: str) -> AsyncIterator[Agent]:
    """That renews every second, however long its certificates last."""
    made, stop = Agent(settings(*agent_flags(mesh, pilot, folder, account)), Quick(_RENEW_S)), asyncio.Event()
    task = asyncio.ensure_future(made.run(stop))
    try:
        await eventually(lambda: made.secrets.ready and made.metrics.bundles, "a certificate and the bundle", 60.0)
        yield made
    finally:
        stop.set()
        await task


async def stats(proxy: ProxyProcess, pattern: str) -> dict[str, int]:
    return await asyncio.to_thread(proxy.stats, pattern)


async def taken(proxy: ProxyProcess) -> int:
    """How many certificates, since it began; by all of its workers."""
    name = "sds.default.update_success"
    return (await stats(proxy, f"^{name}"))[name]


async def until_taken(proxy: ProxyProcess, times: int) -> None:
    """So many."""
    async with asyncio.timeout(DEADLINE_S):
        while await taken(proxy) < times:
            await asyncio.sleep(_PAUSE_S)


class World:
    """Two sidecars and their agents, under load."""

    def __init__(self, mesh: Mesh, agents: list[Agent], proxies: list[ProxyProcess]) -> None:
        self.mesh = mesh
        self.agents = agents
        self.proxies = proxies

    async def certified(self, times: int) -> None:
        """Every agent so often, and every sidecar has taken as many."""
        await eventually(
            lambda: all(agent.metrics.certificates >= times for agent in self.agents), f"{times}", DEADLINE_S
        )
        for proxy in self.proxies:
            await until_taken(proxy, times)

    def issuers(self) -> set[x509.Name]:
        """Of the certificates in use."""
        pairs = [agent.secrets.pair for agent in self.agents]
        return {x509.load_pem_x509_certificate(pair.chain).issuer for pair in pairs if pair is not None}

    async def replace_root(self) -> None:
        """The next one is made known, signs after its overlap, and the first one is dropped once nobody needs it."""
        first = self.issuers()
        await asyncio.to_thread(self.mesh.command, "rotate")
        await eventually(lambda: not self.issuers() & first, "certificates of the next root", DEADLINE_S)
        made = max(agent.metrics.certificates for agent in self.agents)
        await self.certified(made + 1)
        bundles = [agent.metrics.bundles for agent in self.agents]
        await asyncio.to_thread(self.mesh.command, "rotate", "--now")
        await eventually(
            lambda: all(agent.metrics.bundles > told for agent, told in zip(self.agents, bundles, strict=True)),
            "the bundle without the first root",
            DEADLINE_S,
        )

    async def usage(self) -> list[Usage]:
        return [await asyncio.to_thread(usage, proxy) for proxy in self.proxies]


@pytest.mark.long
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
async def test_nobody_notices(pair: tuple[str, str, str], tmp_path: Path) -> None:
    mesh = Mesh(tmp_path)
    client, server, workers = pair
    flags = {"meshproxy": ("--concurrency", workers, "--enable-core-dump"), "envoy": ()}
    async with AsyncExitStack() as stack:
        running = await asyncio.to_thread(stack.enter_context, mesh.pilot(*_TIMES))
        agents = [await stack.enter_async_context(agent(mesh, running, tmp_path, each)) for each in ("client", "web")]
        upstream = await stack.enter_async_context(EchoUpstream("web"))
        tcp = await stack.enter_async_context(echo())
        inbound = Inbound(Secrets(f"{tmp_path}/web.sock"), tmp_path, upstream.port, tcp)
        receiving = await asyncio.to_thread(START[server], inbound.text(), *flags[server])
        stack.push_async_callback(asyncio.to_thread, receiving.stop)
        ports = await asyncio.to_thread(receiving.listener_ports)
        outbound = Outbound(Secrets(f"{tmp_path}/client.sock"), tmp_path, WAYS, ports["http"], ports["tcp"])
        sending = await asyncio.to_thread(START[client], outbound.text(), *flags[client])
        stack.push_async_callback(asyncio.to_thread, sending.stop)
        near = await asyncio.to_thread(sending.listener_ports)
        world = World(mesh, agents, [sending, receiving])
        async with AsyncExitStack() as loads:
            http = [
                await loads.enter_async_context(
                    Load(near["out"], echoed("web"), kept=2, fresh=1, pause_s=_PAUSE_S, path=f"/{way.name}/")
                )
                for way in WAYS
            ]
            streams = await loads.enter_async_context(StreamLoad(near["tcp"], _PAUSE_S))
            await world.certified(WARM)
            before = await world.usage()
            await world.replace_root()
            await world.certified(ROTATIONS)
            for each in http:
                await each.more(50, 60.0)
            after = await world.usage()
        assert [failure for each in http for failure in each.failures] + streams.failures == []
        assert [each.closed_unasked for each in http] == [0, 0, 0]
        assert min(len(each.answers) for each in http) > ROTATIONS
        assert streams.heard > ROTATIONS
        for proxy in world.proxies:
            counted = await stats(proxy, r"^sds\.|\.ssl\.")
            assert counted["sds.default.update_rejected"] == counted["sds.ROOTCA.update_rejected"] == 0
            assert counted["sds.ROOTCA.update_success"] >= 3
            bad = {
                name: n for name, n in counted.items() if n and (".ssl.fail_" in name or ".connection_error" in name)
            }
            assert bad == {}
            assert sum(n for name, n in counted.items() if name.endswith(".ssl.handshake")) > ROTATIONS
        for was, now in zip(before, after, strict=True):
            assert now.rss_mib - was.rss_mib < _MEMORY_MIB, (before, after)
            assert now.descriptors - was.descriptors < _DESCRIPTORS, (before, after)
