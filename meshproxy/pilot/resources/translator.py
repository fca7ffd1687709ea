"""The pilot's translation: who a proxy is -> its scope, a mesh and a scope -> a snapshot of resources."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshproxy.config.subscription import CLUSTER_TYPE, LISTENER_TYPE
from meshproxy.pilot.resources.inbound import inbound_clusters, inbound_listeners
from meshproxy.pilot.resources.outbound import Named, Outbound, named, unchanged
from meshproxy.pilot.resources.scope import FactsOfMeshes, ProxyScope, scope_of
from meshproxy.pilot.resources.shared import SharedResources
from meshproxy.pilot.resources.view import OutboundScope, View
from meshproxy.pilot.snapshot import Snapshot

if TYPE_CHECKING:
    from meshproxy.pilot.mesh.model import Changes, Mesh
    from meshproxy.pilot.snapshot import Proxy


@dataclass(frozen=True, slots=True)
class Built(Snapshot):
    """A snapshot that keeps what the next one is made from."""

    outbound: Outbound | None = field(default=None, compare=False, repr=False)
    inbound: dict[str, Named] = field(default_factory=dict, compare=False, repr=False)


class Translator:
    """One for a pilot: it holds what proxies of several scopes share.

    `scope_of` may be called from any thread, `build_snapshot` from one at a time.
    """

    def __init__(self) -> None:
        self._facts = FactsOfMeshes()
        self._shared = SharedResources()
        # Alive for as long as a snapshot that was made from it.
        self._outbound: weakref.WeakValueDictionary[OutboundScope, Outbound] = weakref.WeakValueDictionary()
        self._mesh: Mesh | None = None
        self._changes: tuple[Mesh, Mesh, Changes] | None = None  # from, to, what

    def scope_of(self, mesh: Mesh, proxy: Proxy) -> ProxyScope:
        """All that the resources of a proxy depend on."""
        return scope_of(mesh, proxy, self._facts.of(mesh))

    def build_snapshot(
        self, mesh: Mesh, scope: ProxyScope, previous: Snapshot | None = None, changes: Changes | None = None
    ) -> Snapshot:
        """The resources of a scope. `previous` is its last snapshot: what did not change stays the same object.

        `changes` is not needed: what scopes share may have been made at another time than `previous`.
        """
        if mesh is not self._mesh:
            self._arrive(mesh)
        before = previous if isinstance(previous, Built) else None
        outbound = self._outbound_of(mesh, scope.outbound)
        inbound = _inbound(outbound.view, scope, before)
        if before is not None and before.outbound is outbound and before.inbound is inbound:
            return before
        types = dict(outbound.types)
        for url, own in inbound.items():
            types[url] = _joined(url, outbound, own, before)
        return Built(types, outbound, inbound)

    def _arrive(self, mesh: Mesh) -> None:
        """Of services that are gone nothing needs to be remembered."""
        if self._mesh is not None:
            self._shared.forget(self._since(self._mesh, mesh).services)
        self._mesh = mesh

    def _outbound_of(self, mesh: Mesh, scope: OutboundScope) -> Outbound:
        before = self._outbound.get(scope)
        if before is not None and before.view.mesh is mesh:
            return before
        changes = self._since(before.view.mesh, mesh) if before is not None else None
        if before is not None and changes is not None and changes.only_endpoints:
            view = before.view.elsewhere(mesh)
        else:
            view = View(mesh, scope)
        outbound = Outbound(view, self._shared, before, changes)
        self._outbound[scope] = outbound
        return outbound

    def _since(self, old: Mesh, new: Mesh) -> Changes:
        """Scopes follow each other from one mesh to the next: what changed is found out once for all."""
        if self._changes is None or self._changes[0] is not old or self._changes[1] is not new:
            self._changes = (old, new, new.changes(old))
        return self._changes[2]


def _inbound(view: View, scope: ProxyScope, before: Built | None) -> dict[str, Named]:
    """Made anew each time, since it is little; the same objects where nothing changed."""
    old = before.inbound if before is not None else {}
    made: dict[str, Named] = {}
    if scope.inbound or view.scope.intercepted:
        made = {
            CLUSTER_TYPE: named(inbound_clusters(scope.inbound)),
            LISTENER_TYPE: named(inbound_listeners(view, scope.inbound, scope.mutual_tls)),
        }
    made = {url: unchanged(old.get(url), resources) for url, resources in made.items()}
    same = old.keys() == made.keys() and all(old[url] is made[url] for url in made)
    return old if same else made


def _joined(url: str, outbound: Outbound, inbound: Named, before: Built | None) -> Named:
    """Outbound and inbound resources of a type, in one dict; that of before where it is the same."""
    out = outbound.types[url]
    if before is not None and before.outbound is not None:
        if before.outbound.types.get(url) is out and before.inbound.get(url) is inbound:
            return before.types[url]
    return {**out, **inbound}
