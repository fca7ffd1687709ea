"""The load balancer of a cluster: `lb_policy` with its options, or a typed `load_balancing_policy`."""

from __future__ import annotations

from typing import Any, Final

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.typed_struct import unpack_any
from meshproxy.config.values import float_or, int_or
from meshproxy.route.hash_policy import build_hash_policy
from meshproxy.upstream.config import LEAST_REQUEST, MAGLEV, RANDOM, RING_HASH, ROUND_ROBIN, STRICT_DNS, LbConfig
from meshproxy.upstream.maglev import is_prime

_TYPED_POLICY: Final = 7  # LbPolicy.LOAD_BALANCING_POLICY_CONFIG
_POLICIES: Final = {0: ROUND_ROBIN, 1: LEAST_REQUEST, 2: RING_HASH, 3: RANDOM, 5: MAGLEV}
_TYPED: Final = {
    "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin": ROUND_ROBIN,
    "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest": LEAST_REQUEST,
    "envoy.extensions.load_balancing_policies.random.v3.Random": RANDOM,
    "envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash": RING_HASH,
    "envoy.extensions.load_balancing_policies.maglev.v3.Maglev": MAGLEV,
}
_DEFAULT_PANIC: Final = 50.0
_NOT_YET: Final = "not supported yet"
_MURMUR: Final = 1  # RingHashLbConfig.HashFunction
_TYPED_MURMUR: Final = 2  # RingHash.HashFunction


def build_lb(message: Any, path: str, context: BuildContext) -> LbConfig:
    """Errors go to the context."""
    errors = context.errors
    common = message.common_lb_config
    panic = int(float_or(common, "healthy_panic_threshold", _DEFAULT_PANIC))
    config = LbConfig(context.runtime.integer("upstream.healthy_panic_threshold", panic))
    config.overprovisioning_factor = int_or(message.load_assignment.policy, "overprovisioning_factor", 140)
    _build_common(config, common, message.type == STRICT_DNS, child(path, "common_lb_config"), errors)
    if message.HasField("original_dst_lb_config"):
        errors.add(child(path, "original_dst_lb_config"), _NOT_YET)
    if message.HasField("load_balancing_policy"):
        _build_typed(config, message.load_balancing_policy, child(path, "load_balancing_policy"), errors)
    elif message.lb_policy == _TYPED_POLICY:
        errors.add(child(path, "load_balancing_policy"), "is required by LOAD_BALANCING_POLICY_CONFIG")
    elif message.lb_policy in _POLICIES:
        config.policy = _POLICIES[message.lb_policy]
        _build_options(config, message, path, errors)
    else:
        name = message.DESCRIPTOR.enum_types_by_name["LbPolicy"].values_by_number[message.lb_policy].name
        errors.add(child(path, "lb_policy"), f"{name} is {_NOT_YET}")
    if config.hashes:
        config.fail_traffic_on_panic = False  # Envoy looks at it elsewhere only
    return config


def _build_common(config: LbConfig, common: Any, named: bool, path: str, errors: ConfigErrors) -> None:
    """`named`: the hosts have DNS names."""
    if common.HasField("locality_weighted_lb_config"):
        errors.add(child(path, "locality_weighted_lb_config"), _NOT_YET)
    if common.HasField("zone_aware_lb_config"):
        # Without a local cluster it decides nothing but this.
        config.fail_traffic_on_panic = common.zone_aware_lb_config.fail_traffic_on_panic
    if common.HasField("consistent_hashing_lb_config"):
        options = common.consistent_hashing_lb_config
        where = child(path, "consistent_hashing_lb_config")
        _build_hashing(config, options, where, errors)
        if options.use_hostname_for_hashing and not named:
            errors.add(child(where, "use_hostname_for_hashing"), "needs a STRICT_DNS cluster")
    if common.HasField("override_host_status"):
        errors.add(child(path, "override_host_status"), _NOT_YET)
    config.close_connections_on_host_set_change = common.close_connections_on_host_set_change


