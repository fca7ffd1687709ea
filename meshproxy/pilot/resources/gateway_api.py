"""HTTPRoute and GRPCRoute of the Gateway API, attached to a service, as routes in the order that the API demands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from envoy.config.route.v3.route_components_pb2 import (
    HeaderMatcher,
    QueryParameterMatcher,
    RedirectAction,
    Route,
    RouteMatch,
)
from envoy.type.matcher.v3.regex_pb2 import RegexMatcher
from envoy.type.matcher.v3.string_pb2 import StringMatcher

from meshproxy.pilot.documents import gateway_api as api
from meshproxy.pilot.documents.common import Percent, PortSelector
from meshproxy.pilot.documents.virtual_service import (
    Destination,
    HeaderOperations,
    Headers,
    HTTPMirrorPolicy,
    HTTPRetry,
    HTTPRoute,
    HTTPRouteDestination,
)
from meshproxy.pilot.mesh.model import service_host
from meshproxy.pilot.resources.actions import REDIRECT_CODES, Destinations, act
from meshproxy.pilot.resources.retries import DEFAULT_ATTEMPTS

Rank = tuple[int, ...]

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_EXACT: Final = 3
_PREFIX: Final = 2
_REGEX: Final = 1
_GATEWAY_ERRORS: Final = "gateway-error,connect-failure,refused-stream"


@dataclass(frozen=True, slots=True)
class Attached:
    """A route attached to a service, with its namespace, to which the names in it are relative."""

    name: str
    namespace: str
    spec: api.HTTPRoute | api.GRPCRoute


def routes_of(attached: Sequence[Attached], destinations: Destinations, domain: str) -> list[Route]:
    """Of all routes of a service, oldest first: more exact conditions come before others, whatever document they stand
    in. A request that no rule matches is answered 404."""
    ranked: list[tuple[Rank, Route]] = []
    for document in attached:
        if isinstance(document.spec, api.HTTPRoute):
            for rule in document.spec.rules or (api.HTTPRouteRule(),):
                ranked += _http_rule(rule, document, destinations, domain)
        else:
            for grpc_rule in document.spec.rules or (api.GRPCRouteRule(),):
                ranked += _grpc_rule(grpc_rule, document, destinations, domain)
    ranked.sort(key=lambda item: item[0], reverse=True)
    return [route for _, route in ranked]


def _http_rule(
    rule: api.HTTPRouteRule, document: Attached, destinations: Destinations, domain: str
) -> list[tuple[Rank, Route]]:
    plain = HTTPRoute(
        name=rule.name or document.name,
        route=_backends(rule.backend_refs, document.namespace, domain),
        headers=_headers(rule.filters),
        mirrors=_mirrors(rule.filters, document.namespace, domain),
        timeout=_timeout(rule),
        retries=_retries(rule),
    )
    found = []
    for match in rule.matches or (api.HTTPRouteMatch(),):
        route = Route(name=plain.name, match=_http_match(match))
        _act(route, plain, destinations)
        for filter_ in rule.filters:
            if filter_.request_redirect is not None:
                _redirect(route, filter_.request_redirect, match, destinations.port)
            if filter_.url_rewrite is not None:
                _rewrite(route, filter_.url_rewrite, match)
        found.append((_http_rank(match), route))
    return found


def _grpc_rule(
    rule: api.GRPCRouteRule, document: Attached, destinations: Destinations, domain: str
) -> list[tuple[Rank, Route]]:
    plain = HTTPRoute(
        name=rule.name or document.name,
        route=_backends(rule.backend_refs, document.namespace, domain),
        headers=_headers(rule.filters),
        mirrors=_mirrors(rule.filters, document.namespace, domain),
    )
    found = []
    for match in rule.matches or (api.GRPCRouteMatch(),):
        route = Route(name=plain.name, match=_grpc_match(match))
        _act(route, plain, destinations)
        found.append((_grpc_rank(match), route))
    return found


def _act(route: Route, plain: HTTPRoute, destinations: Destinations) -> None:
    """A rule without backends that take anything answers 500, as the API says."""
    if any(target.weight for target in plain.route):
        act(route, plain, destinations)
    else:
        route.direct_response.status = 500


def _backends(
    refs: Iterable[api.HTTPBackendRef | api.GRPCBackendRef], namespace: str, domain: str
) -> tuple[HTTPRouteDestination, ...]:
    return tuple(
        HTTPRouteDestination(
            destination=_destination(ref, namespace, domain), weight=ref.weight, headers=_headers(ref.filters)
        )
        for ref in refs
    )


def _destination(
    ref: api.HTTPBackendRef | api.GRPCBackendRef | api.BackendObject, namespace: str, domain: str
) -> Destination:
    return Destination(
        host=backend_host(ref, namespace, domain), port=None if ref.port is None else PortSelector(number=ref.port)
    )


def backend_host(ref: api.HTTPBackendRef | api.GRPCBackendRef | api.BackendObject, namespace: str, domain: str) -> str:
    """The host that a backend's name stands for."""
    return service_host(ref.kind, ref.name, ref.namespace or namespace, domain)


