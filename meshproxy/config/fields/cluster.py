"""Clusters, their endpoints, balancing and limits."""

from __future__ import annotations

from typing import Final

from meshproxy.config.fields.table import MessageTable, Tables

_CLUSTER = "envoy.config.cluster.v3."
_ENDPOINT = "envoy.config.endpoint.v3."
_UPSTREAM = "envoy.extensions.upstreams.http.v3."
_LB = "envoy.extensions.load_balancing_policies."
_HTTP3 = "HTTP/3 is not supported"
_HEALTH = "active health checks are not supported yet"
_NO_LOCAL_CLUSTER = "takes effect in Envoy only where the bootstrap names a local cluster"
_MEASURES_ONLY = "only tells more in stats"
_DNS: Final = "envoy.extensions.clusters.dns.v3."

TABLES: Final[Tables] = {
    _CLUSTER + "Cluster": MessageTable(
        "name alt_stat_name connect_timeout per_connection_buffer_limit_bytes load_assignment "
        "max_requests_per_connection circuit_breakers upstream_http_protocol_options common_http_protocol_options "
        "http_protocol_options http2_protocol_options typed_extension_protocol_options dns_refresh_rate dns_jitter "
        "dns_failure_refresh_rate "
        "dns_lookup_family typed_dns_resolver_config dns_resolution_config dns_resolvers use_tcp_for_dns_lookups "
        "respect_dns_ttl wait_for_warm_on_init cluster_type eds_cluster_config outlier_detection "
        "least_request_lb_config round_robin_lb_config ring_hash_lb_config maglev_lb_config common_lb_config "
        "lb_subset_config "
        "transport_socket transport_socket_matches upstream_bind_config connection_pool_per_downstream_connection "
        "metadata original_dst_lb_config cleanup_interval preconnect_policy filters "
        "upstream_connection_options load_balancing_policy",
        only={
            "type": "STATIC STRICT_DNS LOGICAL_DNS EDS ORIGINAL_DST",
            "lb_policy": "ROUND_ROBIN LEAST_REQUEST RANDOM RING_HASH MAGLEV CLUSTER_PROVIDED "
            "LOAD_BALANCING_POLICY_CONFIG",
            "protocol_selection": "USE_CONFIGURED_PROTOCOL USE_DOWNSTREAM_PROTOCOL",
        },
        ignored={
            "track_timeout_budgets track_cluster_stats": _MEASURES_ONLY,
            "close_connections_on_host_health_failure ignore_health_on_host_removal": "no host's health is checked",
            "lrs_server": "Envoy does nothing with it either: cluster_manager.load_stats_config says where reports go",
            "lrs_report_endpoint_metrics": "responses are not searched for metrics of their endpoint",
        },
        refused={
            "transport_socket_matcher": "only transport_socket_matches is supported",
            "health_checks": _HEALTH,
            "upstream_config": "other upstreams than HTTP are not supported",
        },
    ),
    _CLUSTER + "Filter": MessageTable(
        "name typed_config", refused={"config_discovery": "extension discovery is not supported on clusters"}
    ),
    _CLUSTER + "Cluster.EdsClusterConfig": MessageTable("eds_config service_name"),
    _CLUSTER + "Cluster.RefreshRate": MessageTable("base_interval max_interval"),
    _CLUSTER + "Cluster.CustomClusterType": MessageTable("name typed_config"),
    _DNS + "DnsCluster": MessageTable(
        "dns_refresh_rate dns_failure_refresh_rate respect_dns_ttl dns_jitter typed_dns_resolver_config "
        "dns_lookup_family all_addresses_in_single_endpoint"
    ),
    _DNS + "DnsCluster.RefreshRate": MessageTable("base_interval max_interval"),
    _CLUSTER + "Cluster.LeastRequestLbConfig": MessageTable("choice_count active_request_bias slow_start_config"),
    _CLUSTER + "Cluster.RoundRobinLbConfig": MessageTable("slow_start_config"),
    _CLUSTER + "Cluster.SlowStartConfig": MessageTable("slow_start_window aggression min_weight_percent"),
    _CLUSTER + "Cluster.LbSubsetConfig": MessageTable(
        "fallback_policy default_subset subset_selectors locality_weight_aware scale_locality_weight panic_mode_any "
        "list_as_any metadata_fallback_policy"
    ),
    _CLUSTER + "Cluster.LbSubsetConfig.LbSubsetSelector": MessageTable(
        "keys single_host_per_subset fallback_policy fallback_keys_subset"
    ),
    _CLUSTER + "Cluster.CommonLbConfig": MessageTable(
        "healthy_panic_threshold zone_aware_lb_config close_connections_on_host_set_change "
        "consistent_hashing_lb_config locality_weighted_lb_config",
        ignored={
            "update_merge_window": "changes of hosts are taken as they come",
            "ignore_new_hosts_until_first_hc": "no host's health is checked",
        },
        refused={
            "override_host_status": "is not supported yet",
        },
    ),
    _CLUSTER + "Cluster.CommonLbConfig.LocalityWeightedLbConfig": MessageTable(),
    _CLUSTER + "Cluster.CommonLbConfig.ConsistentHashingLbConfig": MessageTable(
        "use_hostname_for_hashing hash_balance_factor"
    ),
    _CLUSTER + "Cluster.RingHashLbConfig": MessageTable("minimum_ring_size maximum_ring_size hash_function"),
    _CLUSTER + "Cluster.MaglevLbConfig": MessageTable("table_size"),
    _CLUSTER + "Cluster.CommonLbConfig.ZoneAwareLbConfig": MessageTable(
        "fail_traffic_on_panic",
        ignored={"routing_enabled min_cluster_size": _NO_LOCAL_CLUSTER},
    ),
    _CLUSTER + "LoadBalancingPolicy": MessageTable("policies"),
    _CLUSTER + "LoadBalancingPolicy.Policy": MessageTable("typed_extension_config"),
    _LB + "round_robin.v3.RoundRobin": MessageTable("locality_lb_config slow_start_config"),
    _LB + "least_request.v3.LeastRequest": MessageTable(
        "choice_count active_request_bias selection_method locality_lb_config slow_start_config",
        ignored={"enable_full_scan": "Envoy does nothing with it either: set selection_method"},
    ),
    _LB + "random.v3.Random": MessageTable("locality_lb_config"),
    "meshproxy.load_balancing_policies.python.v1.Python": MessageTable("file module entry_point class config"),
    _LB + "ring_hash.v3.RingHash": MessageTable(
        "hash_function minimum_ring_size maximum_ring_size use_hostname_for_hashing consistent_hashing_lb_config "
        "hash_balance_factor locality_weighted_lb_config"
    ),
    _LB + "maglev.v3.Maglev": MessageTable("table_size consistent_hashing_lb_config locality_weighted_lb_config"),
    _LB + "pick_first.v3.PickFirst": MessageTable("shuffle_address_list"),
    _LB + "cluster_provided.v3.ClusterProvided": MessageTable(),
    _LB + "wrr_locality.v3.WrrLocality": MessageTable("endpoint_picking_policy"),
    _LB + "subset.v3.Subset": MessageTable(
        "fallback_policy default_subset subset_selectors allow_redundant_keys locality_weight_aware "
        "scale_locality_weight panic_mode_any list_as_any metadata_fallback_policy subset_lb_policy"
    ),
    _LB + "subset.v3.Subset.LbSubsetSelector": MessageTable(
        "keys single_host_per_subset fallback_policy fallback_keys_subset"
    ),
    _LB + "common.v3.SlowStartConfig": MessageTable("slow_start_window aggression min_weight_percent"),
    _LB + "common.v3.ConsistentHashingLbConfig": MessageTable(
        "use_hostname_for_hashing hash_policy hash_balance_factor"
    ),
    _LB + "common.v3.LocalityLbConfig": MessageTable("zone_aware_lb_config locality_weighted_lb_config"),
    _LB + "common.v3.LocalityLbConfig.LocalityWeightedLbConfig": MessageTable(),
    _LB + "common.v3.LocalityLbConfig.ZoneAwareLbConfig": MessageTable(
        "fail_traffic_on_panic",
        ignored={
            "routing_enabled min_cluster_size force_locality_direct_routing force_local_zone locality_basis": (
                _NO_LOCAL_CLUSTER
            )
        },
    ),
    _CLUSTER + "CircuitBreakers": MessageTable("thresholds per_host_thresholds"),
    _CLUSTER + "CircuitBreakers.Thresholds": MessageTable(
        "priority max_connections max_pending_requests max_requests max_retries retry_budget track_remaining "
        "max_connection_pools"
    ),
    _CLUSTER + "CircuitBreakers.Thresholds.RetryBudget": MessageTable("budget_percent min_retry_concurrency"),
    _CLUSTER + "OutlierDetection": MessageTable(
        "consecutive_5xx interval base_ejection_time max_ejection_percent enforcing_consecutive_5xx "
        "enforcing_success_rate success_rate_minimum_hosts success_rate_request_volume success_rate_stdev_factor "
        "consecutive_gateway_failure enforcing_consecutive_gateway_failure split_external_local_origin_errors "
        "consecutive_local_origin_failure enforcing_consecutive_local_origin_failure "
        "enforcing_local_origin_success_rate failure_percentage_threshold enforcing_failure_percentage "
        "enforcing_failure_percentage_local_origin failure_percentage_minimum_hosts failure_percentage_request_volume "
        "max_ejection_time max_ejection_time_jitter always_eject_one_host",
        ignored={
            "successful_active_health_check_uneject_host": "no host's health is checked",
        },
        refused={"monitors": "outlier detection extensions are not supported"},
    ),
    _CLUSTER + "UpstreamConnectionOptions": MessageTable(
        "tcp_keepalive happy_eyeballs_config",
        refused={"set_local_interface_name_on_upstream_connections": "is not supported"},
    ),
    _CLUSTER + "UpstreamConnectionOptions.HappyEyeballsConfig": MessageTable(
        "first_address_family_version first_address_family_count"
    ),
    _ENDPOINT + "ClusterLoadAssignment": MessageTable(
        "cluster_name endpoints policy", refused={"named_endpoints": "is not supported yet"}
    ),
    _ENDPOINT + "ClusterLoadAssignment.Policy": MessageTable(
        "overprovisioning_factor weighted_priority_health drop_overloads endpoint_stale_after"
    ),
    _ENDPOINT + "ClusterLoadAssignment.Policy.DropOverload": MessageTable("category drop_percentage"),
    _ENDPOINT + "LocalityLbEndpoints": MessageTable(
        "locality metadata lb_endpoints priority load_balancing_weight",
        ignored={
            "proximity": "Envoy does nothing with it either",
        },
        refused={"load_balancer_endpoints leds_cluster_locality_config": "is for endpoints from a control plane"},
    ),
    _ENDPOINT + "LbEndpoint": MessageTable(
        "endpoint health_status metadata load_balancing_weight",
        refused={"endpoint_name": "is for endpoints from a control plane"},
    ),
    _ENDPOINT + "Endpoint": MessageTable(
        "address hostname additional_addresses", ignored={"health_check_config": "no host's health is checked"}
    ),
    _ENDPOINT + "Endpoint.AdditionalAddress": MessageTable("address"),
    "envoy.config.core.v3.UpstreamHttpProtocolOptions": MessageTable(
        "auto_sni auto_san_validation override_auto_sni_header"
    ),
    _CLUSTER + "Cluster.OriginalDstLbConfig": MessageTable(
        "use_http_header http_header_name upstream_port_override metadata_key"
    ),
    "envoy.type.metadata.v3.MetadataKey": MessageTable("key path"),
    "envoy.type.metadata.v3.MetadataKey.PathSegment": MessageTable("key"),
    _CLUSTER + "Cluster.PreconnectPolicy": MessageTable(
        "per_upstream_preconnect_ratio",
        ignored={"predictive_preconnect_ratio": "Envoy 1.40 opens no connection for it either"},
    ),
    _CLUSTER + "Cluster.TransportSocketMatch": MessageTable("name match transport_socket"),
    "envoy.config.core.v3.BindConfig": MessageTable(
        "source_address freebind socket_options extra_source_addresses additional_source_addresses",
        refused={"local_address_selector": "only the default is supported: by the family of the host's address"},
    ),
    "envoy.config.core.v3.ExtraSourceAddress": MessageTable("address socket_options"),
    "envoy.config.core.v3.SocketOptionsOverride": MessageTable("socket_options"),
    "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport": MessageTable(
        "config transport_socket tlv_as_pool_key",
        ignored={"allow_unspecified_address": "a connection without IP addresses is told as such in any case"},
    ),
    "envoy.config.core.v3.ProxyProtocolConfig": MessageTable("version pass_through_tlvs added_tlvs"),
    "envoy.config.core.v3.TlvEntry": MessageTable(
        "type value", refused={"format_string": "the value of a TLV is not made of a format"}
    ),
    _UPSTREAM + "HttpProtocolOptions": MessageTable(
        "common_http_protocol_options upstream_http_protocol_options explicit_http_config "
        "use_downstream_protocol_config auto_config http_filters retry_policy hash_policy request_mirror_policies",
        refused={"header_validation_config outlier_detection": "is not supported yet"},
    ),
    _UPSTREAM + "HttpProtocolOptions.ExplicitHttpConfig": MessageTable(
        "http_protocol_options http2_protocol_options", refused={"http3_protocol_options": _HTTP3}
    ),
    _UPSTREAM + "HttpProtocolOptions.UseDownstreamHttpConfig": MessageTable(
        "http_protocol_options http2_protocol_options", refused={"http3_protocol_options": _HTTP3}
    ),
    _UPSTREAM + "HttpProtocolOptions.AutoHttpConfig": MessageTable(
        "http_protocol_options http2_protocol_options",
        refused={
            "http3_protocol_options": _HTTP3,
            "alternate_protocols_cache_options": "is for HTTP/3, which is not supported",
        },
    ),
    "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec": MessageTable(),
}
