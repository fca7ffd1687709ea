"""Whether proxies would take what a document comes to: the API's own rules on the messages that it is made into.

A route that breaks one of them would cost all services of its port their new routes, since a proxy takes a route
configuration as a whole or not at all. So its document is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from envoy.config.route.v3.route_components_pb2 import Route, RouteAction
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac

from meshproxy.config.errors import ConfigErrors
from meshproxy.config.validate import validate_message
from meshproxy.pilot.documents.destination_rule import TrafficPolicy
from meshproxy.pilot.mesh.destination_rules import MergedRule, traffic_policy
from meshproxy.pilot.mesh.services import Service, ServicePort
from meshproxy.pilot.resources import names
from meshproxy.pilot.resources.actions import act
from meshproxy.pilot.resources.authorization import HTTP_RBAC, authorization
from meshproxy.pilot.resources.clusters import Outbound, outbound_cluster
from meshproxy.pilot.resources.downstream_tls import downstream_socket
from meshproxy.pilot.resources.gateway_api import Attached, routes_of
from meshproxy.pilot.resources.http_policies import fault, python_filter, rate_limit
from meshproxy.pilot.resources.load_balancing import hash_policies
from meshproxy.pilot.resources.matches import route_match
from meshproxy.pilot.resources.routes import split_policy

if TYPE_CHECKING:
    from meshproxy.pilot.documents.document import Document
    from meshproxy.pilot.documents.virtual_service import Destination

_PORT: Final = 80
_DOMAIN: Final = "cluster.local"
_SDS: Final = "sds-grpc"


def reasons_against(document: Document) -> list[str]:
    """What is wrong with the messages, each with the path within its message; empty where nothing is."""
    messages = _MESSAGES.get(document.identity.kind)
    errors = ConfigErrors()
    for name, message in messages(document) if messages is not None else ():
        validate_message(message, name, errors)
    return [str(error) for error in errors.sorted()]


class _AnyDestination:
    """`Destinations` for which every service is there, and has no rules."""

    port = _PORT

    def cluster_of(self, destination: Destination) -> str:
        return names.outbound_cluster(destination.host, _PORT, destination.subset)

    def hash_policies(self, _destination: Destination) -> list[RouteAction.HashPolicy]:
        return []

    def split_policies(self) -> list[RouteAction.HashPolicy]:
        return []


def _virtual_service(document: Document) -> Iterator[tuple[str, Any]]:
    for index, rule in enumerate(document.spec.http):
        for number, match in enumerate(rule.match or (None,)):
            route = Route(match=route_match(match))
            act(route, rule, _AnyDestination())
            yield f"http[{index}] as a route" + (f", match[{number}]" if number else ""), route


def _destination_rule(document: Document) -> Iterator[tuple[str, Any]]:
    spec = document.spec
    policies = [spec.traffic_policy, *(subset.traffic_policy for subset in spec.subsets)]
    ports = {one.port.number for policy in policies if policy is not None for one in policy.port_level_settings}
    rule = MergedRule(document.namespace, spec, (document.identity,))
    for number in sorted(ports | {_PORT}):
        port = ServicePort(number, "http", "HTTP", number)
        service = Service(spec.host, document.namespace, (port,))
        for subset in ("", *(subset.name for subset in spec.subsets)):
            policy = traffic_policy(rule, subset, number)
            name = f"subset {subset or '-'}, port {number}"
            made_from = Outbound(service, port, subset, policy, intercepted=True, mesh_endpoints=False, sds=_SDS)
            yield f"{name} as a cluster", outbound_cluster(made_from)
            yield from ((f"{name} as a hash policy", one) for one in _hashes(policy))


def _hashes(policy: TrafficPolicy) -> list[RouteAction.HashPolicy]:
    return hash_policies(policy.load_balancer.consistent_hash if policy.load_balancer is not None else None)


def _route(document: Document) -> Iterator[tuple[str, Any]]:
    attached = Attached(document.name, document.namespace, document.spec)
    for route in routes_of([attached], _AnyDestination(), _DOMAIN):
        yield "as a route", route


def _gateway(document: Document) -> Iterator[tuple[str, Any]]:
    for index, server in enumerate(document.spec.servers):
        if server.tls is not None and server.tls.mode != "PASSTHROUGH" and not server.tls.https_redirect:
            yield f"servers[{index}].tls as a transport socket", downstream_socket(server.tls, (), _SDS)


def _authorization_policy(document: Document) -> Iterator[tuple[str, Any]]:
    made = authorization([document], (_DOMAIN,))
    for filter_ in (*made.http, *made.network):
        message = http_rbac.RBAC() if filter_.name == HTTP_RBAC else network_rbac.RBAC()
        filter_.typed_config.Unpack(message)
        yield f"as {filter_.name}", message


_MESSAGES: Final[dict[str, Callable[[Document], Iterator[tuple[str, Any]]]]] = {
    "VirtualService": _virtual_service,
    "DestinationRule": _destination_rule,
    "HTTPRoute": _route,
    "GRPCRoute": _route,
    "Gateway": _gateway,
    "AuthorizationPolicy": _authorization_policy,
    "LocalRateLimit": lambda document: iter([("as a rate limit", rate_limit(document.spec))]),
    "Fault": lambda document: iter([("as a fault", fault(document.spec))]),
    "StickySplit": lambda document: (("as a hash policy", split_policy(one)) for one in document.spec.hash_on),
    "PythonFilter": lambda document: iter([("as a filter", python_filter(document.spec))]),
}
