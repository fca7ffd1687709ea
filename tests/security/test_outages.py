"""The authority, or the control plane, is gone: sidecars serve on with what they have, and nothing fails when it is
back."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.load import EchoUpstream, Load, echoed
from tests.pilot.authority.fakes import TRUST_DOMAIN
from tests.pilot.authority_mesh import Mesh
from tests.pilot.processes import PilotProcess, free_port, pilot
from tests.pilot.test_peer_authentication import PEER, POOL, RULES, configuration
from tests.security.sidecars import START, Inbound, Outbound, Secrets, Way
from tests.security.test_rotations import agent, stats, taken, until_taken
from tests.security.workloads import AgentProcess, agents
from tests.support.proxy import ProxyProcess

PAIRS = [("meshproxy", "meshproxy"), ("envoy", "meshproxy")]
WAYS = (Way("kept", "web"), Way("fresh", "web", most=1))
HOST = "test.shop.svc.cluster.local"  # the load asks for `test`
DEADLINE_S = 120.0
LIFE_S = 60.0
_LIVES = ("--certificate-lifetime", f"{LIFE_S}s", "--longest-certificate-lifetime", f"{LIFE_S}s")
_PAUSE_S = 0.05


async def handshakes(proxy: ProxyProcess) -> int:
    return sum((await stats(proxy, r"\.ssl\.handshake")).values())


@pytest.mark.long
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
async def test_without_the_authority_for_longer_than_a_third_of_a_life(pair: tuple[str, str], tmp_path: Path) -> None:
    mesh = Mesh(tmp_path)
    listen = ("--authority-listen", f"127.0.0.1:{free_port()}")
    async with AsyncExitStack() as stack:
        first: PilotProcess = await asyncio.to_thread(stack.enter_context, mesh.pilot(*_LIVES, *listen))
        made = await asyncio.to_thread(
            stack.enter_context, agents(mesh, first, tmp_path, "client", "web", more=("--ca", listen[1]))
        )
        upstream = await stack.enter_async_context(EchoUpstream("web"))
        inbound = Inbound(Secrets(made[1].socket), tmp_path, upstream.port)
        receiving = stack.enter_context(await asyncio.to_thread(START[pair[1]], inbound.text()))
        outbound = Outbound(Secrets(made[0].socket), tmp_path, WAYS, receiving.listener_ports()["http"])
        sending = stack.enter_context(await asyncio.to_thread(START[pair[0]], outbound.text()))
        port = sending.listener_ports()["out"]
        loads = [
            await stack.enter_async_context(
                Load(port, echoed("web"), kept=2, fresh=1, pause_s=_PAUSE_S, path=f"/{way.name}/")
            )
            for way in WAYS
        ]
        await asyncio.to_thread(first.stop)
        (tmp_path / "pilot").unlink()  # its addresses
        for each in made:
            await until_metric(each, "renewal_failures_total", 2)
            assert await asyncio.to_thread(each.metric, "certificate_left_seconds") < 0.4 * LIFE_S
            assert await asyncio.to_thread(each.metric, "certificates_total") == 1
        shaken = await handshakes(sending)
        for load in loads:
            await load.more(30, DEADLINE_S)
        assert await handshakes(sending) > shaken  # with the certificates of before
        await asyncio.to_thread(stack.enter_context, mesh.pilot(*_LIVES, *listen))
        for each in made:
            await until_metric(each, "certificates_total", 2)
        for proxy in (sending, receiving):
            await until_taken(proxy, 2)
        for load in loads:
            await load.more(30, DEADLINE_S)
            assert load.failures == []
            assert load.closed_unasked == 0


async def until_metric(agent: AgentProcess, name: str, value: float) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await asyncio.to_thread(agent.metric, name) < value:
            await asyncio.sleep(_PAUSE_S)


def sidecar(folder: Path, xds: int, name: str, **facts: Any) -> str:
    """Under the pilot's rules, with the secrets of its agent."""
    tree = yaml.safe_load(configuration(xds, 1, name, **facts))
    (made,) = [cluster for cluster in tree["static_resources"]["clusters"] if cluster["name"] == "agent"]
    where = {"endpoint": {"address": {"pipe": {"path": f"{folder}/{name}.sock"}}}}
    made["load_assignment"] = {"cluster_name": "agent", "endpoints": [{"lb_endpoints": [where]}]}
    return yaml.safe_dump(tree)


@pytest.mark.long
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
async def test_certificates_rotate_without_the_control_plane(pair: tuple[str, str], tmp_path: Path) -> None:
    """The authority goes on: another pilot, on the same store or not."""
    mesh, rules, http = Mesh(tmp_path), tmp_path / "traffic", free_port()
    rules.mkdir()
    (rules / "web.yaml").write_text(RULES.format(host=HOST, http=http, tcp=free_port()))
    (rules / "peer.yaml").write_text(PEER % "STRICT")
    (rules / "pool.yaml").write_text((POOL % "maxRequestsPerConnection: 2").replace("host: web", "host: test"))
    xds = free_port()
    plane = (rules, tmp_path, "plane", "--trust-domain", TRUST_DOMAIN, "--listen", f"127.0.0.1:{xds}")
    async with AsyncExitStack() as stack:
        authority = await asyncio.to_thread(stack.enter_context, mesh.pilot())
        for account in ("client", "web"):
            await stack.enter_async_context(agent(mesh, authority, tmp_path, account))
        upstream = await stack.enter_async_context(EchoUpstream("web"))
        proxies: list[ProxyProcess] = []
        with ExitStack() as control:
            await asyncio.to_thread(control.enter_context, pilot(*plane))
            for kind, name in zip(pair, ("client", "web"), strict=True):
                at = {str(http): f"127.0.0.1:{upstream.port}"} if name == "web" else {}
                facts = {"meshproxy.io/ports": {"8000": 0}, "meshproxy.io/applications": at}
                text = sidecar(tmp_path, xds, name, **facts)
                proxies.append(stack.enter_context(await asyncio.to_thread(START[kind], text)))
            ports = await asyncio.to_thread(proxies[0].listener_ports)
            load = await stack.enter_async_context(
                Load(ports["127.0.0.1_8000"], echoed("web"), kept=3, fresh=2, pause_s=_PAUSE_S)
            )
        for proxy in proxies:
            await until_connected(proxy, 0)
        shaken = await handshakes(proxies[0])
        for proxy in proxies:
            await until_taken(proxy, await taken(proxy) + 10)
        await load.more(50, DEADLINE_S)
        assert await handshakes(proxies[0]) > shaken
        (tmp_path / "plane").unlink()
        await asyncio.to_thread(stack.enter_context, pilot(*plane))
        for proxy in proxies:
            await until_connected(proxy, 1)
        await load.more(50, DEADLINE_S)
        assert load.failures == []
        assert load.closed_unasked == 0


async def until_connected(proxy: ProxyProcess, value: int) -> None:
    """Whether the proxy has a control plane."""
    name = "control_plane.connected_state"
    async with asyncio.timeout(DEADLINE_S):
        while (await stats(proxy, rf"^{name}")).get(name) != value:
            await asyncio.sleep(_PAUSE_S)
