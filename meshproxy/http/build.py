"""From the HttpConnectionManager message to a ConnectionManagerConfig."""

from __future__ import annotations

import ipaddress
from typing import Any, Final, NamedTuple

from meshproxy.codec.http1.settings import Http1Settings, UpgradeFilter
from meshproxy.codec.http2.settings import Http2Settings
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child, item
from meshproxy.config.http2_options import build_http2_settings, build_keepalive
from meshproxy.config.string_matcher import StringMatcher, build_string_matcher
from meshproxy.config.values import bool_or, cidr_network, milliseconds_or
from meshproxy.http.access_log import AccessLog, build_access_log
from meshproxy.http.chain import FilterChain
from meshproxy.http.client_cert import SANITIZE, ClientCertForwarding
from meshproxy.http.extension_discovery import build_extension_discovery
from meshproxy.http.filter import HTTP_FILTER_OVERRIDES, HTTP_FILTERS, HttpFilter
from meshproxy.http.http2_limits import ResetLimits
from meshproxy.http.local_reply_config import build_local_reply_config
from meshproxy.http.manager_config import (
    ConnectionManagerConfig,
    Http2StatsRef,
    InternalAddresses,
    Network,
    RoutesRef,
)
from meshproxy.http.rds import build_route_discovery
from meshproxy.http.router_options import RouterOptions
from meshproxy.http.stats import ConnectionManagerStats, ResponseStats
from meshproxy.http.tracing.build import build_request_id, build_tracing
from meshproxy.http.upgrade import Upgrade
from meshproxy.net.interfaces import local_address
from meshproxy.route.build import build_route_configuration

_DEFAULT_HEADERS_KB: Final = 60
_PRIVATE_NETWORKS: Final = tuple(
    ipaddress.ip_network(block)
    for block in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.1/32", "::1/128", "fd00::/8")
)
_DEFAULT_MAX_HEADERS: Final = 100
ROUTER: Final = "envoy.extensions.filters.http.router.v3.Router"


def build_connection_manager(message: Any, path: str, context: BuildContext) -> ConnectionManagerConfig | None:
    """All errors go to the context, with their paths; None when there were any."""
    before = len(context.errors)
    prefix = f"http.{message.stat_prefix}."
    context.stat_prefix = prefix
    filters = _build_filters(message.http_filters, child(path, "http_filters"), context)
    upgrades, of_upgrades = _build_upgrades(message, path, context, filters)
    stats = context.scope(prefix, ConnectionManagerStats)
    context.filters = _by_name(message, filters, upgrades)
    routes = RoutesRef(None)
    _build_routes(message, path, routes, context)
    logs = build_access_logs(message.access_log, child(path, "access_log"), context)
    _check_log_options(message, path, context)
    local_replies = None
    if message.HasField("local_reply_config"):
        where = child(path, "local_reply_config")
        local_replies = build_local_reply_config(message.local_reply_config, where, context)
    tracing = build_tracing(message, path, context)
    internal = _internal_addresses(message, path, context)
    codec = _http1_settings(message, path, context)
    http2 = _http2_settings(message, path, context)
    if len(context.errors) != before or filters is None:
        return None
    router = filters.router
    config = ConnectionManagerConfig(stats, filters.chain, routes, codec)
    config.codec_type = message.codec_type
    config.http2 = http2
    config.http2_stats = Http2StatsRef(context.stats)
    config.reset_limits = ResetLimits(
        context.runtime.integer("overload.premature_reset_total_stream_count", 500),
        context.runtime.integer("overload.premature_reset_min_stream_lifetime_seconds", 1),
    )
    config.http2_keepalive = build_keepalive(message.http2_protocol_options)
    config.stat_prefix = message.stat_prefix
    config.listener_stats = context.scope(context.listener_stat_prefix + prefix, ResponseStats)
    config.access_logs = tuple(logs)
    # The two fields of the manager are older names of the options.
    log_options = message.access_log_options if message.HasField("access_log_options") else message
    config.access_log_on_new_request = log_options.flush_access_log_on_new_request
    config.access_log_on_tunnel = message.access_log_options.flush_log_on_tunnel_successfully_established
    config.access_log_interval_ms = _ms(log_options, "access_log_flush_interval", 0)
    config.local_replies = local_replies
    config.tracing = tracing
    config.packs_trace_reason = build_request_id(message, path, context)[0]
    config.upgrades = upgrades
    _attach_extensions(config, filters.extensions, of_upgrades)
    config.internal_addresses = internal
    _set_identity(config, message)
    if message.add_user_agent.value:
        config.user_agent = context.service_cluster.encode()
        config.service_node = context.service_node.encode()
    _set_paths(config, message)
    _set_limits(config, message)
    config.suppress_envoy_headers = router.suppress_envoy_headers
    config.respect_expected_rq_timeout = router.respect_expected_rq_timeout
    config.dynamic_stats = router.dynamic_stats
    config.suppress_grpc_codes = router.suppress_grpc_codes
    config.upstream_log = router.upstream_log
    config.measures = any(log.measures for log in (*config.access_logs, *config.upstream_log))
    config.retry_stale_connections = context.runtime.switch("meshproxy.retry_stale_connections", True)
    return config


