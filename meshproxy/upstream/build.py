"""From `envoy.config.cluster.v3.Cluster` to a `ClusterConfig`: what is honoured, and what is refused by its path."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from google.protobuf import json_format

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.typed_struct import unpack_any
from meshproxy.config.values import bool_or, float_or, int_or, milliseconds_or
from meshproxy.net.connect import keepalive_options
from meshproxy.route.hash_policy import build_hash_policy
from meshproxy.route.mirror import build_mirrors
from meshproxy.route.retry_policy import build_retry_policy
from meshproxy.upstream.build_discovery import build_discovery
from meshproxy.upstream.build_endpoints import build_endpoints
from meshproxy.upstream.build_lb import build_drop_overload, build_lb, drop_category
from meshproxy.upstream.build_protocol import build_versions, of_cluster, of_options
from meshproxy.upstream.config import EDS, HOUR_MS, ClusterConfig
from meshproxy.upstream.outlier import OutlierConfig
from meshproxy.upstream.proxy_protocol import ProxyProtocolFactory
from meshproxy.upstream.resource_limit import DEFAULT_LIMIT, DEFAULT_RETRIES, Thresholds
from meshproxy.upstream.source_address import build_source_addresses
from meshproxy.upstream.transport import build_transport_sockets

_REFUSED: Final = {
    "transport_socket_matcher": "only transport_socket_matches is supported",
    "health_checks": "active health checks are not supported yet",
    "upstream_config": "upstream extensions are not supported",
}
_WITHOUT_EFFECT: Final = {
    "track_timeout_budgets": "these statistics do not exist yet",
    "track_cluster_stats": "these statistics do not exist yet",
}
_HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_REFUSED_HTTP_OPTIONS: Final = {
    "outlier_detection": "not supported yet",
    "header_validation_config": "extensions of the header validation are not supported",
}
_METADATA_EXCHANGE: Final = "envoy.tcp.metadataexchange.config.MetadataExchange"
_SWAPPABLE_BALANCER: Final = "meshproxy.load_balancing_policies.python.v1.Python"
_UPSTREAM_CODEC: Final = "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec"

# `OutlierDetection`'s wrappers and their defaults.
_OUTLIER_INTS: Final = {
    "max_ejection_percent": 10,
    "consecutive_5xx": 5,
    "consecutive_gateway_failure": 5,
    "consecutive_local_origin_failure": 5,
    "success_rate_minimum_hosts": 5,
    "success_rate_request_volume": 100,
    "success_rate_stdev_factor": 1900,
    "failure_percentage_threshold": 85,
    "failure_percentage_minimum_hosts": 5,
    "failure_percentage_request_volume": 50,
    "enforcing_consecutive_5xx": 100,
    "enforcing_consecutive_gateway_failure": 0,
    "enforcing_success_rate": 100,
    "enforcing_consecutive_local_origin_failure": 100,
    "enforcing_local_origin_success_rate": 100,
    "enforcing_failure_percentage": 0,
    "enforcing_failure_percentage_local_origin": 0,
}


def build_cluster(message: Any, path: str, context: BuildContext) -> ClusterConfig | None:
    """The cluster that `message` describes; None after errors were added at `path`."""
    errors = context.errors
    before = len(errors)
    refuse(message, _REFUSED, path, errors)
    _check_network_filters(message, path, errors)
    for field, reason in _WITHOUT_EFFECT.items():
        if _is_set(message, field):
            errors.warn(child(path, field), reason)
    config = ClusterConfig(message.name)
    config.context = context
    config.alt_stat_name = message.alt_stat_name
    config.fingerprint = _fingerprint(message)
    config.connect_timeout_ms = float(milliseconds_or(message, "connect_timeout", 5000))
    config.per_connection_buffer_limit_bytes = int_or(message, "per_connection_buffer_limit_bytes", 1024 * 1024)
    config.metadata = metadata_of(message)
    config.transports = build_transport_sockets(message, path, context, f"cluster.{config.observability_name}.")
    build_discovery(config, message, path, context)
    _build_connections(config, message, path, errors)
    _build_http(config, message, path, context)
    context.stat_prefix = f"cluster.{config.observability_name}."
    config.lb = build_lb(message, path, context)
    if config.lb.hash_policy is None:
        config.lb.hash_policy = config.hash_policy
    assignment = child(path, "load_assignment")
    policy = child(assignment, "policy")
    config.drop_overload = build_drop_overload(message.load_assignment.policy, policy, context.runtime, errors)
    config.drop_category = drop_category(message.load_assignment.policy)
    config.thresholds = _build_thresholds(message.circuit_breakers, child(path, "circuit_breakers"), errors)
    _build_demands(config, message)
    config.preconnect_ratio = float_or(message.preconnect_policy, "per_upstream_preconnect_ratio", 1.0)
    if message.HasField("outlier_detection"):
        config.outlier = _build_outlier(message.outlier_detection, child(path, "outlier_detection"), context)
    if config.discovery != EDS:
        config.endpoints = build_endpoints(message.load_assignment, assignment, config.discovery, errors)
    config.init_targets = context.init_targets
    return config if len(errors) == before else None


def _check_network_filters(message: Any, path: str, errors: ConfigErrors) -> None:
    """Istio's exchange of metadata does nothing on connections that have not agreed on it, as ours never have."""
    for index, entry in enumerate(message.filters):
        where = child(item(path, "filters", index), "typed_config")
        config = unpack_any(entry.typed_config, where, errors)
        if config is not None and config.DESCRIPTOR.full_name != _METADATA_EXCHANGE:
            errors.add(where, f"{config.DESCRIPTOR.full_name} is not supported as a filter of upstream connections")


