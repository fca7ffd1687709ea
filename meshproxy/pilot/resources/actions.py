"""What a route of a VirtualService does: forward, redirect or answer, and the policies on the way."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol

from envoy.config.core.v3.base_pb2 import RuntimeFractionalPercent
from envoy.config.route.v3.route_components_pb2 import RedirectAction, Route, RouteAction, WeightedCluster
from envoy.extensions.filters.http.cors.v3.cors_pb2 import CorsPolicy
from envoy.extensions.filters.http.fault.v3.fault_pb2 import HTTPFault
from envoy.type.matcher.v3.regex_pb2 import RegexMatcher
from envoy.type.v3.percent_pb2 import FractionalPercent

from meshproxy.pilot.documents.virtual_service import grpc_status_number
from meshproxy.pilot.resources.header_operations import host_of, set_headers
from meshproxy.pilot.resources.matches import string_matcher
from meshproxy.pilot.resources.messages import boolean, duration, duration_of, pack, uint32
from meshproxy.pilot.resources.retries import retry_policy

if TYPE_CHECKING:
    from meshproxy.pilot.documents.common import Percent
    from meshproxy.pilot.documents.virtual_service import (
        Abort,
        Delay,
        Destination,
        HTTPDirectResponse,
        HTTPRedirect,
        HTTPRewrite,
        HTTPRoute,
        HTTPRouteDestination,
    )
    from meshproxy.pilot.documents.virtual_service import (
        CorsPolicy as CorsRule,
    )

CORS: Final = "envoy.filters.http.cors"
FAULT: Final = "envoy.filters.http.fault"

_MILLION: Final = FractionalPercent.MILLION
REDIRECT_CODES: Final = {
    301: RedirectAction.MOVED_PERMANENTLY,
    302: RedirectAction.FOUND,
    303: RedirectAction.SEE_OTHER,
    307: RedirectAction.TEMPORARY_REDIRECT,
    308: RedirectAction.PERMANENT_REDIRECT,
}


class Destinations(Protocol):
    """What the mesh knows of the destinations that rules name. `port` is that on which the requests come."""

    port: int

    def cluster_of(self, destination: Destination) -> str:
        """The name of its cluster."""

    def hash_policies(self, destination: Destination) -> list[RouteAction.HashPolicy]:
        """By what its load balancer picks hosts, where that is something of the request."""

    def split_policies(self) -> list[RouteAction.HashPolicy]:
        """By what requests stay with one of several destinations; empty: each request by itself."""


def act(route: Route, rule: HTTPRoute, destinations: Destinations) -> None:
    """Everything about the route but what it matches."""
    if rule.redirect is not None:
        route.redirect.CopyFrom(_redirect(rule.redirect, destinations.port))
    elif rule.direct_response is not None:
        _answer(route, rule.direct_response)
    else:
        route.route.CopyFrom(_forward(rule, destinations))
    set_headers(route, rule.headers)
    if len(targets := _targets(rule)) == 1:
        set_headers(route, targets[0].headers)
    if rule.cors_policy is not None:
        route.typed_per_filter_config[CORS].CopyFrom(pack(cors_policy(rule.cors_policy)))
    if rule.fault is not None:
        route.typed_per_filter_config[FAULT].CopyFrom(pack(injected_fault(rule.fault.delay, rule.fault.abort)))


def _forward(rule: HTTPRoute, destinations: Destinations) -> RouteAction:
    action = RouteAction()
    _set_clusters(action, rule, destinations)
    set_timeout(action, rule.timeout)
    policy = retry_policy(rule.retries)
    if policy is not None:
        action.retry_policy.CopyFrom(policy)
    host = host_of(rule.headers)
    if rule.rewrite is not None:
        _rewrite(action, rule.rewrite)
        host = rule.rewrite.authority or host
    if len(targets := _targets(rule)) == 1:
        host = host_of(targets[0].headers) or host
    if host:
        action.host_rewrite_literal = host
    for destination, percentage in _mirrors(rule):
        mirror = action.request_mirror_policies.add(cluster=destinations.cluster_of(destination))
        mirror.runtime_fraction.CopyFrom(RuntimeFractionalPercent(default_value=fraction(percentage)))
    return action


def _set_clusters(action: RouteAction, rule: HTTPRoute, destinations: Destinations) -> None:
    targets = _targets(rule)
    policies: list[RouteAction.HashPolicy] = []
    if len(targets) == 1:
        action.cluster = destinations.cluster_of(targets[0].destination)
    else:
        action.weighted_clusters.CopyFrom(_weighted(targets, destinations))
        policies = destinations.split_policies()
        if policies:
            action.weighted_clusters.use_hash_policy.CopyFrom(boolean(True))
    for target in targets:
        policies += [one for one in destinations.hash_policies(target.destination) if one not in policies]
    action.hash_policy.extend(policies)


def _targets(rule: HTTPRoute) -> list[HTTPRouteDestination]:
    """Those that get requests. What is said of the headers of a single one is said of the route."""
    return [target for target in rule.route if target.weight or len(rule.route) == 1]


def _weighted(targets: Sequence[HTTPRouteDestination], destinations: Destinations) -> WeightedCluster:
    weighted = WeightedCluster()
    for target in targets:
        cluster = weighted.clusters.add(name=destinations.cluster_of(target.destination))
        cluster.weight.CopyFrom(uint32(target.weight or 1))
        set_headers(cluster, target.headers)
        host = host_of(target.headers)
        if host:
            cluster.host_rewrite_literal = host
    return weighted


def set_timeout(action: RouteAction, timeout: timedelta | None) -> None:
    """Without a rule a request may take for ever; a caller's grpc-timeout shortens what a rule allows.

    That is `max_grpc_timeout`, though Envoy calls it deprecated: beside `max_stream_duration`, which took its place,
    `timeout` has no effect.
    """
    time = duration(0) if timeout is None else duration_of(timeout)
    action.timeout.CopyFrom(time)
    action.max_grpc_timeout.CopyFrom(time)


def _rewrite(action: RouteAction, rule: HTTPRewrite) -> None:
    if rule.uri_regex_rewrite is not None:
        action.regex_rewrite.pattern.CopyFrom(RegexMatcher(regex=rule.uri_regex_rewrite.match))
        action.regex_rewrite.substitution = rule.uri_regex_rewrite.rewrite
    elif rule.uri:
        action.prefix_rewrite = rule.uri


def _mirrors(rule: HTTPRoute) -> list[tuple[Destination, float]]:
    """With the percentage of the requests that each one sees."""
    found = [
        (mirror.destination, 100.0 if mirror.percentage is None else mirror.percentage.value) for mirror in rule.mirrors
    ]
    if rule.mirror is not None:
        found.append((rule.mirror, 100.0 if rule.mirror_percentage is None else rule.mirror_percentage.value))
    return [(destination, percentage) for destination, percentage in found if percentage > 0]


def fraction(percentage: float) -> FractionalPercent:
    """As exact as the API is: to a ten-thousandth of a percent."""
    return FractionalPercent(numerator=round(percentage * 10_000), denominator=_MILLION)


def _redirect(rule: HTTPRedirect, port: int) -> RedirectAction:
    """A scheme brings its own port with it, so that only the request's has to be said."""
    action = RedirectAction(host_redirect=rule.authority, response_code=REDIRECT_CODES[rule.redirect_code or 301])
    if rule.scheme is not None:
        action.scheme_redirect = rule.scheme
    if rule.uri == "%PREFIX()%":
        action.prefix_rewrite = "/"
    elif rule.uri:
        action.path_redirect = rule.uri
    if rule.port is not None:
        action.port_redirect = rule.port
    elif rule.derive_port == "FROM_REQUEST_PORT":
        action.port_redirect = port
    return action


