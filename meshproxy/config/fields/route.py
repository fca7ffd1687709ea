"""Route configurations."""

from __future__ import annotations

from typing import Final

from meshproxy.config.fields.table import MessageTable, Tables

_ROUTE = "envoy.config.route.v3."
_INTERNAL_REDIRECT = "envoy.extensions.internal_redirect."
_HASH_POLICY = _ROUTE + "RouteAction.HashPolicy"
_RATE_LIMIT_ACTION = _ROUTE + "RateLimit.Action"
_PLUGINS = "cluster specifier plugins are not supported"
_RETRY_EXTENSIONS = "retry policy extensions are not supported"
_HEADERS = "request_headers_to_add request_headers_to_remove response_headers_to_add response_headers_to_remove "

TABLES: Final[Tables] = {
    _ROUTE + "RouteConfiguration": MessageTable(
        _HEADERS + "name virtual_hosts internal_only_headers most_specific_header_mutations_wins validate_clusters "
        "max_direct_response_body_size_bytes ignore_port_in_host_matching vhost_header "
        "ignore_path_parameters_in_path_matching typed_per_filter_config request_mirror_policies vhds",
        ignored={"metadata": "is for readers"},
        refused={
            "cluster_specifier_plugins": _PLUGINS,
        },
    ),
    _ROUTE + "Vhds": MessageTable("config_source"),
    _ROUTE + "VirtualHost": MessageTable(
        _HEADERS + "name domains routes require_tls virtual_clusters typed_per_filter_config "
        "include_request_attempt_count include_attempt_count_in_response retry_policy hedge_policy cors "
        "include_is_timeout_retry_header per_request_buffer_limit_bytes request_body_buffer_limit metadata "
        "request_mirror_policies rate_limits",
        refused={
            "matcher": "matcher trees are not supported",
            "retry_policy_typed_config": _RETRY_EXTENSIONS,
        },
    ),
    _ROUTE + "VirtualCluster": MessageTable("name headers"),
    _ROUTE + "Route": MessageTable(
        _HEADERS + "name match route redirect direct_response metadata typed_per_filter_config "
        "per_request_buffer_limit_bytes request_body_buffer_limit stat_prefix tracing decorator",
        refused={
            "filter_action": "is not supported",
            "non_forwarding_action": "is for gRPC servers without a proxy",
        },
    ),
    _ROUTE + "CorsPolicy": MessageTable(
        "allow_origin_string_match allow_methods allow_headers expose_headers max_age allow_credentials "
        "filter_enabled shadow_enabled allow_private_network_access forward_not_matching_preflights"
    ),
    _ROUTE + "FilterConfig": MessageTable("config is_optional disabled"),
    _ROUTE + "RouteMatch": MessageTable(
        "prefix path safe_regex path_separated_prefix path_match_policy case_sensitive runtime_fraction headers "
        "query_parameters grpc tls_context dynamic_metadata filter_state connect_matcher"
    ),
    _ROUTE + "RouteMatch.ConnectMatcher": MessageTable(),
    _ROUTE + "RouteMatch.GrpcRouteMatchOptions": MessageTable(),
    _ROUTE + "RouteMatch.TlsContextMatchOptions": MessageTable("presented validated"),
    _ROUTE + "HeaderMatcher": MessageTable("*"),
    _ROUTE + "QueryParameterMatcher": MessageTable("*"),
    _ROUTE + "RouteAction": MessageTable(
        "cluster cluster_header weighted_clusters cluster_not_found_response_code prefix_rewrite cors "
        "regex_rewrite path_rewrite_policy path_rewrite host_rewrite_literal auto_host_rewrite host_rewrite_header "
        "host_rewrite_path_regex host_rewrite append_x_forwarded_host timeout idle_timeout flush_timeout retry_policy "
        "priority hedge_policy max_stream_duration max_grpc_timeout grpc_timeout_offset hash_policy "
        "request_mirror_policies "
        "internal_redirect_policy internal_redirect_action max_internal_redirects metadata_match upgrade_configs "
        "rate_limits include_vh_rate_limits",
        ignored={
            "early_data_policy": "TLS takes no early data here",
        },
        refused={
            "cluster_specifier_plugin inline_cluster_specifier_plugin": _PLUGINS,
            "retry_policy_typed_config": _RETRY_EXTENSIONS,
        },
    ),
    _ROUTE + "RateLimit": MessageTable(
        "stage disable_key actions hits_addend",
        refused={"limit apply_on_stream_done": "is for a rate limit service, which is not supported yet"},
    ),
    _ROUTE + "RateLimit.HitsAddend": MessageTable("number format"),
    _RATE_LIMIT_ACTION: MessageTable(
        "source_cluster destination_cluster request_headers query_parameters remote_address generic_key "
        "header_value_match metadata masked_remote_address query_parameter_value_match",
        refused={
            "dynamic_metadata": "is gone from Envoy: use metadata",
            "extension": "descriptor extensions are not supported",
        },
    ),
    _RATE_LIMIT_ACTION + ".SourceCluster": MessageTable(),
    _RATE_LIMIT_ACTION + ".DestinationCluster": MessageTable(),
    _RATE_LIMIT_ACTION + ".RequestHeaders": MessageTable("header_name descriptor_key skip_if_absent"),
    _RATE_LIMIT_ACTION + ".QueryParameters": MessageTable("query_parameter_name descriptor_key skip_if_absent"),
    _RATE_LIMIT_ACTION + ".RemoteAddress": MessageTable(),
    _RATE_LIMIT_ACTION + ".MaskedRemoteAddress": MessageTable("v4_prefix_mask_len v6_prefix_mask_len"),
    _RATE_LIMIT_ACTION + ".GenericKey": MessageTable("descriptor_value descriptor_key"),
    _RATE_LIMIT_ACTION + ".HeaderValueMatch": MessageTable("descriptor_key descriptor_value expect_match headers"),
    _RATE_LIMIT_ACTION + ".QueryParameterValueMatch": MessageTable(
        "descriptor_key descriptor_value expect_match query_parameters"
    ),
    _RATE_LIMIT_ACTION + ".MetaData": MessageTable("descriptor_key metadata_key default_value source skip_if_absent"),
    _ROUTE + "RouteAction.RequestMirrorPolicy": MessageTable(
        "cluster cluster_header runtime_fraction disable_shadow_host_suffix_append request_headers_mutations "
        "host_rewrite_literal",
        ignored={"trace_sampled": "requests are not traced"},
    ),
    _ROUTE + "RouteAction.UpgradeConfig": MessageTable("upgrade_type enabled connect_config"),
    _ROUTE + "RouteAction.UpgradeConfig.ConnectConfig": MessageTable("proxy_protocol_config allow_post"),
    _HASH_POLICY: MessageTable(
        "header cookie connection_properties query_parameter filter_state terminal",
    ),
    _HASH_POLICY + ".FilterState": MessageTable("key"),
    _HASH_POLICY + ".Header": MessageTable("header_name regex_rewrite"),
    _HASH_POLICY + ".Cookie": MessageTable("name ttl path attributes"),
    _HASH_POLICY + ".CookieAttribute": MessageTable("name value"),
    _HASH_POLICY + ".ConnectionProperties": MessageTable("source_ip"),
    _HASH_POLICY + ".QueryParameter": MessageTable("name"),
    _ROUTE + "InternalRedirectPolicy": MessageTable(
        "max_internal_redirects redirect_response_codes predicates allow_cross_scheme_redirect response_headers_to_copy"
    ),
    _INTERNAL_REDIRECT + "allow_listed_routes.v3.AllowListedRoutesConfig": MessageTable("allowed_route_names"),
    _INTERNAL_REDIRECT + "previous_routes.v3.PreviousRoutesConfig": MessageTable(),
    _INTERNAL_REDIRECT + "safe_cross_scheme.v3.SafeCrossSchemeConfig": MessageTable(),
    _ROUTE + "RouteAction.MaxStreamDuration": MessageTable(
        "max_stream_duration grpc_timeout_header_max grpc_timeout_header_offset"
    ),
    _ROUTE + "HedgePolicy": MessageTable(
        "hedge_on_per_try_timeout",
        ignored={"initial_requests additional_request_chance": "Envoy does nothing with it either"},
    ),
    _ROUTE + "RetryPolicy": MessageTable(
        "retry_on num_retries per_try_timeout per_try_idle_timeout retry_host_predicate "
        "host_selection_retry_max_attempts retriable_status_codes retry_back_off rate_limited_retry_back_off "
        "retriable_headers retriable_request_headers",
        refused={
            "retry_priority": "retry priorities are not supported",
            "retry_options_predicates": "retry options predicates are not supported",
        },
    ),
    _ROUTE + "RetryPolicy.RetryHostPredicate": MessageTable("name typed_config"),
    "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate": MessageTable(),
    "envoy.extensions.retry.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate": MessageTable(),
    "envoy.extensions.retry.host.omit_host_metadata.v3.OmitHostMetadataConfig": MessageTable("metadata_match"),
    _ROUTE + "RetryPolicy.RetryBackOff": MessageTable("base_interval max_interval"),
    _ROUTE + "RetryPolicy.RateLimitedRetryBackOff": MessageTable("reset_headers max_interval"),
    _ROUTE + "RetryPolicy.ResetHeader": MessageTable("name format"),
    _ROUTE + "RedirectAction": MessageTable(
        "https_redirect scheme_redirect host_redirect port_redirect path_redirect prefix_rewrite regex_rewrite "
        "response_code strip_query"
    ),
    _ROUTE + "DirectResponseAction": MessageTable("status body body_format"),
    _ROUTE + "WeightedCluster": MessageTable(
        "clusters runtime_key_prefix header_name use_hash_policy",
        ignored={"total_weight": "the total is the sum of the weights"},
    ),
    _ROUTE + "WeightedCluster.ClusterWeight": MessageTable(
        _HEADERS + "name cluster_header weight typed_per_filter_config host_rewrite_literal metadata_match",
    ),
    "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig": MessageTable("path_template"),
    "envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig": MessageTable("path_template_rewrite"),
}
