"""The listening sockets of the whole process tree: one per worker and address, all owned here.

Workers accept on duplicates. So a worker that dies takes no accept queue with it, and its replacement inherits what
waits there.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from meshproxy.config.errors import ConfigErrors, item
from meshproxy.net.address import Address, address_of
from meshproxy.net.sockets import bind_listener, refuse_new_connections
from meshproxy.server.listener_config import SocketConfig, listener_addresses, socket_config


class _Bound:
    """The sockets of one listener: `sockets[worker][address]`."""

    def __init__(self, key: tuple[object, ...], addresses: tuple[Address, ...]) -> None:
        self.key = key
        self.addresses = addresses
        self.sockets: list[list[socket.socket]] = []

    def close(self) -> None:
        for sock in {sock for row in self.sockets for sock in row}:
            sock.close()

    def bound_addresses(self) -> list[Address]:
        return [address_of(sock.getsockname()) for sock in self.sockets[0]] if self.sockets else []


class ListeningSockets:
    """Sockets by listener name. `plan` binds what a configuration adds; `accept_plan` lets go of what it removed."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._bound: dict[str, _Bound] = {}
        self._planned: dict[str, _Bound] = {}

    def plan(self, bootstrap: Any, errors: ConfigErrors) -> None:
        """Bind every listener whose addresses are new; with an error, nothing stays bound."""
        planned: dict[str, _Bound] = {}
        for index, message in enumerate(bootstrap.static_resources.listeners):
            addresses = listener_addresses(message)
            name = message.name or addresses[0].text
            config = socket_config(message)
            key = (addresses, config.reuse_port, config.options, config.mode)
            running = self._bound.get(name)
            if running is not None and running.key == key:
                planned[name] = running
                continue
            bound = _Bound(key, addresses)
            planned[name] = bound
            try:
                self._bind(bound, config)
            except OSError as error:
                reason = os.strerror(error.errno) if error.errno else str(error)
                path = item("static_resources", "listeners", index) + ".address"
                errors.add(path, f"cannot bind {', '.join(a.text for a in addresses)}: {reason}")
        self._planned = planned
        if errors:
            self.abandon()

    def _bind(self, bound: _Bound, config: SocketConfig) -> None:
        share = not config.reuse_port
        for worker in range(self._workers):
            row: list[socket.socket] = []
            bound.sockets.append(row)
            for index, wanted in enumerate(bound.addresses):
                if worker and share:
                    row.append(bound.sockets[0][index])
                    continue
                address = wanted
                if worker and not wanted.path and wanted.port == 0:
                    address = Address(wanted.ip, bound.sockets[0][index].getsockname()[1])
                row.append(
                    bind_listener(
                        address,
                        reuse_port=config.reuse_port and not wanted.path,
                        options=config.options,
                        mode=config.mode,
                        ipv4_compat=config.ipv4_compat,
                    )
                )

    def abandon(self) -> None:
        """Close what was planned and is not running."""
        for name, bound in self._planned.items():
            if self._bound.get(name) is not bound:
                bound.close()
        self._planned = {}

    def new_sockets(self, worker: int) -> dict[str, list[socket.socket]]:
        """What `plan` bound anew, for one worker."""
        return {
            name: bound.sockets[worker]
            for name, bound in self._planned.items()
            if self._bound.get(name) is not bound
        }

    def accept_plan(self) -> None:
        """The workers have taken over: close what is not listened on any more."""
        old, self._bound = self._bound, self._planned
        self._planned = {}
        for name, bound in old.items():
            if self._bound.get(name) is not bound:
                bound.close()

    def all_sockets(self, worker: int) -> dict[str, list[socket.socket]]:
        """Every socket of one worker (for its replacement)."""
        return {name: bound.sockets[worker] for name, bound in self._bound.items()}

    def addresses(self) -> list[tuple[str, list[Address]]]:
        """(listener, its bound addresses)."""
        return [(name, bound.bound_addresses()) for name, bound in self._bound.items()]

    def refuse_new(self) -> None:
        """Let the kernel ignore new connections: those that wait can still be accepted."""
        for bound in self._bound.values():
            for sock in {sock for row in bound.sockets for sock in row}:
                refuse_new_connections(sock)

    def close(self) -> None:
        for bound in self._bound.values():
            bound.close()
            for address in bound.addresses:
                if address.path and not address.path.startswith("@"):
                    try:
                        os.unlink(address.path)
                    except FileNotFoundError:
                        continue
        self._bound = {}
