"""Resources that proxies of several scopes have alike: clusters, and the endpoints of each. They are made once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any, Final

from envoy.config.cluster.v3.cluster_pb2 import Cluster

from meshproxy.pilot.mesh.services import Endpoint
from meshproxy.pilot.resources import names
from meshproxy.pilot.resources.clusters import Outbound, kind_of, outbound_cluster
from meshproxy.pilot.resources.endpoints import assignment, of_subset
from meshproxy.pilot.resources.grpc_client import grpc_cluster
from meshproxy.pilot.resources.locality import Origin, arranged, grouped
from meshproxy.pilot.snapshot import Resource

if TYPE_CHECKING:
    from meshproxy.pilot.documents.destination_rule import LocalityLbSetting, TrafficPolicy
    from meshproxy.pilot.mesh.services import Service, ServiceKey, ServicePort
    from meshproxy.pilot.resources.locality import Group
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
        made_from = Outbound(
            service,
            port,
            subset,
            policy,
            view.scope.intercepted,
            any(endpoint.tls_mode == "istio" for endpoint in endpoints) and not service.external,
            _identities(endpoints, view.mesh.config.domain),
            endpoints if service.resolution.startswith("DNS") or not view.scope.intercepted else (),
        )
        make = grpc_cluster if view.scope.is_grpc else outbound_cluster
        key = ("cluster", port.number, subset, view.scope.mode, rule.documents if rule is not None else ())
        return self._once(service, key, (made_from,), lambda: make(made_from))

    def assignment(self, view: View, service: Service, port: ServicePort, subset: str) -> Resource | None:
        """None where the cluster does not ask for its endpoints."""
        policy = view.policy(service, subset, port.number)
        if not is_eds(view, service, policy):
            return None
        setting = _locality_setting(policy)
        prefers = _prefers(policy, setting)
        origin = view.origin if prefers else Origin()
        endpoints = view.endpoints(service, port.number)
        labels = view.subset_labels(service, subset)
        name = names.outbound_cluster(service.hostname, port.number, subset)
        return self._once(
            service,
            ("endpoints", port.number, subset, labels, origin),
            (endpoints, setting, prefers),
            lambda: assignment(name, _groups(of_subset(endpoints, labels), setting, origin, prefers=prefers)),
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


def _identities(endpoints: Iterable[Endpoint], trust_domain: str) -> tuple[str, ...]:
    """The SPIFFE identities of their service accounts."""
    accounts = {(one.namespace, one.service_account) for one in endpoints if one.service_account}
    return tuple(f"spiffe://{trust_domain}/ns/{namespace}/sa/{account}" for namespace, account in sorted(accounts))


def _locality_setting(policy: TrafficPolicy) -> LocalityLbSetting | None:
    return policy.load_balancer.locality_lb_setting if policy.load_balancer is not None else None


def _prefers(policy: TrafficPolicy, setting: LocalityLbSetting | None) -> bool:
    """Whether it matters where the proxy is: shares always do; fail-over needs to know which hosts fail."""
    if setting is not None and setting.enabled is False:
        return False
    if setting is not None and setting.distribute:
        return True
    return policy.outlier_detection is not None


def _groups(
    endpoints: tuple[Endpoint, ...], setting: LocalityLbSetting | None, origin: Origin, *, prefers: bool
) -> list[Group]:
    groups = grouped(endpoints)
    return arranged(groups, setting, origin) if prefers else groups
