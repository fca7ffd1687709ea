"""Where the hosts of a cluster come from, as `type`, `cluster_type` and the fields about DNS say."""

from __future__ import annotations

from typing import Any, Final

from meshproxy.config.config_source import build_config_source
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors, child
from meshproxy.config.typed_struct import unpack_any
from meshproxy.config.values import bool_or, int_or, milliseconds, milliseconds_or
from meshproxy.net.happy_eyeballs import FamilyOrder
from meshproxy.net.resolver import (
    FAMILY_ALL,
    FAMILY_AUTO,
    FAMILY_V4_ONLY,
    FAMILY_V4_PREFERRED,
    FAMILY_V6_ONLY,
)
from meshproxy.upstream.build_original_dst import build_original_dst
from meshproxy.upstream.build_resolver import build_resolver
from meshproxy.upstream.config import (
    EDS,
    LOGICAL_DNS,
    ORIGINAL_DST,
    STATIC,
    STRICT_DNS,
    ClusterConfig,
    DnsConfig,
    EdsConfig,
)

# The names under which Envoy has the same kinds as extensions.
_BY_NAME: Final = {
    "envoy.cluster.static": STATIC,
    "envoy.cluster.strict_dns": STRICT_DNS,
    "envoy.cluster.logical_dns": LOGICAL_DNS,
    "envoy.cluster.original_dst": ORIGINAL_DST,
}
_SUPPORTED: Final = "STATIC, STRICT_DNS, LOGICAL_DNS, EDS, ORIGINAL_DST"
_DNS_CLUSTER_NAME: Final = "envoy.cluster.dns"
_DNS_CLUSTER: Final = "envoy.extensions.clusters.dns.v3.DnsCluster"
_FAMILIES: Final = {
    "UNSPECIFIED": FAMILY_AUTO,
    "AUTO": FAMILY_AUTO,
    "V4_ONLY": FAMILY_V4_ONLY,
    "V6_ONLY": FAMILY_V6_ONLY,
    "V4_PREFERRED": FAMILY_V4_PREFERRED,
    "ALL": FAMILY_ALL,
}
_LEGACY: Final = (
    "dns_refresh_rate",
    "dns_failure_refresh_rate",
    "dns_jitter",
    "respect_dns_ttl",
    "dns_lookup_family",
    "dns_resolvers",
    "dns_resolution_config",
    "typed_dns_resolver_config",
    "use_tcp_for_dns_lookups",
)


def build_discovery(config: ClusterConfig, message: Any, path: str, context: BuildContext) -> None:
    """Fill in `discovery`, `dns` and `family_order` of a cluster; errors go to the context."""
    errors = context.errors
    order = message.upstream_connection_options.happy_eyeballs_config
    count = int_or(order, "first_address_family_count", 1)
    config.family_order = FamilyOrder(order.first_address_family_version, count)
    if message.WhichOneof("cluster_discovery_type") == "cluster_type":
        _build_extension(config, message, path, context)
    elif message.type in (ORIGINAL_DST, EDS):
        config.discovery = message.type
    elif message.type in (STATIC, STRICT_DNS, LOGICAL_DNS):
        config.discovery = message.type
        _build_legacy(config, message, path, context)
    else:
        name = message.DESCRIPTOR.enum_types_by_name["DiscoveryType"].values_by_number[message.type].name
        errors.add(child(path, "type"), f"{name} is not supported yet (supported: {_SUPPORTED})")
        return
    config.dns.wait_for_warm = bool_or(message, "wait_for_warm_on_init", True)
    if config.discovery == ORIGINAL_DST:
        config.original_dst = build_original_dst(message, path, errors)
    if config.discovery == LOGICAL_DNS:
        _check_single(message, path, errors)
    _build_eds(config, message, path, context)
    if config.discovery not in (STATIC, EDS):
        config.fingerprint += config.dns.resolver.key().encode()


