"""Agents on the loop of the test."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from meshproxy.agent.agent import Agent
from meshproxy.agent.flags import add_agent_flags
from meshproxy.agent.renewal import RenewalPolicy
from meshproxy.agent.settings import AgentSettings, agent_settings
from tests.agent.fake_authority import ROOT, FakeAuthority

DEADLINE_S = 30.0


def settings(*flags: str) -> AgentSettings:
    parser = argparse.ArgumentParser()
    add_agent_flags(parser)
    return agent_settings(parser.parse_args(flags))


def flags_for(authority: FakeAuthority, folder: Path, *more: str) -> list[str]:
    """Of an agent that this authority certifies; its files are in `folder`."""
    (folder / "root.pem").write_bytes(ROOT.pem)
    (folder / "token").write_text(authority.token + "\n")
    ca = ("--ca", f"127.0.0.1:{authority.port}", "--ca-name", "authority.test", "--ca-root-file", f"{folder}/root.pem")
    identity = ("--trust-domain", "mesh.test", "--namespace", "shop", "--service-account", "web")
    serving = ("--sds-socket", f"{folder}/run/sds", "--http", "127.0.0.1:0", "--drain-time-s", "0")
    return [*ca, "--token-file", f"{folder}/token", *identity, *serving, *more]


class Quick(RenewalPolicy):
    """Whose pauses are short after failures, and after certificates where `renew_s` says so, however long they live."""

    def __init__(self, renew_s: float = 0.0) -> None:
        super().__init__()
        self._renew_s = renew_s

    def issued(self, left_s: float) -> float:
        return min(super().issued(left_s), self._renew_s or left_s)

    def hurried(self) -> float:
        return super().hurried() / 100.0

    def failed(self) -> float:
        super().failed()
        return 0.02


@dataclass
class Running:
    agent: Agent
    socket: str


@asynccontextmanager
async def running(authority: FakeAuthority, folder: Path, *more: str, renew_s: float = 0.0) -> AsyncIterator[Running]:
    flags = flags_for(authority, folder, *more)
    async with agent_of(*flags, renew_s=renew_s) as agent:
        yield Running(agent, settings(*flags).sds_socket)


@asynccontextmanager
async def agent_of(*flags: str, renew_s: float = 0.0) -> AsyncIterator[Agent]:
    agent = Agent(settings(*flags), Quick(renew_s))
    stop = asyncio.Event()
    task = asyncio.ensure_future(agent.run(stop))
    try:
        async with asyncio.timeout(2 * DEADLINE_S):
            yield agent
    finally:
        stop.set()
        await task


async def until(done: Callable[[], object]) -> None:
    """Wait until it is so."""
    async with asyncio.timeout(DEADLINE_S):
        while not done():
            await asyncio.sleep(0.002)