def _check_log_options(message: Any, path: str, context: BuildContext) -> None:
    if message.HasField("access_log_options"):
        for name in ("flush_access_log_on_new_request", "access_log_flush_interval"):
            old = message.HasField(name) if name == "access_log_flush_interval" else getattr(message, name)
            if old:
                context.errors.add(child(path, name), f"Only one of {name} or access_log_options can be specified.")


def build_access_logs(messages: Any, path: str, context: BuildContext) -> list[AccessLog]:
    logs = []
    for index, message in enumerate(messages):
        log = build_access_log(message, f"{path}[{index}]", context)
        if log is not None:
            logs.append(log)
            context.keep(log)
    return logs


# -- filters


class BuiltFilters(NamedTuple):
    """A list of filters, built: the chain, the router's options, and what swaps filters of the chain."""

    chain: FilterChain
    router: RouterOptions
    extensions: list[Any]


def _build_filters(entries: Any, path: str, context: BuildContext) -> BuiltFilters | None:
    """The router must stand last, and nowhere else. What routes say to a name, they say to all filters that share it:
    these must be of one kind."""
    built: list[HttpFilter] = []
    extensions: list[Any] = []
    disabled: set[str] = set()
    sharing: dict[str, tuple[type[object], bool]] = {}
    for index, entry in enumerate(entries):
        where = f"{path}[{index}]"
        last = index == len(entries) - 1
        http_filter = _build_filter(entry, where, last, extensions, context)
        if http_filter is None:
            continue
        http_filter.name = entry.name
        kind = (type(http_filter), bool(entry.disabled))
        if sharing.setdefault(entry.name, kind) != kind:
            context.errors.add(child(where, "name"), f"the name {entry.name!r} is used by another kind of filter")
        if isinstance(http_filter, RouterOptions) != last:
            reason = "the router must be the last filter" if not last else "the last filter must be the router"
            context.errors.add(where, reason)
            continue
        if entry.disabled:
            disabled.add(entry.name)
        built.append(http_filter)
    if not entries:
        context.errors.add(path, "at least the router filter is required")
    if not built or not isinstance(built[-1], RouterOptions):
        return None
    router = built.pop()
    assert isinstance(router, RouterOptions)
    for slot, http_filter in enumerate(built):
        http_filter.slot = slot
    return BuiltFilters(FilterChain(tuple(built), frozenset(disabled)), router, extensions)


def _by_name(message: Any, usual: BuiltFilters | None, upgrades: dict[bytes, Upgrade]) -> dict[str, HttpFilter | None]:
    """What routes may override; None where it could not be built."""
    found: dict[str, HttpFilter | None] = dict.fromkeys(entry.name for entry in message.http_filters)
    chains = [upgrade.chain for upgrade in upgrades.values()] + [None if usual is None else usual.chain]
    for chain in chains:
        if chain is not None:
            found.update({http_filter.name: http_filter for http_filter in chain.filters})
    return found


def _build_filter(entry: Any, path: str, last: bool, extensions: list[Any], context: BuildContext) -> HttpFilter | None:
    if entry.WhichOneof("config_type") == "config_discovery":
        where = child(path, "config_discovery")
        if last:
            context.errors.add(where, "the last filter is the router, which is configured here (typed_config)")
            return None
        discovered = build_extension_discovery(entry.name, entry.config_discovery, where, context)
        if discovered is None:
            return None
        if discovered[1] is not None:
            extensions.append(discovered[1])
        return discovered[0]
    if entry.WhichOneof("config_type") != "typed_config":
        if entry.WhichOneof("config_type") is None:
            context.errors.add(child(path, "typed_config"), "is required")
        return None
    where = child(path, "typed_config")
    found = HTTP_FILTERS.find(entry.typed_config, where, context)
    if found is None:
        return None
    config, filter_type = found
    context.filter_name = entry.name
    return filter_type.build(config, where, context)


