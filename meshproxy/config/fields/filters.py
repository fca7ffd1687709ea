"""HTTP filters."""

from __future__ import annotations

from typing import Final

from meshproxy.config.fields.table import NOT_SUPPORTED, MessageTable, Tables

_HTTP = "envoy.extensions.filters.http."
_FAULT = "envoy.extensions.filters.common.fault.v3."
_COMPRESSION = "envoy.extensions.compression."

_NETWORK = "envoy.extensions.filters.network."
# Extensions that a sidecar meets and that we know, but cannot do: a chain that asks for one is refused as a whole.
_UNSUPPORTED: Final = (
    _NETWORK + "ext_authz.v3.ExtAuthz",
    _HTTP + "ext_authz.v3.ExtAuthz",
    _HTTP + "ext_proc.v3.ExternalProcessor",
    _HTTP + "jwt_authn.v3.JwtAuthentication",
    _HTTP + "ratelimit.v3.RateLimit",
)

# Code for another engine, which does here as Python.
_OTHER_CODE: Final = (_HTTP + "lua.v3.Lua", _HTTP + "lua.v3.LuaPerRoute", _HTTP + "wasm.v3.Wasm")
_AS_PYTHON: Final = "is not supported: write it as a filter in Python (docs/writing-filters.md)"

_LOCATOR: Final = "resources are named, not located (xdstp): leave it out, the name of the cluster is asked for"
_OUTPUT_BUFFER: Final = {"chunk_size": "the library's output grows as it needs"}