def _answer(route: Route, rule: HTTPDirectResponse) -> None:
    route.direct_response.status = rule.status
    if rule.body is not None:
        route.direct_response.body.inline_bytes = rule.body.data or b""


def cors_policy(rule: CorsRule) -> CorsPolicy:
    policy = CorsPolicy(
        allow_origin_string_match=[string_matcher(origin) for origin in rule.allow_origins],
        allow_methods=",".join(rule.allow_methods),
        allow_headers=",".join(rule.allow_headers),
        expose_headers=",".join(rule.expose_headers),
    )
    if rule.allow_credentials is not None:
        policy.allow_credentials.CopyFrom(boolean(rule.allow_credentials))
    if rule.max_age is not None:
        policy.max_age = str(int(rule.max_age.total_seconds()))
    policy.filter_enabled.default_value.CopyFrom(FractionalPercent(numerator=100))
    policy.forward_not_matching_preflights.CopyFrom(boolean(rule.unmatched_preflights != "IGNORE"))
    return policy


def injected_fault(delay: Delay | None, abort: Abort | None) -> HTTPFault:
    fault = HTTPFault()
    if delay is not None:
        fault.delay.fixed_delay.CopyFrom(duration_of(delay.fixed_delay))
        fault.delay.percentage.CopyFrom(fraction(_percentage(delay.percentage)))
    if abort is not None:
        fault.abort.percentage.CopyFrom(fraction(_percentage(abort.percentage)))
        if abort.http_status is not None:
            fault.abort.http_status = abort.http_status
        else:
            fault.abort.grpc_status = grpc_status_number(abort.grpc_status or "") or 0
    return fault


def _percentage(percent: Percent | None) -> float:
    """Without one, all requests."""
    return 100.0 if percent is None else percent.value
