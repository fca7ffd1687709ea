"""The conditions of a route, and how the routes of a virtual host are tried in order.

A `Lookup` holds what the conditions look at, each thing looked up at most once however many routes ask for it.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final

from meshproxy.codec.grpc import is_grpc
from meshproxy.codec.headers import HeaderMap
from meshproxy.config.regex import RegexSet
from meshproxy.config.runtime import Fraction
from meshproxy.observe.stream_info import StreamInfo
from meshproxy.route.header_matcher import HeaderMatcher
from meshproxy.route.metadata_matcher import FilterStateMatcher, MetadataMatcher
from meshproxy.route.path_matcher import ConnectMatcher, PathMatcher, PathPrefix
from meshproxy.route.query_matcher import QueryMatcher, parse_query
from meshproxy.route.route import Route
from meshproxy.route.weighted import WeightedRoutes

INDEX_FROM: Final = 8  # so many routes with literal paths in a row are worth an index
LOOKED_AT_A_STEP: Final = 256  # routes, where a build only looks at them: well below a millisecond


class Subject:
    """A header that conditions of one virtual host look at, and the set of the expressions that compete for it."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.patterns: RegexSet | None = None


class Lookup:
    """One request, as the conditions of one virtual host see it."""

    def __init__(
        self,
        headers: HeaderMap,
        info: StreamInfo,
        random: int,
        target: bytes,
        path: bytes,
        subjects: list[Subject],
        path_patterns: RegexSet | None,
    ) -> None:
        self.headers = headers
        self.info = info
        self.random = random
        self.target = target  # :path as it is
        self.path = path  # without query and fragment
        self.subjects = subjects
        self.seen: int = 0  # a bit per subject that was looked up
        self.several: int = 0  # a bit per subject that has more than one field
        self.values: list[bytes | None] | None = None
        self.hits: list[list[int] | None] | None = None
        self.query: dict[bytes, bytes] | None = None
        self.path_patterns = path_patterns
        self.path_hits: list[int] | None = None

    def path_matches(self, pattern: int) -> bool:
        """Whether the path matches that one of the virtual host's `path_patterns`."""
        hits = self.path_hits
        if hits is None:
            hits = [] if self.path_patterns is None else self.path_patterns.match(self.path)
            self.path_hits = hits
        return pattern in hits

    def holds(self, matcher: HeaderMatcher) -> bool:
        slot = matcher.slot
        bit = 1 << slot
        values = self.values
        if values is None:
            values = [None] * len(self.subjects)
            self.values = values
        if not self.seen & bit:
            self.seen |= bit
            values[slot] = self._look_up(matcher.name, bit)
        if self.several & bit:
            return matcher.match_several(self.headers)
        value = values[slot]
        if matcher.pattern < 0 or value is None:
            return matcher.match_value(value)
        return (matcher.pattern in self._hits_of(slot, value)) != matcher.invert

    def _hits_of(self, slot: int, value: bytes) -> list[int]:
        """The expressions on a header that match its value."""
        all_hits = self.hits
        if all_hits is None:
            all_hits = [None] * len(self.subjects)
            self.hits = all_hits
        hits = all_hits[slot]
        if hits is None:
            patterns = self.subjects[slot].patterns
            hits = [] if patterns is None else patterns.match(value)
            all_hits[slot] = hits
        return hits

    def _look_up(self, name: bytes, bit: int) -> bytes | None:
        """The first value of a header; notes when there are several."""
        found: bytes | None = None
        for field in self.headers.fields:
            if field[0] == name:
                if found is not None:
                    self.several |= bit
                    break
                found = field[1]
        return found

    def parameters(self) -> dict[bytes, bytes]:
        query = self.query
        if query is None:
            query = parse_query(self.target)
            self.query = query
        return query


class Step:
    """One step of the search through a virtual host: a route, or an index over several."""

    def find(self, lookup: Lookup) -> Route | None:
        raise NotImplementedError