def _build_options(config: LbConfig, message: Any, path: str, errors: ConfigErrors) -> None:
    if message.HasField("round_robin_lb_config"):
        _refuse_slow_start(message.round_robin_lb_config, child(path, "round_robin_lb_config"), errors)
    if message.HasField("least_request_lb_config"):
        options = message.least_request_lb_config
        where = child(path, "least_request_lb_config")
        _refuse_slow_start(options, where, errors)
        config.choice_count = int_or(options, "choice_count", 2)
        if options.HasField("active_request_bias"):
            config.active_request_bias = options.active_request_bias.default_value


    if config.policy == RING_HASH:
        config.murmur = message.ring_hash_lb_config.hash_function == _MURMUR
        _build_ring(config, message.ring_hash_lb_config, child(path, "ring_hash_lb_config"), errors)
    elif config.policy == MAGLEV:
        _build_maglev(config, message.maglev_lb_config, child(path, "maglev_lb_config"), errors)


def _build_hashing(config: LbConfig, options: Any, path: str, errors: ConfigErrors) -> None:
    config.use_hostname_for_hashing = options.use_hostname_for_hashing
    if options.HasField("hash_balance_factor"):
        errors.add(child(path, "hash_balance_factor"), _NOT_YET)


def _build_ring(config: LbConfig, options: Any, path: str, errors: ConfigErrors) -> None:
    least = config.minimum_ring_size = int_or(options, "minimum_ring_size", config.minimum_ring_size)
    most = config.maximum_ring_size = int_or(options, "maximum_ring_size", config.maximum_ring_size)
    if least > most:
        errors.add(path, f"minimum_ring_size ({least}) exceeds maximum_ring_size ({most})")


def _build_maglev(config: LbConfig, options: Any, path: str, errors: ConfigErrors) -> None:
    config.table_size = int_or(options, "table_size", config.table_size)
    if not is_prime(config.table_size):
        errors.add(child(path, "table_size"), "must be a prime number")


def _refuse_slow_start(options: Any, path: str, errors: ConfigErrors) -> None:
    if options.HasField("slow_start_config"):
        errors.add(child(path, "slow_start_config"), _NOT_YET)


def _build_typed(config: LbConfig, message: Any, path: str, errors: ConfigErrors) -> None:
    """The first policy that is known is taken, as the API says."""
    names: list[str] = []
    for index, policy in enumerate(message.policies):
        extension = policy.typed_extension_config
        where = child(child(item(path, "policies", index), "typed_extension_config"), "typed_config")
        name = extension.typed_config.type_url.rpartition("/")[2]
        names.append(name)
        if name in _TYPED:
            options = unpack_any(extension.typed_config, where, errors)
            if options is not None:
                config.policy = _TYPED[name]
                _build_typed_options(config, options, where, errors)
            return
    errors.add(path, f"none of these policies is supported yet: {', '.join(names)}")


def _build_typed_options(config: LbConfig, options: Any, path: str, errors: ConfigErrors) -> None:
    if config.hashes:
        _build_typed_hashing(config, options, path, errors)
        return
    if config.policy != RANDOM:
        _refuse_slow_start(options, path, errors)
    locality = options.locality_lb_config
    if locality.WhichOneof("locality_config_specifier") == "locality_weighted_lb_config":
        errors.add(child(child(path, "locality_lb_config"), "locality_weighted_lb_config"), _NOT_YET)
    if config.policy == LEAST_REQUEST:
        config.choice_count = int_or(options, "choice_count", 2)
        config.full_scan = options.selection_method == 1
        if options.HasField("active_request_bias"):
            config.active_request_bias = options.active_request_bias.default_value


def _build_typed_hashing(config: LbConfig, options: Any, path: str, errors: ConfigErrors) -> None:
    config.use_hostname_for_hashing = False
    if config.policy == RING_HASH:
        config.use_hostname_for_hashing = options.use_hostname_for_hashing
        if options.HasField("hash_balance_factor"):
            errors.add(child(path, "hash_balance_factor"), _NOT_YET)
        config.murmur = options.hash_function == _TYPED_MURMUR
        _build_ring(config, options, path, errors)
    else:
        _build_maglev(config, options, path, errors)
    if options.HasField("locality_weighted_lb_config"):
        errors.add(child(path, "locality_weighted_lb_config"), _NOT_YET)
    if options.HasField("consistent_hashing_lb_config"):
        common = options.consistent_hashing_lb_config
        where = child(path, "consistent_hashing_lb_config")
        _build_hashing(config, common, where, errors)
        config.hash_policy = build_hash_policy(common.hash_policy, where, "hash_policy", errors)
