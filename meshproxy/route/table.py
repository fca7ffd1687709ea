"""The compiled route table: from a host to its virtual host, and on to the first route whose conditions hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.regex import RegexSet
from meshproxy.observe.stream_info import StreamInfo
from meshproxy.route.match import Lookup, RouteMatch, Step, Subject
from meshproxy.route.rewrite import path_end
from meshproxy.route.route import ROUTE_REDIRECT, TLS_ALL, TLS_NONE, Route, VirtualHost

_FREED_A_STEP: Final = 32  # routes


class HostRoutes:
    """The routes of one virtual host, in order."""

    def __init__(
        self,
        virtual_host: VirtualHost,
        routes: list[RouteMatch],
        steps: list[Step],
        subjects: list[Subject],
        path_patterns: RegexSet | None,
    ) -> None:
        self.virtual_host = virtual_host
        self.routes = routes
        self.steps = steps
        self.subjects = subjects
        self.path_patterns = path_patterns
        self.tls_redirect = Route("", virtual_host, ROUTE_REDIRECT)
        # The route that takes every path, when it comes first: most virtual hosts of a mesh have no other.
        self.for_all: Route | None = routes[0].for_all_paths() if routes else None

    def match(self, headers: HeaderMap, info: StreamInfo, random: int, ignore_path_parameters: bool) -> Route | None:
        host = self.virtual_host
        if host.require_tls != TLS_NONE and _lacks_tls(headers):
            if host.require_tls == TLS_ALL or not info.internal:
                return self.tls_redirect
        target = headers.get(b":path")
        if target is None:
            return self._match_connect(headers, info, random)
        if self.for_all is not None and target.startswith(b"/"):
            return self.for_all
        path = target[: path_end(target)]
        if ignore_path_parameters and b";" in path:
            path = path[: path.find(b";")]
        lookup = Lookup(headers, info, random, target, path, self.subjects, self.path_patterns)
        for step in self.steps:
            route = step.find(lookup)
            if route is not None:
                return route
        return None

    def _match_connect(self, headers: HeaderMap, info: StreamInfo, random: int) -> Route | None:
        lookup = Lookup(headers, info, random, b"", b"", self.subjects, None)
        for candidate in self.routes:
            route = candidate.find_connect(lookup)
            if route is not None:
                return route
        return None

    def dismantle(self) -> Iterator[None]:
        """As `RouteTable.dismantle`."""
        self.steps.clear()
        self.for_all = None
        while self.routes:
            del self.routes[-_FREED_A_STEP:]
            yield


def _lacks_tls(headers: HeaderMap) -> bool:
    """Envoy judges by x-forwarded-proto, which the connection manager has set."""
    return headers.get(b"x-forwarded-proto") != b"https"


class RouteTable:
    """A RouteConfiguration. Never changes: an update is another table."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.exact: dict[bytes, HostRoutes] = {}
        # By the length of the literal part, longest first; then by that part.
        self.suffixes: list[tuple[int, dict[bytes, HostRoutes]]] = []
        self.prefixes: list[tuple[int, dict[bytes, HostRoutes]]] = []
        self.default: HostRoutes | None = None
        self.virtual_hosts: list[HostRoutes] = []
        self.only_default: bool = False

        self.ignore_port_in_host_matching: bool = False
        self.ignore_path_parameters: bool = False
        self.host_header: bytes = b":authority"  # `vhost_header` names another
        self.internal_only_headers: frozenset[bytes] = frozenset()  # to be dropped from external requests
        self.max_direct_response_body_size_bytes: int = 4096
        self.validate_clusters: bool | None = None  # None: not said; Envoy then validates static tables only
        self.referenced: list[tuple[str, str]] = []  # (cluster, path of the field that names it)

    @property
    def clusters(self) -> frozenset[str]:
        """The clusters that the configuration names."""
        return frozenset([name for name, _ in self.referenced])

    def check_clusters(self, known: Callable[[str], bool]) -> list[tuple[str, str]]:
        """The references to clusters that are not known: (cluster, path)."""
        return [(name, path) for name, path in self.referenced if not known(name)]

    def file(self, domain: bytes, routes: HostRoutes) -> bool:
        """For a build: these routes are for that domain, in lower case. False when it is taken."""
        if domain == b"*":
            if self.default is not None:
                return False
            self.default = routes
            return True
        held = self.exact
        if domain.startswith(b"*"):
            domain = domain[1:]
            held = _of_length(self.suffixes, len(domain))
        elif domain.endswith(b"*"):
            domain = domain[:-1]
            held = _of_length(self.prefixes, len(domain))
        if domain in held:
            return False
        held[domain] = routes
        return True

    def copy(self) -> RouteTable:
        """Another table with the same virtual hosts, for a build to change."""
        made = RouteTable(self.name)
        made.exact = self.exact.copy()
        made.suffixes = [(length, held.copy()) for length, held in self.suffixes]
        made.prefixes = [(length, held.copy()) for length, held in self.prefixes]
        made.default = self.default
        made.virtual_hosts = self.virtual_hosts.copy()
        made.only_default = self.only_default
        made.ignore_port_in_host_matching = self.ignore_port_in_host_matching
        made.ignore_path_parameters = self.ignore_path_parameters
        made.host_header = self.host_header
        made.internal_only_headers = self.internal_only_headers
        made.max_direct_response_body_size_bytes = self.max_direct_response_body_size_bytes
        made.validate_clusters = self.validate_clusters
        made.referenced = self.referenced.copy()
        return made

    def remove(self, routes: HostRoutes, domains: list[bytes]) -> None:
        """For a build: a virtual host, which has these domains, is gone."""
        self.virtual_hosts.remove(routes)
        for domain in domains:
            if domain == b"*":
                self.default = None
            elif domain.startswith(b"*"):
                del _of_length(self.suffixes, len(domain) - 1)[domain[1:]]
            elif domain.endswith(b"*"):
                del _of_length(self.prefixes, len(domain) - 1)[domain[:-1]]
            else:
                del self.exact[domain]

    def seal(self) -> None:
        """The last step of a build."""
        self.suffixes.sort(key=_by_length, reverse=True)
        self.prefixes.sort(key=_by_length, reverse=True)
        self.only_default = not (self.exact or self.suffixes or self.prefixes)

    def dismantle(self) -> Iterator[None]:
        """Nobody matches by it any more: its parts are freed one by one, since all at once would hold the loop."""
        self.exact.clear()
        self.suffixes.clear()
        self.prefixes.clear()
        self.default = None
        while self.virtual_hosts:
            yield from self.virtual_hosts.pop().dismantle()

    def match(self, headers: HeaderMap, info: StreamInfo, random: int) -> Route | None:
        """The route of a request; None when there is none.

        `random` (at least 0) decides runtime fractions and weighted clusters; the same number gives the same answer.
        """
        found = self.find_host(headers)
        return None if found is None else found.match(headers, info, random, self.ignore_path_parameters)

    def find_host(self, headers: HeaderMap) -> HostRoutes | None:
        """Exact names first, then the longest `*.suffix`, then the longest `prefix.*`, then `*`."""
        if self.only_default:
            return self.default
        value = headers.get(self.host_header)
        return None if value is None else self.find_name(value)

    def find_name(self, value: bytes) -> HostRoutes | None:
        """As `find_host`, by what the header says."""
        host = (without_port(value) if self.ignore_port_in_host_matching else value).lower()
        found = self.exact.get(host)
        if found is not None:
            return found
        size = len(host)
        # The `*` stands for one character at least.
        for length, by_suffix in self.suffixes:
            if length < size:
                found = by_suffix.get(host[size - length :])
                if found is not None:
                    return found
        for length, by_prefix in self.prefixes:
            if length < size:
                found = by_prefix.get(host[:length])
                if found is not None:
                    return found
        return self.default


def _by_length(entry: tuple[int, dict[bytes, HostRoutes]]) -> int:
    return entry[0]


def _of_length(entries: list[tuple[int, dict[bytes, HostRoutes]]], length: int) -> dict[bytes, HostRoutes]:
    """The dict for names of that length, made when it is not there."""
    for held, by_name in entries:
        if held == length:
            return by_name
    made: dict[bytes, HostRoutes] = {}
    entries.append((length, made))
    return made


def without_port(host: bytes) -> bytes:
    """A host without its port; an IPv6 address stands in brackets."""
    colon = host.rfind(b":")
    return host[:colon] if colon > host.rfind(b"]") else host