class RouteMatch(Step):
    """The conditions of one route, and the Route (or the weighted ones) that it gives."""

    def __init__(self, path_matcher: PathMatcher, route: Route, order: int) -> None:
        self.path_matcher = path_matcher
        self.path_pattern: int = -1  # the index of the path's expression in the virtual host's set
        self.route = route
        self.order = order
        self.weighted: WeightedRoutes | None = None
        self.plain: bool = True  # no condition but the path
        self.headers: list[HeaderMatcher] = []
        self.query: list[QueryMatcher] = []
        self.fraction: Fraction | None = None
        self.grpc: bool = False
        self.tls_presented: bool | None = None
        self.tls_validated: bool | None = None
        self.metadata: list[MetadataMatcher] = []
        self.filter_state: list[FilterStateMatcher] = []

    def seal(self) -> None:
        """Settle `plain`; the last step of a build."""
        self.plain = not (
            self.headers
            or self.query
            or self.fraction is not None
            or self.grpc
            or self.tls_presented is not None
            or self.tls_validated is not None
            or self.metadata
            or self.filter_state
        )

    def for_all_paths(self) -> Route | None:
        """Its route, if it takes every request whose path begins with a slash."""
        matcher = self.path_matcher
        takes_all = type(matcher) is PathPrefix and matcher.literal in (b"", b"/")
        return self.route if takes_all and self.plain and self.weighted is None else None

    def find(self, lookup: Lookup) -> Route | None:
        if self.path_pattern >= 0:
            if not lookup.path_matches(self.path_pattern):
                return None
        elif not self.path_matcher.match(lookup.path):
            return None
        if not self.plain and not self._holds(lookup):
            return None
        weighted = self.weighted
        return self.route if weighted is None else weighted.pick(lookup.headers, lookup.random, lookup.info)

    def find_connect(self, lookup: Lookup) -> Route | None:
        """As `find`, for a request without a path: only a `connect_matcher` takes it."""
        if not isinstance(self.path_matcher, ConnectMatcher) or not (self.plain or self._holds(lookup)):
            return None
        weighted = self.weighted
        return self.route if weighted is None else weighted.pick(lookup.headers, lookup.random, lookup.info)

    def _holds(self, lookup: Lookup) -> bool:
        if self.fraction is not None and not self.fraction.sample(lookup.random):
            return False
        if self.grpc and not is_grpc(lookup.headers):
            return False
        for matcher in self.headers:
            if not lookup.holds(matcher):
                return False
        for query in self.query:
            if not query.matches(lookup.parameters()):
                return False
        return self._tls_holds(lookup.info) and self._state_holds(lookup.info)

    def _tls_holds(self, info: StreamInfo) -> bool:
        if self.tls_presented is None and self.tls_validated is None:
            return True
        tls: Any = info.connection.tls
        presented = tls is not None and bool(tls.peer_certificate_presented)
        validated = tls is not None and bool(tls.peer_certificate_validated)
        if self.tls_presented is not None and self.tls_presented != presented:
            return False
        return self.tls_validated is None or self.tls_validated == validated

    def _state_holds(self, info: StreamInfo) -> bool:
        for metadata in self.metadata:
            if not metadata.matches(info.dynamic_metadata):
                return False
        return all(state.matches(info) for state in self.filter_state)


class LiteralIndex(Step):
    """Many routes in a row with literal paths: those that can match are found by dict, and tried in their order."""

    def __init__(self) -> None:
        self.routes: list[RouteMatch] = []
        self.exact: dict[bytes, list[RouteMatch]] = {}
        self.prefixes: dict[bytes, list[RouteMatch]] = {}
        self.lengths: list[int] = []

    def add(self, route: RouteMatch) -> None:
        """The next one of the row."""
        matcher = route.path_matcher
        self.routes.append(route)
        (self.exact if matcher.is_exact else self.prefixes).setdefault(matcher.literal, []).append(route)
        if not matcher.is_exact and len(matcher.literal) not in self.lengths:
            self.lengths.append(len(matcher.literal))
            self.lengths.sort()

    def find(self, lookup: Lookup) -> Route | None:
        path = lookup.path
        candidates = self.exact.get(path)
        for length in self.lengths:
            if length > len(path):
                break
            found = self.prefixes.get(path[:length])
            if found is not None:
                candidates = found if candidates is None else merge(candidates, found)
        if candidates is not None:
            for candidate in candidates:
                route = candidate.find(lookup)
                if route is not None:
                    return route
        return None


def merge(left: list[RouteMatch], right: list[RouteMatch]) -> list[RouteMatch]:
    """Two lists in configured order, as one."""
    merged: list[RouteMatch] = []
    at = 0
    for route in left:
        while at < len(right) and right[at].order < route.order:
            merged.append(right[at])
            at += 1
        merged.append(route)
    merged.extend(right[at:])
    return merged


def make_steps(routes: list[RouteMatch]) -> Generator[None, None, list[Step]]:
    """The routes as steps, with an index over each long run of literal paths."""
    steps: list[Step] = []
    index = LiteralIndex()
    for i in range(len(routes)):
        if routes[i].path_matcher.is_literal:
            index.add(routes[i])
        else:
            _close_run(index, steps)
            index = LiteralIndex()
            steps.append(routes[i])
        if i % LOOKED_AT_A_STEP == LOOKED_AT_A_STEP - 1:
            yield
    _close_run(index, steps)
    return steps


def _close_run(index: LiteralIndex, steps: list[Step]) -> None:
    if len(index.routes) >= INDEX_FROM:
        steps.append(index)
    else:
        steps.extend(index.routes)
