"""The bootstrap, and what only it holds."""

from __future__ import annotations

from typing import Final

from meshproxy.config.fields.table import MessageTable, Tables

_BOOTSTRAP: Final = "envoy.config.bootstrap.v3.Bootstrap"
_CORE: Final = "envoy.config.core.v3."
_AUTHORITIES: Final = "resources named by an authority (xdstp) are not supported"

TABLES: Final[Tables] = {
    "meshproxy.bootstrap.certificate_drain.v1.CertificateDrain": MessageTable("interval grace"),
    "envoy.config.bootstrap.v3.Bootstrap": MessageTable(
        "node static_resources stats_config layered_runtime admin cluster_manager "
        "typed_dns_resolver_config dns_resolution_config use_tcp_for_dns_lookups tracing dynamic_resources",
        ignored={
            "node_context_params": "is for resources named by an authority (xdstp)",
            "flags_path": "is of no use to Envoy either",
            "stats_flush_interval stats_flush_on_admin stats_eviction_interval": "there are no stats sinks to flush to",
            "watchdog watchdogs fatal_actions perf_tracing_file_path": "Envoy's own threads and crashes",
            "enable_dispatcher_stats memory_allocator_manager grpc_async_client_manager_config": "concerns Envoy only",
            "inline_headers": "speeds up look-ups of headers in Envoy",
        },
        later={
            "overload_manager": "resource limits and overload actions are not watched",
            "stats_sinks": "stats are not pushed; scrape /stats/prometheus",
            "bootstrap_extensions": "the extension is not started",
            "deferred_stat_options": "stats are made at once",
            "application_log_config": "the log has its own format",
            "stats_server_version_override": "server.version shows our own version",
        },
        refused={
            "hds_config": "health is not checked for a control plane",
            "config_sources default_config_source": _AUTHORITIES,
            "xds_delegate_extension xds_config_tracker_extension": "extensions of the xDS client are not supported",
            "header_prefix": "another prefix than x-envoy is not supported",
            "certificate_provider_instances": "certificate providers are not supported",
            "default_socket_interface listener_manager": "Envoy's own sockets and listeners cannot be replaced",
            "default_regex_engine": "the engine is RE2, as Envoy's default",
        },
    ),
    "envoy.extensions.bootstrap.internal_listener.v3.InternalListener": MessageTable(
        ignored={"buffer_size_kb": "internal listeners are for HBONE, which is off by default"}
    ),
    "envoy.config.bootstrap.v3.Bootstrap.StaticResources": MessageTable(
        "listeners clusters secrets",
    ),
    _BOOTSTRAP + ".DynamicResources": MessageTable(
        "lds_config cds_config ads_config",
        refused={"lds_resources_locator cds_resources_locator": _AUTHORITIES},
    ),
    "envoy.config.bootstrap.v3.Admin": MessageTable(
        "address allow_paths access_log socket_options",
        ignored={
            "profile_path": "there is no CPU profiler",
            "ignore_global_conn_limit": "the limit never holds for the admin",
        },
        refused={"access_log_path": "use access_log"},
    ),
    "envoy.config.bootstrap.v3.ClusterManager": MessageTable(
        "upstream_bind_config load_stats_config",
        ignored={
            "enable_deferred_cluster_creation": "clusters are made at once",
        },
        later={"outlier_detection": "ejections are not written to an event log"},
        refused={
            "local_cluster_name": "routing by zone is not supported yet",
        },
    ),
    "envoy.config.bootstrap.v3.LayeredRuntime": MessageTable("layers"),
    "envoy.config.bootstrap.v3.RuntimeLayer": MessageTable(
        "name static_layer admin_layer rtds_layer",
        refused={"disk_layer": "runtime from a directory is not supported yet"},
    ),
    "envoy.config.bootstrap.v3.RuntimeLayer.RtdsLayer": MessageTable("name rtds_config"),
    "envoy.service.runtime.v3.Runtime": MessageTable("name layer"),
    "envoy.config.bootstrap.v3.RuntimeLayer.AdminLayer": MessageTable(),
    # Control planes are told all of it.
    _CORE + "Node": MessageTable("*"),
    _CORE + "BuildVersion": MessageTable("version metadata"),
    _CORE + "Extension": MessageTable("*"),
    "envoy.type.v3.SemanticVersion": MessageTable("*"),
    "xds.core.v3.ContextParams": MessageTable("params"),
    "envoy.config.metrics.v3.StatsConfig": MessageTable(
        "stats_tags use_all_default_tags stats_matcher histogram_bucket_settings"
    ),
    "envoy.config.metrics.v3.StatsMatcher": MessageTable("reject_all exclusion_list inclusion_list"),
    "envoy.config.metrics.v3.TagSpecifier": MessageTable("tag_name regex fixed_value"),
    "envoy.config.metrics.v3.HistogramBucketSettings": MessageTable(
        "match buckets", ignored={"bins": "the bins of Envoy's own kind of histogram"}
    ),
    "envoy.config.core.v3.DnsResolutionConfig": MessageTable("resolvers dns_resolver_options"),
    "envoy.config.core.v3.DnsResolverOptions": MessageTable("use_tcp_for_dns_lookups no_default_search_domain"),
    "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig": MessageTable(
        "resolvers use_resolvers_as_fallback filter_unroutable_families dns_resolver_options udp_max_queries "
        "query_timeout_seconds query_tries rotate_nameservers max_udp_channel_duration reinit_channel_on_timeout",
        refused={"edns0_max_payload_size": "c-ares' Python binding cannot set it"},
    ),
    "envoy.extensions.network.dns_resolver.getaddrinfo.v3.GetAddrInfoDnsResolverConfig": MessageTable(
        "num_retries num_resolver_threads"
    ),
}