TABLES: Final[Tables] = {
    **{name: MessageTable(refused_whole=NOT_SUPPORTED) for name in _UNSUPPORTED},
    **{name: MessageTable(refused_whole=_AS_PYTHON) for name in _OTHER_CODE},
    _NETWORK + "tcp_proxy.v3.TcpProxy": MessageTable(
        "stat_prefix cluster weighted_clusters idle_timeout access_log max_connect_attempts "
        "max_downstream_connection_duration max_downstream_connection_duration_jitter_percentage "
        "access_log_flush_interval flush_access_log_on_connected access_log_options proxy_protocol_tlvs hash_policy "
        "metadata_match tunneling_config on_demand",
        only={"upstream_connect_mode": "IMMEDIATE"},
        refused={
            "downstream_idle_timeout upstream_idle_timeout": "a connection has one idle timeout: set idle_timeout",
            "backoff_options": "a connect attempt that failed is followed by the next at once",
            "max_early_data_bytes": "the buffer limit of the connection bounds what comes early",
        },
    ),
    _NETWORK + "tcp_proxy.v3.TcpProxy.OnDemand": MessageTable(
        "odcds_config timeout", refused={"resources_locator": _LOCATOR}
    ),
    _HTTP + "on_demand.v3.OnDemand": MessageTable("odcds"),
    _HTTP + "on_demand.v3.PerRouteConfig": MessageTable("odcds"),
    _HTTP + "on_demand.v3.OnDemandCds": MessageTable("source timeout", refused={"resources_locator": _LOCATOR}),
    _NETWORK + "tcp_proxy.v3.TcpProxy.TunnelingConfig": MessageTable(
        "hostname use_post headers_to_add post_path",
        refused={
            "propagate_response_headers propagate_response_trailers": "nothing reads them yet",
            "request_id_extension request_id_header request_id_metadata_key": "tunnels have no request ids yet",
        },
    ),
    "envoy.type.v3.HashPolicy": MessageTable(
        "source_ip", refused={"filter_state": "no filter keeps anything there that has a hash"}
    ),
    "envoy.type.v3.HashPolicy.SourceIp": MessageTable(),
    _NETWORK + "tcp_proxy.v3.TcpProxy.WeightedCluster": MessageTable("clusters"),
    _NETWORK + "tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight": MessageTable("name weight metadata_match"),
    _NETWORK + "tcp_proxy.v3.TcpProxy.TcpAccessLogOptions": MessageTable(
        "access_log_flush_interval flush_access_log_on_connected"
    ),
    _NETWORK + "direct_response.v3.Config": MessageTable("response"),
    _NETWORK + "echo.v3.Echo": MessageTable(),
    _NETWORK + "connection_limit.v3.ConnectionLimit": MessageTable("stat_prefix max_connections delay runtime_enabled"),
    _HTTP + "router.v3.Router": MessageTable(
        "dynamic_stats upstream_log suppress_envoy_headers respect_expected_rq_timeout "
        "suppress_grpc_request_failure_code_stats",
        ignored={
            "start_child_span": "requests are not traced",
        },
        refused={
            "strict_check_headers": "is not supported yet",
            "upstream_log_options": "is not supported yet",
            "upstream_http_filters": "filters of the upstream side are not supported",
        },
    ),
    "meshproxy.filters.http.python.v1.Python": MessageTable(
        "file module entry_point class config fail_open hook_timeout slow_hook secrets"
    ),
    "meshproxy.filters.http.python.v1.PythonPerRoute": MessageTable("config"),
    "meshproxy.filters.network.python.v1.Python": MessageTable(
        "file module entry_point class config fail_open hook_timeout slow_hook secrets"
    ),
    "meshproxy.filters.listener.python.v1.Python": MessageTable(
        "file module entry_point class config fail_open slow_hook secrets"
    ),
    _HTTP + "header_mutation.v3.HeaderMutation": MessageTable("mutations most_specific_header_mutations_wins"),
    _HTTP + "header_mutation.v3.HeaderMutationPerRoute": MessageTable("mutations"),
    _HTTP + "header_mutation.v3.Mutations": MessageTable(
        "request_mutations response_mutations query_parameter_mutations response_trailers_mutations "
        "request_trailers_mutations"
    ),
    "envoy.config.common.mutation_rules.v3.HeaderMutation": MessageTable("remove append remove_on_match"),
    "envoy.config.common.mutation_rules.v3.HeaderMutation.RemoveOnMatch": MessageTable("key_matcher"),
    "envoy.config.core.v3.KeyValueMutation": MessageTable("append remove"),
    "envoy.config.core.v3.KeyValueAppend": MessageTable("record entry action"),
    "envoy.config.core.v3.KeyValuePair": MessageTable("key value"),
    "envoy.config.core.v3.KeyValue": MessageTable("key value"),
    _NETWORK + "local_ratelimit.v3.LocalRateLimit": MessageTable("stat_prefix token_bucket runtime_enabled share_key"),
    _HTTP + "local_ratelimit.v3.LocalRateLimit": MessageTable(
        "*", refused={"local_cluster_rate_limit": "a share of each member of the local cluster is not supported yet"}
    ),
    "envoy.type.v3.TokenBucket": MessageTable("max_tokens tokens_per_fill fill_interval"),
    "envoy.type.v3.HttpStatus": MessageTable("code"),
    "envoy.extensions.common.ratelimit.v3.LocalRateLimitDescriptor": MessageTable("entries token_bucket"),
    "envoy.extensions.common.ratelimit.v3.RateLimitDescriptor.Entry": MessageTable("key value"),
    _HTTP + "grpc_stats.v3.FilterConfig": MessageTable("*"),
    _HTTP + "grpc_web.v3.GrpcWeb": MessageTable(),
    _HTTP + "grpc_http1_bridge.v3.Config": MessageTable("*"),
    _HTTP + "grpc_http1_reverse_bridge.v3.FilterConfig": MessageTable("*"),
    _HTTP + "grpc_http1_reverse_bridge.v3.FilterConfigPerRoute": MessageTable("disabled"),
    "envoy.config.core.v3.GrpcMethodList": MessageTable("services"),
    "envoy.config.core.v3.GrpcMethodList.Service": MessageTable("name method_names"),
    _HTTP + "credential_injector.v3.CredentialInjector": MessageTable(
        "overwrite allow_request_without_credential credential"
    ),
    "envoy.extensions.http.injected_credentials.generic.v3.Generic": MessageTable("credential header"),
    "envoy.extensions.http.injected_credentials.oauth2.v3.OAuth2": MessageTable(
        refused_whole="tokens are not fetched: let something else do that, and give the proxy the token as a secret"
    ),
    _HTTP + "cors.v3.Cors": MessageTable(),
    _HTTP + "cors.v3.CorsPolicy": MessageTable("*"),
    _HTTP + "buffer.v3.Buffer": MessageTable("max_request_bytes"),
    _HTTP + "buffer.v3.BufferPerRoute": MessageTable("disabled buffer"),
    _HTTP + "health_check.v3.HealthCheck": MessageTable(
        "pass_through_mode cache_time headers cluster_min_healthy_percentages"
    ),
    _HTTP + "header_to_metadata.v3.Config": MessageTable("request_rules response_rules stat_prefix"),
    _HTTP + "header_to_metadata.v3.Config.Rule": MessageTable(
        "header cookie on_header_present on_header_missing remove"
    ),
    _HTTP + "header_to_metadata.v3.Config.KeyValuePair": MessageTable(
        "metadata_namespace key value regex_value_rewrite type encode"
    ),
    _HTTP + "set_metadata.v3.Config": MessageTable("metadata_namespace value metadata"),
    _HTTP + "set_metadata.v3.Metadata": MessageTable(
        "metadata_namespace allow_overwrite value", ignored={"typed_value": "there is nobody to read it"}
    ),
    _HTTP + "compressor.v3.Compressor": MessageTable("*"),
    _HTTP + "compressor.v3.Compressor.CommonDirectionConfig": MessageTable("enabled min_content_length content_type"),
    _HTTP + "compressor.v3.Compressor.RequestDirectionConfig": MessageTable("common_config"),
    _HTTP + "compressor.v3.Compressor.ResponseDirectionConfig": MessageTable(
        "common_config disable_on_etag_header remove_accept_encoding_header uncompressible_response_codes "
        "status_header_enabled"
    ),
    _HTTP + "compressor.v3.CompressorPerRoute": MessageTable("disabled overrides"),
    _HTTP + "compressor.v3.CompressorOverrides": MessageTable("response_direction_config compressor_library"),
    _HTTP + "compressor.v3.ResponseDirectionOverrides": MessageTable("remove_accept_encoding_header"),
    _HTTP + "decompressor.v3.Decompressor": MessageTable(
        "decompressor_library request_direction_config response_direction_config"
    ),
    _HTTP + "decompressor.v3.Decompressor.CommonDirectionConfig": MessageTable("enabled ignore_no_transform_header"),
    _HTTP + "decompressor.v3.Decompressor.RequestDirectionConfig": MessageTable(
        "common_config advertise_accept_encoding"
    ),
    _HTTP + "decompressor.v3.Decompressor.ResponseDirectionConfig": MessageTable("common_config"),
    _COMPRESSION + "gzip.compressor.v3.Gzip": MessageTable(
        "memory_level compression_level compression_strategy window_bits", ignored=_OUTPUT_BUFFER
    ),
    _COMPRESSION + "gzip.decompressor.v3.Gzip": MessageTable("window_bits chunk_size max_inflate_ratio"),
    _COMPRESSION + "brotli.compressor.v3.Brotli": MessageTable(
        "quality encoder_mode window_bits input_block_bits",
        only={"disable_literal_context_modeling": "false"},
        ignored=_OUTPUT_BUFFER,
    ),
    _COMPRESSION + "brotli.decompressor.v3.Brotli": MessageTable(
        "chunk_size",
        ignored={"disable_ring_buffer_reallocation": "says how the decoder takes memory, not what comes of it"},
    ),
    _COMPRESSION + "zstd.compressor.v3.Zstd": MessageTable(
        "compression_level enable_checksum strategy dictionary", ignored=_OUTPUT_BUFFER
    ),
    _COMPRESSION + "zstd.decompressor.v3.Zstd": MessageTable("dictionaries chunk_size"),
    _HTTP + "grpc_json_transcoder.v3.GrpcJsonTranscoder": MessageTable("*"),
    _HTTP + "grpc_json_transcoder.v3.GrpcJsonTranscoder.PrintOptions": MessageTable("*"),
    _HTTP + "grpc_json_transcoder.v3.GrpcJsonTranscoder.RequestValidationOptions": MessageTable("*"),
    _HTTP + "fault.v3.HTTPFault": MessageTable("*", refused={"filter_metadata": NOT_SUPPORTED}),
    _HTTP + "fault.v3.FaultAbort": MessageTable("*"),
    _HTTP + "fault.v3.FaultAbort.HeaderAbort": MessageTable(),
    _FAULT + "FaultDelay": MessageTable("*"),
    _FAULT + "FaultDelay.HeaderDelay": MessageTable(),
    _FAULT + "FaultRateLimit": MessageTable("*"),
    _FAULT + "FaultRateLimit.FixedLimit": MessageTable("limit_kbps"),
    _FAULT + "FaultRateLimit.HeaderLimit": MessageTable(),
}
