"""The snapshots that clients are served: one for each scope that has clients, built apart from the event loop.

A change of the mesh is carried from scope to scope by one builder thread, while streams go on being served: each client
is told as soon as its scope's snapshot stands. A change that comes meanwhile is taken up from the last scope done.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol

from meshproxy.pilot.server.metrics import Metrics
from meshproxy.pilot.server.view import View
from meshproxy.pilot.snapshot import Proxy, Snapshot

# Clients of one scope that are told of a snapshot before others get their turn.
_TOLD_AT_ONCE: Final = 64
# Each has a snapshot of its own, and clients say themselves what theirs depends on.
MAX_SCOPES: Final = 4096
_log: Final = logging.getLogger("meshproxy.pilot")


class TooManyScopesError(Exception):
    """A client needs a snapshot of its own, and there are as many as there may be."""

    def __init__(self) -> None:
        super().__init__(f"this pilot serves {MAX_SCOPES} different configurations, and no more: ask another")


class Builder(Protocol):
    """What makes snapshots of a mesh (`pilot/resources/`)."""

    def scope_of(self, mesh: Any, proxy: Proxy) -> Hashable:
        """All that the resources of this proxy depend on. May be called from any thread."""
        ...

    def build_snapshot(self, mesh: Any, scope: Any, previous: Snapshot | None) -> Snapshot:
        """The resources of a scope; what is the same in `previous` is the same object. Runs in the builder thread."""
        ...


class Client(Protocol):
    """A stream, as its scope sees it."""

    @property
    def proxy(self) -> Proxy: ...

    def show(self, view: View) -> None:
        """There is a newer snapshot for it."""
        ...

    def turn_away(self, reason: str) -> None:
        """It cannot be served."""
        ...


class Scope:
    """The clients of one scope, and what they are served."""

    def __init__(self, key: Hashable, number: int) -> None:
        self.key = key
        self.number = number  # how people call it
        self.clients: dict[Client, None] = {}  # in the order in which they came
        self.view: View | None = None
        self.mesh: Any = None  # that the view was built from
        self.build_s = 0.0
        self.built_at = 0.0  # seconds since the epoch
        self.error = ""  # why the last build failed; the view is the one before it


class Snapshots:
    """All scopes. `update` gives it a mesh; until there is one, clients wait."""

    def __init__(self, builder: Builder, metrics: Metrics, identifier: str = "meshproxy-pilot") -> None:
        self.scopes: dict[Hashable, Scope] = {}
        self.mesh: Any = None
        self.changed_at = 0.0  # monotonic: when what the mesh comes from changed
        self._builder = builder
        self._metrics = metrics
        self._identifier = identifier
        self._scope_of: dict[Client, Scope] = {}
        self._stale: dict[Scope, None] = {}  # to be built, the longest waiting first
        self._numbers = itertools.count(1)
        self._regroup = False
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="snapshots")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to build."""
        self._task = asyncio.ensure_future(self._run())

    async def close(self) -> None:
        """Build no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown()

    def update(self, mesh: Any, changed_at: float | None = None) -> None:
        """From now on, this mesh holds. `changed_at`: when it changed, monotonic (default: now)."""
        self.mesh = mesh
        self.changed_at = time.monotonic() if changed_at is None else changed_at
        self._regroup = True
        self._rouse()

    async def settled(self) -> None:
        """Wait until every scope has a snapshot of the mesh that holds."""
        await self._idle.wait()

    def join(self, client: Client) -> None:
        """A client has come: it is shown its snapshot, at once or when it is built. Raises TooManyScopesError."""
        if self.mesh is None:
            self._scope_of[client] = self._enter(client, None)
            return
        self._move(client, self._builder.scope_of(self.mesh, client.proxy))

    def leave(self, client: Client) -> None:
        """A client has gone. A scope without any is forgotten."""
        self._exit(client, self._scope_of.pop(client, None))

    def scope_of(self, client: Client) -> Scope | None:
        """The scope that a client belongs to now."""
        return self._scope_of.get(client)

    def _move(self, client: Client, key: Hashable) -> None:
        before = self._scope_of.get(client)
        if before is not None and before.key == key:
            return
        is_new = before is None or before.key is None
        if is_new and key not in self.scopes and len(self.scopes) - (None in self.scopes) >= MAX_SCOPES:
            raise TooManyScopesError
        scope = self._scope_of[client] = self._enter(client, key)
        self._exit(client, before)
        if scope.view is not None:
            client.show(scope.view)
        if scope.mesh is not self.mesh:
            self._stale[scope] = None
            self._rouse()

    def _move_or_turn_away(self, client: Client, key: Hashable) -> None:
        try:
            self._move(client, key)
        except TooManyScopesError as error:
            client.turn_away(str(error))

    def _enter(self, client: Client, key: Hashable) -> Scope:
        scope = self.scopes.get(key)
        if scope is None:
            scope = self.scopes[key] = Scope(key, next(self._numbers))
        scope.clients[client] = None
        self._metrics.scopes.set(len(self.scopes))
        return scope

    def _exit(self, client: Client, scope: Scope | None) -> None:
        if scope is None:
            return
        scope.clients.pop(client, None)
        if not scope.clients:
            self._stale.pop(scope, None)
            if self.scopes.get(scope.key) is scope:
                del self.scopes[scope.key]
        self._metrics.scopes.set(len(self.scopes))

    # -- the builder

    def _rouse(self) -> None:
        self._idle.clear()
        self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._regroup or self._stale:
                if self._regroup:
                    self._regroup = False
                    await self._find_scopes()
                elif self._stale:
                    scope = next(iter(self._stale))
                    del self._stale[scope]
                    await self._build(scope)
            self._idle.set()

    async def _find_scopes(self) -> None:
        """The mesh has changed, and what a scope is may have: Sidecars and selectors are part of it."""
        mesh, clients = self.mesh, list(self._scope_of)
        keys = await self._in_thread(_scopes_of, self._builder, mesh, [client.proxy for client in clients])
        for client, key in zip(clients, keys, strict=True):
            if isinstance(key, Exception):
                _log.error("nobody knows what %s is to be told: %r", client.proxy.id, key)
                self._metrics.failed_builds.inc()
            elif client in self._scope_of:
                self._move_or_turn_away(client, key)
        self._stale |= {scope: None for key, scope in self.scopes.items() if key is not None and scope.mesh is not mesh}

    async def _build(self, scope: Scope) -> None:
        if scope.mesh is self.mesh:
            return
        mesh, changed_at = self.mesh, self.changed_at
        before, began = scope.view, time.monotonic()
        previous = None if before is None or scope.error else before.snapshot
        try:
            snapshot = await self._in_thread(self._builder.build_snapshot, mesh, scope.key, previous)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one scope, the others are served
            _log.exception("the snapshot of %s cannot be built", scope.key)
            scope.error, scope.mesh = f"{type(error).__name__}: {error}", mesh
            self._metrics.failed_builds.inc()
            return
        scope.mesh, scope.error = mesh, ""
        scope.build_s, scope.built_at = time.monotonic() - began, time.time()
        self._metrics.build.observe(scope.build_s)
        if before is None or _is_other(before.snapshot, snapshot):
            scope.view = View(snapshot, self._identifier, changed_at, before)
            await _show(scope.view, list(scope.clients))
            if before is not None:
                before.close()

    async def _in_thread(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)


async def _show(view: View, clients: Iterable[Client]) -> None:
    for number, client in enumerate(clients, 1):
        client.show(view)
        if number % _TOLD_AT_ONCE == 0:
            await asyncio.sleep(0)


def _is_other(before: Snapshot, after: Snapshot) -> bool:
    """Whether anything changed for whom it serves."""
    types = before.types.keys() | after.types.keys()
    return any(before.types.get(name) is not after.types.get(name) for name in types)


def _scopes_of(builder: Builder, mesh: Any, proxies: Iterable[Proxy]) -> list[Hashable]:
    return [_scope_or_error(builder, mesh, proxy) for proxy in proxies]


def _scope_or_error(builder: Builder, mesh: Any, proxy: Proxy) -> Hashable:
    try:
        return builder.scope_of(mesh, proxy)
    except Exception as error:  # noqa: BLE001 - of one client; all others have theirs
        return error
