"""The stage: a pilot, four instances of the application with a sidecar each, and the users' sidecar."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Final

from meshproxy.demo.control import Pilot
from meshproxy.demo.processes import Instance, Processes, Proxy
from meshproxy.demo.rules import CANARY, PLACES, SERVICE_PORT, SERVICES, Place, read_services, sidecar, with_ports
from meshproxy.demo.screen import BOLD, DIM, Screen

_USERS_ADDRESS: Final = "127.0.0.31"
_LISTENER: Final = f"127.0.0.1_{SERVICE_PORT}"


class Stage:
    """`start` it; then everything runs. `users` is the sidecar through which all users come."""

    instances: dict[str, Instance]
    pilot: Pilot
    users: Proxy

    def __init__(self, processes: Processes, directory: Path, canary: str) -> None:
        self._processes = processes
        self._directory = directory
        self._canary = canary
        self._ports = {place.port: _free_port(place.address) for place in PLACES}
        self._sidecars: dict[str, Proxy] = {}

    @property
    def sidecars(self) -> int:
        """How many clients the pilot has."""
        return len(self._sidecars) + 1

    async def start(self, screen: Screen) -> None:
        """Start everything that does not wait for something at once. Raises ExampleError and DemoError."""
        rules = self._directory / "rules"
        rules.mkdir()
        services = with_ports(read_services(), self._ports)
        (rules / SERVICES).write_text(services, encoding="utf-8")
        (rules / CANARY).write_text(self._canary, encoding="utf-8")
        screen.say("Starting a pilot, four instances of the application, and five sidecars ...", DIM)
        self.pilot = Pilot(self._processes, rules)
        self.instances = {place.name: Instance(self._processes, place.name) for place in PLACES}
        await asyncio.gather(
            self.pilot.wait_until_it_serves(), *(each.wait_until_it_serves() for each in self.instances.values())
        )
        self.users = self._proxy("users", _USERS_ADDRESS, {"app": "users"}, {})
        for place in PLACES:
            applications = {self._ports[place.port]: self.instances[place.name].port}
            labels = {"app": "shop", "version": place.version}
            self._sidecars[place.name] = self._proxy(place.name, place.address, labels, applications)
        inbound = [self._sidecars[place.name].wait_until_it_serves(self._inbound(place)) for place in PLACES]
        await asyncio.gather(self.users.wait_until_it_serves(_LISTENER), *inbound)

    def _proxy(self, name: str, address: str, labels: dict[str, str], applications: dict[int, int]) -> Proxy:
        config = self._directory / f"sidecar-{name}.yaml"
        text = sidecar(name, address, self.pilot.xds, labels=labels, applications=applications)
        config.write_text(text, encoding="utf-8")
        return Proxy(self._processes, config, f"sidecar-{name}")

    def _inbound(self, place: Place) -> str:
        return f"{place.address}_{self._ports[place.port]}"

    def introduce(self, screen: Screen, source: str) -> None:
        """Who is who."""
        say = screen.say
        say()
        say("A canary release, with real processes and real traffic", BOLD)
        say()
        say(f"  pilot   http://{self.pilot.admin}   process {self.pilot.child.pid}")
        say(f"          meshproxy pilot --rules {self.pilot.rules}", DIM)
        say(f"          with {source}, on free ports", DIM)
        say(f"  users   http://127.0.0.1:{self.users.port}   process {self.users.child.pid}: their sidecar")
        for place in PLACES:
            instance, proxy = self.instances[place.name], self._sidecars[place.name]
            say(
                f"  {place.name}    on {instance.port} (process {instance.child.pid}), "
                f"behind a sidecar on {proxy.port} (process {proxy.child.pid})"
            )
        say()


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port
