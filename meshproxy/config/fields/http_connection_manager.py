"""The HTTP connection manager and the settings of its codecs."""

from __future__ import annotations

from typing import Final

from meshproxy.config.fields.table import MessageTable, Tables

_ALWAYS_CLOSED = "a connection is closed after a message that breaks the protocol (RFC 9112, 2.2 and 6.3)"
_HCM = "envoy.extensions.filters.network.http_connection_manager.v3."

TABLES: Final[Tables] = {
    _HCM + "HttpConnectionManager": MessageTable(
        "stat_prefix route_config rds http_filters add_user_agent common_http_protocol_options http_protocol_options "
        "server_name server_header_transformation scheme_header_transformation max_request_headers_kb "
        "stream_idle_timeout request_timeout request_headers_timeout drain_timeout delayed_close_timeout access_log "
        "access_log_options flush_access_log_on_new_request use_remote_address xff_num_trusted_hops "
        "internal_address_config skip_xff_append via generate_request_id preserve_external_request_id "
        "always_set_request_id_in_response proxy_100_continue normalize_path merge_slashes "
        "path_with_escaped_slashes_action request_id_extension strip_matching_host_port strip_any_host_port "
        "strip_trailing_host_dot append_x_forwarded_port http1_safe_max_connection_duration "
        "forward_client_cert_details set_current_client_cert_details upgrade_configs local_reply_config "
        "access_log_flush_interval tracing stream_flush_timeout http2_protocol_options "
        "stream_error_on_invalid_http_message",
        only={
            "codec_type": "AUTO HTTP1 HTTP2",
            "append_local_overload": "false",
            "add_proxy_protocol_connection_state": "true",
        },
        refused={
            "scoped_routes": "scoped routes are not supported: one route configuration, by rds, is for all requests",
            "http3_protocol_options": "HTTP/3 is not supported",
            "original_ip_detection_extensions early_header_mutation_extensions": "is not supported yet",
            "forward_client_cert_matcher": "is not supported yet: forward_client_cert_details is for all requests",
            "represent_ipv4_remote_address_as_ipv4_mapped_ipv6": "addresses are shown as they are",
            "path_normalization_options proxy_status_config typed_header_validation_config": "is not supported yet",
        },
    ),
    _HCM + "Rds": MessageTable("config_source route_config_name"),
    _HCM + "LocalReplyConfig": MessageTable("mappers body_format"),
    _HCM + "ResponseMapper": MessageTable("filter status_code body body_format_override headers_to_add"),
    _HCM + "HttpConnectionManager.HcmAccessLogOptions": MessageTable(
        "flush_access_log_on_new_request flush_log_on_tunnel_successfully_established access_log_flush_interval"
    ),
    _HCM + "HttpConnectionManager.SetCurrentClientCertDetails": MessageTable("subject cert chain dns uri"),
    _HCM + "HttpConnectionManager.InternalAddressConfig": MessageTable("unix_sockets cidr_ranges"),
    _HCM + "HttpConnectionManager.UpgradeConfig": MessageTable("upgrade_type filters enabled"),
    _HCM + "HttpFilter": MessageTable(
        "name typed_config config_discovery is_optional disabled",
    ),
    _HCM + "RequestIDExtension": MessageTable("typed_config"),
    "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig": MessageTable(
        "pack_trace_reason use_request_id_for_trace_sampling"
    ),
    "envoy.config.core.v3.SchemeHeaderTransformation": MessageTable("scheme_to_overwrite match_upstream"),
    "envoy.config.core.v3.HttpProtocolOptions": MessageTable(
        "idle_timeout max_connection_duration max_headers_count max_response_headers_kb max_stream_duration "
        "headers_with_underscores_action max_requests_per_connection"
    ),
    "envoy.config.core.v3.Http1ProtocolOptions": MessageTable(
        "allow_absolute_url accept_http_10 default_host_for_http_10 header_key_format enable_trailers "
        "allow_chunked_length send_fully_qualified_url ignore_http_11_upgrade",
        ignored={
            "override_stream_error_on_invalid_http_message": _ALWAYS_CLOSED,
            "use_balsa_parser": "there is one parser",
        },
        refused={
            "allow_custom_methods": "only registered methods are accepted",
        },
    ),
    "envoy.config.core.v3.Http1ProtocolOptions.HeaderKeyFormat": MessageTable(
        "proper_case_words", refused={"stateful_formatter": "header formatter extensions are not supported"}
    ),
    "envoy.config.core.v3.Http1ProtocolOptions.HeaderKeyFormat.ProperCaseWords": MessageTable(),
}
