"""A mesh as the proxies of one scope see it: the services in their sight, and the rules that are for them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meshproxy.pilot import proxy as proxies
from meshproxy.pilot.documents.common import covers
from meshproxy.pilot.mesh.destination_rules import traffic_policy
from meshproxy.pilot.mesh.model import obeys, sees
from meshproxy.pilot.resources import names
from meshproxy.pilot.resources.authorization import Authorization, authorization
from meshproxy.pilot.resources.dependencies import destinations
from meshproxy.pilot.resources.locality import Origin

if TYPE_CHECKING:
    from meshproxy.pilot.documents.destination_rule import TrafficPolicy
    from meshproxy.pilot.documents.document import Document
    from meshproxy.pilot.documents.virtual_service import Destination
    from meshproxy.pilot.mesh.destination_rules import MergedRule
    from meshproxy.pilot.mesh.model import Mesh
    from meshproxy.pilot.mesh.services import Endpoint, Service, ServicePort

ALLOW_ANY: Final = "ALLOW_ANY"


@dataclass(frozen=True, slots=True)
class OutboundScope:
    """What the resources for outbound traffic depend on, besides the mesh. `labels` are those that rules ask for."""

    mode: str
    namespace: str
    domain: str
    labels: tuple[tuple[str, str], ...] = ()
    locality: str = ""  # region/zone/sub-zone; empty where no rule cares
    ours: bool = False  # whether the proxy is meshproxy, which takes filters in Python
    ports: tuple[tuple[str, str], ...] = ()  # with explicit listeners: the local port by `<port>` or `<host>:<port>`

    sds: str = ""  # its cluster for secrets; empty: there is nobody to give it any

    @property
    def intercepted(self) -> bool:
        return self.mode == proxies.SIDECAR

    @property
    def is_grpc(self) -> bool:
        return self.mode == proxies.GRPC

    @property
    def is_gateway(self) -> bool:
        return self.mode == proxies.GATEWAY


class View:
    """Made for one mesh and one scope; what it finds out it keeps."""

    def __init__(self, mesh: Mesh, scope: OutboundScope) -> None:
        self.mesh = mesh
        self.scope = scope
        self._labels = dict(scope.labels)
        # A Sidecar is for workloads: the edge sees all that is exported to it.
        self.sidecar: Document | None = None if scope.is_gateway else mesh.sidecar(scope.namespace, self._labels)
        self.services: dict[str, Service] = dict(sorted(self._in_sight().items()))
        self._rules: dict[str, MergedRule | None] = {}
        self._policies: dict[tuple[str, str, int], TrafficPolicy] = {}

    def elsewhere(self, mesh: Mesh) -> View:
        """The same for a mesh in which nothing but endpoints is different."""
        view = copy.copy(self)
        view.mesh = mesh
        return view

    def _in_sight(self) -> Mapping[str, Service]:
        """Those that are exported to the namespace and that its Sidecar names; and, as in Istio, those that the
        VirtualServices send to which it obeys. gRPC's clients have no use for names that they must resolve."""
        sidecar, visible = self.sidecar, self.mesh.services.visible(self.scope.namespace)
        found = visible
        if sidecar is not None and sidecar.spec.egress:
            found = self.mesh.services.in_sight(
                self.scope.namespace, lambda one: sees(sidecar, one.namespace, one.hostname)
            )
            found = {host: visible[host] for host in self._destinations() if host in visible} | found
        if self.scope.is_grpc:
            return {host: service for host, service in found.items() if service.resolution == "STATIC"}
        return found

    def _destinations(self) -> Iterator[str]:
        for document in self._obeyed:
            yield from destinations(document.spec)

    @functools.cached_property
    def _obeyed(self) -> list[Document]:
        """The VirtualServices for these proxies, the oldest first."""
        exported = self.mesh.virtual_services.visible(self.scope.namespace)
        return [document for document in exported if obeys(self.sidecar, document)]

    @functools.cached_property
    def allow_any(self) -> bool:
        """Whether what is no service is let through to where it was going: only interception knows where that is."""
        policy = self.sidecar.spec.outbound_traffic_policy if self.sidecar is not None else None
        mode = policy.mode if policy is not None else self.mesh.config.outbound
        return self.scope.intercepted and mode == ALLOW_ANY

    @functools.cached_property
    def ports(self) -> dict[int, list[tuple[Service, ServicePort]]]:
        """Services by the numbers of their ports."""
        found: dict[int, list[tuple[Service, ServicePort]]] = {}
        for service in self.services.values():
            for port in service.ports:
                found.setdefault(port.number, []).append((service, port))
        return dict(sorted(found.items()))

    @functools.cached_property
    def gateways(self) -> Sequence[Document]:
        """The Gateways that a proxy at the edge serves."""
        return self.mesh.gateways(self._labels) if self.scope.is_gateway else ()

    @functools.cached_property
    def policies(self) -> Sequence[Document]:
        """Limits, and behind them faults: a request beyond a limit is not held up as well."""
        kinds = ("LocalRateLimit", "Fault")
        found = [self.mesh.policies(kind, self.scope.namespace, self._labels) for kind in kinds]
        return [document for documents in found for document in documents]

    @functools.cached_property
    def python_filters(self) -> Sequence[Document]:
        return self.mesh.policies("PythonFilter", self.scope.namespace, self._labels) if self.scope.ours else ()

    @functools.cached_property
    def authorization(self) -> Authorization:
        """Filters for the front of all chains that take what comes in."""
        policies = self.mesh.authorization_policies(self.scope.namespace, self._labels)
        config = self.mesh.config
        return authorization(policies, config.trust_domains, federated=bool(config.federated_domains))

    @functools.cached_property
    def virtual_services(self) -> VirtualServices:
        return VirtualServices(self._obeyed)

    def is_service(self, host: str, rule: Document) -> bool:
        """Whether a host of a VirtualService is a service, in sight or not, of its own namespace or exported."""
        if rule.namespace in self.mesh.services.by_host.get(host, ()):
            return True
        return host in self.services or host in self.mesh.services.visible(self.scope.namespace)

    def rule(self, service: Service) -> MergedRule | None:
        """The DestinationRule for it."""
        name = service.hostname
        if name not in self._rules:
            self._rules[name] = self.mesh.destination_rule(service, self.scope.namespace, self._labels)
        return self._rules[name]

    def policy(self, service: Service, subset: str, port: int) -> TrafficPolicy:
        """What its DestinationRule says for the subset and the port, laid over each other."""
        key = (service.hostname, subset, port)
        if key not in self._policies:
            self._policies[key] = traffic_policy(self.rule(service), subset, port)
        return self._policies[key]

    def subsets(self, service: Service) -> list[str]:
        """The names of its subsets, and that of the whole, which is empty."""
        rule = self.rule(service)
        return ["", *(subset.name for subset in rule.spec.subsets)] if rule is not None else [""]

    def subset_labels(self, service: Service, subset: str) -> tuple[tuple[str, str], ...]:
        """The labels of the endpoints in a subset; the whole has none."""
        rule = self.rule(service)
        found = rule.subset(subset) if rule is not None and subset else None
        return found.labels if found is not None else ()

    def endpoints(self, service: Service, port: int) -> tuple[Endpoint, ...]:
        return self.mesh.endpoints(service.key).get(port, ())

    @functools.cached_property
    def origin(self) -> Origin:
        return Origin(self.scope.locality, self.scope.labels)

    def port_of(self, destination: Destination, default: int) -> int:
        """The port that a rule names, else the only one of the service, else that on which the request came."""
        if destination.port is not None:
            return destination.port.number
        service = self.services.get(destination.host)
        return service.ports[0].number if service is not None and len(service.ports) == 1 else default

    def cluster_of(self, destination: Destination, default_port: int) -> str:
        return names.outbound_cluster(destination.host, self.port_of(destination, default_port), destination.subset)


class VirtualServices:
    """Found by host: an exact name wins over wildcards, a longer wildcard over a shorter one; the oldest of equals."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self.exact: dict[str, Document] = {}
        wildcards: dict[str, Document] = {}
        for document in documents:
            for host in document.spec.hosts:
                (wildcards if host.startswith("*") else self.exact).setdefault(host, document)
        self.wildcards = sorted(wildcards.items(), key=lambda item: -len(item[0]))

    def of(self, hostname: str) -> Document | None:
        found = self.exact.get(hostname)
        if found is None and self.wildcards:
            found = next((document for host, document in self.wildcards if covers(host, hostname)), None)
        return found
