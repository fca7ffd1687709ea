"""The services of a mesh and their endpoints, from ServiceEntry, WorkloadEntry and Kubernetes' Service."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from meshproxy.pilot.documents.common import plain_protocol
from meshproxy.pilot.documents.document import Document
from meshproxy.pilot.documents.kubernetes import KubernetesService
from meshproxy.pilot.documents.service_entry import TLS_MODE, UNIX, ServiceEntry, WorkloadEntry
from meshproxy.pilot.mesh.names import exported

Labels: TypeAlias = tuple[tuple[str, str], ...]
# Its hostname, and its namespace.
ServiceKey: TypeAlias = tuple[str, str]

_LOCALITY: Final = "istio-locality"  # with dots for slashes, which a label cannot hold


@dataclass(frozen=True, slots=True)
class ServicePort:
    """`protocol` is HTTP, HTTP2, GRPC, GRPC-WEB, HTTPS, TLS or TCP; `target_port` where workloads listen by default."""

    number: int
    name: str
    protocol: str
    target_port: int


@dataclass(frozen=True, slots=True)
class Service:
    """One host of one namespace. `selector` are the labels of its workloads, () where endpoints are listed."""

    hostname: str  # in full, small letters; `*.example.com` too
    namespace: str
    ports: tuple[ServicePort, ...]
    addresses: tuple[str, ...] = ()  # IP addresses and CIDR prefixes that stand for it
    resolution: str = "STATIC"  # NONE, STATIC, DNS, DNS_ROUND_ROBIN
    external: bool = False
    export_to: tuple[str, ...] = ()
    labels: Labels = ()
    subject_alt_names: tuple[str, ...] = ()
    selector: Labels = ()
    name: str = ""  # of the oldest document that declares it
    created: str = ""

    @property
    def key(self) -> ServiceKey:
        return self.hostname, self.namespace

    def port(self, number: int) -> ServicePort | None:
        """The port of that number."""
        return next((port for port in self.ports if port.number == number), None)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one port of a service is served. `address` is an IP address, a name to resolve, or `unix://` and a path
    (then `port` is 0)."""

    address: str
    port: int
    labels: Labels = ()
    locality: str = ""  # region/zone/sub-zone
    weight: int = 1
    network: str = ""
    service_account: str = ""
    tls_mode: str = "disabled"  # or TAKES_MESH_TLS: the mesh's mutual TLS
    workload: str = ""  # the name of its WorkloadEntry
    namespace: str = ""


# By the numbers of the service's ports.
Endpoints: TypeAlias = Mapping[int, tuple[Endpoint, ...]]
NO_ENDPOINTS: Final[Endpoints] = {}
TAKES_MESH_TLS: Final = "istio"  # a mode of TLS


class ServiceTable:
    """All services; it never changes, but remembers what it was asked."""

    def __init__(self, by_host: Mapping[str, Mapping[str, Service]]) -> None:
        self.by_host = by_host
        self._visible: dict[str, Mapping[str, Service]] = {}

    def visible(self, client_namespace: str) -> Mapping[str, Service]:
        """What a namespace sees, by hostname: of several the one of its own, else the oldest."""
        found = self._visible.get(client_namespace)
        if found is None:
            chosen = {host: _choose(by.values(), client_namespace) for host, by in self.by_host.items()}
            found = {host: service for host, service in chosen.items() if service is not None}
            self._visible[client_namespace] = found
        return found

    def in_sight(self, client_namespace: str, sees: Callable[[Service], bool]) -> dict[str, Service]:
        """What a namespace sees of those that `sees` takes: a service that is not taken stands in nobody's way."""
        chosen = {host: _choose(filter(sees, by.values()), client_namespace) for host, by in self.by_host.items()}
        return {host: service for host, service in chosen.items() if service is not None}

    def replaced(self, changed: Mapping[ServiceKey, Service | None]) -> ServiceTable:
        """A table in which these stand anew, None for one that is gone."""
        by_host = dict(self.by_host)
        for (host, namespace), service in changed.items():
            by = dict(by_host.get(host, ()))
            if service is None:
                by.pop(namespace, None)
            else:
                by[namespace] = service
            if by:
                by_host[host] = by
            else:
                by_host.pop(host, None)
        return ServiceTable(by_host)


def _choose(candidates: Iterable[Service], client: str) -> Service | None:
    seen = [each for each in candidates if exported(each.export_to, each.namespace, client)]
    return min(seen, key=lambda each: (each.namespace != client, each.created, each.namespace), default=None)


def keys_of(document: Document, domain: str) -> list[ServiceKey]:
    """The services that a ServiceEntry or Service declares."""
    if isinstance(document.spec, ServiceEntry):
        return [(host.lower(), document.namespace) for host in document.spec.hosts]
    return [(f"{document.name}.{document.namespace}.svc.{domain}", document.namespace)]


def selector_of(document: Document) -> Labels:
    """The labels by which it selects workloads; () when it does not."""
    spec = document.spec
    if isinstance(spec, KubernetesService):
        return spec.selector
    return spec.workload_selector.labels if spec.workload_selector is not None else ()


def build_service(host: str, documents: list[Document]) -> Service:
    """The service of that name, of the documents that declare it, the oldest first: it decides, younger ones add ports
    and addresses."""
    services = [_declared(host, each) for each in documents]
    first = services[0]
    if len(services) == 1:
        return first
    ports: dict[int, ServicePort] = {}
    addresses: dict[str, None] = {}
    for service in services:
        names = {port.name for port in ports.values()}
        ports |= {port.number: port for port in service.ports if port.number not in ports and port.name not in names}
        addresses |= dict.fromkeys(service.addresses)
    return Service(
        **{name: getattr(first, name) for name in _TAKEN},
        ports=tuple(ports.values()),
        addresses=tuple(addresses),
    )