def _build_upgrades(
    message: Any, path: str, context: BuildContext, usual: BuiltFilters | None
) -> tuple[dict[bytes, Upgrade], dict[bytes, list[Any]]]:
    """The upgrades, and what swaps filters of theirs, by protocol."""
    upgrades: dict[bytes, Upgrade] = {}
    extensions: dict[bytes, list[Any]] = {}
    for index, entry in enumerate(message.upgrade_configs):
        where = item(path, "upgrade_configs", index)
        protocol = entry.upgrade_type.lower().encode()
        if protocol in upgrades:
            context.errors.add(child(where, "upgrade_type"), f"the upgrade {entry.upgrade_type!r} is there twice")
        chain: FilterChain | None = None
        if entry.filters:
            built = _build_filters(entry.filters, child(where, "filters"), context)
            if built is not None:
                chain = built.chain
                extensions[protocol] = built.extensions
                if usual is not None and not built.router.same(usual.router):
                    context.errors.add(child(where, "filters"), "the router must be configured as in http_filters")
        upgrades[protocol] = Upgrade(bool_or(entry, "enabled", True), chain)
    return upgrades, extensions


def _attach_extensions(
    config: ConnectionManagerConfig, extensions: list[Any], of_upgrades: dict[bytes, list[Any]]
) -> None:
    for extension in extensions:
        extension.attach(config)
    for protocol, of_upgrade in of_upgrades.items():
        for extension in of_upgrade:
            extension.attach(config, protocol)
        extensions = extensions + of_upgrade
    config.extensions = tuple(extensions)


# -- routes


def _build_routes(message: Any, path: str, routes: RoutesRef, context: BuildContext) -> None:
    kind = message.WhichOneof("route_specifier")
    if kind == "route_config":
        where = child(path, "route_config")
        routes.table = build_route_configuration(message.route_config, where, context, HTTP_FILTER_OVERRIDES)
        if message.route_config.HasField("vhds"):
            context.errors.add(child(where, "vhds"), "only routes that are discovered (rds) have it")
    elif kind == "rds":
        build_route_discovery(message.rds, child(path, "rds"), routes, context)
    elif kind is None:
        context.errors.add(path, "route_config or rds is required")


# -- everything else


class _IgnoredUpgrades(UpgradeFilter):
    def __init__(self, matchers: list[StringMatcher]) -> None:
        self._matchers = matchers

    def ignores(self, protocol: bytes) -> bool:
        return any(matcher.match(protocol) for matcher in self._matchers)


def _ignored_upgrades(http1: Any, path: str, context: BuildContext) -> UpgradeFilter | None:
    if not http1.ignore_http_11_upgrade:
        return None
    where = child(path, "http_protocol_options")
    found = [
        build_string_matcher(message, item(where, "ignore_http_11_upgrade", index), context.errors)
        for index, message in enumerate(http1.ignore_http_11_upgrade)
    ]
    return _IgnoredUpgrades([matcher for matcher in found if matcher is not None])


def _http1_settings(message: Any, path: str, context: BuildContext) -> Http1Settings:
    http1 = message.http_protocol_options
    key_format = http1.header_key_format.WhichOneof("header_format")
    return Http1Settings(
        accept_http_10=http1.accept_http_10,
        default_host_for_http_10=http1.default_host_for_http_10.encode(),
        enable_trailers=http1.enable_trailers,
        allow_absolute_url=http1.allow_absolute_url.value if http1.HasField("allow_absolute_url") else True,
        allow_chunked_length=http1.allow_chunked_length,
        proper_case=key_format == "proper_case_words",
        max_headers_count=_max_headers_count(message),
        ignored_upgrades=_ignored_upgrades(http1, path, context),
        max_headers_bytes=_max_headers_bytes(message),
    )