def refuse(message: Any, refused: dict[str, str], path: str, errors: ConfigErrors) -> None:
    """An error for every field of `refused` that is set."""
    for field, reason in refused.items():
        if _is_set(message, field):
            errors.add(child(path, field), reason)


def _is_set(message: Any, field: str) -> bool:
    descriptor = message.DESCRIPTOR.fields_by_name[field]
    return message.HasField(field) if descriptor.has_presence else bool(getattr(message, field))


def metadata_of(message: Any) -> dict[str, Any] | None:
    """`filter_metadata` as plain values."""
    if not message.HasField("metadata"):
        return None
    return {name: json_format.MessageToDict(value) for name, value in message.metadata.filter_metadata.items()}


def _fingerprint(message: Any) -> bytes:
    """Of everything but the endpoints, and a balancer in Python."""
    rest = type(message)()
    rest.CopyFrom(message)
    for policy in rest.load_balancing_policy.policies:
        if policy.typed_extension_config.typed_config.type_url.rpartition("/")[2] == _SWAPPABLE_BALANCER:
            policy.typed_extension_config.typed_config.ClearField("value")
    rest.ClearField("load_assignment")
    if message.load_assignment.HasField("policy"):
        rest.load_assignment.policy.CopyFrom(message.load_assignment.policy)
    return hashlib.sha256(rest.SerializeToString(deterministic=True)).digest()


def _build_connections(config: ClusterConfig, message: Any, path: str, errors: ConfigErrors) -> None:
    if message.HasField("upstream_bind_config"):
        where = child(path, "upstream_bind_config")
        config.sources = build_source_addresses(message.upstream_bind_config, where, errors)
    options = message.upstream_connection_options
    if options.HasField("tcp_keepalive"):
        keepalive = options.tcp_keepalive
        config.socket_options = keepalive_options(
            int_or(keepalive, "keepalive_probes", 0),
            int_or(keepalive, "keepalive_time", 0),
            int_or(keepalive, "keepalive_interval", 0),
        )
    if options.set_local_interface_name_on_upstream_connections:
        where = child(path, "upstream_connection_options")
        errors.add(child(where, "set_local_interface_name_on_upstream_connections"), "not supported")


def _build_demands(config: ClusterConfig, message: Any) -> None:
    demands = config.demands
    demands.per_connection = message.connection_pool_per_downstream_connection
    demands.limits_pools = any(thresholds.max_connection_pools is not None for thresholds in config.thresholds)
    for factory in config.transports.all:
        if isinstance(factory, ProxyProtocolFactory):
            demands.tells_addresses = True
            demands.tells_tlvs = demands.tells_tlvs or factory.keyed_by_tlvs


# -- HTTP


def _build_http(config: ClusterConfig, message: Any, path: str, context: BuildContext) -> None:
    """`typed_extension_protocol_options`, and the fields of the cluster that it took the place of."""
    errors = context.errors
    config.max_requests_per_connection = int_or(message, "max_requests_per_connection", 0)
    common = message.common_http_protocol_options
    upstream = message.upstream_http_protocol_options
    versions = of_cluster(message, path, errors)
    options_path = child(path, "typed_extension_protocol_options")
    for name, any_message in message.typed_extension_protocol_options.items():
        where = f"{options_path}[{name}]"
        options: Any = unpack_any(any_message, where, errors)
        if options is None:
            continue
        if options.DESCRIPTOR.full_name != _HTTP_OPTIONS:
            errors.add(where, f"{options.DESCRIPTOR.full_name} is not supported")
            continue
        common, upstream = options.common_http_protocol_options, options.upstream_http_protocol_options
        refuse(options, _REFUSED_HTTP_OPTIONS, where, errors)
        _check_filters(options, where, errors)
        versions = of_options(options, where, errors)
        _build_instead_of_routes(config, options, where, context)
    _build_common(config, common)
    config.demands.auto_sni = upstream.auto_sni
    config.demands.auto_san_validation = upstream.auto_san_validation
    config.demands.override_header = upstream.override_auto_sni_header.lower().encode()
    build_versions(config, common, versions, errors)


