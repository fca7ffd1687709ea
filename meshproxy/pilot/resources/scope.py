"""What the resources of a proxy depend on: two proxies with the same scope get the same ones, made once.

So a scope holds of a proxy's node only what some rule asks for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meshproxy.pilot import proxy as proxies
from meshproxy.pilot.documents.service_entry import TLS_MODE
from meshproxy.pilot.mesh.mutual_tls import MutualTls
from meshproxy.pilot.proxy import EXPLICIT, GATEWAY, GRPC
from meshproxy.pilot.resources.view import OutboundScope

if TYPE_CHECKING:
    from meshproxy.pilot.documents.destination_rule import TrafficPolicy
    from meshproxy.pilot.mesh.model import Changes, Mesh
    from meshproxy.pilot.mesh.services import Endpoint, Service, ServiceKey
    from meshproxy.pilot.snapshot import Proxy

_OURS: Final = "meshproxy"
_ANY: Final = MutualTls()
_SELECTING: Final = ("Sidecar", "LocalRateLimit", "Fault", "PythonFilter")
_REMEMBERED: Final = 2  # meshes: the one in force, and the one before it while proxies move over

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True, order=True)
class InboundPort:
    """A port of a service that the proxy's workload serves.

    `target` is where the mesh connects to; `address` only where the proxy itself has to listen there, and then
    `application` is where its application does.
    """

    target: int
    protocol: str
    number: int
    hostname: str
    address: str = ""
    application: str = ""


@dataclass(frozen=True, slots=True)
class ProxyScope:
    """Equal for two proxies whose resources are all equal."""

    outbound: OutboundScope
    inbound: tuple[InboundPort, ...] = ()
    mutual_tls: MutualTls = _ANY  # which connections its workload takes


def scope_of(mesh: Mesh, proxy: Proxy, facts: Facts) -> ProxyScope:
    """The scope of one proxy."""
    explicit = proxy.mode == EXPLICIT
    outbound = OutboundScope(
        mode=proxy.mode,
        namespace=proxy.namespace,
        domain=mesh.config.domain,
        labels=facts.relevant(proxy),
        locality=_locality(proxy) if facts.localities else "",
        ours=facts.has_python_filters and dict(proxy.metadata).get(proxies.PRODUCT) == _OURS,
        ports=tuple(sorted(proxies.entries(proxy, proxies.PORTS).items())) if explicit else (),
        sds="" if proxy.mode == GRPC else dict(proxy.metadata).get(proxies.SDS, ""),
    )
    if proxy.mode in (GATEWAY, GRPC):
        return ProxyScope(outbound)
    takes = mesh.mutual_tls(proxy.namespace, dict(proxy.labels))
    return ProxyScope(outbound, tuple(_inbound(proxy, facts, explicit=explicit)), takes)


def _locality(proxy: Proxy) -> str:
    return f"{proxy.region}/{proxy.zone}/{proxy.sub_zone}".rstrip("/")


def _inbound(proxy: Proxy, facts: Facts, *, explicit: bool) -> list[InboundPort]:
    """One for each port where its workload is an endpoint: by its address, and by its labels where those are told."""
    applications = proxies.entries(proxy, proxies.APPLICATIONS) if explicit else {}
    labels = set(proxy.labels)
    found: dict[tuple[str, int], InboundPort] = {}
    for ip in proxy.ips:
        for service, number, endpoint in facts.at_address(ip):
            told = {pair for pair in endpoint.labels if pair[0] != TLS_MODE}  # which is for others to know
            if service.namespace != proxy.namespace or not told <= labels:
                continue
            port = InboundPort(
                endpoint.port,
                next(one.protocol for one in service.ports if one.number == number),
                number,
                service.hostname,
                ip if explicit else "",
                applications.get(str(endpoint.port), "") if explicit else "",
            )
            place = (port.address, port.target)
            found[place] = min(found.get(place, port), port)
    return sorted(found.values())


class Facts:
    """What of a mesh says which parts of a proxy matter. It never changes."""

    def __init__(self, mesh: Mesh, before: tuple[Mesh, Facts] | None = None) -> None:
        self._mesh = mesh
        changes = mesh.changes(before[0] if before is not None else None)
        if before is None or changes.everything:
            self._addresses = _index(mesh, changes.endpoints, {}, None)
        else:
            self._addresses = _index(mesh, changes.endpoints | changes.services, before[1]._addresses, before[0])
        self._read_rules(changes, before[1] if before is not None else None)

    def _read_rules(self, changes: Changes, before: Facts | None) -> None:
        if before is not None and changes.only_endpoints:
            self.localities: bool = before.localities
            self.has_python_filters: bool = before.has_python_filters
            self._pairs: dict[str, frozenset[Pair]] = before._pairs
            self._everywhere: frozenset[Pair] = before._everywhere
            self._keys: frozenset[str] = before._keys
            return
        rules = _destination_rules(self._mesh)
        balancers = [policy.load_balancer for policy in rules if policy.load_balancer is not None]
        settings = [one.locality_lb_setting for one in balancers if one.locality_lb_setting is not None]
        self.localities = bool(settings) or any(policy.outlier_detection is not None for policy in rules)
        self.has_python_filters = any(self._mesh.namespaces_of("PythonFilter").values())
        self._keys = frozenset(entry.partition("=")[0] for setting in settings for entry in setting.failover_priority)
        self._everywhere = frozenset(_everywhere(self._mesh))
        self._pairs = _by_namespace(self._mesh)

    def relevant(self, proxy: Proxy) -> tuple[Pair, ...]:
        """Those of its labels that a selector may ask for."""
        wanted = self._everywhere | self._pairs.get(proxy.namespace, frozenset())
        return tuple(pair for pair in proxy.labels if pair in wanted or pair[0] in self._keys)

    def at_address(self, address: str) -> Iterable[tuple[Service, int, Endpoint]]:
        """Endpoints there, each with its service and the service's port."""
        return self._addresses.get(address, ())


