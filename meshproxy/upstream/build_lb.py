"""The load balancer of a cluster: `lb_policy` with its options, or a typed `load_balancing_policy`."""

from __future__ import annotations

from typing import Any, Final

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.runtime import Fraction, Runtime
from meshproxy.config.values import float_or, fraction, int_or
from meshproxy.upstream.build_lb_policy import (
    build_maglev,
    build_policies,
    build_ring,
    build_slow_start,
    fails_in_panic,
    runtime_double,
)
from meshproxy.upstream.build_subsets import build_subsets
from meshproxy.upstream.config import (
    CLUSTER_PROVIDED,
    LEAST_REQUEST,
    LOGICAL_DNS,
    MAGLEV,
    RANDOM,
    RING_HASH,
    ROUND_ROBIN,
    STRICT_DNS,
    LbConfig,
)

_TYPED_POLICY: Final = 7  # LbPolicy.LOAD_BALANCING_POLICY_CONFIG
_POLICIES: Final = {
    0: ROUND_ROBIN,
    1: LEAST_REQUEST,
    2: RING_HASH,
    3: RANDOM,
    5: MAGLEV,
    6: CLUSTER_PROVIDED,
}
_ORIGINAL_DST: Final = 4  # Cluster.DiscoveryType
_ORIGINAL_DST_NAME: Final = "envoy.cluster.original_dst"
_DEFAULT_PANIC: Final = 50.0
_MURMUR: Final = 1  # RingHashLbConfig.HashFunction
_SAID_BY_POLICIES: Final = ("zone_aware_lb_config", "locality_weighted_lb_config", "consistent_hashing_lb_config")
_NOT_WITH_POLICY: Final = "cannot be combined with load_balancing_policy"
_NEEDS_ORIGINAL_DST: Final = "the cluster provides no balancer: its type must be ORIGINAL_DST"


def build_lb(message: Any, path: str, context: BuildContext) -> LbConfig:
    """Errors go to the context."""
    errors = context.errors
    common = message.common_lb_config
    panic = int(float_or(common, "healthy_panic_threshold", _DEFAULT_PANIC))
    config = LbConfig(context.runtime.integer("upstream.healthy_panic_threshold", panic))
    assignment = message.load_assignment.policy
    config.overprovisioning_factor = int_or(assignment, "overprovisioning_factor", 140)
    config.weighted_priority_health = assignment.weighted_priority_health
    _build_common(config, common, message.type in (STRICT_DNS, LOGICAL_DNS), child(path, "common_lb_config"), errors)
    if message.HasField("load_balancing_policy"):
        _refuse_legacy(message, path, errors)
        build_policies(config, message.load_balancing_policy, child(path, "load_balancing_policy"), context)
    elif message.lb_policy == _TYPED_POLICY:
        errors.add(child(path, "load_balancing_policy"), "is required by LOAD_BALANCING_POLICY_CONFIG")
    else:
        config.policy = _POLICIES[message.lb_policy]
        _build_options(config, message, path, context)
        _build_subsets(config, message, path, errors)
    _check_provided(config, message, path, errors)
    if config.hashes:
        config.fail_traffic_on_panic = False  # Envoy looks at it elsewhere only
    return config


def _refuse_legacy(message: Any, path: str, errors: ConfigErrors) -> None:
    """What a typed policy says itself."""
    for field in _SAID_BY_POLICIES:
        if message.common_lb_config.HasField(field):
            errors.add(child(child(path, "common_lb_config"), field), _NOT_WITH_POLICY)
    if message.HasField("lb_subset_config"):
        errors.add(child(path, "lb_subset_config"), _NOT_WITH_POLICY)


