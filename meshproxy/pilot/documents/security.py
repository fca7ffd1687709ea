"""`security.istio.io` PeerAuthentication: whether a workload's proxy takes mutual TLS, plaintext, or both."""

from __future__ import annotations

from typing import Annotated, Literal

from meshproxy.pilot.documents.common import MatchLabels
from meshproxy.pilot.documents.problems import At
from meshproxy.pilot.documents.spec import Map, spec


def port_numbers(value: Map[object]) -> str | None:
    """Keys that are ports."""
    for key, _ in value:
        if not (key.isascii() and key.isdecimal() and key == str(int(key)) and 1 <= int(key) <= 65_535):
            return f'"{key}" is no number of a port'
    return None


@spec
class MutualTLS:
    """UNSET: as the namespace, or the mesh, has it."""

    mode: Literal["UNSET", "DISABLE", "PERMISSIVE", "STRICT"] = "UNSET"


@spec
class PeerAuthentication:
    """Without a selector it is for its namespace; in the root namespace for the mesh. `portLevelMtls` is by the port
    that the workload listens on."""

    selector: MatchLabels | None = None
    mtls: MutualTLS | None = None
    port_level_mtls: Annotated[Map[MutualTLS], port_numbers] = ()

    @property
    def labels(self) -> tuple[tuple[str, str], ...]:
        """() where it selects no workloads of its own."""
        return self.selector.match_labels if self.selector is not None else ()

    def check(self, at: At) -> None:
        if self.port_level_mtls and not self.labels:
            (at / "portLevelMtls").error("needs a selector")
