"""Which connections a workload's proxy takes, by PeerAuthentication."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meshproxy.pilot.mesh.names import selects

if TYPE_CHECKING:
    from meshproxy.pilot.documents.document import Document

DISABLE: Final = "DISABLE"
PERMISSIVE: Final = "PERMISSIVE"
STRICT: Final = "STRICT"
_UNSET: Final = "UNSET"


@dataclass(frozen=True, slots=True, order=True)
class MutualTls:
    """`mode` is for all ports of the workload but `ports`: DISABLE, PERMISSIVE or STRICT."""

    mode: str = PERMISSIVE
    ports: tuple[tuple[int, str], ...] = ()

    def of(self, port: int) -> str:
        return dict(self.ports).get(port, self.mode)


def mutual_tls(mesh_wide: Iterable[Document], own: Iterable[Document], labels: dict[str, str]) -> MutualTls:
    """What holds for a workload with these labels, as in Istio: the oldest of its own namespace (`own`) that selects
    it, else the namespace's, else the mesh's (those of the root namespace; for its own workloads `own` is empty). Each
    says nothing where it is UNSET. All documents come the oldest first."""
    general = [next((each for each in some if not each.spec.labels), None) for some in (mesh_wide, own)]
    selecting = next((each for each in own if each.spec.labels and selects(each.spec.labels, labels)), None)
    mode = PERMISSIVE
    for document in (*general, selecting):
        if document is not None and document.spec.mtls is not None:
            mode = _mode(document.spec.mtls.mode, mode)
    if selecting is None:
        return MutualTls(mode)
    ports = ((int(port), _mode(each.mode, mode)) for port, each in selecting.spec.port_level_mtls)
    return MutualTls(mode, tuple(sorted((port, of_port) for port, of_port in ports if of_port != mode)))


def _mode(said: str, inherited: str) -> str:
    return inherited if said == _UNSET else said
