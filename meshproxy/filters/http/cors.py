"""`envoy.filters.http.cors`: answers preflights, and tells browsers which origins may read a response.

The policies of a request are those that its route, weighted cluster and virtual host carry for this filter, the most
specific one first; where there is none, the deprecated `cors` fields of the route and its virtual host. Each setting
comes from the first policy that has it, but the first policy alone decides whether CORS is enforced.
"""

from __future__ import annotations

from typing import Any, Final

from envoy.extensions.filters.http.cors.v3.cors_pb2 import Cors, CorsPolicy

from meshproxy.codec import headers as h
from meshproxy.codec.headers import HeaderMap
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import item
from meshproxy.config.runtime import Fraction
from meshproxy.config.string_matcher import StringMatcher, build_string_matcher
from meshproxy.http.filter import CONTINUE, STOP, HttpFilter, HttpFilterType, Result, register_http_filter
from meshproxy.http.stream import Stream
from meshproxy.observe.stats import StatsScope
from meshproxy.route.route import ROUTE_CLUSTER, Route

_ALLOW_ORIGIN: Final = b"access-control-allow-origin"
_ALLOW_CREDENTIALS: Final = b"access-control-allow-credentials"
_REQUEST_METHOD: Final = b"access-control-request-method"
_REQUEST_HEADERS: Final = b"access-control-request-headers"


class CorsStats(StatsScope):
    """Under `http.<stat_prefix>.cors.`; requests with an origin, by whether it is allowed."""

    COUNTERS = ("origin_valid", "origin_invalid")

    def __init__(self) -> None:
        super().__init__()
        self.origin_valid: int = 0
        self.origin_invalid: int = 0


class Policy:
    """A CorsPolicy. None says "not set": a less specific policy may, else it is false (`forward_preflights`: true)."""

    def __init__(self) -> None:
        self.origins: list[StringMatcher] = []
        self.allow_methods: bytes = b""
        self.allow_headers: bytes = b""
        self.expose_headers: bytes = b""
        self.max_age: bytes = b""
        self.allow_credentials: bool | None = None
        self.allow_private_network: bool | None = None
        self.forward_preflights: bool | None = None  # of origins that are not allowed
        self.enforced: Fraction | None = None  # None: always
        self.shadowed: Fraction | None = None  # counted where it is not enforced; None: never

    def allows(self, origin: bytes) -> bool:
        return any(matcher.match(origin) for matcher in self.origins)

    def or_else(self, other: Policy) -> Policy:
        """This policy, with what it leaves open from the less specific `other`."""
        merged = Policy()
        merged.origins = self.origins or other.origins
        merged.allow_methods = self.allow_methods or other.allow_methods
        merged.allow_headers = self.allow_headers or other.allow_headers
        merged.expose_headers = self.expose_headers or other.expose_headers
        merged.max_age = self.max_age or other.max_age
        merged.allow_credentials = _first(self.allow_credentials, other.allow_credentials)
        merged.allow_private_network = _first(self.allow_private_network, other.allow_private_network)
        merged.forward_preflights = _first(self.forward_preflights, other.forward_preflights)
        merged.enforced = self.enforced
        merged.shadowed = self.shadowed
        return merged


def _first(one: bool | None, other: bool | None) -> bool | None:
    return other if one is None else one


class CorsRequest:
    """What the response of a request has to say: kept from the request to its response."""

    def __init__(self, policy: Policy, origin: bytes) -> None:
        self.policy = policy
        self.origin = origin


