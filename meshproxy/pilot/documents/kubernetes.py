"""Kubernetes' own Service (`v1`), as far as a mesh needs it: a host, ports, and which workloads stand behind it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from meshproxy.pilot.documents.common import HTTP_PROTOCOLS, TLS_PROTOCOLS
from meshproxy.pilot.documents.problems import At
from meshproxy.pilot.documents.rules import Labels, Name, Port, full_host, is_ip
from meshproxy.pilot.documents.spec import Refused, spec

_NODES: Final = "is about what lies outside the mesh"
_APP_PROTOCOLS: Final = {"kubernetes.io/h2c": "HTTP2", "kubernetes.io/ws": "HTTP", "kubernetes.io/wss": "HTTPS"}


def cluster_ip(value: str) -> str | None:
    return None if value in ("None", "") or is_ip(value) else f'"{value}" is neither an IP address nor "None"'


@spec
class KubernetesServicePort:
    port: Port
    name: Name = ""
    protocol: Literal["TCP"] = "TCP"
    app_protocol: str = ""
    target_port: Port | None = None
    IGNORED: ClassVar[Refused] = {"nodePort": _NODES}

    @property
    def mesh_protocol(self) -> str:
        """By `appProtocol`, else by the first word of the name (`http-web`), as Istio does; TCP where neither says."""
        word = _APP_PROTOCOLS.get(self.app_protocol) or (self.app_protocol or self.name.partition("-")[0]).upper()
        if not self.app_protocol and self.name.startswith("grpc-web"):
            word = "GRPC-WEB"
        return word if word in HTTP_PROTOCOLS | TLS_PROTOCOLS else "TCP"


@spec
class KubernetesService:
    ports: tuple[KubernetesServicePort, ...] = ()
    selector: Labels = ()
    type: Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"] = "ClusterIP"
    cluster_ip: Annotated[str, cluster_ip] = ""
    external_name: Annotated[str, full_host] | None = None
    session_affinity: Literal["None"] = "None"
    IGNORED: ClassVar[Refused] = {
        "clusterIPs": "the first one stands in clusterIP",
        "ipFamilies": "addresses say it",
        "ipFamilyPolicy": "addresses say it",
        "publishNotReadyAddresses": "workloads are ready when they have an entry",
        "sessionAffinityConfig": "it belongs to sessionAffinity",
        "externalIPs": _NODES,
        "externalTrafficPolicy": _NODES,
        "internalTrafficPolicy": _NODES,
        "healthCheckNodePort": _NODES,
        "allocateLoadBalancerNodePorts": _NODES,
        "loadBalancerClass": _NODES,
        "loadBalancerIP": _NODES,
        "loadBalancerSourceRanges": _NODES,
    }
    REFUSED: ClassVar[Refused] = {"trafficDistribution": "write localityLbSetting in a DestinationRule"}

    def check(self, at: At) -> None:
        external = self.type == "ExternalName"
        if external != (self.external_name is not None):
            (at / "externalName").error("is required with ExternalName" if external else "needs the type ExternalName")
        if not external and not self.ports:
            (at / "ports").error("is required")
        if len(self.ports) > 1:
            for index, port in enumerate(self.ports):
                if not port.name:
                    (at / "ports" / index / "name").error("is required where there are several ports")
