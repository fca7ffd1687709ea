"""Which VirtualServices the proxies of a namespace, or of a gateway, obey."""

from __future__ import annotations

from collections.abc import Mapping

from meshproxy.pilot.documents.common import covers
from meshproxy.pilot.documents.document import Document
from meshproxy.pilot.mesh.names import exported


class VirtualServiceTable:
    """All VirtualServices by gateway (`mesh`, or `namespace/name`), the oldest first, with names in full."""

    def __init__(self, by_gateway: Mapping[str, tuple[Document, ...]]) -> None:
        self._by_gateway = by_gateway
        self._visible: dict[tuple[str, str], tuple[Document, ...]] = {}
        self._by_host: dict[tuple[str, str], dict[str, list[Document]]] = {}

    def visible(self, client_namespace: str, gateway: str = "mesh") -> tuple[Document, ...]:
        """Those that a namespace sees: the oldest first, which is heard where several speak of one host."""
        key = (client_namespace, gateway)
        found = self._visible.get(key)
        if found is None:
            found = self._visible[key] = tuple(
                each
                for each in self._by_gateway.get(gateway, ())
                if exported(each.spec.export_to, each.namespace, client_namespace)
            )
        return found

    def of_host(self, host: str, client_namespace: str, gateway: str = "mesh") -> Document | None:
        """The one for requests to `host`: of the most specific host, of these the oldest."""
        by_host = self._hosts(client_namespace, gateway)
        if host in by_host:
            return by_host[host][0]
        wildcards = [each for each in by_host if each.startswith("*") and covers(each, host)]
        return by_host[max(wildcards, key=len)][0] if wildcards else None

    def _hosts(self, client_namespace: str, gateway: str) -> dict[str, list[Document]]:
        key = (client_namespace, gateway)
        if key not in self._by_host:
            by_host: dict[str, list[Document]] = {}
            for document in self.visible(client_namespace, gateway):
                for host in document.spec.hosts:
                    by_host.setdefault(host, []).append(document)
            self._by_host[key] = by_host
        return self._by_host[key]

    def replaced(self, changed: list[tuple[Document | None, Document | None]]) -> VirtualServiceTable:
        """A table in which each old document stands as the new one."""
        by_gateway = {**self._by_gateway}
        touched = {name for pair in changed for each in pair if each is not None for name in each.spec.gateways}
        gone = {each.identity for pair in changed for each in pair if each is not None}
        for gateway in touched:
            kept = [each for each in by_gateway.get(gateway, ()) if each.identity not in gone]
            kept += [new for _, new in changed if new is not None and gateway in new.spec.gateways]
            by_gateway[gateway] = tuple(sorted(kept, key=lambda each: each.age))
        return VirtualServiceTable({name: each for name, each in by_gateway.items() if each})