def _build_instead_of_routes(config: ClusterConfig, options: Any, path: str, context: BuildContext) -> None:
    """What takes the place of the routes' own policies."""
    if options.HasField("retry_policy"):
        config.retry = build_retry_policy(options.retry_policy, child(path, "retry_policy"), context.errors)
    if options.hash_policy:
        config.hash_policy = build_hash_policy(options.hash_policy, path, "hash_policy", context.errors)
    config.mirrors = build_mirrors(options.request_mirror_policies, path, context, [])


def _check_filters(options: Any, path: str, errors: ConfigErrors) -> None:
    for index, http_filter in enumerate(options.http_filters):
        if http_filter.typed_config.type_url.rpartition("/")[2] != _UPSTREAM_CODEC:
            errors.add(item(path, "http_filters", index), "upstream HTTP filters are not supported")


def _build_common(config: ClusterConfig, common: Any) -> None:
    config.idle_timeout_ms = float(milliseconds_or(common, "idle_timeout", int(HOUR_MS)))
    config.max_connection_duration_ms = float(milliseconds_or(common, "max_connection_duration", 0))
    config.max_stream_duration_ms = float(milliseconds_or(common, "max_stream_duration", 0))
    config.max_requests_per_connection = int_or(
        common, "max_requests_per_connection", config.max_requests_per_connection
    )


# -- limits


def _build_thresholds(message: Any, path: str, errors: ConfigErrors) -> list[Thresholds]:
    """By priority; of several entries for one priority the first counts, as in Envoy."""
    built = [Thresholds(), Thresholds()]
    seen: set[int] = set()
    for index, entry in enumerate(message.thresholds):
        where = item(path, "thresholds", index)
        if entry.priority not in seen:
            seen.add(entry.priority)
            _fill_thresholds(built[entry.priority], entry)
    for index, entry in enumerate(message.per_host_thresholds):
        where = item(path, "per_host_thresholds", index)
        for field in ("max_pending_requests", "max_requests", "max_retries", "max_connection_pools", "retry_budget"):
            if entry.HasField(field):
                errors.add(child(where, field), "a host has a limit of connections only")
        built[entry.priority].max_connections_per_host = int_or(entry, "max_connections", 0)
    return built


def _fill_thresholds(thresholds: Thresholds, entry: Any) -> None:
    thresholds.max_connections = int_or(entry, "max_connections", DEFAULT_LIMIT)
    if entry.HasField("max_connection_pools"):
        thresholds.max_connection_pools = entry.max_connection_pools.value
    thresholds.max_pending_requests = int_or(entry, "max_pending_requests", DEFAULT_LIMIT)
    thresholds.max_requests = int_or(entry, "max_requests", DEFAULT_LIMIT)
    thresholds.max_retries = int_or(entry, "max_retries", DEFAULT_RETRIES)
    thresholds.track_remaining = entry.track_remaining
    if entry.HasField("retry_budget"):
        thresholds.budget_percent = float_or(entry.retry_budget, "budget_percent", 20.0)
        thresholds.min_retry_concurrency = int_or(entry.retry_budget, "min_retry_concurrency", 3)


def _build_outlier(message: Any, path: str, context: BuildContext) -> OutlierConfig:
    runtime = context.runtime
    ints = {
        field: runtime.integer(f"outlier_detection.{field}", int_or(message, field, default))
        for field, default in _OUTLIER_INTS.items()
    }
    base_ms = milliseconds_or(message, "base_ejection_time", 30_000)
    durations = {
        "interval_ms": milliseconds_or(message, "interval", 10_000),
        "base_ejection_time_ms": base_ms,
        "max_ejection_time_ms": milliseconds_or(message, "max_ejection_time", max(300_000, base_ms)),
        "max_ejection_time_jitter_ms": milliseconds_or(message, "max_ejection_time_jitter", 0),
    }
    if durations["max_ejection_time_ms"] < base_ms:
        context.errors.add(child(path, "max_ejection_time"), "must not be smaller than base_ejection_time")
    for field, value in durations.items():
        ints[field] = runtime.integer(f"outlier_detection.{field}", value)
    for index in range(len(message.monitors)):
        context.errors.add(item(path, "monitors", index), "outlier detection extensions are not supported")
    return OutlierConfig(
        ints, message.split_external_local_origin_errors, bool_or(message, "always_eject_one_host", False)
    )
