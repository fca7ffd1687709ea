"""The mesh: all documents in force, and what they come to. It never changes: `updated` makes the next one, which shares
with it all that stays, so that its cost follows what changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

from meshproxy.pilot.documents.common import covers, overlap
from meshproxy.pilot.documents.document import Document, Identity
from meshproxy.pilot.documents.meshproxy_api import HashOn
from meshproxy.pilot.mesh.destination_rules import DestinationRuleTable, MergedRule
from meshproxy.pilot.mesh.mutual_tls import DISABLE, MutualTls, mutual_tls
from meshproxy.pilot.mesh.names import full_host, resolve, selects
from meshproxy.pilot.mesh.services import (
    NO_ENDPOINTS,
    TAKES_MESH_TLS,
    Endpoint,
    Endpoints,
    Service,
    ServiceKey,
    ServiceTable,
    WorkloadIndex,
    build_endpoints,
    build_service,
    keys_of,
    selector_of,
    workload_labels,
)
from meshproxy.pilot.mesh.virtual_services import VirtualServiceTable

_SERVICES: Final = frozenset({"ServiceEntry", "Service"})
_PLACES: Final = _SERVICES | {"WorkloadEntry"}
# How many updates are remembered, so that `changes` need not compare everything.
_REMEMBERED: Final = 32
_ROUTES: Final = frozenset({"HTTPRoute", "GRPCRoute"})
_PEERS: Final = "PeerAuthentication"

# A document as it was and as it is; None where it was or is not.
Change: TypeAlias = tuple[Document | None, Document | None]


@dataclass(frozen=True, slots=True)
class MeshConfig:
    """What the pilot's flags say. `outbound` is for traffic to what is no service, where no Sidecar says it. Identities
    are of the trust domain; those of its aliases, which it had before, or shall have, are believed as well."""

    domain: str = "cluster.local"
    root_namespace: str = "istio-system"
    outbound: Literal["ALLOW_ANY", "REGISTRY_ONLY"] = "ALLOW_ANY"
    trust_domain: str = "cluster.local"
    trust_domain_aliases: tuple[str, ...] = ()
    federated_domains: tuple[str, ...] = ()  # other meshes, whose workloads may call those of this one

    @property
    def trust_domains(self) -> tuple[str, ...]:
        """All in which its workloads may have their identities; the first is that of new ones."""
        return tuple(dict.fromkeys((self.trust_domain, *self.trust_domain_aliases)))


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs between two meshes."""

    documents: frozenset[Identity]
    services: frozenset[ServiceKey]  # there, gone, or with other ports, addresses, …
    endpoints: frozenset[ServiceKey]  # with other endpoints
    everything: bool = False  # there was no mesh before, or its configuration was another

    def __bool__(self) -> bool:
        return self.everything or bool(self.documents or self.services or self.endpoints)

    @property
    def only_endpoints(self) -> bool:
        """Whether no rule and no service changed, only where services run."""
        return not self.everything and not self.services and all(each.kind in _PLACES for each in self.documents)


@dataclass(frozen=True, slots=True)
class _Declared:
    """Who declares services: by service, and those that select workloads by namespace and a label that they ask for."""

    by_key: Mapping[ServiceKey, tuple[Document, ...]] = field(default_factory=dict)
    selecting: Mapping[tuple[str, str, str], Mapping[Identity, Document]] = field(default_factory=dict)

    def selects(self, namespace: str, labels: Iterable[tuple[str, str]]) -> Iterator[Document]:
        """Those that select a workload with these labels."""
        all_labels = frozenset(labels)
        for pair in all_labels:
            for document in self.selecting.get((namespace, *pair), {}).values():
                if selects(selector_of(document), all_labels):
                    yield document


@dataclass(frozen=True, slots=True)
class _Update:
    """What one update may have changed, of the mesh that `before` marks."""

    before: object
    documents: frozenset[Identity]
    services: frozenset[ServiceKey]


