"""Clusters, their endpoints, balancing and limits."""

from __future__ import annotations

from typing import Final

from meshproxy.config.fields.table import MessageTable, Tables

_CLUSTER = "envoy.config.cluster.v3."
_ENDPOINT = "envoy.config.endpoint.v3."
_UPSTREAM = "envoy.extensions.upstreams.http.v3."
_LB = "envoy.extensions.load_balancing_policies."
_SUBSETS = "subsets are not supported yet"
_BALANCE = "bounded loads are not supported yet"
_LOCALITIES = "balancing by locality is not supported yet"
_HTTP2 = "HTTP/2 to an upstream is not supported yet"
_HEALTH = "active health checks are not supported yet"
_SLOW_START = "slow start is not supported yet"
_NO_LOCAL_CLUSTER = "takes effect in Envoy only where the bootstrap names a local cluster"
_MEASURES_ONLY = "only tells more in stats"

TABLES: Final[Tables] = {
    _CLUSTER + "Cluster": MessageTable(
        "name alt_stat_name connect_timeout per_connection_buffer_limit_bytes load_assignment "
        "max_requests_per_connection circuit_breakers upstream_http_protocol_options common_http_protocol_options "
        "http_protocol_options typed_extension_protocol_options dns_refresh_rate dns_jitter dns_failure_refresh_rate "
        "dns_lookup_family typed_dns_resolver_config dns_resolution_config outlier_detection "
        "least_request_lb_config round_robin_lb_config ring_hash_lb_config maglev_lb_config common_lb_config "
        "transport_socket metadata "
        "upstream_connection_options load_balancing_policy",
        only={
            "type": "STATIC STRICT_DNS",
            "lb_policy": "ROUND_ROBIN LEAST_REQUEST RANDOM RING_HASH MAGLEV LOAD_BALANCING_POLICY_CONFIG",
            "protocol_selection": "USE_CONFIGURED_PROTOCOL",
            "connection_pool_per_downstream_connection": "false",
        },
        ignored={
            "wait_for_warm_on_init": "a cluster waits for its first addresses in any case",
            "use_tcp_for_dns_lookups": "names are resolved by the operating system",
            "track_timeout_budgets track_cluster_stats": _MEASURES_ONLY,
            "preconnect_policy": "connections are opened when they are needed",
            "cleanup_interval": "is for clusters that learn their hosts from connections",
            "close_connections_on_host_health_failure ignore_health_on_host_removal": "no host's health is checked",
            "lrs_report_endpoint_metrics": "loads are reported to nobody",
        },
        later={"respect_dns_ttl": "names are resolved anew after dns_refresh_rate"},
        refused={
            "transport_socket_matches transport_socket_matcher": "all hosts have one transport socket",
            "eds_cluster_config": "endpoints from a control plane are not supported yet",
            "lrs_server": "load reports are not supported yet",
            "health_checks": _HEALTH,
            "http2_protocol_options": _HTTP2,
            "dns_resolvers": "names are resolved by the operating system: set the servers there",
            "upstream_bind_config": "binding upstream connections is not supported yet",
            "lb_subset_config": _SUBSETS,
            "original_dst_lb_config": "original destination clusters are not supported yet",
            "filters": "network filters on upstream connections are not supported",
            "upstream_config": "other upstreams than HTTP are not supported",
            "cluster_type": "cluster extensions are not supported yet",
        },
    ),
    _CLUSTER + "Cluster.RefreshRate": MessageTable("base_interval max_interval"),
    _CLUSTER + "Cluster.LeastRequestLbConfig": MessageTable(
        "choice_count active_request_bias", refused={"slow_start_config": _SLOW_START}
    ),
    _CLUSTER + "Cluster.RoundRobinLbConfig": MessageTable(refused={"slow_start_config": _SLOW_START}),
    _CLUSTER + "Cluster.CommonLbConfig": MessageTable(
        "healthy_panic_threshold zone_aware_lb_config close_connections_on_host_set_change "
        "consistent_hashing_lb_config",
        ignored={
            "update_merge_window": "changes of hosts are taken as they come",
            "ignore_new_hosts_until_first_hc": "no host's health is checked",
        },
        refused={
            "override_host_status": "is not supported yet",
            "locality_weighted_lb_config": _LOCALITIES,
        },
    ),
    _CLUSTER + "Cluster.CommonLbConfig.ConsistentHashingLbConfig": MessageTable(
        "use_hostname_for_hashing", refused={"hash_balance_factor": _BALANCE}
    ),
    _CLUSTER + "Cluster.RingHashLbConfig": MessageTable("minimum_ring_size maximum_ring_size hash_function"),
    _CLUSTER + "Cluster.MaglevLbConfig": MessageTable("table_size"),
    _CLUSTER + "Cluster.CommonLbConfig.ZoneAwareLbConfig": MessageTable(
        "fail_traffic_on_panic",
        ignored={"routing_enabled min_cluster_size": _NO_LOCAL_CLUSTER},
    ),
    _CLUSTER + "LoadBalancingPolicy": MessageTable("policies"),
    _CLUSTER + "LoadBalancingPolicy.Policy": MessageTable("typed_extension_config"),
    _LB + "round_robin.v3.RoundRobin": MessageTable("locality_lb_config", refused={"slow_start_config": _SLOW_START}),
    _LB + "least_request.v3.LeastRequest": MessageTable(
        "choice_count active_request_bias selection_method locality_lb_config",
        only={"enable_full_scan": "false"},
        refused={"slow_start_config": _SLOW_START},
    ),
    _LB + "random.v3.Random": MessageTable("locality_lb_config"),
    _LB + "ring_hash.v3.RingHash": MessageTable(
        "hash_function minimum_ring_size maximum_ring_size use_hostname_for_hashing consistent_hashing_lb_config",
        refused={"hash_balance_factor": _BALANCE, "locality_weighted_lb_config": _LOCALITIES},
    ),
    _LB + "maglev.v3.Maglev": MessageTable(
        "table_size consistent_hashing_lb_config", refused={"locality_weighted_lb_config": _LOCALITIES}
    ),
    _LB + "common.v3.ConsistentHashingLbConfig": MessageTable(
        "use_hostname_for_hashing hash_policy", refused={"hash_balance_factor": _BALANCE}
    ),
    _LB + "common.v3.LocalityLbConfig": MessageTable(
        ignored={"zone_aware_lb_config": _NO_LOCAL_CLUSTER}, refused={"locality_weighted_lb_config": _LOCALITIES}
    ),
    _CLUSTER + "CircuitBreakers": MessageTable("thresholds per_host_thresholds"),
    _CLUSTER + "CircuitBreakers.Thresholds": MessageTable(
        "priority max_connections max_pending_requests max_requests max_retries retry_budget track_remaining",
        refused={"max_connection_pools": "is not supported yet"},
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
        "tcp_keepalive",
        refused={
            "set_local_interface_name_on_upstream_connections": "is not supported",
            "happy_eyeballs_config": "happy eyeballs are not supported yet",
        },
    ),
    _ENDPOINT + "ClusterLoadAssignment": MessageTable(
        "cluster_name endpoints policy", refused={"named_endpoints": "is not supported yet"}
    ),
    _ENDPOINT + "ClusterLoadAssignment.Policy": MessageTable(
        "overprovisioning_factor",
        ignored={"endpoint_stale_after": "is for endpoints from a control plane"},
        refused={"drop_overloads weighted_priority_health": "is not supported yet"},
    ),
    _ENDPOINT + "LocalityLbEndpoints": MessageTable(
        "locality metadata lb_endpoints priority",
        ignored={
            "load_balancing_weight": "takes effect with locality weighted balancing only, which is refused",
            "proximity": "Envoy does nothing with it either",
        },
        refused={"load_balancer_endpoints leds_cluster_locality_config": "is for endpoints from a control plane"},
    ),
    _ENDPOINT + "LbEndpoint": MessageTable(
        "endpoint health_status metadata load_balancing_weight",
        refused={"endpoint_name": "is for endpoints from a control plane"},
    ),
    _ENDPOINT + "Endpoint": MessageTable(
        "address hostname",
        ignored={"health_check_config": "no host's health is checked"},
        refused={"additional_addresses": "several addresses of one endpoint are not supported yet"},
    ),
    "envoy.config.core.v3.UpstreamHttpProtocolOptions": MessageTable(
        refused={"auto_sni auto_san_validation override_auto_sni_header": "set sni in the UpstreamTlsContext"}
    ),
    _UPSTREAM + "HttpProtocolOptions": MessageTable(
        "common_http_protocol_options upstream_http_protocol_options explicit_http_config "
        "use_downstream_protocol_config http_filters",
        refused={
            "auto_config": "choosing the protocol by ALPN needs TLS, which is not supported yet",
            "header_validation_config outlier_detection request_mirror_policies hash_policy retry_policy": (
                "is not supported yet"
            ),
        },
    ),
    _UPSTREAM + "HttpProtocolOptions.ExplicitHttpConfig": MessageTable(
        "http_protocol_options",
        refused={"http2_protocol_options": _HTTP2, "http3_protocol_options": "HTTP/3 is not supported"},
    ),
    _UPSTREAM + "HttpProtocolOptions.UseDownstreamHttpConfig": MessageTable(
        "http_protocol_options",
        ignored={"http2_protocol_options http3_protocol_options": "downstream is always HTTP/1, and so is upstream"},
    ),
    "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec": MessageTable(),
}
