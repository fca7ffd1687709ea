"""From the HttpConnectionManager message to a ConnectionManagerConfig."""

from __future__ import annotations

import ipaddress
from typing import Any, Final

from meshproxy.codec.http1.settings import Http1Settings, UpgradeFilter
from meshproxy.codec.http2.settings import Http2Settings
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child, item
from meshproxy.config.http2_options import build_http2_settings, build_keepalive
from meshproxy.config.string_matcher import StringMatcher, build_string_matcher
from meshproxy.config.values import bool_or, milliseconds_or
from meshproxy.http.access_log import AccessLog, build_access_log
from meshproxy.http.chain import FilterChain
from meshproxy.http.client_cert import SANITIZE, ClientCertForwarding
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
from meshproxy.http.stats import ConnectionManagerStats, ResponseStats
from meshproxy.http.tracing.build import build_request_id, build_tracing
from meshproxy.http.upgrade import Upgrade
from meshproxy.net.interfaces import local_address
from meshproxy.route.build import build_route_configuration
from meshproxy.route.table import RouteTable

_DEFAULT_HEADERS_KB: Final = 60
_PRIVATE_NETWORKS: Final = tuple(
    ipaddress.ip_network(block)
    for block in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.1/32", "::1/128", "fd00::/8")
)
_DEFAULT_MAX_HEADERS: Final = 100
ROUTER: Final = "envoy.extensions.filters.http.router.v3.Router"


class RouterOptions(HttpFilter):
    """The router filter's own options: it stands at the end of the list of filters, and is no link of the chain."""

    def __init__(self) -> None:
        self.suppress_envoy_headers: bool = False
        self.respect_expected_rq_timeout: bool = False
        self.dynamic_stats: bool = True
        self.suppress_grpc_codes: bool = False
        self.upstream_log: tuple[AccessLog, ...] = ()

    def same(self, other: RouterOptions) -> bool:
        """Whether both say the same."""
        return (
            self.suppress_envoy_headers == other.suppress_envoy_headers
            and self.respect_expected_rq_timeout == other.respect_expected_rq_timeout
            and self.dynamic_stats == other.dynamic_stats
            and self.suppress_grpc_codes == other.suppress_grpc_codes
            and len(self.upstream_log) == len(other.upstream_log) == 0
        )


def build_connection_manager(message: Any, path: str, context: BuildContext) -> ConnectionManagerConfig | None:
    """All errors go to the context, with their paths; None when there were any."""
    before = len(context.errors)
    prefix = f"http.{message.stat_prefix}."
    context.stat_prefix = prefix
    filters = _build_filters(message.http_filters, child(path, "http_filters"), context)
    upgrades = _build_upgrades(message, path, context, filters)
    stats = context.scope(prefix, ConnectionManagerStats)
    context.filters = _by_name(message, filters, upgrades)
    table = _build_routes(message, path, context)
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
    chain, router = filters
    config = ConnectionManagerConfig(stats, chain, RoutesRef(table), codec)
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


def _build_filters(entries: Any, path: str, context: BuildContext) -> tuple[FilterChain, RouterOptions] | None:
    """The chain and the router's options; the router must stand last, and nowhere else."""
    built: list[HttpFilter] = []
    disabled: set[str] = set()
    names: set[str] = set()
    for index, entry in enumerate(entries):
        where = f"{path}[{index}]"
        if entry.name in names:
            context.errors.add(child(where, "name"), f"the name {entry.name!r} is used twice")
        names.add(entry.name)
        http_filter = _build_filter(entry, where, context)
        if http_filter is None:
            continue
        http_filter.name = entry.name
        last = index == len(entries) - 1
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
    return FilterChain(tuple(built), frozenset(disabled)), router


def _by_name(
    message: Any, usual: tuple[FilterChain, RouterOptions] | None, upgrades: dict[bytes, Upgrade]
) -> dict[str, HttpFilter | None]:
    """What routes may override; None where it could not be built."""
    found: dict[str, HttpFilter | None] = dict.fromkeys(entry.name for entry in message.http_filters)
    chains = [upgrade.chain for upgrade in upgrades.values()] + [None if usual is None else usual[0]]
    for chain in chains:
        if chain is not None:
            found.update({http_filter.name: http_filter for http_filter in chain.filters})
    return found


def _build_filter(entry: Any, path: str, context: BuildContext) -> HttpFilter | None:
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
    message: Any, path: str, context: BuildContext, usual: tuple[FilterChain, RouterOptions] | None
) -> dict[bytes, Upgrade]:
    upgrades: dict[bytes, Upgrade] = {}
    for index, entry in enumerate(message.upgrade_configs):
        where = item(path, "upgrade_configs", index)
        protocol = entry.upgrade_type.lower().encode()
        if protocol in upgrades:
            context.errors.add(child(where, "upgrade_type"), f"the upgrade {entry.upgrade_type!r} is there twice")
        chain: FilterChain | None = None
        if entry.filters:
            built = _build_filters(entry.filters, child(where, "filters"), context)
            if built is not None:
                chain = built[0]
                if usual is not None and not built[1].same(usual[1]):
                    context.errors.add(child(where, "filters"), "the router must be configured as in http_filters")
        upgrades[protocol] = Upgrade(bool_or(entry, "enabled", True), chain)
    return upgrades


# -- routes


def _build_routes(message: Any, path: str, context: BuildContext) -> RouteTable | None:
    kind = message.WhichOneof("route_specifier")
    if kind == "route_config":
        return build_route_configuration(
            message.route_config, child(path, "route_config"), context, HTTP_FILTER_OVERRIDES
        )
    if kind is None:
        context.errors.add(path, "route_config is required")
    return None


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
        try:
            networks.append(ipaddress.ip_network(f"{block.address_prefix}/{block.prefix_len.value}", strict=False))
        except ValueError as error:
            context.errors.add(item(child(path, "internal_address_config"), "cidr_ranges", index), str(error))
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
