"""What documents say of one another that does not fit: no reason to refuse them, since the other may come later."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from meshproxy.pilot.documents.authorization_policy import AuthorizationPolicy, AuthorizationRule
from meshproxy.pilot.documents.document import Document, Identity
from meshproxy.pilot.documents.gateway_api import HTTPRoute
from meshproxy.pilot.documents.virtual_service import MESH, Destination, VirtualService
from meshproxy.pilot.mesh.model import Mesh, parents, service_host
from meshproxy.pilot.mesh.mutual_tls import STRICT
from meshproxy.pilot.mesh.mutual_tls_doubts import destination_doubts, peer_doubts
from meshproxy.pilot.mesh.names import full_gateway, full_host, selects


@dataclass(frozen=True, slots=True)
class Doubt:
    """`path` is that of the field, by steps."""

    identity: Identity
    steps: tuple[str | int, ...]
    reason: str


def lint(mesh: Mesh) -> list[Doubt]:
    """All doubts, by document."""
    found: list[Doubt] = []
    for identity in sorted(mesh.documents):
        check = _CHECKS.get(identity.kind)
        if check is not None:
            document = mesh.documents[identity]
            found += [Doubt(identity, ("spec", *steps), reason) for steps, reason in check(mesh, document)]
    return found


_Found = Iterator[tuple[tuple[str | int, ...], str]]


def _virtual_service(mesh: Mesh, document: Document) -> _Found:
    spec: VirtualService = document.spec
    for index, name in enumerate(spec.gateways):
        full = full_gateway(name, document.namespace)
        namespace, _, gateway = full.partition("/")
        if full != MESH and Identity("Gateway", namespace, gateway) not in mesh.documents:
            yield ("gateways", index), f"there is no Gateway {full}"
    if spec.in_mesh:
        yield from _claimed(mesh, document)
    for steps, destination in _destinations(spec):
        yield from _destination(mesh, document.namespace, steps, destination)


def _claimed(mesh: Mesh, document: Document) -> _Found:
    """Hosts of which an older VirtualService speaks."""
    for index, name in enumerate(document.spec.hosts):
        host = full_host(name, document.namespace, mesh.config.domain)
        heard = mesh.virtual_services.of_host(host, document.namespace)
        if heard is not None and heard.identity != document.identity and host in heard.spec.hosts:
            yield ("hosts", index), f"{heard.identity} speaks of {host} already, and is heard first"


def _destinations(spec: VirtualService) -> Iterator[tuple[tuple[str | int, ...], Destination]]:
    for step, routes in (("http", spec.http), ("tls", spec.tls), ("tcp", spec.tcp)):
        for index, route in enumerate(routes):
            for number, each in enumerate(_targets(route)):
                yield (step, index, "route", number, "destination"), each.destination
    for index, http in enumerate(spec.http):
        if http.mirror is not None:
            yield ("http", index, "mirror"), http.mirror
        for number, mirror in enumerate(http.mirrors):
            yield ("http", index, "mirrors", number, "destination"), mirror.destination


def _targets(route: Any) -> tuple[Any, ...]:
    return tuple(route.route)


def _destination(mesh: Mesh, namespace: str, steps: tuple[str | int, ...], destination: Destination) -> _Found:
    host = full_host(destination.host, namespace, mesh.config.domain)
    service = mesh.services.visible(namespace).get(host)
    if service is None:
        yield (*steps, "host"), f"there is no service {host}"
        return
    if destination.port is not None and service.port(destination.port.number) is None:
        yield (*steps, "port"), f"{host} has no port {destination.port.number}"
    if destination.subset:
        rules = mesh.destination_rules.rules(host, service.namespace, namespace)
        if not any(rule.subset(destination.subset) for rule in rules):
            yield (*steps, "subset"), f"no DestinationRule has a subset {destination.subset} of {host}"


def _destination_rule(mesh: Mesh, document: Document) -> _Found:
    host = full_host(document.spec.host, document.namespace, mesh.config.domain)
    if not host.startswith("*") and host not in mesh.services.by_host:
        yield ("host",), f"there is no service {host}"
    yield from destination_doubts(mesh, document)


def _service_entry(mesh: Mesh, document: Document) -> _Found:
    for index, host in enumerate(document.spec.hosts):
        if "." not in host:
            yield (
                ("hosts", index),
                f'"{host}" stays as it is: write {host}.{document.namespace}.svc.{mesh.config.domain}',
            )


def _route(mesh: Mesh, document: Document) -> _Found:
    for host, ports in parents(document, mesh.config.domain).items():
        yield from _known(mesh, host, sorted(ports), ("parentRefs",))
    for index, rule in enumerate(document.spec.rules):
        for number, backend in enumerate(rule.backend_refs):
            namespace = backend.namespace or document.namespace
            host = service_host(backend.kind, backend.name, namespace, mesh.config.domain)
            yield from _known(mesh, host, [backend.port or 0], ("rules", index, "backendRefs", number))
        if isinstance(document.spec, HTTPRoute) and not rule.backend_refs and not rule.filters:
            yield ("rules", index), "has neither backends nor filters: requests get 500"


def _known(mesh: Mesh, host: str, ports: list[int], steps: tuple[str | int, ...]) -> _Found:
    services = mesh.services.by_host.get(host)
    if services is None:
        yield steps, f"there is no service {host}"
        return
    for port in ports:
        if all(service.port(port) is None for service in services.values()):
            yield steps, f"{host} has no port {port}"


def _sticky_split(mesh: Mesh, document: Document) -> _Found:
    identity = Identity("VirtualService", document.namespace, document.spec.virtual_service)
    found = mesh.documents.get(identity)
    if found is None:
        yield ("virtualService",), f"there is no {identity}"
    elif document.spec.route and all(route.name != document.spec.route for route in found.spec.http):
        yield ("route",), f"{identity} has no http route {document.spec.route}"


def _authorization_policy(mesh: Mesh, document: Document) -> _Found:
    spec: AuthorizationPolicy = document.spec
    if spec.action == "ALLOW" and not spec.rules:
        yield (), "allows nothing, since it has no rules: all that it selects is denied"
    for index, rule in enumerate(spec.rules):
        if index and not (spec.rules[index - 1].from_ or spec.rules[index - 1].to or spec.rules[index - 1].when):
            yield ("rules", index), f"makes no difference: rules[{index - 1}] matches everything"
        yield from (
            (("rules", index, *steps), "only who shows a JWT has it, and no JWTs are verified yet: nobody has")
            for steps in _of_tokens(rule)
        )
    if spec.action == "DENY" and mesh.mutual_tls(document.namespace, dict(spec.selections[0])).mode != STRICT:
        for steps in _of_identities(spec):
            yield steps, "a caller in plaintext has no identity, and is not denied: only STRICT mutual TLS refuses it"
    if not spec.target_refs and spec.selector is not None and not _runs(mesh, document):
        yield ("selector",), "no workload that is listed here has these labels"


def _of_identities(spec: AuthorizationPolicy) -> Iterator[tuple[str | int, ...]]:
    """Where its rules name who is denied."""
    for index, rule in enumerate(spec.rules):
        for number, each in enumerate(rule.from_):
            named = {
                "principals": each.source.principals,
                "namespaces": each.source.namespaces,
                "serviceAccounts": each.source.service_accounts,
            }
            yield from (("rules", index, "from", number, "source", step) for step, values in named.items() if values)


def _of_tokens(rule: AuthorizationRule) -> Iterator[tuple[str | int, ...]]:
    """Where a rule asks for what stands in a JWT."""
    for number, each in enumerate(rule.from_):
        for step in ("requestPrincipals", "notRequestPrincipals"):
            if each.source.request_principals if step == "requestPrincipals" else each.source.not_request_principals:
                yield "from", number, "source", step
    for number, condition in enumerate(rule.when):
        if condition.key.startswith("request.auth."):
            yield "when", number, "key"


def _runs(mesh: Mesh, document: Document) -> bool:
    """Whether some endpoint, or some gateway, is selected."""
    wanted = document.spec.selector.match_labels
    for_all = document.namespace == mesh.config.root_namespace
    gateways = [one for documents in mesh.namespaces_of("Gateway").values() for one in documents]
    if any(selects(wanted, dict(one.spec.selector)) for one in gateways):
        return True
    return any(
        selects(wanted, dict(endpoint.labels))
        for host, namespaces in mesh.services.by_host.items()
        for namespace in namespaces
        if for_all or namespace == document.namespace
        for endpoints in mesh.endpoints((host, namespace)).values()
        for endpoint in endpoints
    )


_CHECKS = {
    "AuthorizationPolicy": _authorization_policy,
    "PeerAuthentication": peer_doubts,
    "VirtualService": _virtual_service,
    "DestinationRule": _destination_rule,
    "ServiceEntry": _service_entry,
    "HTTPRoute": _route,
    "GRPCRoute": _route,
    "StickySplit": _sticky_split,
}
