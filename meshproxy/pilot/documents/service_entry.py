"""`networking.istio.io` ServiceEntry and WorkloadEntry: the services of the mesh, and where they run."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from meshproxy.pilot.documents.common import WorkloadSelector, check_unique, protocol
from meshproxy.pilot.documents.problems import At
from meshproxy.pilot.documents.rules import (
    ExportTo,
    Labels,
    Name,
    Port,
    UInt32,
    full_host,
    ip_or_cidr,
    is_ip,
    not_empty,
    wildcard_host,
)
from meshproxy.pilot.documents.spec import Map, spec

UNIX: Final = "unix://"
TLS_MODE: Final = "security.istio.io/tlsMode"  # a label


def service_host(value: str) -> str | None:
    """A host name, of which the first label may be a wildcard, but not all."""
    return '"*" is not allowed: say of which domain' if value == "*" else wildcard_host(value)


def endpoint_address(value: str) -> str | None:
    """An IP address, a host name, or `unix://` and an absolute path."""
    if value.startswith(UNIX):
        path = value.removeprefix(UNIX)
        return None if path.startswith(("/", "@")) else "the path of a Unix socket must be absolute"
    return None if is_ip(value) else full_host(value)


def locality(value: str) -> str | None:
    """`region/zone/sub-zone`, or the first one or two of them."""
    parts = value.split("/")
    return None if len(parts) <= 3 and all(parts) and "*" not in value else f'"{value}" is not "region/zone/sub-zone"'


@spec
class ServicePort:
    number: Port
    name: Name
    protocol: Annotated[str, protocol] = "TCP"
    target_port: Port | None = None


@spec
class WorkloadEntry:
    """One workload: `ports` are numbers by the names of the service's ports."""

    address: Annotated[str, endpoint_address] = ""
    ports: Map[Port] = ()
    labels: Labels = ()
    network: str = ""
    locality: Annotated[str, locality] = ""
    weight: UInt32 = 0  # 0: 1
    service_account: str = ""

    def check(self, at: At) -> None:
        if not self.address:
            (at / "address").error("is required")
        if self.address.startswith(UNIX) and self.ports:
            (at / "ports").error("a Unix socket has no ports")


@spec
class ServiceEntry:
    hosts: Annotated[tuple[Annotated[str, service_host], ...], not_empty]
    addresses: tuple[Annotated[str, ip_or_cidr], ...] = ()
    ports: tuple[ServicePort, ...] = ()
    location: Literal["MESH_EXTERNAL", "MESH_INTERNAL"] = "MESH_EXTERNAL"
    resolution: Literal["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN"] = "NONE"
    endpoints: tuple[WorkloadEntry, ...] = ()
    workload_selector: WorkloadSelector | None = None
    export_to: ExportTo = ()
    subject_alt_names: tuple[str, ...] = ()
    ONE_OF: ClassVar = (("endpoints", "workloadSelector"),)

    def check(self, at: At) -> None:
        check_unique(at / "ports", [each.number for each in self.ports], "number", "port")
        check_unique(at / "ports", [each.name for each in self.ports], "name", "name")
        for index, host in enumerate(self.hosts):
            if host in self.hosts[:index]:
                (at / "hosts" / index).error(f'"{host}" is given twice')
        if self.workload_selector is not None and not self.workload_selector.labels:
            (at / "workloadSelector" / "labels").error("is required")
        self._check_addresses(at / "addresses")
        self._check_endpoints(at / "endpoints")
        self._check_resolution(at)

    def _check_addresses(self, at: At) -> None:
        if self.resolution in ("NONE", "STATIC"):
            return
        for index, address in enumerate(self.addresses):
            if "/" in address:
                (at / index).error("a CIDR prefix needs the resolution NONE or STATIC")

    def _check_endpoints(self, at: At) -> None:
        names = {port.name for port in self.ports}
        for index, endpoint in enumerate(self.endpoints):
            for name, _ in endpoint.ports:
                if name not in names:
                    (at / index / "ports" / name).error(f'the service has no port "{name}"')
            if endpoint.address.startswith(UNIX):
                if len(self.ports) != 1 or self.resolution != "STATIC":
                    (at / index / "address").error("a Unix socket needs the resolution STATIC and exactly one port")
            elif self.resolution == "STATIC" and not is_ip(endpoint.address):
                (at / index / "address").error(f'"{endpoint.address}" is no IP address, which STATIC needs')

    def _check_resolution(self, at: At) -> None:
        if self.resolution == "NONE" and (self.endpoints or self.workload_selector is not None):
            (at / "resolution").error("NONE excludes endpoints and workloadSelector")
        if self.resolution in ("DNS", "DNS_ROUND_ROBIN"):
            for index, host in enumerate(self.hosts):
                if not self.endpoints and self.workload_selector is None and host.startswith("*"):
                    (at / "hosts" / index).error("a wildcard cannot be resolved: give endpoints")
        if self.resolution == "DNS_ROUND_ROBIN" and len(self.endpoints) > 1:
            (at / "endpoints").error("DNS_ROUND_ROBIN takes one endpoint")
