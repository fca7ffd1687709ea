"""Resolving names to addresses: what is asked, what is answered, and by whom."""

from __future__ import annotations

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

V4: Final = int(socket.AF_INET)
V6: Final = int(socket.AF_INET6)


class DnsAddress:
    """An IP address of a name, and for how long it may be kept (0: nobody says)."""

    def __init__(self, ip: str, ttl_s: int) -> None:
        self.ip = ip
        self.ttl_s = ttl_s


class Resolution:
    """What became of a query: the addresses, in order (none: the name has none), or why it could not be answered."""

    def __init__(self, addresses: list[DnsAddress], error: str = "") -> None:
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

    def close(self) -> None:
        """Give up what is under way; the callbacks hear nothing."""


class ResolverCounts:
    """Envoy's `dns.cares.*`: of all lookups of this process."""

    def __init__(self) -> None:
        self.resolve_total: int = 0
        self.pending_resolutions: int = 0
        self.not_found: int = 0
        self.timeouts: int = 0
        self.get_addr_failure: int = 0
        self.reinits: int = 0


class ResolverSettings:
    """What configuration says of a resolver. Envoy's default is c-ares with the system's resolv.conf."""

    def __init__(self) -> None:
        self.getaddrinfo: bool = False  # the C library's resolver, and not c-ares
        # Of c-ares:
        self.servers: tuple[str, ...] = ()  # `address:port`; none: the system's
        self.servers_as_fallback: bool = False  # only when the system has none
        self.use_tcp: bool = False
        self.no_default_search_domain: bool = False
        self.filter_unroutable_families: bool = False
        self.udp_max_queries: int = 0  # from one port; 0: no limit
        self.max_channel_ms: float = 0.0  # how long a port is used at most; 0.0: no limit
        self.timeout_s: int = 5  # of the first try
        self.tries: int = 4
        self.rotate: bool = False
        self.reinit_on_timeout: bool = False
        # Of getaddrinfo:
        self.retries: int = -1  # of temporary failures; -1: for ever
        self.threads: int = 1

    def key(self) -> str:
        """Equal for settings that one resolver serves."""
        if self.getaddrinfo:
            return f"getaddrinfo {self.retries} {self.threads}"
        flags = (
            self.servers_as_fallback,
            self.use_tcp,
            self.no_default_search_domain,
            self.filter_unroutable_families,
            self.rotate,
            self.reinit_on_timeout,
        )
        limits = (self.udp_max_queries, self.max_channel_ms, self.timeout_s, self.tries)
        return f"cares {self.servers} {flags} {limits}"


class _Shared:
    def __init__(self, resolver: Resolver) -> None:
        self.resolver = resolver
        self.users: int = 0


@mypyc_attr(allow_interpreted_subclasses=True)
class Resolvers:
    """The resolvers of one process: whoever asks for the same settings shares one."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.counts = ResolverCounts()
        self._dispatcher = dispatcher
        self._shared: dict[str, _Shared] = {}

    def acquire(self, settings: ResolverSettings) -> Resolver:
        """The resolver for these settings, until it is released."""
        key = settings.key()
        shared = self._shared.get(key)
        if shared is None:
            shared = self._shared[key] = _Shared(self.new(settings))
        shared.users += 1
        return shared.resolver

    def release(self, settings: ResolverSettings) -> None:
        """The last user's closes the resolver."""
        key = settings.key()
        shared = self._shared[key]
        shared.users -= 1
        if shared.users == 0:
            del self._shared[key]
            shared.resolver.close()

    def new(self, settings: ResolverSettings) -> Resolver:
        """A resolver with these settings. Its library is loaded when the first name is to be resolved."""
        if settings.getaddrinfo:
            from meshproxy.net.dns_getaddrinfo import GetAddrInfoResolver

            return GetAddrInfoResolver(self._dispatcher, settings)
        from meshproxy.net.dns_cares import CaresResolver

        return CaresResolver(self._dispatcher, settings, self.counts)
