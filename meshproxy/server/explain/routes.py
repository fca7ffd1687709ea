"""Which virtual host and which route a request takes, and why it passed the ones before. The table itself decides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.errors import item
from meshproxy.observe.stream_info import StreamInfo
from meshproxy.route.match import RouteMatch
from meshproxy.route.path_matcher import ConnectMatcher
from meshproxy.route.query_matcher import parse_query
from meshproxy.route.rewrite import path_end
from meshproxy.route.route import Route
from meshproxy.route.table import HostRoutes, RouteTable, without_port
from meshproxy.server.explain import words

Plain = dict[str, Any]


class RouteWalk:
    """`table_path` is where the table stands in the configuration. `steps` run to their end fill in the answers."""

    def __init__(self, table: RouteTable, table_path: str, headers: HeaderMap, info: StreamInfo, random: int) -> None:
        self.table = table
        self.table_path = table_path
        self.headers = headers
        self.info = info
        self.random = random
        self.host: HostRoutes | None = None
        self.host_shown: Plain | None = None
        self.hosts_passed: list[Plain] = []
        self.route: Route | None = None
        self.match: RouteMatch | None = None  # whose route it is; None with a route: the redirect of `require_tls`
        self.routes_passed: list[Plain] = []

    def steps(self) -> Iterator[None]:
        table = self.table
        self.host = table.find_host(self.headers)
        self.route = table.match(self.headers, self.info, self.random)
        yield from self._walk_hosts()
        if self.host is not None and self.route is not self.host.tls_redirect:
            yield from self._walk_routes(self.host)

    # -- virtual hosts

    def _walk_hosts(self) -> Iterator[None]:
        table = self.table
        value = self.headers.get(table.host_header) or b""
        host = (without_port(value) if table.ignore_port_in_host_matching else value).lower()
        domains = _domains_of(table)
        taken = "" if self.host is None else max(_fitting(domains.get(self.host, []), host), key=_rank)
        for index, each in enumerate(table.virtual_hosts):
            shown: Plain = {
                "name": each.virtual_host.name,
                "path": item(self.table_path, "virtual_hosts", index),
            }
            if each is self.host:
                self.host_shown = shown | {"domain": taken}
            else:
                shown["reason"] = _host_reason(domains.get(each, []), host, taken)
                self.hosts_passed.append(shown)
            yield

    # -- routes

    def _walk_routes(self, host: HostRoutes) -> Iterator[None]:
        assert self.host_shown is not None
        target = self.headers.get(b":path")
        path = None if target is None else self._matched_part(target)
        parameters = {} if target is None else parse_query(target)
        for match in host.routes:
            if self.route is not None and is_of(match, self.route):
                self.match = match
                return
            self.routes_passed.append(
                {
                    "name": match.route.name,
                    "path": item(self.host_shown["path"], "routes", match.order),
                    "reason": self._why_not(match, path, parameters),
                }
            )
            yield

    def _matched_part(self, target: bytes) -> bytes:
        """What path conditions look at."""
        path = target[: path_end(target)]
        return path.partition(b";")[0] if self.table.ignore_path_parameters else path

    def _why_not(self, match: RouteMatch, path: bytes | None, parameters: dict[bytes, bytes]) -> str:
        matcher = match.path_matcher
        if path is None:
            if not isinstance(matcher, ConnectMatcher):
                return "the request is a CONNECT, and has no path: only a connect_matcher takes it"
        elif not matcher.match(path):
            return words.path_words(matcher, negated=True)
        found = words.other_conditions_why_not(match, self.headers, self.info, self.random, parameters)
        if not found and match.weighted is not None:
            return "its conditions hold, but the runtime sets the weights of all its clusters to 0"
        return "; ".join(found) or f"it does not fit its {words.UNNAMED}"


def is_of(match: RouteMatch, route: Route) -> bool:
    """Whether it is the route of `match`, or one of its weighted clusters'."""
    if match.weighted is None:
        return match.route is route
    return any(each is route for each in match.weighted.routes)


def _domains_of(table: RouteTable) -> dict[HostRoutes, list[str]]:
    """The domains of each virtual host, as they were written but for their case."""
    found: dict[HostRoutes, list[str]] = {}
    for domain, host in table.exact.items():
        found.setdefault(host, []).append(words.text(domain))
    for _, suffixes in table.suffixes:
        for suffix, host in suffixes.items():
            found.setdefault(host, []).append("*" + words.text(suffix))
    for _, prefixes in table.prefixes:
        for prefix, host in prefixes.items():
            found.setdefault(host, []).append(words.text(prefix) + "*")
    if table.default is not None:
        found.setdefault(table.default, []).append("*")
    return found


def _fitting(domains: list[str], host: bytes) -> list[str]:
    return [domain for domain in domains if _fits(domain, words.text(host))]


def _fits(domain: str, host: str) -> bool:
    if domain in ("*", host):
        return True
    if domain.startswith("*"):
        return len(host) >= len(domain) and host.endswith(domain[1:])
    return domain.endswith("*") and len(host) >= len(domain) and host.startswith(domain[:-1])


def _rank(domain: str) -> tuple[int, int]:
    """Exact names first, then suffixes, then prefixes, then `*`; the longest of a kind."""
    if domain == "*":
        return 0, 0
    return 2 if domain.startswith("*") else 1 if domain.endswith("*") else 3, len(domain)


def _host_reason(domains: list[str], host: bytes, taken: str) -> str:
    fitting = _fitting(domains, host)
    if fitting:
        return f"its domain {max(fitting, key=_rank)} matches, but {taken} is more specific"
    shown = ", ".join(domains[:5]) + (f" … ({len(domains)} in all)" if len(domains) > 5 else "")
    return f"its domains do not match {words.text(host) or 'a request without one'}: {shown}"
