"""How a cluster picks hosts: a traffic policy's `loadBalancer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.route.v3.route_components_pb2 import RouteAction
from google.protobuf.wrappers_pb2 import UInt64Value

from meshproxy.pilot.resources.messages import duration_of

if TYPE_CHECKING:
    from meshproxy.pilot.documents.destination_rule import ConsistentHashLB, LoadBalancer, Warmup

HashPolicy: TypeAlias = RouteAction.HashPolicy

_SIMPLE: Final = {
    "UNSPECIFIED": Cluster.LEAST_REQUEST,
    "LEAST_CONN": Cluster.LEAST_REQUEST,
    "LEAST_REQUEST": Cluster.LEAST_REQUEST,
    "RANDOM": Cluster.RANDOM,
    "ROUND_ROBIN": Cluster.ROUND_ROBIN,
}
PASSTHROUGH: Final = "PASSTHROUGH"


def set_load_balancer(cluster: Cluster, settings: LoadBalancer | None) -> None:
    """Without a rule: the host with fewer requests of two. `PASSTHROUGH` is another type of cluster."""
    if settings is None:
        cluster.lb_policy = Cluster.LEAST_REQUEST
        return
    if settings.consistent_hash is not None:
        _set_hash(cluster, settings.consistent_hash)
    else:
        cluster.lb_policy = _SIMPLE.get(settings.simple or "UNSPECIFIED", Cluster.LEAST_REQUEST)
        _set_warmup(cluster, settings)
    locality = settings.locality_lb_setting
    if locality is not None and locality.distribute and locality.enabled is not False:
        cluster.common_lb_config.locality_weighted_lb_config.SetInParent()


def hash_policies(rule: ConsistentHashLB | None) -> list[HashPolicy]:
    """What of a request the cluster's hash is of: routes say it."""
    if rule is None:
        return []
    if rule.http_header_name:
        return [header_policy(rule.http_header_name)]
    if rule.http_cookie is not None:
        policy = HashPolicy(cookie=HashPolicy.Cookie(name=rule.http_cookie.name, path=rule.http_cookie.path))
        if rule.http_cookie.ttl is not None:
            policy.cookie.ttl.CopyFrom(duration_of(rule.http_cookie.ttl))
        return [policy]
    if rule.http_query_parameter_name:
        return [query_policy(rule.http_query_parameter_name)]
    return [source_policy()] if rule.use_source_ip else []


def header_policy(name: str) -> HashPolicy:
    return HashPolicy(header=HashPolicy.Header(header_name=name))


def query_policy(name: str) -> HashPolicy:
    return HashPolicy(query_parameter=HashPolicy.QueryParameter(name=name))


def source_policy() -> HashPolicy:
    return HashPolicy(connection_properties=HashPolicy.ConnectionProperties(source_ip=True))


def _set_hash(cluster: Cluster, rule: ConsistentHashLB) -> None:
    if rule.maglev is not None:
        cluster.lb_policy = Cluster.MAGLEV
        if rule.maglev.table_size:
            cluster.maglev_lb_config.table_size.CopyFrom(UInt64Value(value=rule.maglev.table_size))
        return
    cluster.lb_policy = Cluster.RING_HASH
    if rule.ring_hash is not None and rule.ring_hash.minimum_ring_size:
        cluster.ring_hash_lb_config.minimum_ring_size.CopyFrom(UInt64Value(value=rule.ring_hash.minimum_ring_size))


def _set_warmup(cluster: Cluster, settings: LoadBalancer) -> None:
    warmup = settings.warmup
    if warmup is None:
        return
    slow_start = Cluster.SlowStartConfig(slow_start_window=duration_of(warmup.duration))
    _set_curve(slow_start, warmup)
    if cluster.lb_policy == Cluster.ROUND_ROBIN:
        cluster.round_robin_lb_config.slow_start_config.CopyFrom(slow_start)
    else:
        cluster.least_request_lb_config.slow_start_config.CopyFrom(slow_start)


def _set_curve(slow_start: Cluster.SlowStartConfig, warmup: Warmup) -> None:
    if warmup.aggression is not None:
        slow_start.aggression.default_value = warmup.aggression
        slow_start.aggression.runtime_key = _AGGRESSION_KEY
    if warmup.minimum_percent is not None:
        slow_start.min_weight_percent.value = warmup.minimum_percent


_AGGRESSION_KEY: Final = "upstream.slow_start.aggression"  # the API demands that a runtime value has a key
