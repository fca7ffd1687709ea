"""Typed load balancing policies: `load_balancing_policy`, and the lists of policies within policies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.registry import Registry
from meshproxy.config.runtime import RuntimeDouble
from meshproxy.config.typed_struct import unpack_any
from meshproxy.config.values import float_or, int_or, milliseconds_or
from meshproxy.route.hash_policy import build_hash_policy
from meshproxy.upstream.build_subsets import build_subsets
from meshproxy.upstream.config import (
    CLUSTER_PROVIDED,
    LEAST_REQUEST,
    MAGLEV,
    PICK_FIRST,
    RANDOM,
    RING_HASH,
    ROUND_ROBIN,
    LbConfig,
    SlowStartConfig,
)
from meshproxy.upstream.load_balancer import BalancerExtension
from meshproxy.upstream.maglev import is_prime

_PREFIX: Final = "envoy.extensions.load_balancing_policies."
_POLICIES: Final = {
    _PREFIX + "round_robin.v3.RoundRobin": ROUND_ROBIN,
    _PREFIX + "least_request.v3.LeastRequest": LEAST_REQUEST,
    _PREFIX + "random.v3.Random": RANDOM,
    _PREFIX + "ring_hash.v3.RingHash": RING_HASH,
    _PREFIX + "maglev.v3.Maglev": MAGLEV,
    _PREFIX + "pick_first.v3.PickFirst": PICK_FIRST,
    _PREFIX + "cluster_provided.v3.ClusterProvided": CLUSTER_PROVIDED,
}
_SUBSET: Final = _PREFIX + "subset.v3.Subset"
_WRR_LOCALITY: Final = _PREFIX + "wrr_locality.v3.WrrLocality"
_TYPED_MURMUR: Final = 2  # RingHash.HashFunction
_FULL_SCAN: Final = 1  # LeastRequest.SelectionMethod

# (message, path, context) -> the policy, None after errors
BalancerBuilder = Callable[[Any, str, BuildContext], BalancerExtension | None]
BALANCERS: Final[Registry[BalancerBuilder]] = Registry("load balancing policy")


def build_policies(config: LbConfig, message: Any, path: str, context: BuildContext, within: str = "") -> None:
    """The first policy that is known is taken, as the API says. `within` is the policy that the list stands in."""
    names: list[str] = []
    for index, policy in enumerate(message.policies):
        extension = policy.typed_extension_config
        where = child(child(item(path, "policies", index), "typed_extension_config"), "typed_config")
        name = extension.typed_config.type_url.rpartition("/")[2]
        names.append(name)
        if name in _POLICIES or name in (_SUBSET, _WRR_LOCALITY):
            options = unpack_any(extension.typed_config, where, context.errors)
            if options is not None:
                _build_policy(config, name, options, where, context, within)
            return
        if extension.typed_config.type_url in BALANCERS.type_urls():
            context.filter_name = extension.name
            _build_extension(config, extension.typed_config, where, context, within)
            return
    context.errors.add(path, f"none of these policies is supported: {', '.join(names) or 'it is empty'}")


def _build_policy(config: LbConfig, name: str, options: Any, path: str, context: BuildContext, within: str) -> None:
    if name == _SUBSET:
        if within:
            context.errors.add(path, f"{_SUBSET} within {within} is not supported")
            return
        config.subsets = build_subsets(options, path, context.errors)
        build_policies(config, options.subset_lb_policy, child(path, "subset_lb_policy"), context, _SUBSET)
    elif name == _WRR_LOCALITY:
        if within == _WRR_LOCALITY:
            context.errors.add(path, f"{_WRR_LOCALITY} within itself is not supported")
            return
        where = child(path, "endpoint_picking_policy")
        build_policies(config, options.endpoint_picking_policy, where, context, _WRR_LOCALITY)
        config.locality_weighted = True
    else:
        config.policy = _POLICIES[name]
        if within and config.policy == CLUSTER_PROVIDED:
            context.errors.add(path, f"{name} within {within} is not supported")
        _build_options(config, options, path, context)


def _build_extension(config: LbConfig, typed_config: Any, path: str, context: BuildContext, within: str) -> None:
    if within:
        context.errors.add(path, f"{typed_config.type_url.rpartition('/')[2]} within {within} is not supported")
        return
    found = BALANCERS.find(typed_config, path, context)
    if found is not None:
        config.policy = RANDOM
        config.extension = found[1](found[0], path, context)


def _build_options(config: LbConfig, options: Any, path: str, context: BuildContext) -> None:
    policy = config.policy
    if config.hashes:
        _build_hashing(config, options, path, context.errors)
    elif policy == PICK_FIRST:
        config.shuffle = options.shuffle_address_list
    elif policy != CLUSTER_PROVIDED:
        locality = options.locality_lb_config
        config.locality_weighted = locality.HasField("locality_weighted_lb_config")
        config.fail_traffic_on_panic = fails_in_panic(locality)
        if policy != RANDOM:
            config.slow_start = build_slow_start(options, context)
        if policy == LEAST_REQUEST:
            _build_least_request(config, options, context)


def _build_least_request(config: LbConfig, options: Any, context: BuildContext) -> None:
    config.choice_count = int_or(options, "choice_count", 2)
    config.full_scan = options.selection_method == _FULL_SCAN
    if options.HasField("active_request_bias"):
        config.active_request_bias = runtime_double(options.active_request_bias, context)


def _build_hashing(config: LbConfig, options: Any, path: str, errors: ConfigErrors) -> None:
    config.use_hostname_for_hashing = False
    config.hash_balance_factor = 0
    config.locality_weighted = options.HasField("locality_weighted_lb_config")
    if config.policy == RING_HASH:
        config.use_hostname_for_hashing = options.use_hostname_for_hashing
        config.hash_balance_factor = int_or(options, "hash_balance_factor", 0)
        config.murmur = options.hash_function == _TYPED_MURMUR
        build_ring(config, options, path, errors)
    else:
        build_maglev(config, options, path, errors)
    if options.HasField("consistent_hashing_lb_config"):
        common = options.consistent_hashing_lb_config
        config.use_hostname_for_hashing = common.use_hostname_for_hashing
        config.hash_balance_factor = int_or(common, "hash_balance_factor", 0)
        where = child(path, "consistent_hashing_lb_config")
        config.hash_policy = build_hash_policy(common.hash_policy, where, "hash_policy", errors)


# -- what a cluster's own fields have in common with these


def build_ring(config: LbConfig, options: Any, path: str, errors: ConfigErrors) -> None:
    """The size of a ring."""
    least = config.minimum_ring_size = int_or(options, "minimum_ring_size", config.minimum_ring_size)
    most = config.maximum_ring_size = int_or(options, "maximum_ring_size", config.maximum_ring_size)
    if least > most:
        errors.add(path, f"minimum_ring_size ({least}) exceeds maximum_ring_size ({most})")


def build_maglev(config: LbConfig, options: Any, path: str, errors: ConfigErrors) -> None:
    """The size of a Maglev table."""
    config.table_size = int_or(options, "table_size", config.table_size)
    if not is_prime(config.table_size):
        errors.add(child(path, "table_size"), "must be a prime number")


def build_slow_start(options: Any, context: BuildContext) -> SlowStartConfig | None:
    """The `slow_start_config` of a policy's options; None without a window."""
    if not options.HasField("slow_start_config"):
        return None
    slow_start = options.slow_start_config
    window_ms = milliseconds_or(slow_start, "slow_start_window", 0)
    if window_ms == 0:
        return None
    aggression = RuntimeDouble("", 1.0)
    if slow_start.HasField("aggression"):
        aggression = runtime_double(slow_start.aggression, context)
    return SlowStartConfig(float(window_ms), aggression, float_or(slow_start, "min_weight_percent", 10.0) / 100.0)


def runtime_double(message: Any, context: BuildContext) -> RuntimeDouble:
    """A core.v3.RuntimeDouble."""
    return context.runtime.double(message.runtime_key, message.default_value)


def fails_in_panic(options: Any) -> bool:
    """Whether nobody is served in panic: the one field of `zone_aware_lb_config` that needs no local cluster."""
    return bool(options.zone_aware_lb_config.fail_traffic_on_panic)
