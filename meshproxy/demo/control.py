"""The pilot of the demonstration, and what it says of its clients."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Final

from meshproxy.demo.identities import AUDIENCE, ISSUER, Authority, Lifetimes, Platform
from meshproxy.demo.processes import Processes, Served

_PILOT_NAME: Final = "127.0.0.1"  # in its own certificate: as what agents call it
_ROUTES: Final = "RouteConfiguration"
_SIGNS: Final = "signing"


class Pilot(Served):
    """`meshproxy pilot` on a directory of documents, with an authority. `xds` is the Unix socket where it serves
    proxies, `authority` where it serves agents, `admin` its own pages."""

    def __init__(
        self, processes: Processes, rules: Path, authority: Authority, platform: Platform, lifetimes: Lifetimes
    ) -> None:
        self.rules = rules
        self.xds = str(rules.with_name("pilot.sock"))
        addresses = rules.with_name("pilot.json")
        child = processes.start(
            "pilot", "meshproxy", "pilot", "--rules", str(rules), "--listen", f"unix:{self.xds}",
            "--http", "127.0.0.1:0", "--address-path", str(addresses), "--drain-time-s", "1",
            *authority.flags, "--authority-listen", "127.0.0.1:0", "--tls-from-authority", _PILOT_NAME,
            "--jwks", str(platform.key_set), "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE,
            "--certificate-lifetime", f"{lifetimes.certificate_s}s",
            "--longest-certificate-lifetime", f"{lifetimes.certificate_s}s",
            "--root-overlap", f"{lifetimes.root_overlap_s}s", "--authority-audit", str(rules.with_name("audit.json")),
        )  # fmt: skip
        super().__init__(child, "the pilot", addresses, ("/ready", "ready"))
        self.authority = ""

    def take_addresses(self, text: str) -> None:
        addresses = json.loads(text)
        self.authority, self.admin = addresses["authority"][0], addresses["http"]

    async def routes(self) -> dict[str, str]:
        """The version of the routes that each client has taken; "" while it has not taken the last one."""
        found = {}
        for client in json.loads(await self.ask("/debug/clients")):
            routes: dict[str, Any] = client["types"].get(_ROUTES, {})
            found[client["id"]] = routes["version"] if routes.get("state") == "accepted" else ""
        return found

    async def refusals(self) -> list[str]:
        """What clients and documents were refused for, in words."""
        answer = json.loads(await self.ask("/debug/rejections"))
        found = [f"{each['client']} refused {each['type']}: {each['reason']}" for each in answer["clients"]]
        return found + [f"the pilot refused {each}" for each in answer["rules"]["refused"]]

    async def signs(self) -> str:
        """The name of the root that signs now."""
        issuers = json.loads(await self.ask("/debug/authority"))["issuers"]
        return str(next(each["name"] for each in issuers if each["phase"] == _SIGNS))

    async def push(self, name: str, text: str, clients: int) -> float:
        """Put `text` in the place of a file, in one step; returns the seconds until the last of so many clients had it.
        Raises DemoError when they do not take it."""
        before = set((await self.routes()).values())
        file = self.rules / name
        fresh = file.with_name(f".{name}")
        fresh.write_text(text, encoding="utf-8")
        start = asyncio.get_running_loop().time()
        fresh.replace(file)

        async def done() -> bool:
            now = await self.routes()
            return len(now) == clients and len(set(now.values())) == 1 and not before & set(now.values())

        await self.wait(done, f"bring {name} to {clients} sidecars")
        return asyncio.get_running_loop().time() - start
