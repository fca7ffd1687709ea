"""`networking.istio.io` VirtualService: where requests and connections to hosts go."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, ClassVar, Final, Literal

from meshproxy.pilot.documents.common import (
    Percent,
    PortSelector,
    StringMatch,
    covers,
    gateway_name,
    overlap,
)
from meshproxy.pilot.documents.problems import At
from meshproxy.pilot.documents.rules import (
    UINT32_MAX,
    Duration,
    ExportTo,
    HeaderName,
    Labels,
    Name,
    NotNegative,
    Port,
    Regexp,
    WildcardHost,
    between,
    header_name,
    header_value,
    ip_or_cidr,
    not_empty,
    wildcard_host_or_ip,
)
from meshproxy.pilot.documents.spec import Map, Refused, spec

MESH: Final = "mesh"  # the gateway that stands for all sidecars
_RETRY_POLICIES: Final = frozenset(
    {
        *(
            "5xx",
            "gateway-error",
            "reset",
            "reset-before-request",
            "connect-failure",
            "retriable-4xx",
            "refused-stream",
        ),
        *("retriable-status-codes", "retriable-headers", "envoy-ratelimited", "http3-post-connect-failure"),
        *("cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"),
    }
)
_GRPC_STATUSES: Final = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)
_MAX_BODY_BYTES: Final = 1024 * 1024


def destination_host(value: str) -> str | None:
    """A service's host; a wildcard service may be meant, but not all of them."""
    return "must name a service" if value == "*" else wildcard_host_or_ip(value)


def retry_on(value: str) -> str | None:
    """Envoy's retry policies and status codes, with commas between."""
    for each in value.split(","):
        policy = each.strip()
        if policy not in _RETRY_POLICIES and not (policy.isdecimal() and 100 <= int(policy) <= 599):
            return f'"{policy}" is neither a retry policy nor a status code'
    return None


def redirect_status(value: int) -> str | None:
    return None if value in (301, 302, 303, 307, 308) else "must be one of 301, 302, 303, 307, 308"


def grpc_status(value: str) -> str | None:
    """A status by its name or number."""
    return None if grpc_status_number(value) is not None else f'"{value}" is no status of gRPC'


def grpc_status_number(value: str) -> int | None:
    """The number of a status, which may be given by its name; None for what is none."""
    if value.isdecimal():
        return int(value) if int(value) < len(_GRPC_STATUSES) else None
    return _GRPC_STATUSES.index(value.upper()) if value.upper() in _GRPC_STATUSES else None


@spec
class Destination:
    """A service, and which of its subsets and ports (the only one where none is said)."""

    host: Annotated[str, destination_host]
    subset: Name = ""
    port: PortSelector | None = None


@spec
class HeaderOperations:
    """`set` replaces, `add` appends."""

    set: Map[Annotated[str, header_value]] = ()
    add: Map[Annotated[str, header_value]] = ()
    remove: tuple[HeaderName, ...] = ()

    def check(self, at: At) -> None:
        for step, names in (("set", self.set), ("add", self.add)):
            for name, _ in names:
                reason = header_name(name)
                if reason is None and name.startswith(":") and name != ":authority":
                    reason = f'"{name}" cannot be changed'
                if reason is not None:
                    (at / step / name).error(reason)
        for index, name in enumerate(self.remove):
            if name.startswith(":") or name.lower() == "host":
                (at / "remove" / index).error(f'"{name}" cannot be removed')


@spec
class Headers:
    request: HeaderOperations | None = None
    response: HeaderOperations | None = None

    def check(self, at: At) -> None:
        if self.response is None:
            return
        for step, names in (("set", self.response.set), ("add", self.response.add)):
            for name, _ in names:
                if name.startswith(":") or name.lower() == "host":
                    (at / "response" / step / name).error(f'"{name}" is of requests only')


@spec
class HTTPMatchRequest:
    """All that is said must hold."""

    name: str = ""
    uri: StringMatch | None = None
    scheme: StringMatch | None = None
    method: StringMatch | None = None
    authority: StringMatch | None = None
    headers: Map[StringMatch] = ()
    port: Port | None = None
    source_labels: Labels = ()
    gateways: tuple[Annotated[str, gateway_name], ...] = ()
    query_params: Map[StringMatch] = ()
    ignore_uri_case: bool = False
    without_headers: Map[StringMatch] = ()
    source_namespace: Name = ""
    stat_prefix: str = ""

    def check(self, at: At) -> None:
        for step in ("uri", "scheme", "method", "authority"):
            match: StringMatch | None = getattr(self, step)
            if match is not None and match.is_presence:
                (at / step).error("one of exact, prefix, regex is required")
        for step, headers in (("headers", self.headers), ("withoutHeaders", self.without_headers)):
            for name, _ in headers:
                reason = header_name(name)
                if reason is not None:
                    (at / step / name).error(reason)
        if self.uri is not None and self.uri.prefix == "":
            (at / "uri" / "prefix").error("must not be empty")


@spec
class HTTPRouteDestination:
    destination: Destination
    weight: NotNegative | None = None
    headers: Headers | None = None