class CorsFilter(HttpFilter):
    def __init__(self, stats: CorsStats) -> None:
        self.stats = stats

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        if not headers.known & h.ORIGIN:
            return CONTINUE
        origin = headers.joined(b"origin")
        policy = self._policy(stream.current_route())
        if not origin or policy is None:
            return CONTINUE
        enforced = policy.enforced is None or policy.enforced.sample(stream.manager.random())
        if not enforced and (policy.shadowed is None or not policy.shadowed.sample(stream.manager.random())):
            return CONTINUE
        allowed = policy.allows(origin)
        if allowed:
            self.stats.origin_valid += 1
        else:
            self.stats.origin_invalid += 1
        if not enforced:
            return CONTINUE
        if allowed:
            stream.state[self.slot] = CorsRequest(policy, origin)
        elif policy.forward_preflights is not False:
            return CONTINUE
        if headers.get(b":method") != b"OPTIONS" or not headers.get(_REQUEST_METHOD):
            return CONTINUE
        answer = _preflight_answer(policy, origin if allowed else b"", headers)
        stream.send_local_reply(200, b"", "cors_response", 0, answer)
        return STOP

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        request = stream.state[self.slot]
        if request is None:
            return CONTINUE
        assert isinstance(request, CorsRequest)
        headers.set(_ALLOW_ORIGIN, request.origin)
        if request.policy.allow_credentials:
            headers.set(_ALLOW_CREDENTIALS, b"true")
        if request.policy.expose_headers:
            headers.set(b"access-control-expose-headers", request.policy.expose_headers)
        return CONTINUE

    def _policy(self, route: Route | None) -> Policy | None:
        """The merged policy; None where there is none. A route that answers by itself has none, as in Envoy."""
        if route is None or route.kind != ROUTE_CLUSTER:
            return None
        levels = route.all_filter_configs.get(self.name)
        policy = None if levels is None else _merged(levels[::-1])
        return _merged(route.cors) if policy is None else policy


def _merged(levels: list[object]) -> Policy | None:
    """One policy of several, the most specific first; None when there is none."""
    policy: Policy | None = None
    for level in levels:
        if isinstance(level, Policy):
            policy = level if policy is None else policy.or_else(level)
    return policy


def _preflight_answer(policy: Policy, origin: bytes, headers: HeaderMap) -> HeaderMap:
    """The head of the answer to a preflight (Fetch standard, section 3.3.3); without an `origin` it allows nobody.

    Where the policy says `*`, what the browser asks for is repeated: to a request with credentials a star says nothing.
    """
    answer = HeaderMap()
    if origin:
        answer.add(_ALLOW_ORIGIN, origin)
    if policy.allow_credentials:
        answer.add(_ALLOW_CREDENTIALS, b"true")
    if policy.allow_methods:
        answer.add(b"access-control-allow-methods", _asked(policy.allow_methods, headers, _REQUEST_METHOD))
    if policy.allow_headers:
        answer.add(b"access-control-allow-headers", _asked(policy.allow_headers, headers, _REQUEST_HEADERS))
    if policy.max_age:
        answer.add(b"access-control-max-age", policy.max_age)
    if policy.allow_private_network and headers.get(b"access-control-request-private-network") == b"true":
        answer.add(b"access-control-allow-private-network", b"true")
    return answer


def _asked(allowed: bytes, headers: HeaderMap, name: bytes) -> bytes:
    return (headers.joined(name) or b"") if allowed == b"*" else allowed


def build_policy(message: Any, path: str, context: BuildContext) -> Policy:
    """Compile a CorsPolicy; matchers in error are left out, with their errors."""
    policy = Policy()
    for index in range(len(message.allow_origin_string_match)):
        where = item(path, "allow_origin_string_match", index)
        matcher = build_string_matcher(message.allow_origin_string_match[index], where, context.errors)
        if matcher is not None:
            # A matcher that accepts the text `*` stands for every origin, as StringMatcher itself does.
            policy.origins.append(StringMatcher() if matcher.match(b"*") else matcher)
    policy.allow_methods = message.allow_methods.encode()
    policy.allow_headers = message.allow_headers.encode()
    policy.expose_headers = message.expose_headers.encode()
    policy.max_age = message.max_age.encode()
    policy.allow_credentials = _optional(message, "allow_credentials")
    policy.allow_private_network = _optional(message, "allow_private_network_access")
    policy.forward_preflights = _optional(message, "forward_not_matching_preflights")
    if message.HasField("filter_enabled"):
        policy.enforced = context.runtime.fraction(message.filter_enabled)
    if message.HasField("shadow_enabled"):
        policy.shadowed = context.runtime.fraction(message.shadow_enabled)
    return policy


def _optional(message: Any, field: str) -> bool | None:
    return bool(getattr(message, field).value) if message.HasField(field) else None


def build_cors(message: Any, path: str, context: BuildContext) -> CorsFilter:
    """The filter's own message is empty: all there is stands on routes."""
    return CorsFilter(context.scope(f"{context.stat_prefix}cors.", CorsStats))


register_http_filter(Cors, HttpFilterType(build_cors, CorsPolicy, build_policy))
