"""Conditions of a VirtualService as `RouteMatch`es."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envoy.config.route.v3.route_components_pb2 import HeaderMatcher, QueryParameterMatcher, RouteMatch
from envoy.type.matcher.v3.regex_pb2 import RegexMatcher
from envoy.type.matcher.v3.string_pb2 import StringMatcher

from meshproxy.pilot.documents.virtual_service import MESH
from meshproxy.pilot.resources.messages import boolean

if TYPE_CHECKING:
    from meshproxy.pilot.documents.common import StringMatch
    from meshproxy.pilot.documents.virtual_service import HTTPMatchRequest


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose routes they are: what conditions on the source, the gateway and the port are decided by here already."""

    namespace: str
    labels: tuple[tuple[str, str], ...]
    gateways: frozenset[str] = frozenset((MESH,))


def string_matcher(match: StringMatch, *, ignore_case: bool = False) -> StringMatcher:
    if match.exact is not None:
        return StringMatcher(exact=match.exact, ignore_case=ignore_case)
    if match.prefix is not None:
        return StringMatcher(prefix=match.prefix, ignore_case=ignore_case)
    return StringMatcher(safe_regex=RegexMatcher(regex=match.regex or ""))


def applies(match: HTTPMatchRequest, caller: Caller, port: int) -> bool:
    """Whether the route can be taken by this caller, on this port, at all."""
    if match.port is not None and match.port != port:
        return False
    if match.source_namespace and match.source_namespace != caller.namespace:
        return False
    if match.gateways and caller.gateways.isdisjoint(match.gateways):
        return False
    return set(match.source_labels) <= set(caller.labels)


def route_match(match: HTTPMatchRequest | None) -> RouteMatch:
    """All the other conditions; without any, every request."""
    if match is None:
        return RouteMatch(prefix="/")
    message = RouteMatch()
    _set_path(message, match)
    for name, wanted in ((":scheme", match.scheme), (":method", match.method), (":authority", match.authority)):
        if wanted is not None:
            message.headers.append(header_matcher(name, wanted))
    message.headers.extend(header_matcher(name.lower(), wanted) for name, wanted in match.headers)
    message.headers.extend(_without(name.lower(), unwanted) for name, unwanted in match.without_headers)
    message.query_parameters.extend(_query_matchers(match.query_params))
    return message


def is_catch_all(message: RouteMatch) -> bool:
    """Whether no request gets past it."""
    everywhere = message.prefix == "/" or message.safe_regex.regex == ".*"
    return everywhere and not message.headers and not message.query_parameters


def header_matcher(name: str, wanted: StringMatch) -> HeaderMatcher:
    """The empty condition is that there is such a header."""
    if wanted.is_presence:
        return HeaderMatcher(name=name, present_match=True)
    return HeaderMatcher(name=name, string_match=string_matcher(wanted))


def _without(name: str, unwanted: StringMatch) -> HeaderMatcher:
    """Not such a header: one that is missing altogether is not such a one."""
    matcher = header_matcher(name, unwanted)
    matcher.invert_match = True
    matcher.treat_missing_header_as_empty = not unwanted.is_presence
    return matcher


def _set_path(message: RouteMatch, match: HTTPMatchRequest) -> None:
    if match.uri is None or match.uri.is_presence:
        message.prefix = "/"
    elif match.uri.exact is not None:
        message.path = match.uri.exact
    elif match.uri.prefix is not None:
        message.prefix = match.uri.prefix
    else:
        message.safe_regex.CopyFrom(RegexMatcher(regex=match.uri.regex or ""))
    if match.ignore_uri_case and not message.HasField("safe_regex"):
        message.case_sensitive.CopyFrom(boolean(False))


def _query_matchers(wanted: Iterable[tuple[str, StringMatch]]) -> list[QueryParameterMatcher]:
    return [
        QueryParameterMatcher(name=name, present_match=True)
        if match.is_presence
        else QueryParameterMatcher(name=name, string_match=string_matcher(match))
        for name, match in wanted
    ]