@spec
class HTTPRedirect:
    uri: str = ""
    authority: str = ""
    port: Port | None = None
    derive_port: Literal["FROM_PROTOCOL_DEFAULT", "FROM_REQUEST_PORT"] | None = None
    scheme: Literal["http", "https"] | None = None
    redirect_code: Annotated[int, redirect_status] | None = None
    ONE_OF: ClassVar = (("port", "derivePort"),)

    def check(self, at: At) -> None:
        if not any((self.uri, self.authority, self.port, self.derive_port, self.scheme, self.redirect_code)):
            at.error("says nothing: one of uri, authority, port, derivePort, scheme, redirectCode is required")


@spec
class HTTPBody:
    string: str | None = None
    bytes_: bytes | None = None
    ONE_OF: ClassVar = (("string", "bytes"),)

    @property
    def data(self) -> bytes | None:
        return self.bytes_ if self.string is None else self.string.encode()


@spec
class HTTPDirectResponse:
    status: Annotated[int, between(200, 599)]
    body: HTTPBody | None = None

    def check(self, at: At) -> None:
        if self.body is not None and len(self.body.data or b"") > _MAX_BODY_BYTES:
            (at / "body").error("must be at most 1 MiB")


@spec
class RegexRewrite:
    match: Regexp
    rewrite: str


@spec
class HTTPRewrite:
    uri: str = ""
    authority: str = ""
    uri_regex_rewrite: RegexRewrite | None = None
    ONE_OF: ClassVar = (("uri", "uriRegexRewrite"),)

    def check(self, at: At) -> None:
        if not self.uri and not self.authority and self.uri_regex_rewrite is None:
            at.error("says nothing: one of uri, authority, uriRegexRewrite is required")


@spec
class HTTPRetry:
    attempts: NotNegative = 0
    per_try_timeout: Duration | None = None
    retry_on: Annotated[str, retry_on] = ""
    retry_ignore_previous_hosts: bool | None = None
    backoff: Duration | None = None
    REFUSED: ClassVar[Refused] = {"retryRemoteLocalities": "retries do not prefer other localities here"}

    def check(self, at: At) -> None:
        if self.attempts == 0:
            for step, value in (("perTryTimeout", self.per_try_timeout), ("retryOn", self.retry_on)):
                if value:
                    (at / step).error("has no effect without attempts")


@spec
class Delay:
    fixed_delay: Duration
    percentage: Percent | None = None
    REFUSED: ClassVar[Refused] = {
        "percent": "is deprecated: write percentage: {value: …}",
        "exponentialDelay": "is not implemented, by Istio neither: write fixedDelay",
    }


@spec
class Abort:
    http_status: Annotated[int, between(200, 599)] | None = None
    grpc_status: Annotated[str, grpc_status] | None = None
    percentage: Percent | None = None
    ONE_OF: ClassVar = (("httpStatus", "grpcStatus"),)
    REFUSED: ClassVar[Refused] = {
        "percent": "is deprecated: write percentage: {value: …}",
        "http2Error": "is not implemented, by Istio neither: write httpStatus or grpcStatus",
    }

    def check(self, at: At) -> None:
        if self.http_status is None and self.grpc_status is None:
            at.error("one of httpStatus, grpcStatus is required")


@spec
class HTTPFaultInjection:
    delay: Delay | None = None
    abort: Abort | None = None

    def check(self, at: At) -> None:
        if self.delay is None and self.abort is None:
            at.error("one of delay, abort is required")


@spec
class HTTPMirrorPolicy:
    destination: Destination
    percentage: Percent | None = None


@spec
class CorsPolicy:
    allow_origins: tuple[StringMatch, ...] = ()
    allow_methods: tuple[str, ...] = ()
    allow_headers: tuple[HeaderName, ...] = ()
    expose_headers: tuple[HeaderName, ...] = ()
    max_age: timedelta | None = None
    allow_credentials: bool | None = None
    unmatched_preflights: Literal["UNSPECIFIED", "FORWARD", "IGNORE"] = "UNSPECIFIED"
    REFUSED: ClassVar[Refused] = {"allowOrigin": "is deprecated: write allowOrigins: [{exact: …}]"}

    def check(self, at: At) -> None:
        for index, origin in enumerate(self.allow_origins):
            if origin.is_presence:
                (at / "allowOrigins" / index).error("one of exact, prefix, regex is required")
        for index, method in enumerate(self.allow_methods):
            if method != "*" and not method.isalpha():
                (at / "allowMethods" / index).error(f'"{method}" is no method')
        if self.max_age is not None and self.max_age % timedelta(seconds=1):
            (at / "maxAge").error("must be of whole seconds")


