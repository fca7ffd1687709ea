"""`gateway.networking.k8s.io` HTTPRoute and GRPCRoute, attached to services (the Gateway API's mesh profile)."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, ClassVar, Literal

from meshproxy.pilot.documents.problems import At
from meshproxy.pilot.documents.rules import (
    HeaderName,
    Name,
    Port,
    between,
    dns_label,
    header_value,
    not_empty,
    regex,
    wildcard_host,
)
from meshproxy.pilot.documents.spec import Refused, spec

_ISTIO = "networking.istio.io"
_MESH_ONLY = "routes are attached to services here (kind: Service), not to gateways"
_EXTENSION = "is not supported: filters of others are not known here"


def _service_reason(group: str, kind: str, name: str) -> str | None:
    """Why that is no service."""
    if (group, kind) == ("", "Service"):
        return dns_label(name)
    if (group, kind) == (_ISTIO, "Hostname"):
        return wildcard_host(name)
    return f'{kind} of "{group}" is no service: it must be Service, or Hostname of {_ISTIO}'


@spec
class ParentRef:
    """The service whose requests the route is for: of `port` alone, where that is said."""

    name: str
    group: str | None = None
    kind: str = "Gateway"
    namespace: Name = ""
    port: Port | None = None
    REFUSED: ClassVar[Refused] = {"sectionName": "is of gateways; a port of a service is named by its number"}

    def check(self, at: At) -> None:
        if self.kind == "Gateway":
            (at / "kind").error(_MESH_ONLY)
        else:
            reason = _service_reason(self.group or "", self.kind, self.name)
            if reason is not None:
                at.error(reason)


@spec
class HeaderMatch:
    name: HeaderName
    value: str
    type: Literal["Exact", "RegularExpression"] = "Exact"

    def check(self, at: At) -> None:
        _check_regex(self.type, self.value, at)


@spec
class QueryParamMatch:
    name: str
    value: str
    type: Literal["Exact", "RegularExpression"] = "Exact"

    def check(self, at: At) -> None:
        _check_regex(self.type, self.value, at)


def _check_regex(kind: str, value: str, at: At) -> None:
    reason = regex(value) if kind == "RegularExpression" else None
    if reason is not None:
        (at / "value").error(reason)


@spec
class PathMatch:
    type: Literal["Exact", "PathPrefix", "RegularExpression"] = "PathPrefix"
    value: str = "/"

    def check(self, at: At) -> None:
        _check_regex(self.type, self.value, at)
        if self.type != "RegularExpression" and not self.value.startswith("/"):
            (at / "value").error('must begin with "/"')


@spec
class HTTPRouteMatch:
    path: PathMatch | None = None  # None: the prefix /
    headers: tuple[HeaderMatch, ...] = ()
    query_params: tuple[QueryParamMatch, ...] = ()
    method: Literal["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"] | None = None


@spec
class HTTPHeader:
    name: HeaderName
    value: Annotated[str, header_value]


@spec
class HeaderModifier:
    set: tuple[HTTPHeader, ...] = ()
    add: tuple[HTTPHeader, ...] = ()
    remove: tuple[HeaderName, ...] = ()


@spec
class PathModifier:
    type: Literal["ReplaceFullPath", "ReplacePrefixMatch"]
    replace_full_path: str | None = None
    replace_prefix_match: str | None = None

    def check(self, at: At) -> None:
        full = self.type == "ReplaceFullPath"
        if (self.replace_full_path is None) == full or (self.replace_prefix_match is None) != full:
            at.error(f"{self.type} needs {'replaceFullPath' if full else 'replacePrefixMatch'}, and nothing else")


def _redirect_status(value: int) -> str | None:
    return None if value in (301, 302, 303, 307, 308) else "must be one of 301, 302, 303, 307, 308"


@spec
class RequestRedirect:
    scheme: Literal["http", "https"] | None = None
    hostname: Annotated[str, wildcard_host] | None = None
    path: PathModifier | None = None
    port: Port | None = None
    status_code: Annotated[int, _redirect_status] = 302


@spec
class URLRewrite:
    hostname: Annotated[str, wildcard_host] | None = None
    path: PathModifier | None = None


@spec
class BackendObject:
    """A service, of which `port` is required unless it is a Hostname with one port."""

    name: str
    group: str = ""
    kind: str = "Service"
    namespace: Name = ""
    port: Port | None = None

    def check(self, at: At) -> None:
        _check_backend(self.group, self.kind, self.name, self.port, at)


def _check_backend(group: str, kind: str, name: str, port: int | None, at: At) -> None:
    reason = _service_reason(group, kind, name)
    if reason is not None:
        at.error(reason)
    if port is None:
        (at / "port").error("is required")


@spec
class Fraction:
    numerator: Annotated[int, between(0, 2**31 - 1)]
    denominator: Annotated[int, between(1, 2**31 - 1)] = 100

    def check(self, at: At) -> None:
        if self.numerator > self.denominator:
            at.error("must be at most 1")


@spec
class RequestMirror:
    backend_ref: BackendObject
    percent: Annotated[int, between(0, 100)] | None = None
    fraction: Fraction | None = None
    ONE_OF: ClassVar = (("percent", "fraction"),)


@spec
class HTTPRouteFilter:
    type: Literal["RequestHeaderModifier", "ResponseHeaderModifier", "RequestRedirect", "URLRewrite", "RequestMirror"]
    request_header_modifier: HeaderModifier | None = None
    response_header_modifier: HeaderModifier | None = None
    request_redirect: RequestRedirect | None = None
    request_mirror: RequestMirror | None = None
    url_rewrite: URLRewrite | None = None
    REFUSED: ClassVar[Refused] = {
        "extensionRef": _EXTENSION,
        "cors": "is not supported yet: a VirtualService has corsPolicy",
        "externalAuth": "is not supported yet",
    }

    def check(self, at: At) -> None:
        _check_filter(self.type, vars_of(self), at)


@spec
class GRPCRouteFilter:
    type: Literal["RequestHeaderModifier", "ResponseHeaderModifier", "RequestMirror"]
    request_header_modifier: HeaderModifier | None = None
    response_header_modifier: HeaderModifier | None = None
    request_mirror: RequestMirror | None = None
    REFUSED: ClassVar[Refused] = {"extensionRef": _EXTENSION}

    def check(self, at: At) -> None:
        _check_filter(self.type, vars_of(self), at)


_OF_FILTER = {
    "RequestHeaderModifier": "requestHeaderModifier",
    "ResponseHeaderModifier": "responseHeaderModifier",
    "RequestRedirect": "requestRedirect",
    "URLRewrite": "urlRewrite",
    "RequestMirror": "requestMirror",
}


def vars_of(each: HTTPRouteFilter | GRPCRouteFilter) -> dict[str, bool]:
    """Which of a filter's parts are there, by their fields."""
    found = {
        "requestHeaderModifier": each.request_header_modifier is not None,
        "responseHeaderModifier": each.response_header_modifier is not None,
        "requestMirror": each.request_mirror is not None,
    }
    if isinstance(each, HTTPRouteFilter):
        found |= {"requestRedirect": each.request_redirect is not None, "urlRewrite": each.url_rewrite is not None}
    return found


