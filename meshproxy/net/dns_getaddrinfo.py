"""Resolving names with the C library (hosts file, resolv.conf, NSS), as Envoy's getaddrinfo resolver does."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import Any, Final

from meshproxy.net.dispatcher import Dispatcher
from meshproxy.net.resolver import (
    FAMILY_ALL,
    FAMILY_V4_ONLY,
    FAMILY_V4_PREFERRED,
    FAMILY_V6_ONLY,
    V4,
    V6,
    DnsAddress,
    DnsQuery,
    Resolution,
    ResolveCallback,
    Resolver,
    ResolverSettings,
)

_TTL_S: Final = 60  # the C library tells none: Envoy's assumption
_RETRY_PAUSE_S: Final = 0.1
_NO_SUCH_NAME: Final = frozenset((socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)))


class GetAddrInfoResolver(Resolver):
    """The loop asks in threads of its own; `settings.threads` is how many of our queries run at once."""

    def __init__(self, dispatcher: Dispatcher, settings: ResolverSettings) -> None:
        self.dispatcher = dispatcher
        self.settings = settings
        self._waiting: deque[_Query] = deque()
        self._running: set[_Query] = set()

    def resolve(self, name: str, family: int, callback: ResolveCallback) -> DnsQuery:
        query = _Query(self, name, family, callback)
        self._waiting.append(query)
        self._run_next()
        return query

    def close(self) -> None:
        self._waiting.clear()
        for query in list(self._running):
            query.cancel()

    def on_done(self, query: _Query) -> None:
        self._running.discard(query)
        self._run_next()

    def _run_next(self) -> None:
        while self._waiting and len(self._running) < max(1, self.settings.threads):
            query = self._waiting.popleft()
            if not query.cancelled:
                self._running.add(query)
                query.start()


class _Query(DnsQuery):
    def __init__(self, resolver: GetAddrInfoResolver, name: str, family: int, callback: ResolveCallback) -> None:
        self._resolver = resolver
        self._name = name
        self._family = family
        self._callback: ResolveCallback | None = callback
        self._task: asyncio.Task[Resolution] | None = None

    @property
    def cancelled(self) -> bool:
        return self._callback is None

    def start(self) -> None:
        self._task = self._resolver.dispatcher.run(self._resolve(), f"resolve {self._name}", self._on_done)

    def cancel(self) -> None:
        self._callback = None
        if self._task is not None:
            self._task.cancel()

    def _on_done(self, task: asyncio.Task[Resolution]) -> None:
        self._resolver.on_done(self)
        callback, self._callback = self._callback, None
        if callback is None or task.cancelled():
            return
        error = task.exception()
        callback(task.result() if error is None else Resolution([], str(error)))

    async def _resolve(self) -> Resolution:
        """A temporary failure is tried again, for ever unless the settings limit it."""
        left = self._resolver.settings.retries
        loop = self._resolver.dispatcher.loop
        while True:
            try:
                answers = await loop.getaddrinfo(self._name, None, type=socket.SOCK_STREAM)
                return Resolution(_pick(answers, self._family))
            except UnicodeError as failure:  # a label that no name can have
                return Resolution([], str(failure))
            except OSError as failure:
                if failure.errno in _NO_SUCH_NAME:
                    return Resolution([])
                if failure.errno != socket.EAI_AGAIN or left == 0:
                    return Resolution([], failure.strerror or str(failure))
            left -= 1
            await asyncio.sleep(_RETRY_PAUSE_S)


def _pick(answers: list[Any], family: int) -> list[DnsAddress]:
    """The addresses of the wanted families; of both, IPv6 first."""
    found: dict[int, dict[str, DnsAddress]] = {V4: {}, V6: {}}
    for answer in answers:
        if answer[0] in found:
            address = str(answer[4][0])
            found[answer[0]][address] = DnsAddress(address, _TTL_S)
    v4, v6 = list(found[V4].values()), list(found[V6].values())
    if family == FAMILY_V4_ONLY:
        return v4
    if family == FAMILY_V6_ONLY:
        return v6
    if family == FAMILY_ALL:
        return v6 + v4
    return v4 or v6 if family == FAMILY_V4_PREFERRED else v6 or v4
