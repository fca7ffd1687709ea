"""The agent of each sidecar: it makes a key, has it certified by the authority, and makes another in time."""

from __future__ import annotations

import json
from typing import Final

from meshproxy.demo.identities import Authority, Lifetimes, Platform
from meshproxy.demo.processes import Processes, Served
from meshproxy.demo.rules import NAMESPACE

_CERTIFICATES: Final = "meshproxy_agent_certificates_total"


class Agent(Served):
    """`meshproxy agent`; `socket` is where it serves its sidecar."""

    def __init__(
        self,
        processes: Processes,
        name: str,
        account: str,
        ca: str,
        authority: Authority,
        platform: Platform,
        lifetimes: Lifetimes,
    ) -> None:
        directory = authority.roots.parent
        self.socket = str(directory / f"{name}.sock")
        addresses = directory / f"{name}.agent"
        child = processes.start(
            f"agent-{name}", "meshproxy", "agent", "--ca", ca, "--ca-root-file", str(authority.roots),
            "--token-file", str(platform.token(name, account)), "--namespace", NAMESPACE,
            "--service-account", account, "--lifetime", f"{lifetimes.certificate_s}s",
            "--sds-socket", self.socket, "--http", "127.0.0.1:0", "--address-path", str(addresses),
        )  # fmt: skip
        super().__init__(child, f"the agent of {name}", addresses, ("/healthz/ready", ""))

    def take_addresses(self, text: str) -> None:
        self.admin = json.loads(text)["http"]

    async def rotations(self) -> int:
        """How many certificates have taken the place of another."""
        values = [line for line in (await self.ask("/metrics")).splitlines() if line.startswith(_CERTIFICATES)]
        return max(int(float(values[0].split()[-1])) - 1, 0)
