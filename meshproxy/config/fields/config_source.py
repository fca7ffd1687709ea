"""Where resources of a control plane come from."""

from __future__ import annotations

from typing import Final

from meshproxy.config.fields.table import MessageTable, Tables

_CORE: Final = "envoy.config.core.v3."
_VERSIONS: Final = "AUTO V3"

TABLES: Final[Tables] = {
    _CORE + "ConfigSource": MessageTable(
        "path path_config_source api_config_source ads self initial_fetch_timeout",
        only={"resource_api_version": _VERSIONS},
        refused={"authorities": "resources named by an authority (xdstp) are not supported"},
    ),
    _CORE + "PathConfigSource": MessageTable("path watched_directory"),
    _CORE + "AggregatedConfigSource": MessageTable(),
    _CORE + "SelfConfigSource": MessageTable(only={"transport_api_version": _VERSIONS}),
    _CORE + "ApiConfigSource": MessageTable(
        "api_type grpc_services rate_limit_settings set_node_on_first_message_only",
        only={"transport_api_version": "V3"},
        ignored={"refresh_delay request_timeout": "resources are not polled for: they come by gRPC, or from files"},
        refused={
            "cluster_names": "is for REST: a gRPC service names its cluster",
            "config_validators": "validators of a control plane's resources are not supported",
        },
    ),
    _CORE + "RateLimitSettings": MessageTable("max_tokens fill_rate"),
    _CORE + "ExtensionConfigSource": MessageTable(
        "config_source default_config apply_default_config_without_warming type_urls"
    ),
}
