"""`networking.istio.io` Sidecar: which services the workloads of a namespace see."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from meshproxy.pilot.documents.common import WorkloadSelector
from meshproxy.pilot.documents.problems import At
from meshproxy.pilot.documents.rules import dns_label, not_empty, wildcard_host
from meshproxy.pilot.documents.spec import Refused, spec


def visible_host(value: str) -> str | None:
    """`namespace/host`; the namespace may be `*`, `.` (its own) or `~` (none), the host a wildcard."""
    namespace, slash, host = value.partition("/")
    if not slash:
        return f'"{value}" is not "namespace/host"'
    if namespace not in ("*", ".", "~") and dns_label(namespace) is not None:
        return f'"{namespace}" is neither "*", ".", "~" nor the name of a namespace'
    return wildcard_host(host)


@spec
class EgressListener:
    hosts: Annotated[tuple[Annotated[str, visible_host], ...], not_empty]
    capture_mode: Literal["DEFAULT"] = "DEFAULT"
    REFUSED: ClassVar[Refused] = {
        "port": "listeners of a port of their own are not supported yet: hosts are visible on all ports",
        "bind": "listeners of a port of their own are not supported yet",
    }


@spec
class OutboundTrafficPolicy:
    """What becomes of traffic to what is no service: REGISTRY_ONLY drops it."""

    mode: Literal["REGISTRY_ONLY", "ALLOW_ANY"] = "REGISTRY_ONLY"
    REFUSED: ClassVar[Refused] = {"egressProxy": "sending it to one service is not supported yet"}


@spec
class Sidecar:
    workload_selector: WorkloadSelector | None = None
    egress: tuple[EgressListener, ...] = ()
    outbound_traffic_policy: OutboundTrafficPolicy | None = None
    REFUSED: ClassVar[Refused] = {
        "ingress": "inbound ports come from the services that select the workload; others are not supported yet",
        "inboundConnectionPool": "limits on inbound connections are not supported yet",
    }

    def check(self, at: At) -> None:
        if not self.egress and self.outbound_traffic_policy is None:
            at.error("one of egress, outboundTrafficPolicy is required")
        if self.workload_selector is not None and not self.workload_selector.labels:
            (at / "workloadSelector" / "labels").error("is required")
        if len(self.egress) > 1:
            (at / "egress" / 1).error("only one egress listener may be without a port")