def _check_filter(kind: str, given: dict[str, bool], at: At) -> None:
    wanted = _OF_FILTER[kind]
    for field, there in given.items():
        if there != (field == wanted):
            (at / field).error(f"is required with {kind}" if field == wanted else f"does not belong to {kind}")


def _check_filters(filters: tuple[HTTPRouteFilter, ...] | tuple[GRPCRouteFilter, ...], at: At) -> None:
    """All but mirrors may stand once; a redirect excludes a rewrite."""
    kinds = [each.type for each in filters]
    for index, kind in enumerate(kinds):
        if kind != "RequestMirror" and kind in kinds[:index]:
            (at / index / "type").error(f"{kind} is given twice")
    if "RequestRedirect" in kinds and "URLRewrite" in kinds:
        at.error("RequestRedirect excludes URLRewrite")


@spec
class HTTPBackendRef:
    name: str
    group: str = ""
    kind: str = "Service"
    namespace: Name = ""
    port: Port | None = None
    weight: Annotated[int, between(0, 1_000_000)] = 1
    filters: tuple[HTTPRouteFilter, ...] = ()

    def check(self, at: At) -> None:
        _check_backend(self.group, self.kind, self.name, self.port, at)
        _check_filters(self.filters, at / "filters")
        for index, each in enumerate(self.filters):
            if each.type not in ("RequestHeaderModifier", "ResponseHeaderModifier"):
                (at / "filters" / index / "type").error(f"{each.type} of one backend is not supported")


@spec
class GRPCBackendRef:
    name: str
    group: str = ""
    kind: str = "Service"
    namespace: Name = ""
    port: Port | None = None
    weight: Annotated[int, between(0, 1_000_000)] = 1
    filters: tuple[GRPCRouteFilter, ...] = ()

    def check(self, at: At) -> None:
        _check_backend(self.group, self.kind, self.name, self.port, at)
        _check_filters(self.filters, at / "filters")
        for index, each in enumerate(self.filters):
            if each.type == "RequestMirror":
                (at / "filters" / index / "type").error(f"{each.type} of one backend is not supported")