def _check_provided(config: LbConfig, message: Any, path: str, errors: ConfigErrors) -> None:
    if message.HasField("cluster_type"):
        original_dst = message.cluster_type.name == _ORIGINAL_DST_NAME
    else:
        original_dst = message.type == _ORIGINAL_DST
    if original_dst and _POLICIES.get(message.lb_policy) != CLUSTER_PROVIDED:
        errors.add(child(path, "lb_policy"), "must be CLUSTER_PROVIDED for the type ORIGINAL_DST")
    elif config.policy == CLUSTER_PROVIDED and not original_dst:
        errors.add(child(path, "lb_policy"), _NEEDS_ORIGINAL_DST)


def _build_common(config: LbConfig, common: Any, named: bool, path: str, errors: ConfigErrors) -> None:
    """`named`: the hosts have DNS names."""
    config.locality_weighted = common.HasField("locality_weighted_lb_config")
    # Without a local cluster zone awareness decides nothing but this.
    config.fail_traffic_on_panic = fails_in_panic(common)
    if common.HasField("consistent_hashing_lb_config"):
        options = common.consistent_hashing_lb_config
        config.use_hostname_for_hashing = options.use_hostname_for_hashing
        config.hash_balance_factor = int_or(options, "hash_balance_factor", 0)
        if options.use_hostname_for_hashing and not named:
            where = child(path, "consistent_hashing_lb_config")
            errors.add(child(where, "use_hostname_for_hashing"), "needs a cluster of type STRICT_DNS or LOGICAL_DNS")
    config.close_connections_on_host_set_change = common.close_connections_on_host_set_change


def _build_options(config: LbConfig, message: Any, path: str, context: BuildContext) -> None:
    policy = config.policy
    if policy == ROUND_ROBIN:
        config.slow_start = build_slow_start(message.round_robin_lb_config, context)
    elif policy == LEAST_REQUEST:
        options = message.least_request_lb_config
        config.slow_start = build_slow_start(options, context)
        config.choice_count = int_or(options, "choice_count", 2)
        if options.HasField("active_request_bias"):
            config.active_request_bias = runtime_double(options.active_request_bias, context)
    elif policy == RING_HASH:
        config.murmur = message.ring_hash_lb_config.hash_function == _MURMUR
        build_ring(config, message.ring_hash_lb_config, child(path, "ring_hash_lb_config"), context.errors)
    elif policy == MAGLEV:
        build_maglev(config, message.maglev_lb_config, child(path, "maglev_lb_config"), context.errors)


def _build_subsets(config: LbConfig, message: Any, path: str, errors: ConfigErrors) -> None:
    if not message.HasField("lb_subset_config"):
        return
    options = message.lb_subset_config
    where = child(path, "lb_subset_config")
    if config.policy == CLUSTER_PROVIDED:
        errors.add(where, "cannot be combined with CLUSTER_PROVIDED")
    if options.locality_weight_aware and not config.locality_weighted:
        errors.add(child(where, "locality_weight_aware"), "needs common_lb_config.locality_weighted_lb_config")
    if options.subset_selectors:  # without any, the rest has no effect in Envoy either
        config.subsets = build_subsets(options, where, errors)


def build_drop_overload(policy: Any, path: str, runtime: Runtime, errors: ConfigErrors) -> Fraction | None:
    """The share of requests that are refused, of a `ClusterLoadAssignment.Policy`; None for none."""
    entries = policy.drop_overloads
    if not entries:
        return None
    where = child(path, "drop_overloads")
    if len(entries) > 1:
        errors.add(where, f"has {len(entries)} categories, of which only one can be honoured")
    numerator, denominator = fraction(entries[0].drop_percentage)
    if numerator > denominator:
        errors.add(child(item(path, "drop_overloads", 0), "drop_percentage"), "must not exceed 100 percent")
    limit = runtime.get_int("load_balancing_policy.drop_overload_limit", 100)
    if numerator * 100 > limit * denominator:
        numerator, denominator = limit, 100
    return Fraction("", numerator, denominator) if numerator > 0 else None


def drop_category(policy: Any) -> str:
    """What load reports call the requests that `drop_overloads` refuses."""
    return policy.drop_overloads[0].category if policy.drop_overloads else ""
