"""The kinds of documents that are read: their API groups, versions, and what their specs are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from meshproxy.pilot.documents.authorization_policy import AuthorizationPolicy
from meshproxy.pilot.documents.destination_rule import DestinationRule
from meshproxy.pilot.documents.gateway import Gateway
from meshproxy.pilot.documents.gateway_api import GRPCRoute, HTTPRoute
from meshproxy.pilot.documents.kubernetes import KubernetesService
from meshproxy.pilot.documents.meshproxy_api import Fault, LocalRateLimit, PythonFilter, StickySplit
from meshproxy.pilot.documents.security import PeerAuthentication
from meshproxy.pilot.documents.service_entry import ServiceEntry, WorkloadEntry
from meshproxy.pilot.documents.sidecar import Sidecar
from meshproxy.pilot.documents.virtual_service import VirtualService

ISTIO: Final = "networking.istio.io"
SECURITY: Final = "security.istio.io"
GATEWAY_API: Final = "gateway.networking.k8s.io"
MESHPROXY: Final = "meshproxy.io"
_ISTIO_VERSIONS: Final = ("v1", "v1beta1", "v1alpha3")


@dataclass(frozen=True, slots=True)
class Kind:
    """`versions` are all read alike; the first is what is written."""

    name: str
    group: str
    versions: tuple[str, ...]
    plural: str
    spec: type[Any]

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.versions[0]}" if self.group else self.versions[0]


KINDS: Final = (
    Kind("VirtualService", ISTIO, _ISTIO_VERSIONS, "virtualservices", VirtualService),
    Kind("DestinationRule", ISTIO, _ISTIO_VERSIONS, "destinationrules", DestinationRule),
    Kind("ServiceEntry", ISTIO, _ISTIO_VERSIONS, "serviceentries", ServiceEntry),
    Kind("WorkloadEntry", ISTIO, _ISTIO_VERSIONS, "workloadentries", WorkloadEntry),
    Kind("Sidecar", ISTIO, _ISTIO_VERSIONS, "sidecars", Sidecar),
    Kind("Gateway", ISTIO, _ISTIO_VERSIONS, "gateways", Gateway),
    Kind("AuthorizationPolicy", SECURITY, ("v1", "v1beta1"), "authorizationpolicies", AuthorizationPolicy),
    Kind("PeerAuthentication", SECURITY, ("v1", "v1beta1"), "peerauthentications", PeerAuthentication),
    Kind("HTTPRoute", GATEWAY_API, ("v1", "v1beta1"), "httproutes", HTTPRoute),
    Kind("GRPCRoute", GATEWAY_API, ("v1",), "grpcroutes", GRPCRoute),
    Kind("LocalRateLimit", MESHPROXY, ("v1",), "localratelimits", LocalRateLimit),
    Kind("Fault", MESHPROXY, ("v1",), "faults", Fault),
    Kind("StickySplit", MESHPROXY, ("v1",), "stickysplits", StickySplit),
    Kind("PythonFilter", MESHPROXY, ("v1",), "pythonfilters", PythonFilter),
    Kind("Service", "", ("v1",), "services", KubernetesService),
)
BY_NAME: Final = {kind.name: kind for kind in KINDS}
_BY_API: Final = {(kind.group, kind.name): kind for kind in KINDS}


def find_kind(api_version: str, name: str) -> Kind | None:
    """The kind, in a version that is read; None when there is none."""
    group, slash, version = api_version.rpartition("/")
    kind = _BY_API.get((group if slash else "", name))
    return kind if kind is not None and version in kind.versions else None
