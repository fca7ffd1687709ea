"""The listening sockets of the whole process tree: one per worker and address, all owned here.

Workers accept on duplicates. So a worker that dies takes no accept queue with it, and its replacement inherits what
waits there.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Collection
from typing import Any, Final

from meshproxy.config.errors import ConfigErrors, item
from meshproxy.net.address import Address, address_of
from meshproxy.net.sockets import bind_listener, refuse_new_connections
from meshproxy.server.listener_config import SocketConfig, listener_addresses, listener_name, socket_config

_INBOUND: Final = 1  # core.v3.TrafficDirection


class _Bound:
    """The sockets of one listener: `sockets[worker][address]`; none once it has stopped.

    One that `binds` nothing has none ever: it gets the connections that other listeners hand to its addresses.
    """

    def __init__(self, key: tuple[object, ...], addresses: tuple[Address, ...], binds: bool) -> None:
        self.key = key
        self.addresses = addresses
        self.binds = binds
        self.inbound: bool = False
        self.mode: int = 0  # of the files of Unix sockets
        self.sockets: list[list[socket.socket]] = []
        self._files: dict[str, int] = {}  # path → inode of the Unix sockets

    def all(self) -> set[socket.socket]:
        """Every socket once."""
        return {sock for row in self.sockets for sock in row}

    def note_files(self) -> None:
        """Remember which files are ours: somebody may put another at the same path."""
        if not self.binds:
            return
        paths = [address.path for address in self.addresses if address.path and not address.path.startswith("@")]
        self._files = {path: os.stat(path).st_ino for path in paths}

    def set_mode(self, mode: int) -> None:
        """Change the mode of the files of Unix sockets."""
        if mode and mode != self.mode:
            for path in self._files:
                os.chmod(path, mode)
        self.mode = mode

    def unlink(self) -> None:
        """Remove the files of Unix sockets."""
        files, self._files = self._files, {}
        for path, inode in files.items():
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino == inode:
                    os.unlink(path)

    def refuse_new(self) -> None:
        """Get no new connections; those that wait can still be accepted."""
        self.unlink()
        for sock in self.all():
            refuse_new_connections(sock)

    def close(self) -> None:
        self.unlink()
        for sock in self.all():
            sock.close()
        self.sockets = []

    def bound_key(self) -> tuple[object, ...]:
        """The key with what port 0 became: somebody may write the port out."""
        return (tuple(self.bound_addresses()), *self.key[1:])

    def bound_addresses(self) -> list[Address]:
        """Where it listens: what port 0 became; where it listened, when it has stopped."""
        return [address_of(sock.getsockname()) for sock in self.sockets[0]] if self.sockets else list(self.addresses)


class Retired:
    """Sockets that a new plan has dropped: what waits in their queues is accepted before they close."""

    def __init__(self, bounds: list[_Bound]) -> None:
        self._bounds = bounds

    def refuse_new(self) -> bool:
        """Let them get no new connections. False when there are none of them."""
        for bound in self._bounds:
            bound.refuse_new()
        return any(bound.sockets for bound in self._bounds)

    def close(self) -> None:
        for bound in self._bounds:
            bound.close()


class ListeningSockets:
    """Sockets by listener name. `plan` binds what a configuration adds; `accept_plan` tells what it removed."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._dynamic: set[str] = set()  # listeners of a control plane
        self._bound: dict[str, _Bound] = {}
        self._planned: dict[str, _Bound] = {}
        self._planned_modes: dict[str, int] = {}

    def plan(self, bootstrap: Any, errors: ConfigErrors) -> None:
        """Bind every listener of `bootstrap` whose addresses are new; with an error, nothing stays bound."""
        self._planned = {name: bound for name, bound in self._bound.items() if name in self._dynamic}
        self._planned_modes = {name: bound.mode for name, bound in self._planned.items()}
        for index, message in enumerate(bootstrap.static_resources.listeners):
            path = item("static_resources", "listeners", index) + ".address"
            addresses = listener_addresses(message)
            name = listener_name(message)
            self._plan_one(name, message, addresses, path, errors)
        if errors:
            self.abandon()

    def plan_updates(self, changed: dict[str, Any], removed: list[str], errors: dict[str, str]) -> None:
        """The same for listeners of a control plane, each for itself: why one cannot be bound goes into `errors`, and
        that one stays as it was."""
        self._planned = {name: bound for name, bound in self._bound.items() if name not in removed}
        self._planned_modes = {name: bound.mode for name, bound in self._planned.items()}
        for name, message in changed.items():
            own = ConfigErrors()
            self._plan_one(name, message, listener_addresses(message), "address", own)
            if not own:
                self._dynamic.add(name)
                continue
            errors[name] = str(own)
            self._planned.pop(name).close()
            if name in self._bound:
                self._planned[name] = self._bound[name]
        self._dynamic.difference_update(removed)

    def _plan_one(
        self, name: str, message: Any, addresses: tuple[Address, ...], path: str, errors: ConfigErrors
    ) -> None:
        config = socket_config(message)
        key = (addresses, config.reuse_port, config.options, config.binds)
        bound = self._running(name, addresses, key)
        if bound is None:
            bound = _Bound(key, addresses, config.binds)
            bound.mode = config.mode
            try:
                self._bind(bound, config)
                bound.note_files()
            except OSError as error:
                reason = os.strerror(error.errno) if error.errno else str(error)
                errors.add(path, f"cannot bind {', '.join(a.text for a in addresses)}: {reason}")
        bound.inbound = message.traffic_direction == _INBOUND
        self._planned[name] = bound
        self._planned_modes[name] = config.mode

    def _running(self, name: str, addresses: tuple[Address, ...], key: tuple[object, ...]) -> _Bound | None:
        """Sockets to go on with: the listener's own, or those of one that had its addresses under another name."""
        own = self._bound.get(name)
        candidates = [] if own is None else [own]
        if any(address.port or address.path for address in addresses):
            candidates += self._bound.values()
        return next((bound for bound in candidates if key in (bound.key, bound.bound_key())), None)

    def _bind(self, bound: _Bound, config: SocketConfig) -> None:
        share = not config.reuse_port
        for worker in range(self._workers if config.binds else 0):
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
        for bound in _without(self._planned, self._bound):
            bound.close()
        self._planned = {}

    def new_sockets(self, worker: int) -> dict[str, list[socket.socket]]:
        """What the listeners of the plan are to listen on that did not before, for one worker."""
        return {
            name: bound.sockets[worker] if bound.binds else []
            for name, bound in self._planned.items()
            if self._bound.get(name) is not bound and (bound.sockets or not bound.binds)
        }

    def accept_plan(self, removed: Collection[str] | None = None) -> tuple[Retired, Retired]:
        """The plan is in force. Returns what nobody is to listen on any more: now, of the listeners that are `removed`
        (None: of all), and when others have taken over, of the rest."""
        old, self._bound = self._bound, self._planned
        self._planned = {}
        for name, bound in self._bound.items():
            bound.set_mode(self._planned_modes[name])
        now = {name: bound for name, bound in old.items() if removed is None or name in removed}
        later = {name: bound for name, bound in old.items() if name not in now}
        return Retired(_without(now, self._bound)), Retired(_without(later, self._bound))

    def all_sockets(self, worker: int) -> dict[str, list[socket.socket]]:
        """Every socket of one worker (for its replacement)."""
        return {name: bound.sockets[worker] for name, bound in self._bound.items() if bound.sockets}

    def names(self) -> list[str]:
        """The listeners that there are."""
        return list(self._bound)

    def addresses(self) -> list[tuple[str, list[Address]]]:
        """(listener, its bound addresses)."""
        return [(name, bound.bound_addresses()) for name, bound in self._bound.items()]

    def refuse_new(self, inbound_only: bool = False) -> None:
        """Let the kernel ignore new connections: those that wait can still be accepted."""
        for bound in self._chosen(inbound_only):
            bound.refuse_new()

    def stop(self, inbound_only: bool = False) -> None:
        """Close sockets for good: the listeners stay, and accept no more."""
        for bound in self._chosen(inbound_only):
            bound.close()

    def close(self) -> None:
        """Close all."""
        self.abandon()
        self.stop()
        self._bound = {}

    def _chosen(self, inbound_only: bool) -> list[_Bound]:
        return [bound for bound in self._bound.values() if bound.inbound or not inbound_only]


def _without(first: dict[str, _Bound], second: dict[str, _Bound]) -> list[_Bound]:
    """What is in `first` and, under whatever name, not in `second`."""
    rest = set(second.values())
    return [bound for bound in first.values() if bound not in rest]
