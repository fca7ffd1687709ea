"""Resolving names with c-ares, the library that Envoy uses: hosts file, resolv.conf, TTLs; on the loop, no threads.

The rules of the lookups (which family first, what counts as an answer without records, when the servers are read anew)
are those of Envoy's c-ares resolver.
"""

from __future__ import annotations

from typing import Any, Final

import pycares
from pycares import errno as ares

from meshproxy.clock import monotonic
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.net.interfaces import routable_families
from meshproxy.net.resolver import (
    FAMILY_ALL,
    FAMILY_AUTO,
    FAMILY_V4_ONLY,
    FAMILY_V4_PREFERRED,
    V4,
    V6,
    DnsAddress,
    DnsQuery,
    Resolution,
    ResolveCallback,
    Resolver,
    ResolverCounts,
    ResolverSettings,
)
from meshproxy.net.timers import Timer

_NO_SORT: Final = 1 << 7  # ARES_AI_NOSORT: addresses stay in the order of the answer
_BOTH: Final = 0  # AF_UNSPEC
_NONE: Final = -1
_NO_RECORDS: Final = (ares.ARES_ENODATA, ares.ARES_ENOTFOUND)
_BROKEN: Final = (ares.ARES_ECONNREFUSED, ares.ARES_EREFUSED, ares.ARES_ESERVFAIL, ares.ARES_ENOTIMP)
_NO_SERVERS: Final = (["127.0.0.1"], ["127.0.0.1:53"])  # what c-ares asks when the system names none
_LONGEST_TTL_S: Final = 2**31 - 1  # RFC 2181 section 8
_LONGEST_USE_MS: Final = 500.0  # of a channel, and of what it caches


class CaresResolver(Resolver):
    """Asks over one channel at a time. A channel is not kept: it caches answers, which nothing but a TTL would end."""

    def __init__(self, dispatcher: Dispatcher, settings: ResolverSettings, counts: ResolverCounts) -> None:
        self.dispatcher = dispatcher
        self.settings = settings
        self.counts = counts
        self._channel: _Channel | None = None
        self._retired: list[_Channel] = []  # those with lookups under way

    def resolve(self, name: str, family: int, callback: ResolveCallback) -> DnsQuery:
        query = _Query(self, name, family, callback)
        query.start()
        return query

    def close(self) -> None:
        self.renew()
        channels, self._retired = self._retired, []
        for channel in channels:
            channel.close()

    def look_up(self, query: _Query, family: int) -> None:
        """One lookup of a query: `query.on_answer` hears of it in a later turn."""
        self.counts.pending_resolutions += 1
        if self._channel is not None and self._channel.worn:
            self.renew()
        if self._channel is None:
            self._channel = _Channel(self)
        self._channel.look_up(query, family)

    def renew(self) -> None:
        """Ask from another port from now on, and the servers that the system names then."""
        channel, self._channel = self._channel, None
        if channel is not None:
            self._retired.append(channel)

    def on_channel_idle(self, channel: _Channel) -> None:
        if channel is self._channel:
            self._channel = None
        else:
            self._retired.remove(channel)
        channel.close()


class _Query(DnsQuery):
    """One name: one lookup, or a second one for the other family when the first brought nothing."""

    def __init__(self, resolver: CaresResolver, name: str, family: int, callback: ResolveCallback) -> None:
        self.name = name
        self._resolver = resolver
        self._family = family
        self._callback: ResolveCallback | None = callback
        self._next: int = V4 if family == FAMILY_AUTO else V6 if family == FAMILY_V4_PREFERRED else _NONE
        self._error: str = ""

    def start(self) -> None:
        family = self._family
        if family == FAMILY_ALL:
            self._look_up(_BOTH)
        else:
            self._look_up(V4 if family in (FAMILY_V4_ONLY, FAMILY_V4_PREFERRED) else V6)

    def cancel(self) -> None:
        self._callback = None

    def _look_up(self, family: int) -> None:
        self._resolver.look_up(self, family)

    def on_answer(self, addresses: list[DnsAddress], status: int) -> None:
        """Of one lookup."""
        resolver = self._resolver
        _count(resolver.counts, status)
        if self._callback is None:
            return
        if status and status not in _NO_RECORDS:
            self._error = str(pycares.errno.strerror(status))
        if addresses or self._next == _NONE:
            self._finish(addresses, status)
            return
        family, self._next = self._next, _NONE
        self._look_up(family)

    def _finish(self, addresses: list[DnsAddress], status: int) -> None:
        resolver = self._resolver
        if status in _BROKEN or (status == ares.ARES_ETIMEOUT and resolver.settings.reinit_on_timeout):
            resolver.counts.reinits += 1
            resolver.renew()
        callback, self._callback = self._callback, None
        if callback is not None:
            callback(Resolution(addresses, "" if addresses else self._error))


class _Lookup:
    """What c-ares calls back for one lookup. It runs inside of c-ares: the answer waits until c-ares is done."""

    def __init__(self, channel: _Channel, query: _Query) -> None:
        self.query = query
        self.result: pycares.AddrInfoResult | None = None
        self.status: int = 0
        self._channel = channel

    def on_result(self, result: pycares.AddrInfoResult | None, status: int | None) -> None:
        self.result = result
        self.status = status or 0
        self._channel.done.append(self)