_Index = Mapping[str, tuple[tuple["Service", int, "Endpoint"], ...]]


def _index(mesh: Mesh, keys: Iterable[ServiceKey], old: _Index, before: Mesh | None) -> _Index:
    """Endpoints by their addresses: the old index, with the services of these keys read anew."""
    changed = set(keys)
    index = dict(old)
    touched: dict[str, list[tuple[Service, int, Endpoint]]] = {}
    gone = [one for key in changed for some in before.endpoints(key).values() for one in some] if before else []
    for address in {endpoint.address for endpoint in gone}:
        touched[address] = [entry for entry in index.get(address, ()) if entry[0].key not in changed]
    for key in sorted(changed):
        service = mesh.services.by_host.get(key[0], {}).get(key[1])
        if service is None:
            continue
        for number, endpoints in mesh.endpoints(key).items():
            for endpoint in endpoints:
                entries = touched.setdefault(endpoint.address, list(index.get(endpoint.address, ())))
                entries.append((service, number, endpoint))
    index.update((address, tuple(entries)) for address, entries in touched.items())
    return index


def _destination_rules(mesh: Mesh) -> list[TrafficPolicy]:
    """All policies of all DestinationRules."""
    found = []
    for documents in mesh.namespaces_of("DestinationRule").values():
        for document in documents:
            policies = [document.spec.traffic_policy, *(subset.traffic_policy for subset in document.spec.subsets)]
            found += [policy for policy in policies if policy is not None]
            found += [one for policy in policies if policy is not None for one in policy.port_level_settings]
    return found


def _everywhere(mesh: Mesh) -> set[Pair]:
    """Labels that rules of any namespace may ask for: of callers, of gateways, and by rules of the root namespace."""
    found: set[Pair] = set()
    for documents in mesh.namespaces_of("VirtualService").values():
        for document in documents:
            spec = document.spec
            for rule in (*spec.http, *spec.tls, *spec.tcp):
                for match in rule.match:
                    found.update(match.source_labels)
    for documents in mesh.namespaces_of("Gateway").values():
        for document in documents:
            found.update(document.spec.selector)
    return found | _selected(mesh, mesh.config.root_namespace)


def _by_namespace(mesh: Mesh) -> dict[str, frozenset[Pair]]:
    kinds = (*_SELECTING, "DestinationRule", "AuthorizationPolicy")
    namespaces = {namespace for kind in kinds for namespace in mesh.namespaces_of(kind)}
    return {namespace: frozenset(_selected(mesh, namespace)) for namespace in namespaces}


def _selected(mesh: Mesh, namespace: str) -> set[Pair]:
    found: set[Pair] = set()
    for kind in _SELECTING:
        for document in mesh.of_kind(kind, namespace):
            if document.spec.workload_selector is not None:
                found.update(document.spec.workload_selector.labels)
    for document in mesh.of_kind("DestinationRule", namespace):
        if document.spec.workload_selector is not None:
            found.update(document.spec.workload_selector.match_labels)
    for document in mesh.of_kind("AuthorizationPolicy", namespace):
        found.update(pair for labels in document.spec.selections for pair in labels)
    return found


class FactsOfMeshes:
    """Facts, found out once for each mesh; from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: list[tuple[Mesh, Facts]] = []

    def of(self, mesh: Mesh) -> Facts:
        with self._lock:
            for known, facts in self._known:
                if known is mesh:
                    return facts
            facts = Facts(mesh, self._known[-1] if self._known else None)
            self._known = [*self._known, (mesh, facts)][-_REMEMBERED:]
            return facts
