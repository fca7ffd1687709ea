"""Route configurations: for each port a virtual host of each service, with the routes of its rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from envoy.config.core.v3.base_pb2 import Metadata
from envoy.config.route.v3.route_components_pb2 import Route, RouteAction, RouteMatch, VirtualHost
from envoy.config.route.v3.route_pb2 import RouteConfiguration

from meshproxy.pilot.documents.common import covers
from meshproxy.pilot.documents.virtual_service import MESH, Destination, HTTPRoute, HTTPRouteDestination
from meshproxy.pilot.resources import names
from meshproxy.pilot.resources.actions import act, set_timeout
from meshproxy.pilot.resources.gateway_api import Attached, routes_of
from meshproxy.pilot.resources.http_policies import set_host_policies
from meshproxy.pilot.resources.load_balancing import hash_policies, header_policy, query_policy, source_policy
from meshproxy.pilot.resources.matches import Caller, applies, is_catch_all, route_match
from meshproxy.pilot.resources.messages import boolean, duration_of, uint32

if TYPE_CHECKING:
    from meshproxy.pilot.documents.document import Document
    from meshproxy.pilot.documents.meshproxy_api import HashOn
    from meshproxy.pilot.mesh.services import Service, ServicePort
    from meshproxy.pilot.resources.view import View

_MAX_BODY_BYTES: Final = 1024 * 1024
_BAD_GATEWAY: Final = 502
_DEFAULT_PORT: Final = 80  # where hosts stand that are no services


class RuleDestinations:
    """What rules name, as the proxies of a view reach it (`Destinations`)."""

    def __init__(self, view: View, port: int) -> None:
        self._view = view
        self.port = port
        self._split: list[RouteAction.HashPolicy] = []

    def cluster_of(self, destination: Destination) -> str:
        return self._view.cluster_of(destination, self.port)

    def hash_policies(self, destination: Destination) -> list[RouteAction.HashPolicy]:
        service = self._view.services.get(destination.host)
        if service is None:
            return []
        port = self._view.port_of(destination, self.port)
        balancer = self._view.policy(service, destination.subset, port).load_balancer
        return hash_policies(balancer.consistent_hash if balancer is not None else None)

    def split_policies(self) -> list[RouteAction.HashPolicy]:
        return list(self._split)

    def split_by(self, hash_on: Sequence[HashOn]) -> None:
        """For the routes to come: what keeps a user on one side of a split."""
        self._split = [split_policy(one) for one in hash_on]
        for policy in self._split:
            policy.terminal = True


def split_policy(rule: HashOn) -> RouteAction.HashPolicy:
    """One thing that keeps a user on one side of a split."""
    if rule.header is not None:
        return header_policy(rule.header)
    if rule.query_parameter is not None:
        return query_policy(rule.query_parameter)
    if rule.cookie is None:
        return source_policy()
    cookie = RouteAction.HashPolicy.Cookie(name=rule.cookie.name, path=rule.cookie.path)
    if rule.cookie.ttl is not None:
        cookie.ttl.CopyFrom(duration_of(rule.cookie.ttl))
    return RouteAction.HashPolicy(cookie=cookie)


def route_configuration(name: str, hosts: Iterable[VirtualHost]) -> RouteConfiguration:
    """The first host keeps a domain that several claim: a domain may stand only once."""
    message = RouteConfiguration(
        name=name,
        validate_clusters=boolean(False),
        max_direct_response_body_size_bytes=uint32(_MAX_BODY_BYTES),
        ignore_port_in_host_matching=True,
    )
    taken: set[str] = set()
    for host in hosts:
        domains = [domain for domain in host.domains if domain.lower() not in taken]
        if domains:
            added = message.virtual_hosts.add()
            added.CopyFrom(host)
            if len(domains) < len(host.domains):
                added.domains[:] = domains
            taken.update(domain.lower() for domain in domains)
    return message


def outbound_routes(view: View, port: int, host_messages: Iterable[VirtualHost]) -> RouteConfiguration:
    """`<port>`: the hosts of a port, and last of all what is to become of other names."""
    return route_configuration(str(port), [*host_messages, catch_all(view)])


def own_routes(service: Service, port: ServicePort) -> str:
    """The name of the routes of a listener that is for one service alone."""
    return f"{service.hostname}:{port.number}"


def service_host(view: View, service: Service, port: ServicePort, *, alone: bool = False) -> VirtualHost:
    """The virtual host of a service on one of its ports. `alone`: it is for whatever host a request names."""
    domains = names.domains_of(service.hostname, service.addresses, view.scope.namespace, view.scope.domain)
    message = VirtualHost(
        name=f"{service.hostname}:{port.number}",
        domains=["*"] if alone else domains,
        routes=service_routes(view, service, port),
        include_request_attempt_count=True,
    )
    set_host_policies(message, view.policies, service.hostname, port.number, view.scope.domain)
    return message


def service_routes(view: View, service: Service, port: ServicePort) -> list[Route]:
    """Those of the Gateway API's routes that are attached to it, else those of its VirtualService that are for these
    proxies and this port, else the one to its own cluster."""
    attached = [
        Attached(document.name, document.namespace, document.spec)
        for document in view.mesh.routes(service, view.scope.namespace, port.number)
    ]
    destinations = RuleDestinations(view, port.number)
    if attached:
        return routes_of(attached, destinations, view.scope.domain)
    document = view.virtual_services.of(service.hostname)
    found = rule_routes(view, document, port.number, destinations) if document is not None else []
    return found or [default_route(service, port, RuleDestinations(view, port.number))]


def default_route(service: Service, port: ServicePort, destinations: RuleDestinations) -> Route:
    route = Route(name="default", match=RouteMatch(prefix="/"))
    act(route, HTTPRoute(route=(HTTPRouteDestination(destination=Destination(host=service.hostname)),)), destinations)
    route.route.cluster = names.outbound_cluster(service.hostname, port.number)
    return route


def rule_routes(
    view: View, document: Document, port: int, destinations: RuleDestinations, gateways: Iterable[str] = (MESH,)
) -> list[Route]:
    """The http routes of a VirtualService that these proxies can take on this port, up to one that takes everything."""
    caller = Caller(view.scope.namespace, view.scope.labels, frozenset(gateways))
    found: list[Route] = []
    for rule in document.spec.http:
        destinations.split_by(view.mesh.sticky_split(document.identity, rule.name))
        for match in rule.match or (None,):
            if match is not None and not applies(match, caller, port):
                continue
            route = Route(name=_route_name(rule.name, match.name if match is not None else ""))
            route.match.CopyFrom(route_match(match))
            route.stat_prefix = match.stat_prefix if match is not None else ""
            act(route, rule, destinations)
            route.metadata.CopyFrom(_origin_of(document))
            found.append(route)
            if is_catch_all(route.match):
                return found
    return found


def _route_name(rule: str, match: str) -> str:
    return f"{rule}.{match}" if rule and match else rule or match


def catch_all(view: View) -> VirtualHost:
    """Names that are no service's: on to where the connection was going, or 502."""
    if view.allow_any:
        route = Route(name=names.ALLOW_ANY, match=RouteMatch(prefix="/"))
        route.route.cluster = names.PASSTHROUGH
        set_timeout(route.route, None)
        return VirtualHost(name=names.ALLOW_ANY, domains=["*"], routes=[route], include_request_attempt_count=True)
    route = Route(name=names.BLOCK_ALL, match=RouteMatch(prefix="/"))
    route.direct_response.status = _BAD_GATEWAY
    return VirtualHost(name=names.BLOCK_ALL, domains=["*"], routes=[route], include_request_attempt_count=True)


