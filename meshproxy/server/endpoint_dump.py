"""The hosts of a cluster as `/config_dump?include_eds` shows them: what was resolved, with the health that counts."""

from __future__ import annotations

from typing import Any, Final

from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.type.v3.percent_pb2 import FractionalPercent
from google.protobuf import json_format

from meshproxy.net.address import Address
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.host import Host

_MILLION: Final = 1_000_000
_HEALTHY: Final = 1  # core.v3.HealthStatus
_UNHEALTHY: Final = 2
_DEGRADED: Final = 5


def dump_endpoints(cluster: Cluster) -> Any:
    """A ClusterLoadAssignment, its endpoints by priority and locality, as Envoy's."""
    eds = cluster.config.eds
    assignment: Any = ClusterLoadAssignment(cluster_name=cluster.name if eds is None else eds.service_name)
    assignment.policy.overprovisioning_factor.value = cluster.config.lb.overprovisioning_factor
    dropped = cluster.drop_overload
    if dropped is not None:
        drop = assignment.policy.drop_overloads.add(category=cluster.config.drop_category)
        drop.drop_percentage.numerator = dropped.numerator * _MILLION // dropped.denominator
        drop.drop_percentage.denominator = FractionalPercent.MILLION
    groups: dict[tuple[int, str, str, str], Any] = {}
    for host in sorted(cluster.hosts, key=_group):
        group = _group(host)
        if group not in groups:
            groups[group] = _locality(host, assignment)
        _dump_host(host, groups[group].lb_endpoints.add())
    return assignment


def _group(host: Host) -> tuple[int, str, str, str]:
    locality = host.locality
    return host.priority, locality.region, locality.zone, locality.sub_zone


def _locality(host: Host, assignment: Any) -> Any:
    endpoints = assignment.endpoints.add()
    endpoints.priority = host.priority
    endpoints.load_balancing_weight.value = host.locality.weight
    endpoints.locality.SetInParent()
    endpoints.locality.region = host.locality.region
    endpoints.locality.zone = host.locality.zone
    endpoints.locality.sub_zone = host.locality.sub_zone
    return endpoints


def _dump_address(address: Address, shown: Any) -> None:
    if address.path:
        shown.pipe.path = address.path
    else:
        shown.socket_address.address = address.ip
        shown.socket_address.port_value = address.port


def _dump_host(host: Host, shown: Any) -> None:
    endpoint = shown.endpoint
    _dump_address(host.address, endpoint.address)
    for address in host.more:
        _dump_address(address, endpoint.additional_addresses.add().address)
    endpoint.health_check_config.SetInParent()
    endpoint.hostname = host.hostname
    shown.health_status = _HEALTHY if host.healthy else _DEGRADED if host.degraded else _UNHEALTHY
    shown.load_balancing_weight.value = host.weight
    if host.metadata is not None:
        json_format.ParseDict({"filter_metadata": host.metadata}, shown.metadata)
