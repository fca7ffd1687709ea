"""Which services the routes of a service are about: what they come to depends on the rules for those."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from meshproxy.pilot.documents.virtual_service import VirtualService
from meshproxy.pilot.resources.gateway_api import backend_host

if TYPE_CHECKING:
    from meshproxy.pilot.documents.document import Document
    from meshproxy.pilot.resources.pieces import Pieces
    from meshproxy.pilot.resources.view import View


def rules_about(view: View, pieces: Pieces, hostname: str, document: Document | None) -> tuple[Any, ...]:
    """All documents and services that the routes of a host are made from; `document` is its VirtualService."""
    service = view.services.get(hostname)
    attached = view.mesh.attached(service, view.scope.namespace) if service is not None else ()
    hosts = {hostname}
    for one in (document, *attached):
        if one is not None:
            key = ("destinations", one.identity)
            hosts |= pieces.keep(key, (one,), lambda one=one: frozenset(_destinations(one, view.scope.domain)))  # type: ignore[misc]
    services = [view.services.get(host) for host in sorted(hosts)]
    rules = [view.rule(one) for one in services if one is not None]
    splits = view.mesh.of_kind("StickySplit", document.namespace) if document is not None else ()
    return (document, attached, splits, *services, *rules)


def _destinations(document: Document, domain: str) -> set[str]:
    if isinstance(document.spec, VirtualService):
        return destinations(document.spec)
    found: set[str] = set()
    for rule in document.spec.rules:
        mirrors = [one.request_mirror.backend_ref for one in rule.filters if one.request_mirror is not None]
        found.update(backend_host(ref, document.namespace, domain) for ref in (*rule.backend_refs, *mirrors))
    return found


def destinations(spec: VirtualService) -> set[str]:
    """The hosts that a VirtualService sends to."""
    found: set[str] = set()
    rules: Sequence[Any] = (*spec.http, *spec.tls, *spec.tcp)
    for rule in rules:
        found.update(one.destination.host for one in rule.route)
    for rule in spec.http:
        found.update(_mirrors(rule))
    return found


def _mirrors(rule: Any) -> Iterable[str]:
    yield from (one.destination.host for one in rule.mirrors)
    if rule.mirror is not None:
        yield rule.mirror.host