def _build_extension(config: ClusterConfig, message: Any, path: str, context: BuildContext) -> None:
    """The type of the extension's configuration counts; its name where there is none."""
    cluster_type = message.cluster_type
    where = child(path, "cluster_type")
    dns: Any = None
    if cluster_type.HasField("typed_config"):
        where = child(where, "typed_config")
        dns = unpack_any(cluster_type.typed_config, where, context.errors)
        if dns is None:
            return
        if dns.DESCRIPTOR.full_name != _DNS_CLUSTER:
            context.errors.add(where, f"{dns.DESCRIPTOR.full_name} is not supported as a cluster type")
            return
    elif cluster_type.name in _BY_NAME:
        config.discovery = _BY_NAME[cluster_type.name]
        _build_legacy(config, message, path, context)
        return
    elif cluster_type.name != _DNS_CLUSTER_NAME:
        known = ", ".join([*_BY_NAME, _DNS_CLUSTER_NAME])
        context.errors.add(
            child(where, "name"), f"{cluster_type.name!r} is not supported as a cluster type (supported: {known})"
        )
        return
    _warn_of_legacy(message, path, context.errors)
    config.discovery = STRICT_DNS
    if dns is not None:
        config.discovery = LOGICAL_DNS if dns.all_addresses_in_single_endpoint else STRICT_DNS
        family = dns.DESCRIPTOR.fields_by_name["dns_lookup_family"].enum_type.values_by_number[dns.dns_lookup_family]
        _fill_dns(config.dns, dns, _FAMILIES[family.name], where, context)
    else:
        config.dns.resolver = context.resolver


def _build_eds(config: ClusterConfig, message: Any, path: str, context: BuildContext) -> None:
    where = child(path, "eds_cluster_config")
    if config.discovery != EDS:
        if message.HasField("eds_cluster_config"):
            context.errors.add(where, "is for clusters of the type EDS")
        return
    if not message.HasField("eds_cluster_config"):
        context.errors.add(where, "is required by the type EDS")
        return
    eds = message.eds_cluster_config
    source = build_config_source(eds.eds_config, child(where, "eds_config"), context)
    if message.HasField("load_assignment"):
        context.errors.warn(child(path, "load_assignment"), "takes no effect, as in Envoy: endpoints are discovered")
    if source is not None:
        config.eds = EdsConfig(source, eds.service_name or message.name)


def _warn_of_legacy(message: Any, path: str, errors: ConfigErrors) -> None:
    for field, _ in message.ListFields():
        if field.name in _LEGACY:
            errors.warn(child(path, field.name), "takes no effect, as in Envoy: cluster_type's configuration counts")


def _build_legacy(config: ClusterConfig, message: Any, path: str, context: BuildContext) -> None:
    """The fields of the cluster itself."""
    _fill_dns(config.dns, message, message.dns_lookup_family, path, context)
    if message.use_tcp_for_dns_lookups and not message.dns_resolvers:
        context.errors.warn(child(path, "use_tcp_for_dns_lookups"), "takes effect with dns_resolvers only, as in Envoy")


def _fill_dns(dns: DnsConfig, message: Any, family: int, path: str, context: BuildContext) -> None:
    """From a Cluster or a DnsCluster, whose fields have the same names."""
    dns.family = family
    dns.refresh_ms = float(milliseconds_or(message, "dns_refresh_rate", 5000))
    dns.jitter_ms = float(milliseconds_or(message, "dns_jitter", 0))
    dns.respect_ttl = message.respect_dns_ttl
    dns.resolver = build_resolver(message, path, context.errors) or context.resolver
    if message.HasField("dns_failure_refresh_rate"):
        rate = message.dns_failure_refresh_rate
        dns.failure_base_ms = float(milliseconds(rate.base_interval))
        dns.failure_max_ms = float(milliseconds_or(rate, "max_interval", int(dns.failure_base_ms) * 10))
        if dns.failure_max_ms < dns.failure_base_ms:
            context.errors.add(child(path, "dns_failure_refresh_rate"), "max_interval must not be below base_interval")


def _check_single(message: Any, path: str, errors: ConfigErrors) -> None:
    groups = message.load_assignment.endpoints
    if len(groups) == 1 and len(groups[0].lb_endpoints) == 1:
        return
    if message.HasField("load_assignment"):
        errors.add(
            child(path, "load_assignment"),
            "LOGICAL_DNS clusters must have a single locality_lb_endpoint and a single lb_endpoint",
        )
    else:
        errors.add(child(path, "load_assignment"), "LOGICAL_DNS clusters must have a single host")