@spec
class HTTPRouteTimeouts:
    """0s: none."""

    request: timedelta | None = None
    backend_request: timedelta | None = None

    def check(self, at: At) -> None:
        if self.request and self.backend_request and self.backend_request > self.request:
            (at / "backendRequest").error("must not be longer than request")


@spec
class HTTPRouteRetry:
    codes: tuple[Annotated[int, between(400, 599)], ...] = ()
    attempts: Annotated[int, between(0, 1000)] | None = None
    backoff: timedelta | None = None


_NO_SESSIONS = "is not supported: stickiness is a StickySplit, or consistentHash of a DestinationRule"
_MAX_RULES = 16
_MAX_MATCHES = 64


@spec
class HTTPRouteRule:
    name: str = ""
    matches: tuple[HTTPRouteMatch, ...] = ()
    filters: tuple[HTTPRouteFilter, ...] = ()
    backend_refs: tuple[HTTPBackendRef, ...] = ()
    timeouts: HTTPRouteTimeouts | None = None
    retry: HTTPRouteRetry | None = None
    REFUSED: ClassVar[Refused] = {"sessionPersistence": _NO_SESSIONS}

    def check(self, at: At) -> None:
        _check_filters(self.filters, at / "filters")
        redirects = any(each.type == "RequestRedirect" for each in self.filters)
        if redirects and self.backend_refs:
            (at / "backendRefs").error("RequestRedirect excludes backends")
        for index, each in enumerate(self.filters):
            if _replaces_prefix(each) and not self._has_one_prefix():
                (at / "filters" / index).error("ReplacePrefixMatch needs a single match, of type PathPrefix")

    def _has_one_prefix(self) -> bool:
        if len(self.matches) > 1:
            return False
        path = self.matches[0].path if self.matches else None
        return path is None or path.type == "PathPrefix"


def _replaces_prefix(each: HTTPRouteFilter) -> bool:
    changed = each.request_redirect or each.url_rewrite
    return changed is not None and changed.path is not None and changed.path.type == "ReplacePrefixMatch"


@spec
class HTTPRoute:
    parent_refs: Annotated[tuple[ParentRef, ...], not_empty]
    rules: tuple[HTTPRouteRule, ...] = ()  # none: one that matches everything, and has no backend
    REFUSED: ClassVar[Refused] = {"hostnames": "are of gateways; the host is that of the service in parentRefs"}
    IGNORED: ClassVar[Refused] = {"useDefaultGateways": "there are no gateways of the Gateway API"}

    def check(self, at: At) -> None:
        _check_rules([len(rule.matches) for rule in self.rules], at / "rules")


@spec
class GRPCMethodMatch:
    type: Literal["Exact", "RegularExpression"] = "Exact"
    service: str = ""
    method: str = ""

    def check(self, at: At) -> None:
        if not self.service and not self.method:
            at.error("one of service, method is required")
        if self.type == "RegularExpression":
            for step, value in (("service", self.service), ("method", self.method)):
                reason = regex(value)
                if reason is not None:
                    (at / step).error(reason)


@spec
class GRPCRouteMatch:
    method: GRPCMethodMatch | None = None
    headers: tuple[HeaderMatch, ...] = ()


@spec
class GRPCRouteRule:
    name: str = ""
    matches: tuple[GRPCRouteMatch, ...] = ()
    filters: tuple[GRPCRouteFilter, ...] = ()
    backend_refs: tuple[GRPCBackendRef, ...] = ()
    REFUSED: ClassVar[Refused] = {"sessionPersistence": _NO_SESSIONS}

    def check(self, at: At) -> None:
        _check_filters(self.filters, at / "filters")


@spec
class GRPCRoute:
    parent_refs: Annotated[tuple[ParentRef, ...], not_empty]
    rules: tuple[GRPCRouteRule, ...] = ()
    REFUSED: ClassVar[Refused] = {"hostnames": "are of gateways; the host is that of the service in parentRefs"}
    IGNORED: ClassVar[Refused] = {"useDefaultGateways": "there are no gateways of the Gateway API"}

    def check(self, at: At) -> None:
        _check_rules([len(rule.matches) for rule in self.rules], at / "rules")


def _check_rules(matches: list[int], at: At) -> None:
    """The limits of the API: they bound what one document may cost."""
    if len(matches) > _MAX_RULES:
        at.error(f"must be at most {_MAX_RULES}")
    for index, count in enumerate(matches):
        if count > _MAX_MATCHES:
            (at / index / "matches").error(f"must be at most {_MAX_MATCHES}")