def _headers(filters: Iterable[api.HTTPRouteFilter | api.GRPCRouteFilter]) -> Headers | None:
    request = next((one.request_header_modifier for one in filters if one.request_header_modifier is not None), None)
    response = next((one.response_header_modifier for one in filters if one.response_header_modifier is not None), None)
    if request is None and response is None:
        return None
    return Headers(request=_operations(request), response=_operations(response))


def _operations(modifier: api.HeaderModifier | None) -> HeaderOperations | None:
    if modifier is None:
        return None
    return HeaderOperations(
        set=tuple((header.name, header.value) for header in modifier.set),
        add=tuple((header.name, header.value) for header in modifier.add),
        remove=modifier.remove,
    )


def _mirrors(
    filters: Iterable[api.HTTPRouteFilter | api.GRPCRouteFilter], namespace: str, domain: str
) -> tuple[HTTPMirrorPolicy, ...]:
    return tuple(
        HTTPMirrorPolicy(
            destination=_destination(mirror.backend_ref, namespace, domain), percentage=_percentage(mirror)
        )
        for mirror in (one.request_mirror for one in filters)
        if mirror is not None
    )


def _percentage(mirror: api.RequestMirror) -> Percent:
    if mirror.fraction is not None:
        return Percent(value=100 * mirror.fraction.numerator / mirror.fraction.denominator)
    return Percent(value=100 if mirror.percent is None else mirror.percent)


def _timeout(rule: api.HTTPRouteRule) -> timedelta | None:
    """Of the whole request; without retries, that of its only attempt counts too."""
    if rule.timeouts is None:
        return None
    times = [rule.timeouts.request]
    if rule.retry is not None and rule.retry.attempts == 0:
        times.append(rule.timeouts.backend_request)
    return min((time for time in times if time), default=None)


def _retries(rule: api.HTTPRouteRule) -> HTTPRetry | None:
    """`backendRequest` is the time of each attempt, also of those that nobody asked for."""
    per_try = (rule.timeouts.backend_request if rule.timeouts is not None else None) or None
    if rule.retry is None:
        return None if per_try is None else HTTPRetry(attempts=DEFAULT_ATTEMPTS, per_try_timeout=per_try)
    conditions = ",".join([_GATEWAY_ERRORS, *(str(code) for code in rule.retry.codes)])
    attempts = 1 if rule.retry.attempts is None else rule.retry.attempts
    return HTTPRetry(attempts=attempts, retry_on=conditions, per_try_timeout=per_try, backoff=rule.retry.backoff)


def _http_match(match: api.HTTPRouteMatch) -> RouteMatch:
    message = RouteMatch(headers=[_header(header) for header in match.headers])
    _set_path(message, match.path)
    if match.method is not None:
        message.headers.append(HeaderMatcher(name=":method", string_match=StringMatcher(exact=match.method)))
    for wanted in match.query_params:
        matcher = QueryParameterMatcher(name=wanted.name, string_match=_matcher(wanted.type, wanted.value))
        message.query_parameters.append(matcher)
    return message


def _set_path(message: RouteMatch, path: api.PathMatch | None) -> None:
    """A prefix is one of whole segments: `/a` is no prefix of `/ab`."""
    if path is None or (path.type == "PathPrefix" and path.value.rstrip("/") == ""):
        message.prefix = "/"
    elif path.type == "Exact":
        message.path = path.value
    elif path.type == "PathPrefix":
        message.path_separated_prefix = path.value.rstrip("/")
    else:
        message.safe_regex.CopyFrom(RegexMatcher(regex=path.value))