@dataclass(frozen=True, slots=True)
class Mesh:
    """Names of hosts and gateways are in full in all that it gives, but for `documents`."""

    config: MeshConfig
    documents: Mapping[Identity, Document]
    services: ServiceTable
    virtual_services: VirtualServiceTable
    destination_rules: DestinationRuleTable
    _endpoints: Mapping[ServiceKey, Endpoints]
    _by_kind: Mapping[str, Mapping[str, tuple[Document, ...]]]  # kind, then namespace: the oldest first
    _routes: Mapping[str, tuple[Document, ...]]  # HTTPRoute and GRPCRoute by the host of their parents
    _declared: _Declared
    _workloads: WorkloadIndex
    _mark: object = field(default_factory=object)
    _updates: tuple[_Update, ...] = ()  # the last ones that led here

    def endpoints(self, key: ServiceKey) -> Endpoints:
        """Where a service runs, by the number of its port."""
        return self._endpoints.get(key, NO_ENDPOINTS)

    def of_kind(self, kind: str, namespace: str) -> tuple[Document, ...]:
        """The documents of a kind in a namespace, the oldest first; none of the kinds that make services."""
        return self._by_kind.get(kind, {}).get(namespace, ())

    def namespaces_of(self, kind: str) -> Mapping[str, tuple[Document, ...]]:
        """All documents of a kind, by namespace; none of the kinds that make services."""
        return self._by_kind.get(kind, {})

    def destination_rule(
        self, service: Service, client_namespace: str, client_labels: dict[str, str]
    ) -> MergedRule | None:
        """What a client obeys when it sends to a service."""
        return self.destination_rules.find(service.hostname, service.namespace, client_namespace, client_labels)

    def sidecar(self, namespace: str, labels: dict[str, str]) -> Document | None:
        """The Sidecar of a workload: one that selects it, that of its namespace, or that of the root namespace."""
        own = self.of_kind("Sidecar", namespace)
        for document in own:
            if document.spec.workload_selector is not None and selects(document.spec.workload_selector.labels, labels):
                return document
        for document in (*own, *self.of_kind("Sidecar", self.config.root_namespace)):
            if document.spec.workload_selector is None:
                return document
        return None

    def gateways(self, labels: dict[str, str]) -> tuple[Document, ...]:
        """The Gateways that a proxy with these labels serves, whatever their namespace, the oldest first."""
        found = [
            each
            for documents in self.namespaces_of("Gateway").values()
            for each in documents
            if selects(each.spec.selector, labels)
        ]
        return tuple(sorted(found, key=lambda each: each.age))

    def attached(self, service: Service, client_namespace: str) -> tuple[Document, ...]:
        """The HTTPRoutes and GRPCRoutes of a service that may be for a client, the oldest first."""
        namespaces = (client_namespace, service.namespace)
        return tuple(each for each in self._routes.get(service.hostname, ()) if each.namespace in namespaces)

    def routes(self, service: Service, client_namespace: str, port: int) -> tuple[Document, ...]:
        """Those for requests to a port of the service: of the client's namespace, else of the service's."""
        attached = [
            each
            for each in self.attached(service, client_namespace)
            if not (ports := parents(each, self.config.domain)[service.hostname]) or port in ports
        ]
        own = tuple(each for each in attached if each.namespace == client_namespace)
        return own or tuple(attached)

    def policies(self, kind: str, namespace: str, labels: dict[str, str]) -> tuple[Document, ...]:
        """The LocalRateLimits, Faults or PythonFilters of a workload: the root namespace's, then its own, by age."""
        namespaces = dict.fromkeys((self.config.root_namespace, namespace))
        return tuple(
            document
            for each in namespaces
            for document in self.of_kind(kind, each)
            if document.spec.workload_selector is None or selects(document.spec.workload_selector.labels, labels)
        )

    def mutual_tls(self, namespace: str, labels: dict[str, str]) -> MutualTls:
        """Which connections a workload with these labels takes."""
        root = self.config.root_namespace
        own = self.of_kind(_PEERS, namespace) if namespace != root else ()
        return mutual_tls(self.of_kind(_PEERS, root), own, labels)

    def authorization_policies(self, namespace: str, labels: dict[str, str]) -> tuple[Document, ...]:
        """Those of a workload: the root namespace's, then its own, by age."""
        namespaces = dict.fromkeys((self.config.root_namespace, namespace))
        return tuple(
            document
            for each in namespaces
            for document in self.of_kind("AuthorizationPolicy", each)
            if each == namespace or not document.spec.target_refs
            if any(selects(wanted, labels) for wanted in document.spec.selections)
        )

    def sticky_split(self, virtual_service: Identity, route: str) -> tuple[HashOn, ...]:
        """What users are told apart by on a route of a VirtualService, () for nothing; a StickySplit that names the
        route comes before one for all."""
        found = [
            each
            for each in self.of_kind("StickySplit", virtual_service.namespace)
            if each.spec.virtual_service == virtual_service.name and each.spec.route in ("", route)
        ]
        best = min(found, key=lambda each: (each.spec.route != route, each.age), default=None)
        return () if best is None else tuple(best.spec.hash_on)

    def served_by(self, namespace: str, labels: dict[str, str]) -> list[Service]:
        """The services of a namespace that select a workload with these labels: those whose requests it receives."""
        return [
            self.services.by_host[host][of]
            for document in sorted(self._declared.selects(namespace, labels.items()), key=lambda each: each.age)
            for host, of in keys_of(document, self.config.domain)
        ]

    def updated(self, changes: Iterable[Change]) -> Mesh:
        """The mesh with these documents changed."""
        pairs = [(old, new) for old, new in changes if old is not new]
        documents = dict(self.documents)
        for old, new in pairs:
            if new is not None:
                documents[new.identity] = new
            elif old is not None:
                documents.pop(old.identity, None)
        resolved = [(self._resolve(old), self._resolve(new)) for old, new in pairs]
        by_kind: dict[str, list[Change]] = {}
        for pair in resolved:
            kind = (pair[0] or pair[1]).identity.kind  # type: ignore[union-attr]
            by_kind.setdefault(kind, []).append(pair)
        mesh, touched = self._with_rules(documents, by_kind), frozenset[ServiceKey]()
        if (_PLACES | {_PEERS}) & by_kind.keys():
            mesh, touched = mesh._with_services(by_kind)
        identities = frozenset(each.identity for pair in pairs for each in pair if each is not None)
        update = _Update(self._mark, identities, touched)
        return replace(mesh, _mark=object(), _updates=(*self._updates, update)[-_REMEMBERED:])

    def _resolve(self, document: Document | None) -> Document | None:
        return None if document is None else resolve(document, self.config.domain)

    def _with_rules(self, documents: Mapping[Identity, Document], by_kind: Mapping[str, list[Change]]) -> Mesh:
        """With all but services and endpoints."""
        mesh = replace(self, documents=documents, _by_kind=_regrouped(self._by_kind, by_kind))
        if "VirtualService" in by_kind:
            mesh = replace(mesh, virtual_services=self.virtual_services.replaced(by_kind["VirtualService"]))
        if "DestinationRule" in by_kind:
            mesh = replace(mesh, destination_rules=self.destination_rules.replaced(by_kind["DestinationRule"]))
        routes = [pair for kind in sorted(_ROUTES) for pair in by_kind.get(kind, ())]
        return replace(mesh, _routes=_attached(self._routes, routes, self.config.domain)) if routes else mesh

    def _with_services(self, by_kind: Mapping[str, list[Change]]) -> tuple[Mesh, frozenset[ServiceKey]]:
        """With services and endpoints: those that a changed document declares, or may select workloads for; and which
        these are."""
        declaring = [pair for kind in sorted(_SERVICES) for pair in by_kind.get(kind, ())]
        entries = by_kind.get("WorkloadEntry", [])
        declared = _redeclared(self._declared, declaring, self.config.domain)
        workloads = self._workloads.replaced(entries) if entries else self._workloads
        touched = {key for pair in declaring for each in pair if each for key in keys_of(each, self.config.domain)}
        for document in _selecting(declared, entries):
            touched.update(keys_of(document, self.config.domain))
        touched |= self._of_peers(declared, by_kind.get(_PEERS, []))
        services: dict[ServiceKey, Service | None] = {}
        endpoints = dict(self._endpoints)
        for key in touched:
            documents = list(declared.by_key.get(key, ()))
            old = self.service(key)
            service = build_service(key[0], documents) if documents else None
            if service != old:
                services[key] = service
            self._put_endpoints(endpoints, key, service, documents, workloads)
        table = self.services.replaced(services) if services else self.services
        mesh = replace(self, services=table, _endpoints=endpoints, _declared=declared, _workloads=workloads)
        return mesh, frozenset(touched)

    def _of_peers(self, declared: _Declared, changed: list[Change]) -> set[ServiceKey]:
        """The services whose endpoints these PeerAuthentications are about."""
        namespaces = {each.namespace for pair in changed for each in pair if each is not None}
        if self.config.root_namespace in namespaces:
            return set(declared.by_key)
        return {key for key in declared.by_key if key[1] in namespaces} if namespaces else set()

    def _put_endpoints(
        self,
        endpoints: dict[ServiceKey, Endpoints],
        key: ServiceKey,
        service: Service | None,
        documents: list[Document],
        workloads: WorkloadIndex,
    ) -> None:
        """Set those of one service; what is equal stays the same object."""
        if service is None:
            endpoints.pop(key, None)
            return
        selected = {str(each.identity): workloads.selected(each.namespace, selector_of(each)) for each in documents}
        built = build_endpoints(service, documents, selected)
        if self.namespaces_of(_PEERS):
            built = {number: tuple(map(self._as_it_takes, some)) for number, some in built.items()}
        if built != endpoints.get(key, NO_ENDPOINTS):
            if built:
                endpoints[key] = built
            else:
                endpoints.pop(key, None)

    def _as_it_takes(self, endpoint: Endpoint) -> Endpoint:
        """Whose proxy is told not to take mutual TLS is sent none."""
        if endpoint.tls_mode != TAKES_MESH_TLS:
            return endpoint
        mode = self.mutual_tls(endpoint.namespace, dict(endpoint.labels)).of(endpoint.port)
        return replace(endpoint, tls_mode="disabled") if mode == DISABLE else endpoint

    def changes(self, previous: Mesh | None) -> Changes:
        """What is different from an earlier mesh."""
        if previous is None or previous.config != self.config:
            return Changes(
                frozenset(self.documents),
                frozenset(self._keys()),
                frozenset(self._endpoints),
                everything=True,
            )
        updates = self._since(previous)
        if updates is None:
            identities = frozenset(self.documents.keys() | previous.documents.keys())
            keys = frozenset(self._keys() | previous._keys())
        else:
            identities = frozenset(each for update in updates for each in update.documents)
            keys = frozenset(each for update in updates for each in update.services)
        return Changes(
            frozenset(each for each in identities if _differ(previous.documents.get(each), self.documents.get(each))),
            frozenset(each for each in keys if _differ(previous.service(each), self.service(each))),
            frozenset(each for each in keys if _differ(previous.endpoints(each), self.endpoints(each))),
        )

    def service(self, key: ServiceKey) -> Service | None:
        """The service of a host and namespace."""
        return self.services.by_host.get(key[0], {}).get(key[1])

    def _keys(self) -> set[ServiceKey]:
        return {(host, namespace) for host, by in self.services.by_host.items() for namespace in by}

    def _since(self, previous: Mesh) -> list[_Update] | None:
        """The updates that led here from an earlier mesh; None when that is not remembered."""
        if previous._mark is self._mark:
            return []
        for index, update in enumerate(self._updates):
            if update.before is previous._mark:
                return list(self._updates[index:])
        return None


