"""What became of the mesh's certificates in the course of the show: the sidecars, their agents and the pilot say it."""

from __future__ import annotations

import asyncio
from typing import Final

from meshproxy.demo.checks import Finding
from meshproxy.demo.rules import PLACES, SERVICE_PORT, Place
from meshproxy.demo.stage import Stage

_ATTEMPT_S: Final = 10.0
_INBOUND: Final = "^http.inbound_"
_OUTBOUND: Final = f"^cluster.outbound.{SERVICE_PORT}.v[12].shop.example;.ssl.handshake"
_SECRETS: Final = "^sds.default.update_success"


async def until_renewed(stage: Stage, first_root: str) -> None:
    """Until each sidecar has had another certificate, and another root signs. Raises DemoError when that takes long."""

    async def done() -> bool:
        made = [await agent.rotations() for agent in stage.agents.values()]
        return all(made) and await stage.pilot.signs() != first_root

    await stage.pilot.wait(done, "have every certificate renewed")


async def findings(stage: Stage, first_root: str) -> list[Finding]:
    """`first_root` is who signed when it all began. Raises DemoError when somebody does not answer."""
    root = await stage.pilot.signs()
    return [
        await _all_was_encrypted(stage),
        await _rotated(stage),
        Finding(root != first_root, f"the authority's root was replaced: {first_root} has given way to {root}"),
        await _nobody_in_the_clear(stage),
    ]


async def _all_was_encrypted(stage: Stage) -> Finding:
    connections = encrypted = 0
    for place in PLACES:
        stats = await stage.sidecars[place.name].stats(_INBOUND)
        connections += sum(value for name, value in stats.items() if name.endswith("downstream_cx_total"))
        encrypted += sum(value for name, value in stats.items() if name.endswith("downstream_cx_ssl_total"))
    handshakes = sum((await stage.users.stats(_OUTBOUND)).values())
    text = f"{encrypted} of {connections} connections between sidecars were mutual TLS, with {handshakes} handshakes"
    return Finding(0 < connections == encrypted and handshakes > 0, text)


async def _rotated(stage: Stage) -> Finding:
    """Each agent has had another certificate, and each sidecar has taken it."""
    made = {name: await agent.rotations() for name, agent in stage.agents.items()}
    taken = {name: sum((await each.stats(_SECRETS)).values()) for name, each in stage.sidecars.items()}
    text = f"{sum(made.values())} certificates gave way to newer ones, in {len(made)} sidecars, with requests under way"
    return Finding(all(made[name] > 0 and taken[name] > 1 for name in made), text)


async def _nobody_in_the_clear(stage: Stage) -> Finding:
    answered = [place.name for place in PLACES if await _answers_in_the_clear(place, stage.port_of(place))]
    text = f"answered by {', '.join(answered)}" if answered else "refused by all"
    return Finding(not answered, f"a request in the clear, past the users' sidecar: {text}")


async def _answers_in_the_clear(place: Place, port: int) -> bool:
    reader, writer = await asyncio.open_connection(place.address, port)
    try:
        writer.write(b"GET / HTTP/1.1\r\nhost: shop.example\r\n\r\n")
        return bool(await asyncio.wait_for(reader.read(64), _ATTEMPT_S))
    except ConnectionError:
        return False
    finally:
        writer.close()
