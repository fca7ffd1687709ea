"""Short names in full, and who may see what: Istio's rules for hosts, gateways and `exportTo`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from meshproxy.pilot.documents.common import covers
from meshproxy.pilot.documents.destination_rule import DestinationRule
from meshproxy.pilot.documents.document import Document
from meshproxy.pilot.documents.rules import is_ip
from meshproxy.pilot.documents.virtual_service import MESH, Destination, VirtualService


def full_host(name: str, namespace: str, domain: str) -> str:
    """`reviews` in the namespace `shop` is `reviews.shop.svc.cluster.local`; a name with a dot stays, as in Istio."""
    if "." in name or name == "*" or is_ip(name):
        return name.lower()
    return f"{name}.{namespace}.svc.{domain}".lower()


def full_gateway(name: str, namespace: str) -> str:
    """`namespace/name`, or `mesh`. Of old, `name.namespace.svc.cluster.local` is meant as well."""
    if name == MESH:
        return name
    if "/" in name:
        of, _, name = name.partition("/")
        return f"{namespace if of == '.' else of}/{name}"
    first, _, rest = name.partition(".")
    return f"{rest.partition('.')[0]}/{first}" if rest else f"{namespace}/{name}"


def exported(export_to: tuple[str, ...], own: str, client: str) -> bool:
    """Whether what stands in the namespace `own` is seen in `client`; by default it is seen everywhere."""
    if not export_to:
        return True
    return any(each in ("*", client) or (each == "." and own == client) for each in export_to)


def most_specific(host: str, exact: Any, wildcards: tuple[str, ...]) -> str | None:
    """The key that fits `host` best: itself, else the longest wildcard that covers it (`wildcards` has those first)."""
    if host in exact:
        return host
    for pattern in wildcards:
        if covers(pattern, host):
            return pattern
    return None


def selects(labels: tuple[tuple[str, str], ...], of: dict[str, str] | frozenset[tuple[str, str]]) -> bool:
    """Whether a workload with the labels `of` has all of `labels`."""
    pairs = of.items() if isinstance(of, dict) else of
    return all(pair in pairs for pair in labels)


def resolve(document: Document, domain: str) -> Document:
    """The document with all names of hosts and gateways in full."""
    spec = document.spec
    if isinstance(spec, VirtualService):
        return replace(document, spec=_virtual_service(spec, document.namespace, domain))
    if isinstance(spec, DestinationRule):
        return replace(document, spec=replace(spec, host=full_host(spec.host, document.namespace, domain)))
    return document


def _virtual_service(spec: VirtualService, namespace: str, domain: str) -> VirtualService:
    def destination(each: Destination) -> Destination:
        return replace(each, host=full_host(each.host, namespace, domain))

    def route(each: Any) -> Any:
        return replace(each, destination=destination(each.destination))

    def match(each: Any) -> Any:
        return replace(each, gateways=tuple(full_gateway(name, namespace) for name in each.gateways))

    def rule(each: Any) -> Any:
        return replace(each, match=tuple(map(match, each.match)), route=tuple(map(route, each.route)))

    def http(each: Any) -> Any:
        mirror = None if each.mirror is None else destination(each.mirror)
        return replace(rule(each), mirror=mirror, mirrors=tuple(map(route, each.mirrors)))

    return replace(
        spec,
        hosts=tuple(full_host(host, namespace, domain) for host in spec.hosts),
        gateways=tuple(full_gateway(name, namespace) for name in spec.gateways) or (MESH,),
        http=tuple(map(http, spec.http)),
        tls=tuple(map(rule, spec.tls)),
        tcp=tuple(map(rule, spec.tcp)),
    )