def _header(wanted: api.HeaderMatch) -> HeaderMatcher:
    return HeaderMatcher(name=wanted.name.lower(), string_match=_matcher(wanted.type, wanted.value))


def _matcher(kind: str, value: str) -> StringMatcher:
    if kind == "Exact":
        return StringMatcher(exact=value)
    return StringMatcher(safe_regex=RegexMatcher(regex=value))


def _http_rank(match: api.HTTPRouteMatch) -> Rank:
    """Exact paths, longer prefixes, a method, more headers, more parameters; the rest keeps its order."""
    rest = (int(match.method is not None), len(match.headers), len(match.query_params))
    if match.path is None or (match.path.type == "PathPrefix" and match.path.value == "/"):
        return (0, 0, *rest)
    kind = {"Exact": _EXACT, "PathPrefix": _PREFIX}.get(match.path.type, _REGEX)
    return (kind, len(match.path.value), *rest)


def _grpc_match(match: api.GRPCRouteMatch) -> RouteMatch:
    message = RouteMatch(headers=[_header(header) for header in match.headers])
    method = match.method
    if method is None:
        message.prefix = "/"
    elif method.type == "RegularExpression":
        service, name = method.service or "[^/]+", method.method or "[^/]+"
        message.safe_regex.CopyFrom(RegexMatcher(regex=f"/(?:{service})/(?:{name})"))
    elif method.service and method.method:
        message.path = f"/{method.service}/{method.method}"
    elif method.service:
        message.prefix = f"/{method.service}/"
    else:
        message.safe_regex.CopyFrom(RegexMatcher(regex=f"/[^/]+/{re.escape(method.method)}"))
    return message


def _grpc_rank(match: api.GRPCRouteMatch) -> Rank:
    """Longer services, longer methods, more headers."""
    method = match.method
    if method is None:
        return (0, 0, 0, 0, len(match.headers))
    exact = _EXACT if method.type == "Exact" else _REGEX
    return (exact, len(method.service), len(method.method), 0, len(match.headers))


def _redirect(route: Route, redirect: api.RequestRedirect, match: api.HTTPRouteMatch, port: int) -> None:
    """What it does not name stays as it was; the port is that of a scheme it names, else that of the request."""
    action = RedirectAction(response_code=REDIRECT_CODES[redirect.status_code])
    if redirect.scheme is not None:
        action.scheme_redirect = redirect.scheme
    action.host_redirect = redirect.hostname or ""
    action.port_redirect = redirect.port or _port_of(redirect, port)
    if redirect.path is not None:
        if redirect.path.replace_full_path is not None:
            action.path_redirect = redirect.path.replace_full_path
        else:
            _replace_prefix(action, redirect.path.replace_prefix_match or "", match)
    route.ClearField("direct_response")
    route.redirect.CopyFrom(action)


def _port_of(redirect: api.RequestRedirect, port: int) -> int:
    """0 where it need not be said."""
    if redirect.scheme is not None:
        return 0 if redirect.hostname else _DEFAULT_PORTS[redirect.scheme]
    return port if redirect.hostname and port != _DEFAULT_PORTS["http"] else 0


def _rewrite(route: Route, rewrite: api.URLRewrite, match: api.HTTPRouteMatch) -> None:
    if not route.HasField("route"):
        return
    if rewrite.hostname is not None:
        route.route.host_rewrite_literal = rewrite.hostname
    if rewrite.path is None:
        return
    if rewrite.path.replace_full_path is not None:
        route.route.regex_rewrite.pattern.regex = "/.*"
        route.route.regex_rewrite.substitution = rewrite.path.replace_full_path.replace("\\", "\\\\")
    else:
        _replace_prefix(route.route, rewrite.path.replace_prefix_match or "", match)


def _replace_prefix(action: Any, replacement: str, match: api.HTTPRouteMatch) -> None:
    """As segments: `/a` replaced by `/` makes `/b` of `/a/b`, and `/` of `/a`; which Envoy's prefix_rewrite, which cuts
    letters, would not do."""
    prefix = match.path.value.rstrip("/") if match.path is not None else ""
    kept = replacement.rstrip("/")
    if prefix and kept:
        action.prefix_rewrite = kept
        return
    action.regex_rewrite.pattern.regex = f"^{re.escape(prefix)}/*"
    action.regex_rewrite.substitution = kept.replace("\\", "\\\\") + "/"
