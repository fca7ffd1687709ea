"""The stage: a pilot with an authority, four instances of the application with a sidecar and its agent each, and the
users' sidecar with its own."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Final

from meshproxy.demo.agents import Agent
from meshproxy.demo.control import Pilot
from meshproxy.demo.identities import Authority, Lifetimes, Platform
from meshproxy.demo.processes import Instance, Processes, Proxy
from meshproxy.demo.rules import (
    CANARY,
    PLACES,
    SECURITY,
    SERVICE_PORT,
    SERVICES,
    SHOP,
    USERS,
    Place,
    Sidecar,
    bootstrap,
    read_security,
    read_services,
    with_ports,
)
from meshproxy.demo.screen import BOLD, DIM, Screen

_USERS_ADDRESS: Final = "127.0.0.31"
_LISTENER: Final = f"127.0.0.1_{SERVICE_PORT}"


class Stage:
    """`start` it; then everything runs. `users` is the sidecar through which all users come."""

    instances: dict[str, Instance]
    pilot: Pilot
    users: Proxy
    authority: Authority

    def __init__(self, processes: Processes, directory: Path, canary: str, lifetimes: Lifetimes) -> None:
        self._processes = processes
        self._directory = directory
        self._canary = canary
        self._lifetimes = lifetimes
        self._ports = {place.port: _free_port(place.address) for place in PLACES}
        self.sidecars: dict[str, Proxy] = {}  # by their names, the users' too
        self.agents: dict[str, Agent] = {}

    async def start(self, screen: Screen) -> None:
        """Start everything that does not wait for something at once. Raises ExampleError and DemoError."""
        screen.say("Starting a pilot, four instances of the application, and five sidecars ...", DIM)
        self.instances = {place.name: Instance(self._processes, place.name) for place in PLACES}
        platform = Platform(self._directory / "platform")
        self.authority = Authority(self._processes, self._directory)
        await self.authority.begin()
        self.pilot = Pilot(self._processes, self._write_rules(), self.authority, platform, self._lifetimes)
        await asyncio.gather(
            self.pilot.wait_until_ready(), *(each.wait_until_it_serves() for each in self.instances.values())
        )
        self._start_sidecars(platform)
        self.users = self.sidecars[USERS]
        inbound = [self.sidecars[place.name].wait_until_it_serves(self._inbound(place)) for place in PLACES]
        agents = [agent.wait_until_ready() for agent in self.agents.values()]
        await asyncio.gather(self.users.wait_until_it_serves(_LISTENER), *inbound, *agents)

    def _write_rules(self) -> Path:
        rules = self._directory / "rules"
        rules.mkdir()
        (rules / SERVICES).write_text(with_ports(read_services(), self._ports), encoding="utf-8")
        (rules / SECURITY).write_text(read_security(), encoding="utf-8")
        (rules / CANARY).write_text(self._canary, encoding="utf-8")
        return rules

    def _start_sidecars(self, platform: Platform) -> None:
        self._start_sidecar(platform, USERS, _USERS_ADDRESS, USERS, {"app": USERS}, {})
        for place in PLACES:
            applications = {self._ports[place.port]: self.instances[place.name].port}
            labels = {"app": SHOP, "version": place.version}
            self._start_sidecar(platform, place.name, place.address, SHOP, labels, applications)

    def _start_sidecar(
        self,
        platform: Platform,
        name: str,
        address: str,
        account: str,
        labels: dict[str, str],
        applications: dict[int, int],
    ) -> None:
        """With its agent; it waits for that."""
        processes, lifetimes = self._processes, self._lifetimes
        agent = Agent(processes, name, account, self.pilot.authority, self.authority, platform, lifetimes)
        sidecar = Sidecar(name, address, account, labels, self.pilot.xds, agent.socket, applications)
        config = self._directory / f"sidecar-{name}.yaml"
        config.write_text(bootstrap(sidecar), encoding="utf-8")
        self.agents[name] = agent
        self.sidecars[name] = Proxy(processes, config, f"sidecar-{name}")

    def _inbound(self, place: Place) -> str:
        return f"{place.address}_{self._ports[place.port]}"

    def port_of(self, place: Place) -> int:
        """Where the sidecar of an instance is found."""
        return self._ports[place.port]

    def introduce(self, screen: Screen, source: str) -> None:
        """Who is who."""
        say = screen.say
        say()
        say("A canary release, with real processes and real traffic", BOLD)
        say()
        say(f"  pilot   http://{self.pilot.admin}   process {self.pilot.child.pid}")
        say(f"          meshproxy pilot --rules {self.pilot.rules}", DIM)
        say(f"          with {source}, on free ports", DIM)
        say(f"          an authority, whose certificates last {self._lifetimes.certificate_s:g} s", DIM)
        say(f"  users   http://127.0.0.1:{self.users.port}   process {self.users.child.pid}: {self._sidecar(USERS)}")
        for place in PLACES:
            instance, proxy = self.instances[place.name], self.sidecars[place.name]
            say(
                f"  {place.name}    on {instance.port} (process {instance.child.pid}), "
                f"behind {proxy.port} (process {proxy.child.pid}: {self._sidecar(place.name)})"
            )
        say()

    def _sidecar(self, name: str) -> str:
        return f"a sidecar, process {self.agents[name].child.pid}: its agent"


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port