def bare_hosts(view: View) -> list[str]:
    """Hosts of VirtualServices that are no services, and no wildcards over some: they stand on port 80. A service that
    is out of these proxies' sight is none of them."""
    documents = view.virtual_services
    exact = [host for host, one in documents.exact.items() if one.spec.http and not view.is_service(host, one)]
    wildcards = [host for host, one in documents.wildcards if one.spec.http]
    return sorted(exact) + [host for host in wildcards if not any(covers(host, each) for each in view.services)]


def bare_host(view: View, hostname: str) -> VirtualHost:
    """The virtual host of one of them; without routes where none of its rules is for these proxies."""
    document = view.virtual_services.of(hostname)
    message = VirtualHost(
        name=f"{hostname}:{_DEFAULT_PORT}",
        domains=names.domains_of(hostname, (), view.scope.namespace, view.scope.domain),
        include_request_attempt_count=True,
    )
    if document is not None:
        destinations = RuleDestinations(view, _DEFAULT_PORT)
        message.routes.extend(rule_routes(view, document, _DEFAULT_PORT, destinations))
    set_host_policies(message, view.policies, hostname, _DEFAULT_PORT, view.scope.domain)
    return message


def _origin_of(document: Document) -> Metadata:
    """Which document the route is from: istioctl shows it."""
    identity = document.identity
    path = f"/apis/networking.istio.io/v1/namespaces/{identity.namespace}/virtual-service/{identity.name}"
    metadata = Metadata()
    metadata.filter_metadata["istio"]["config"] = path
    return metadata