def _http2_settings(message: Any, path: str, context: BuildContext) -> Http2Settings:
    field = "stream_error_on_invalid_http_message"
    return build_http2_settings(
        message.http2_protocol_options,
        child(path, "http2_protocol_options"),
        context.errors,
        max_headers_count=_max_headers_count(message),
        max_headers_bytes=_max_headers_bytes(message),
        buffer_limit_bytes=context.buffer_limit_bytes,
        stream_error=bool_or(message, field, False) if message.HasField(field) else None,
    )


def _max_headers_count(message: Any) -> int:
    return message.common_http_protocol_options.max_headers_count.value or _DEFAULT_MAX_HEADERS


def _max_headers_bytes(message: Any) -> int:
    return (message.max_request_headers_kb.value or _DEFAULT_HEADERS_KB) * 1024


def _internal_addresses(message: Any, path: str, context: BuildContext) -> InternalAddresses:
    config = message.internal_address_config
    networks: list[Network] = []
    if message.HasField("internal_address_config") and not config.cidr_ranges:
        networks.extend(_PRIVATE_NETWORKS)  # without the message nobody is internal, with an empty one these are
    for index, block in enumerate(config.cidr_ranges):
        where = item(child(path, "internal_address_config"), "cidr_ranges", index)
        network = cidr_network(block, where, context.errors)
        if network is not None:
            networks.append(network)
    return InternalAddresses(config.unix_sockets, tuple(networks))


def _set_identity(config: ConnectionManagerConfig, message: Any) -> None:
    config.server_field = (b"server", (message.server_name or "envoy").encode())
    config.server_header_transformation = message.server_header_transformation
    config.use_remote_address = message.use_remote_address.value
    config.xff_num_trusted_hops = message.xff_num_trusted_hops
    config.skip_xff_append = message.skip_xff_append
    config.append_x_forwarded_port = message.append_x_forwarded_port
    if message.forward_client_cert_details != SANITIZE:
        details = message.set_current_client_cert_details
        config.client_cert = ClientCertForwarding(message.forward_client_cert_details, details)
    config.via = message.via.encode()
    config.local_address = local_address().encode()
    config.generate_request_id = message.generate_request_id.value if message.HasField("generate_request_id") else True
    config.preserve_external_request_id = message.preserve_external_request_id
    config.always_set_request_id_in_response = message.always_set_request_id_in_response
    config.proxy_100_continue = message.proxy_100_continue
    config.scheme_to_overwrite = message.scheme_header_transformation.scheme_to_overwrite.encode()
    config.match_upstream_scheme = (
        message.scheme_header_transformation.match_upstream and not config.scheme_to_overwrite
    )


def _set_paths(config: ConnectionManagerConfig, message: Any) -> None:
    config.normalize_path = message.normalize_path.value
    config.merge_slashes = message.merge_slashes
    config.escaped_slashes_action = message.path_with_escaped_slashes_action
    config.strip_matching_host_port = message.strip_matching_host_port
    config.strip_any_host_port = message.strip_any_host_port
    config.strip_trailing_host_dot = message.strip_trailing_host_dot
    config.touches_path = config.normalize_path or config.merge_slashes or config.escaped_slashes_action > 1
    config.touches_host = (
        config.strip_matching_host_port or config.strip_any_host_port or config.strip_trailing_host_dot
    )
    config.headers_with_underscores_action = message.common_http_protocol_options.headers_with_underscores_action


def _set_limits(config: ConnectionManagerConfig, message: Any) -> None:
    common = message.common_http_protocol_options
    config.idle_timeout_ms = _ms(common, "idle_timeout", 3_600_000)
    config.max_connection_duration_ms = _ms(common, "max_connection_duration", 0)
    config.max_requests_per_connection = common.max_requests_per_connection.value
    config.max_stream_duration_ms = _ms(common, "max_stream_duration", 0)
    config.stream_idle_timeout_ms = _ms(message, "stream_idle_timeout", 300_000)
    config.stream_flush_timeout_ms = _ms(message, "stream_flush_timeout", -1)
    config.request_timeout_ms = _ms(message, "request_timeout", 0)
    config.request_headers_timeout_ms = _ms(message, "request_headers_timeout", 0)
    config.drain_timeout_ms = _ms(message, "drain_timeout", 5_000)
    config.safe_max_connection_duration = message.http1_safe_max_connection_duration
    config.delayed_close_timeout_ms = _ms(message, "delayed_close_timeout", 1_000)


def _ms(message: Any, field: str, default: int) -> float:
    return float(milliseconds_or(message, field, default))