def empty_mesh(config: MeshConfig) -> Mesh:
    """A mesh without documents."""
    rules = DestinationRuleTable({}, config.root_namespace)
    return Mesh(config, {}, ServiceTable({}), VirtualServiceTable({}), rules, {}, {}, {}, _Declared(), WorkloadIndex())


def sees(sidecar: Document | None, service_namespace: str, host: str) -> bool:
    """Whether the workloads of a Sidecar see a host of a namespace; without a Sidecar they see all."""
    if sidecar is None or not sidecar.spec.egress:
        return True
    return any(covers(pattern, host) for pattern in _patterns(sidecar, service_namespace))


def obeys(sidecar: Document | None, rule: Document) -> bool:
    """Whether the workloads of a Sidecar obey a VirtualService: if they may see one of its hosts in its namespace."""
    if sidecar is None or not sidecar.spec.egress:
        return True
    return any(overlap(pattern, host) for pattern in _patterns(sidecar, rule.namespace) for host in rule.spec.hosts)


def _patterns(sidecar: Document, of: str) -> Iterator[str]:
    """What a Sidecar says about the hosts of a namespace."""
    for listener in sidecar.spec.egress:
        for entry in listener.hosts:
            namespace, _, pattern = entry.partition("/")
            if namespace in ("*", of) or (namespace == "." and sidecar.namespace == of):
                yield pattern


