"""Resources that proxies of several scopes have alike: clusters, and the endpoints of each. They are made once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any, Final

from envoy.config.cluster.v3.cluster_pb2 import Cluster

from meshproxy.pilot.mesh.services import TAKES_MESH_TLS, Endpoint, is_address
from meshproxy.pilot.resources import names
from meshproxy.pilot.resources.clusters import Outbound, kind_of, outbound_cluster
from meshproxy.pilot.resources.endpoints import assignment, of_subset
from meshproxy.pilot.resources.grpc_client import grpc_cluster
from meshproxy.pilot.resources.locality import locality_setting, placed, prefers
from meshproxy.pilot.resources.upstream_tls import needs_secrets
from meshproxy.pilot.snapshot import Resource
from meshproxy.tls.spiffe import Identity

if TYPE_CHECKING:
    from meshproxy.pilot.documents.destination_rule import TrafficPolicy
    from meshproxy.pilot.mesh.services import Service, ServiceKey, ServicePort
    from meshproxy.pilot.resources.view import View


_MOST: Final = 1_024  # of one service


class SharedResources:
    """By service. What was made is good for as long as all that it was made from is the same."""

    def __init__(self) -> None:
        self._made: dict[ServiceKey, dict[Hashable, tuple[tuple[Any, ...], Resource]]] = {}

    def forget(self, services: Iterable[ServiceKey]) -> None:
        """These are gone, or not what they were."""
        for key in services:
            self._made.pop(key, None)

    def cluster(self, view: View, service: Service, port: ServicePort, subset: str) -> Resource:
        rule = view.rule(service)
        policy = view.policy(service, subset, port.number)
        endpoints = _of(view, service, port, subset)
        modes = {endpoint.tls_mode == TAKES_MESH_TLS for endpoint in endpoints}
        mesh_endpoints = True in modes and not service.external
        sds = view.scope.sds if needs_secrets(policy, mesh_endpoints=mesh_endpoints) else ""
        made_from = Outbound(
            service,
            port,
            subset,
            policy,
            view.scope.intercepted,
            mesh_endpoints,
            mesh_endpoints and False in modes,
            _identities(endpoints, view.mesh.config.trust_domains),
            endpoints if service.resolution.startswith("DNS") or not view.scope.intercepted else (),
            sds,
            view.origin if service.resolution == "DNS" and prefers(policy) else None,
        )
        make = grpc_cluster if view.scope.is_grpc else outbound_cluster
        key = (
            *("cluster", port.number, subset, view.scope.mode, sds, made_from.origin),
            rule.documents if rule is not None else (),
        )
        return self._once(service, key, (made_from,), lambda: make(made_from))

    def assignment(self, view: View, service: Service, port: ServicePort, subset: str) -> Resource | None:
        """None where the cluster does not ask for its endpoints."""
        policy = view.policy(service, subset, port.number)
        if not is_eds(view, service, policy):
            return None
        setting = locality_setting(policy)
        origin = view.origin if prefers(policy) else None
        endpoints = view.endpoints(service, port.number)
        labels = view.subset_labels(service, subset)
        name = names.outbound_cluster(service.hostname, port.number, subset)
        return self._once(
            service,
            ("endpoints", port.number, subset, labels, origin),
            (endpoints, setting),
            lambda: assignment(name, placed(of_subset(filter(is_address, endpoints), labels), setting, origin)),
        )

    def _once(self, service: Service, key: Hashable, inputs: tuple[Any, ...], make: Callable[[], Any]) -> Resource:
        made = self._made.setdefault(service.key, {})
        if len(made) >= _MOST:
            made.clear()  # of labels, rules and places that are no more, something stays behind
        there = made.get(key)
        if there is not None and there[0] == inputs:
            return there[1]
        message = make()
        resource = Resource.of(message.cluster_name if key[0] == "endpoints" else message.name, message)  # type: ignore[index]
        if there is not None and there[1].version == resource.version:
            resource = there[1]
        made[key] = (inputs, resource)
        return resource


def is_eds(view: View, service: Service, policy: TrafficPolicy) -> bool:
    return view.scope.is_grpc or kind_of(service, policy, intercepted=view.scope.intercepted) == Cluster.EDS


def _of(view: View, service: Service, port: ServicePort, subset: str) -> tuple[Endpoint, ...]:
    endpoints = view.endpoints(service, port.number)
    if service.resolution == "NONE" and not service.hostname.startswith("*"):
        endpoints = (Endpoint(service.hostname, port.target_port),)  # for those who cannot see where it was to go
    return of_subset(endpoints, view.subset_labels(service, subset))


def _identities(endpoints: Iterable[Endpoint], trust_domains: Iterable[str]) -> tuple[str, ...]:
    """The SPIFFE identities of their service accounts, in any of these trust domains."""
    accounts = sorted({(one.namespace, one.service_account) for one in endpoints if one.service_account})
    return tuple(Identity(domain, *account).uri for account in accounts for domain in trust_domains)