class _Channel(Timer):
    """A channel of c-ares: its sockets on the loop, and its timeouts. It is closed when nothing is under way."""

    def __init__(self, resolver: CaresResolver) -> None:
        super().__init__()
        self._lookups: int = 0  # so far
        self._pending: int = 0
        self.done: list[_Lookup] = []
        self._resolver = resolver
        self._dispatcher = resolver.dispatcher
        self._sockets: set[int] = set()
        self._delivering: bool = False
        self._closed: bool = False
        self._ares: Any = self._open(resolver.settings)
        self._worn_at: float = monotonic() + _lifetime_ms(resolver.settings) / 1000.0

    def _open(self, settings: ResolverSettings) -> pycares.Channel:
        flags = pycares.ARES_FLAG_USEVC if settings.use_tcp else 0
        if settings.no_default_search_domain:
            flags |= pycares.ARES_FLAG_NOSEARCH
        channel = pycares.Channel(
            flags=flags or None,
            timeout=settings.timeout_s,
            tries=settings.tries,
            rotate=settings.rotate,
            sock_state_cb=self._on_socket,
        )
        if settings.servers and (not settings.servers_as_fallback or channel.servers in _NO_SERVERS):
            channel.servers = settings.servers
        return channel

    @property
    def worn(self) -> bool:
        """It has been used for as long, or as often, as it may be."""
        limit = self._resolver.settings.udp_max_queries
        return monotonic() >= self._worn_at or 0 < limit <= self._lookups

    def look_up(self, query: _Query, family: int) -> None:
        lookup = _Lookup(self, query)
        self._lookups += 2 if family == _BOTH else 1
        self._pending += 1
        if not self._may_route(family):
            lookup.on_result(None, ares.ARES_EBADFAMILY)
        else:
            try:
                self._ares.getaddrinfo(query.name, None, family=family, flags=_NO_SORT, callback=lookup.on_result)
            except UnicodeError:
                lookup.on_result(None, ares.ARES_EBADNAME)
        if self.done and not self._delivering:
            self._dispatcher.post(self._deliver_soon)
        self._arm()

    def _may_route(self, family: int) -> bool:
        return (
            family == _BOTH
            or not self._resolver.settings.filter_unroutable_families
            or family in routable_families()
        )

    def close(self) -> None:
        """Its lookups are heard of no more."""
        self._closed = True
        self.disarm()
        self._resolver.counts.pending_resolutions -= self._pending
        for descriptor in self._sockets:
            self._dispatcher.loop.remove_reader(descriptor)
            self._dispatcher.loop.remove_writer(descriptor)
        self._sockets = set()
        self._ares.cancel()
        self.done = []
        self._ares.close()

    # -- from the loop and from c-ares

    def _on_socket(self, descriptor: int, readable: int, writable: int) -> None:
        """What c-ares wants to know of a socket. Neither: it closes it. (After `close`, in a thread of its own.)"""
        if self._closed:
            return
        loop = self._dispatcher.loop
        if readable:
            loop.add_reader(descriptor, self._process, descriptor, pycares.ARES_SOCKET_BAD)
        else:
            loop.remove_reader(descriptor)
        if writable:
            loop.add_writer(descriptor, self._process, pycares.ARES_SOCKET_BAD, descriptor)
        else:
            loop.remove_writer(descriptor)
        if readable or writable:
            self._sockets.add(descriptor)
        else:
            self._sockets.discard(descriptor)

    def _process(self, read_descriptor: int, write_descriptor: int) -> None:
        if self._closed:
            return
        self._dispatcher.begin_turn()
        try:
            self._ares.process_fd(read_descriptor, write_descriptor)
            self._deliver()
        finally:
            self._dispatcher.end_turn()

    def on_timer(self) -> None:
        self._ares.process_fd(pycares.ARES_SOCKET_BAD, pycares.ARES_SOCKET_BAD)
        self._deliver()

    def _deliver_soon(self) -> None:
        if not self._closed:
            self._dispatcher.begin_turn()
            try:
                self._deliver()
            finally:
                self._dispatcher.end_turn()

    def _deliver(self) -> None:
        """Tell the queries. What they look up meanwhile and is answered at once, is told too."""
        self._delivering = True
        try:
            while self.done:
                lookup = self.done.pop(0)
                self._pending -= 1
                lookup.query.on_answer(self._addresses(lookup.result), lookup.status)
        finally:
            self._delivering = False
        if self._closed:
            return
        if self._pending:
            self._arm()
        else:
            self._resolver.on_channel_idle(self)

    def _addresses(self, result: pycares.AddrInfoResult | None) -> list[DnsAddress]:
        """An alias limits the time for which what it stands for may be kept."""
        if result is None:
            return []
        families = routable_families() if self._resolver.settings.filter_unroutable_families else (V4, V6)
        limit_s = min([cname.ttl for cname in result.cnames], default=_LONGEST_TTL_S)
        nodes = [node for node in result.nodes if node.family in families]
        return [DnsAddress(node.addr[0].decode(), min(node.ttl, limit_s)) for node in nodes]

    def _arm(self) -> None:
        self._dispatcher.timers.arm(self, max(1.0, float(self._ares.timeout()) * 1000.0))


def _lifetime_ms(settings: ResolverSettings) -> float:
    return min(settings.max_channel_ms, _LONGEST_USE_MS) if settings.max_channel_ms > 0.0 else _LONGEST_USE_MS


def _count(counts: ResolverCounts, status: int) -> None:
    counts.resolve_total += 1
    counts.pending_resolutions -= 1
    if status in _NO_RECORDS:
        counts.not_found += 1
    elif status == ares.ARES_ETIMEOUT:
        counts.timeouts += 1
    elif status:
        counts.get_addr_failure += 1