def _differ(was: object, now: object) -> bool:
    return was is not now and was != now


def _regrouped(
    there: Mapping[str, Mapping[str, tuple[Document, ...]]], by_kind: Mapping[str, list[Change]]
) -> Mapping[str, Mapping[str, tuple[Document, ...]]]:
    grouped = {**there}
    for kind in by_kind.keys() - _PLACES:
        pairs = by_kind[kind]
        by_namespace = {**grouped.get(kind, {})}
        for namespace in {each.namespace for pair in pairs for each in pair if each is not None}:
            gone = {each.identity for pair in pairs for each in pair if each is not None}
            kept = [each for each in by_namespace.get(namespace, ()) if each.identity not in gone]
            kept += [new for _, new in pairs if new is not None and new.namespace == namespace]
            by_namespace[namespace] = tuple(sorted(kept, key=lambda each: each.age))
        grouped[kind] = by_namespace
    return grouped


def _attached(
    there: Mapping[str, tuple[Document, ...]], changed: list[Change], domain: str
) -> Mapping[str, tuple[Document, ...]]:
    routes = {**there}
    gone = {each.identity for pair in changed for each in pair if each is not None}
    for host in {host for pair in changed for each in pair if each is not None for host in parents(each, domain)}:
        kept = [each for each in routes.get(host, ()) if each.identity not in gone]
        kept += [new for _, new in changed if new is not None and host in parents(new, domain)]
        routes[host] = tuple(sorted(kept, key=lambda each: each.age))
    return routes