@spec
class HTTPRoute:
    """The first route of which a match holds (all requests where it has none) is taken."""

    name: str = ""
    match: tuple[HTTPMatchRequest, ...] = ()
    route: tuple[HTTPRouteDestination, ...] = ()
    redirect: HTTPRedirect | None = None
    direct_response: HTTPDirectResponse | None = None
    rewrite: HTTPRewrite | None = None
    timeout: Duration | None = None
    retries: HTTPRetry | None = None
    fault: HTTPFaultInjection | None = None
    mirror: Destination | None = None
    mirrors: tuple[HTTPMirrorPolicy, ...] = ()
    mirror_percentage: Percent | None = None
    cors_policy: CorsPolicy | None = None
    headers: Headers | None = None
    ONE_OF: ClassVar = (
        ("route", "redirect", "directResponse"),
        ("redirect", "fault"),
        ("redirect", "rewrite"),
        ("directResponse", "fault"),
        ("directResponse", "rewrite"),
        ("mirror", "mirrors"),
    )
    REFUSED: ClassVar[Refused] = {
        "delegate": "routes are not delegated here: write them into this VirtualService",
        "mirrorPercent": "is deprecated: write mirrorPercentage: {value: …}",
        "mirror_percent": "is deprecated: write mirrorPercentage: {value: …}",
    }

    def check(self, at: At) -> None:
        if not self.route and self.redirect is None and self.direct_response is None:
            at.error("one of route, redirect, directResponse is required")
        _check_weights([each.weight for each in self.route], at / "route")
        self._check_authority(at)

    def _check_authority(self, at: At) -> None:
        """The authority may be rewritten in one place only."""
        request = self.headers.request if self.headers is not None else None
        places = [bool(self.rewrite is not None and self.rewrite.authority)]
        if request is not None:
            places += [name.lower() in (":authority", "host") for name, _ in (*request.set, *request.add)]
        if sum(places) > 1:
            at.error("the authority is set more than once")


@spec
class RouteDestination:
    destination: Destination
    weight: NotNegative | None = None


def _check_split(route: tuple[RouteDestination, ...], at: At) -> None:
    _check_weights([each.weight for each in route], at / "route")


def _check_weights(weights: list[int | None], at: At) -> None:
    """Proxies refuse a sum that is no uint32."""
    if len(weights) > 1 and not any(weights):
        at.error("all weights are 0")
    if sum(weight or 0 for weight in weights) > UINT32_MAX:
        at.error(f"the weights must not add up to more than {UINT32_MAX}")


@spec
class TLSMatchAttributes:
    sni_hosts: Annotated[tuple[WildcardHost, ...], not_empty]
    destination_subnets: tuple[Annotated[str, ip_or_cidr], ...] = ()
    port: Port | None = None
    source_labels: Labels = ()
    gateways: tuple[Annotated[str, gateway_name], ...] = ()
    source_namespace: Name = ""
    REFUSED: ClassVar[Refused] = {"sourceSubnet": "is not implemented, by Istio neither"}


@spec
class TLSRoute:
    match: Annotated[tuple[TLSMatchAttributes, ...], not_empty]
    route: Annotated[tuple[RouteDestination, ...], not_empty]

    def check(self, at: At) -> None:
        _check_split(self.route, at)


@spec
class L4MatchAttributes:
    destination_subnets: tuple[Annotated[str, ip_or_cidr], ...] = ()
    port: Port | None = None
    source_labels: Labels = ()
    gateways: tuple[Annotated[str, gateway_name], ...] = ()
    source_namespace: Name = ""
    REFUSED: ClassVar[Refused] = {"sourceSubnet": "is not implemented, by Istio neither"}


@spec
class TCPRoute:
    match: tuple[L4MatchAttributes, ...] = ()
    route: Annotated[tuple[RouteDestination, ...], not_empty]

    def check(self, at: At) -> None:
        _check_split(self.route, at)


@spec
class VirtualService:
    hosts: Annotated[tuple[Annotated[str, wildcard_host_or_ip], ...], not_empty]
    gateways: tuple[Annotated[str, gateway_name], ...] = ()
    http: tuple[HTTPRoute, ...] = ()
    tls: tuple[TLSRoute, ...] = ()
    tcp: tuple[TCPRoute, ...] = ()
    export_to: ExportTo = ()

    @property
    def in_mesh(self) -> bool:
        """Whether sidecars obey it (and not gateways only)."""
        return not self.gateways or MESH in self.gateways

    def check(self, at: At) -> None:
        if not self.http and not self.tls and not self.tcp:
            at.error("one of http, tls, tcp is required")
        self._check_hosts(at / "hosts")
        for index, route in enumerate(self.tls):
            for number, match in enumerate(route.match):
                self._check_sni(match, at / "tls" / index / "match" / number / "sniHosts")

    def _check_hosts(self, at: At) -> None:
        for index, host in enumerate(self.hosts):
            if host == "*" and self.in_mesh:
                (at / index).error('"*" is for gateways only: sidecars need a host')
            for other in self.hosts[:index]:
                if overlap(host, other):
                    (at / index).error(f'"{host}" overlaps with "{other}"')

    def _check_sni(self, match: TLSMatchAttributes, at: At) -> None:
        for index, name in enumerate(match.sni_hosts):
            if not any(covers(host, name) for host in self.hosts):
                (at / index).error(f'"{name}" is not among the hosts of this VirtualService')
