"""The pilot of the demonstration, and what it says of its clients."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Final

from meshproxy.demo.processes import Processes, Served

_ROUTES: Final = "RouteConfiguration"


class Pilot(Served):
    """`meshproxy pilot` on a directory of documents. `xds` is where it serves proxies, `admin` its own pages."""

    def __init__(self, processes: Processes, rules: Path) -> None:
        self.rules = rules
        self._address_path = rules.with_name("pilot.json")
        child = processes.start(
            "pilot", "meshproxy", "pilot", "--rules", str(rules), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0",
            "--address-path", str(self._address_path), "--drain-time-s", "1",
        )  # fmt: skip
        super().__init__(child, "the pilot")
        self.xds = ""

    async def wait_until_it_serves(self) -> None:
        """Raises DemoError when it ends instead."""
        await self.wait(self._is_ready, "become ready")

    async def _is_ready(self) -> bool:
        if not self._address_path.exists():
            return False
        addresses = json.loads(self._address_path.read_text(encoding="utf-8"))
        self.xds, self.admin = addresses["xds"][0], addresses["http"]
        return await self._says("/ready", "ready")

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
