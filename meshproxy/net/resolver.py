"""Resolving names to addresses, without blocking the loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from mypy_extensions import mypyc_attr

from meshproxy.net.dispatcher import Dispatcher

# Which addresses are wanted (Cluster.DnsLookupFamily).
FAMILY_AUTO: Final = 0  # IPv6; IPv4 when there is none
FAMILY_V4_ONLY: Final = 1
FAMILY_V6_ONLY: Final = 2
FAMILY_V4_PREFERRED: Final = 3  # IPv4; IPv6 when there is none
FAMILY_ALL: Final = 4

_V4: Final = int(socket.AF_INET)
_V6: Final = int(socket.AF_INET6)
_ORDER: Final = {
    FAMILY_AUTO: (_V6, _V4),
    FAMILY_V4_ONLY: (_V4,),
    FAMILY_V6_ONLY: (_V6,),
    FAMILY_V4_PREFERRED: (_V4, _V6),
    FAMILY_ALL: (_V4, _V6),
}
_NO_SUCH_NAME: Final = frozenset((socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)))


class Resolution:
    """What became of a query: the IP addresses, in order (none: the name has none), or why it could not be answered."""

    def __init__(self, addresses: list[str], error: str = "") -> None:
        self.addresses = addresses
        self.error = error


ResolveCallback = Callable[[Resolution], None]


@mypyc_attr(allow_interpreted_subclasses=True)
class DnsQuery:
    """A query under way."""

    def cancel(self) -> None:
        """The callback hears nothing."""
        raise NotImplementedError


@mypyc_attr(allow_interpreted_subclasses=True)
class Resolver:
    """Resolves names."""

    def resolve(self, name: str, family: int, callback: ResolveCallback) -> DnsQuery:
        """Call back once, in a later turn. `family` is one of FAMILY_*."""
        raise NotImplementedError


class SystemResolver(Resolver):
    """The resolver of the C library (hosts file, resolv.conf, NSS), run by the loop in threads of its own."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def resolve(self, name: str, family: int, callback: ResolveCallback) -> DnsQuery:
        query = _SystemQuery(self._dispatcher, callback)
        query.start(name, family)
        return query


class _SystemQuery(DnsQuery):
    def __init__(self, dispatcher: Dispatcher, callback: ResolveCallback) -> None:
        self._dispatcher = dispatcher
        self._callback: ResolveCallback | None = callback
        self._task: asyncio.Task[Resolution] | None = None

    def start(self, name: str, family: int) -> None:
        coroutine = self._resolve(name, family)
        self._task = self._dispatcher.run(coroutine, f"resolve {name}", self._on_done)

    def cancel(self) -> None:
        self._callback = None
        if self._task is not None:
            self._task.cancel()

    def _on_done(self, task: asyncio.Task[Resolution]) -> None:
        callback, self._callback = self._callback, None
        if callback is None or task.cancelled():
            return
        error = task.exception()
        callback(task.result() if error is None else Resolution([], str(error)))

    async def _resolve(self, name: str, family: int) -> Resolution:
        found: list[str] = []
        error = ""
        for wanted in _ORDER[family]:
            try:
                answers = await self._dispatcher.loop.getaddrinfo(name, None, family=wanted, type=socket.SOCK_STREAM)
            except OSError as failure:
                if failure.errno not in _NO_SUCH_NAME:
                    error = failure.strerror or str(failure)
                continue
            for answer in answers:
                address = str(answer[4][0])
                if address not in found:
                    found.append(address)
            if found and family != FAMILY_ALL:
                break
        return Resolution(found, "" if found else error)