_TAKEN: Final = (
    *("hostname", "namespace", "resolution", "external", "export_to", "labels", "subject_alt_names"),
    *("selector", "name", "created"),
)


def _declared(host: str, document: Document) -> Service:
    spec = document.spec
    if isinstance(spec, KubernetesService):
        return _kubernetes(host, document, spec)
    return Service(
        host,
        document.namespace,
        tuple(
            ServicePort(port.number, port.name, plain_protocol(port.protocol), port.target_port or port.number)
            for port in spec.ports
        ),
        spec.addresses,
        spec.resolution,
        spec.location == "MESH_EXTERNAL",
        spec.export_to,
        document.labels,
        spec.subject_alt_names,
        selector_of(document),
        document.name,
        document.created,
    )


def _kubernetes(host: str, document: Document, spec: KubernetesService) -> Service:
    external = spec.external_name is not None
    headless = spec.cluster_ip == "None"
    addresses = () if headless or not spec.cluster_ip else (spec.cluster_ip,)
    ports = tuple(
        ServicePort(port.port, port.name or f"port-{port.port}", port.mesh_protocol, port.target_port or port.port)
        for port in spec.ports
    )
    resolution = "DNS" if external else "STATIC"
    return Service(
        host,
        document.namespace,
        ports,
        addresses,
        resolution,
        external,
        _annotated_export(document),
        document.labels,
        selector=spec.selector,
        name=document.name,
        created=document.created,
    )


def _annotated_export(document: Document) -> tuple[str, ...]:
    """A Service says it by an annotation."""
    value = dict(document.annotations).get("networking.istio.io/exportTo", "")
    return tuple(each.strip() for each in value.split(",") if each.strip())


def build_endpoints(service: Service, documents: list[Document], workloads: Mapping[str, list[Document]]) -> Endpoints:
    """Its endpoints by port: those listed, and of `workloads` (by the name of the declaring document) the selected."""
    found: dict[int, list[Endpoint]] = {port.number: [] for port in service.ports}
    for document in documents:
        for entry, name, labels in _entries(service, document, workloads.get(_key(document), [])):
            for port in service.ports:
                found[port.number].append(_endpoint(entry, port, name, document.namespace, labels))
    return {number: tuple(endpoints) for number, endpoints in found.items() if endpoints}


def _key(document: Document) -> str:
    return str(document.identity)


def _entries(service: Service, document: Document, selected: list[Document]) -> list[tuple[WorkloadEntry, str, Labels]]:
    spec = document.spec
    if isinstance(spec, ServiceEntry) and spec.endpoints:
        return [(each, "", each.labels) for each in spec.endpoints]
    if selector_of(document):
        return [(each.spec, each.name, workload_labels(each)) for each in selected]
    if service.resolution in ("DNS", "DNS_ROUND_ROBIN"):
        name = spec.external_name if isinstance(spec, KubernetesService) else service.hostname
        return [(WorkloadEntry(address=name or service.hostname), "", ())]
    return []


def workload_labels(document: Document) -> Labels:
    """Those of the workload itself come before those of its document."""
    return tuple(sorted({**dict(document.labels), **dict(document.spec.labels)}.items()))


def _endpoint(entry: WorkloadEntry, port: ServicePort, name: str, namespace: str, labels: Labels) -> Endpoint:
    number = 0 if entry.address.startswith(UNIX) else dict(entry.ports).get(port.name, port.target_port)
    by_label = dict(labels)
    return Endpoint(
        entry.address,
        number,
        labels,
        entry.locality or by_label.get(_LOCALITY, "").replace(".", "/"),
        entry.weight or 1,
        entry.network,
        entry.service_account,
        by_label.get(TLS_MODE) or (TAKES_MESH_TLS if entry.service_account else "disabled"),
        name,
        namespace,
    )


def is_address(endpoint: Endpoint) -> bool:
    """Whether it can be connected to without asking DNS."""
    address = endpoint.address
    if address.startswith(UNIX):
        return True
    try:  # for thousands of them; `ipaddress` takes ten times as long
        socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    except OSError:
        return False
    return True


class WorkloadIndex:
    """WorkloadEntries by namespace and label, so that a selector finds its own without looking at all."""

    def __init__(self, by_label: Mapping[tuple[str, str, str], Mapping[str, Document]] | None = None) -> None:
        self._by_label = by_label or {}

    def selected(self, namespace: str, selector: Labels) -> list[Document]:
        """Those with all labels of the selector, by name."""
        if not selector:
            return []
        groups = [self._by_label.get((namespace, *pair), {}) for pair in selector]
        smallest = min(groups, key=len)
        return [smallest[name] for name in sorted(smallest) if all(name in group for group in groups)]

    def replaced(self, changed: Iterable[tuple[Document | None, Document | None]]) -> WorkloadIndex:
        """An index in which each old document stands as the new one; None: it was not, or is no more."""
        by_label = dict(self._by_label)
        copied: dict[tuple[str, str, str], dict[str, Document]] = {}

        def group(key: tuple[str, str, str]) -> dict[str, Document]:
            if key not in copied:
                copied[key] = dict(by_label.get(key, {}))
                by_label[key] = copied[key]
            return copied[key]

        for old, new in changed:
            if old is not None:
                for pair in workload_labels(old):
                    group((old.namespace, *pair)).pop(old.name, None)
            if new is not None:
                for pair in workload_labels(new):
                    group((new.namespace, *pair))[new.name] = new
        return WorkloadIndex({key: value for key, value in by_label.items() if value})
