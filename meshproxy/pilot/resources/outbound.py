"""All resources for outbound traffic of a scope, made from those of the mesh before: what stays is the same object."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from meshproxy.config.subscription import CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE
from meshproxy.pilot.documents.common import HTTP_PROTOCOLS
from meshproxy.pilot.resources.clusters import standing_clusters
from meshproxy.pilot.resources.dependencies import rules_about
from meshproxy.pilot.resources.gateways import gateway_listeners, gateway_routes
from meshproxy.pilot.resources.grpc_client import grpc_listeners, grpc_routes
from meshproxy.pilot.resources.listeners import port_listeners, virtual_outbound
from meshproxy.pilot.resources.pieces import Pieces, Same
from meshproxy.pilot.resources.routes import (
    bare_host,
    bare_hosts,
    outbound_routes,
    own_routes,
    route_configuration,
    service_host,
)
from meshproxy.pilot.snapshot import Resource

if TYPE_CHECKING:
    from envoy.config.route.v3.route_components_pb2 import VirtualHost

    from meshproxy.pilot.mesh.model import Changes
    from meshproxy.pilot.mesh.services import Service, ServicePort
    from meshproxy.pilot.resources.shared import SharedResources
    from meshproxy.pilot.resources.view import View

Named = Mapping[str, Resource]

_ROUTING: Final = frozenset(
    {
        "VirtualService",
        "HTTPRoute",
        "GRPCRoute",
        "StickySplit",
        "LocalRateLimit",
        "Fault",
        "PythonFilter",
        "Gateway",
        "AuthorizationPolicy",
    }
)
_HTTP_PORT: Final = 80  # where hosts stand that are no services


class Outbound:
    """`types` are the resources, by type URL and name."""

    def __init__(self, view: View, shared: SharedResources, before: Outbound | None, changes: Changes | None) -> None:
        """`changes` is what is new since `before`."""
        self.view = view
        self._shared = shared
        self._pieces: Pieces = Pieces(before._pieces if before is not None else None)
        self.types: Mapping[str, Named]
        if before is not None and changes is not None and changes.only_endpoints:
            self._pieces = before._pieces
            self.types = self._with_endpoints(before, changes)
        else:
            old = before.types if before is not None else {}
            in_sight = before is not None and before.view.services.keys() == view.services.keys()
            made = self._routing() if in_sight and is_only_routing(changes) else self._all()
            self.types = dict(old) | {url: unchanged(old.get(url), resources) for url, resources in made.items()}
            self._pieces.finish()

    def _with_endpoints(self, before: Outbound, changes: Changes) -> dict[str, Named]:
        """What differs when services run elsewhere: the assignments, and clusters that name their hosts themselves."""
        clusters: dict[str, Resource] = {}
        assignments: dict[str, Resource] = {}
        for hostname, namespace in changes.endpoints:
            service = self.view.services.get(hostname)
            if service is not None and service.namespace == namespace:
                clusters.update(self._clusters_of(service))
                assignments.update(self._assignments_of(service))
        types = dict(before.types)
        for url, resources in ((CLUSTER_TYPE, clusters), (ENDPOINT_TYPE, assignments)):
            old = types[url]
            if any(old.get(name) is not one for name, one in resources.items()):
                types[url] = {**old, **resources}
        return types

    def _all(self) -> dict[str, Named]:
        services = self.view.services.values()
        return {
            CLUSTER_TYPE: dict(self._clusters(services)),
            ENDPOINT_TYPE: {name: one for service in services for name, one in self._assignments_of(service)},
            **self._routing(),
        }

    def _routing(self) -> dict[str, Named]:
        """Which cluster takes what."""
        made: dict[str, Named] = {}
        if self.view.scope.is_grpc:
            made[LISTENER_TYPE], made[ROUTE_TYPE] = self._grpc()
        elif self.view.scope.is_gateway:
            made[LISTENER_TYPE] = named(gateway_listeners(self.view))
            made[ROUTE_TYPE] = named(gateway_routes(self.view))
        else:
            made[ROUTE_TYPE] = self._routes()
            made[LISTENER_TYPE] = self._listeners(str(_HTTP_PORT) in made[ROUTE_TYPE])
        return made

    def _clusters(self, services: Iterable[Service]) -> Iterator[tuple[str, Resource]]:
        if not self.view.scope.is_grpc:
            intercepted = self.view.scope.intercepted
            yield from self._pieces.keep(
                "standing clusters", (intercepted,), lambda: named(standing_clusters(intercepted=intercepted))
            ).items()
        for service in services:
            yield from self._clusters_of(service)

    def _clusters_of(self, service: Service) -> Iterator[tuple[str, Resource]]:
        for port in service.ports:
            for subset in self.view.subsets(service):
                resource = self._shared.cluster(self.view, service, port, subset)
                yield resource.name, resource

    def _assignments_of(self, service: Service) -> Iterator[tuple[str, Resource]]:
        for port in service.ports:
            for subset in self.view.subsets(service):
                resource = self._shared.assignment(self.view, service, port, subset)
                if resource is not None:
                    yield resource.name, resource

    def _routes(self) -> Named:
        bare = [host for host in map(self._bare_host, bare_hosts(self.view)) if host.routes]
        found: dict[str, Resource] = {}
        for number, owned in self.view.ports.items():
            hosts = [self._host(*one) for one in owned if one[1].protocol in HTTP_PROTOCOLS]
            if number == _HTTP_PORT:
                hosts += bare
            if hosts:
                found[str(number)] = self._configuration(number, hosts)
        if bare and str(_HTTP_PORT) not in found:
            found[str(_HTTP_PORT)] = self._configuration(_HTTP_PORT, bare)
        found.update(self._own_routes())
        return found

    def _own_routes(self) -> Named:
        """Of services that have an explicit listener to themselves."""
        wanted = dict(self.view.scope.ports)
        found: dict[str, Resource] = {}
        for owned in self.view.ports.values() if wanted else ():
            for service, port in owned:
                if own_routes(service, port) in wanted and port.protocol in HTTP_PROTOCOLS:
                    host = service_host(self.view, service, port, alone=True)
                    found.update(named([route_configuration(own_routes(service, port), [host])]))
        return found

    def _host(self, service: Service, port: ServicePort) -> VirtualHost:
        inputs = (*self._rules_about(service.hostname), *self.view.policies)
        key = ("host", service.hostname, port.number)
        return self._pieces.keep(key, inputs, lambda: service_host(self.view, service, port))

    def _bare_host(self, hostname: str) -> VirtualHost:
        inputs = (*self._rules_about(hostname), *self.view.policies)
        return self._pieces.keep(("bare host", hostname), inputs, lambda: bare_host(self.view, hostname))

    def _rules_about(self, hostname: str) -> tuple[Any, ...]:
        return rules_about(self.view, self._pieces, hostname, self.view.virtual_services.of(hostname))

    def _configuration(self, number: int, hosts: list[VirtualHost]) -> Resource:
        return self._pieces.keep(
            ("routes", number),
            (self.view.allow_any, *map(Same, hosts)),
            lambda: Resource.of(str(number), outbound_routes(self.view, number, hosts)),
        )

    def _listeners(self, has_http_port: bool) -> Named:
        view, found = self.view, dict[str, Resource]()
        common = (view.allow_any, tuple(view.policies), tuple(view.python_filters))
        if view.scope.intercepted:
            found.update(self._pieces.keep("virtualOutbound", common, lambda: named([virtual_outbound(view)])))
        ports: dict[int, list[tuple[Service, ServicePort]]] = dict(view.ports)
        if has_http_port:
            ports.setdefault(_HTTP_PORT, [])
        for number, owned in ports.items():
            for name, resource in self._port_listeners(number, owned, common).items():
                found.setdefault(name, resource)  # of two that claim one place the first has it
        return found

    def _port_listeners(
        self, number: int, owned: Sequence[tuple[Service, ServicePort]], common: tuple[Any, ...]
    ) -> Named:
        inputs = tuple(self._listener_inputs(*one) for one in owned)
        return self._pieces.keep(
            ("listeners", number), (*common, inputs), lambda: named(port_listeners(self.view, number, owned))
        )

    def _listener_inputs(self, service: Service, port: ServicePort) -> tuple[Any, ...]:
        """The rules of HTTP stand in its routes; the others' in the listener itself."""
        if port.protocol in HTTP_PROTOCOLS:
            return (port, service.hostname)
        return self._rules_about(service.hostname)

    def _grpc(self) -> tuple[Named, Named]:
        listeners: dict[str, Resource] = {}
        routes: dict[str, Resource] = {}
        for owned in self.view.ports.values():
            for service, port in owned:
                if port.protocol in HTTP_PROTOCOLS:
                    made = self._grpc_service(service, port)
                    listeners.update(made[0])
                    routes.update(made[1])
        return listeners, routes

    def _grpc_service(self, service: Service, port: ServicePort) -> tuple[Named, Named]:
        view = self.view
        return self._pieces.keep(
            ("grpc", service.hostname, port.number),
            self._rules_about(service.hostname),
            lambda: (named(grpc_listeners(view, service, port)), named([grpc_routes(view, service, port)])),
        )


def is_only_routing(changes: Changes | None) -> bool:
    """Whether clusters and endpoints are as before."""
    if changes is None or changes.everything or changes.services or changes.endpoints:
        return False
    return all(identity.kind in _ROUTING for identity in changes.documents)


def named(messages: Iterable[Any]) -> dict[str, Resource]:
    return {message.name: Resource.of(message.name, message) for message in messages}


def unchanged(old: Named | None, new: Named) -> Named:
    """The old ones where nothing changed, and each old resource whose version did not."""
    if old is None:
        return new
    kept: dict[str, Resource] = {}
    for name, one in new.items():
        was = old.get(name)
        kept[name] = was if was is not None and was.version == one.version else one
    same = len(old) == len(kept) and all(old.get(name) is one for name, one in kept.items())
    return old if same else kept