def parents(route: Document, domain: str) -> dict[str, frozenset[int]]:
    """The hosts that an HTTPRoute or GRPCRoute is attached to, each with the ports (none: all)."""
    found: dict[str, frozenset[int]] = {}
    for each in route.spec.parent_refs:
        host = service_host(each.kind, each.name, each.namespace or route.namespace, domain)
        if each.port is None or (host in found and not found[host]):
            found[host] = frozenset()
        else:
            found[host] = found.get(host, frozenset()) | {each.port}
    return found


def service_host(kind: str, name: str, namespace: str, domain: str) -> str:
    """The host that a parentRef or backendRef names: `Service`, or `Hostname`, which is one."""
    return name.lower() if kind == "Hostname" else full_host(name, namespace, domain)


def _redeclared(there: _Declared, changed: list[Change], domain: str) -> _Declared:
    if not changed:
        return there
    by_key, selecting = {**there.by_key}, {**there.selecting}
    for pair in changed:
        for document, keep in zip(pair, (False, True), strict=True):
            if document is None:
                continue
            for key in keys_of(document, domain):
                others = [each for each in by_key.get(key, ()) if each.identity != document.identity]
                by_key[key] = tuple(sorted([*others, document] if keep else others, key=lambda each: each.age))
            for pair_asked in selector_of(document)[:1]:
                asked = (document.namespace, *pair_asked)
                group = {**selecting.get(asked, {})}
                group.pop(document.identity, None)
                if keep:
                    group[document.identity] = document
                selecting[asked] = group
    return _Declared(
        {key: each for key, each in by_key.items() if each},
        {asked: each for asked, each in selecting.items() if each},
    )


def _selecting(declared: _Declared, entries: list[Change]) -> list[Document]:
    """The declarers of services that select a workload which came, went or changed."""
    found: dict[Identity, Document] = {}
    for entry in (each for pair in entries for each in pair if each is not None):
        for document in declared.selects(entry.namespace, workload_labels(entry)):
            found[document.identity] = document
    return list(found.values())
