"""Listeners and their filter chains."""

from __future__ import annotations

from typing import Final

from meshproxy.config.fields.table import MessageTable, Tables

_LISTENER = "envoy.extensions.filters.listener."
_PREDICATE = "envoy.config.listener.v3.ListenerFilterChainMatchPredicate"

TABLES: Final[Tables] = {
    "envoy.config.listener.v3.Listener": MessageTable(
        "name address additional_addresses stat_prefix filter_chains default_filter_chain "
        "per_connection_buffer_limit_bytes socket_options traffic_direction enable_reuse_port reuse_port "
        "tcp_backlog_size ignore_global_conn_limit access_log listener_filters listener_filters_timeout "
        "continue_on_listener_filters_timeout use_original_dst bind_to_port",
        only={
            "drain_type": "DEFAULT",
            "transparent": "false",
            "freebind": "false",
        },
        ignored={
            "metadata": "is for readers",
            "connection_balance_config max_connections_to_accept_per_socket_event": "the kernel balances connections",
            "tcp_fast_open_queue_length": "connections are made without TCP fast open",
            "bypass_overload_manager": "there is no overload manager",
        },
        refused={
            "deprecated_v1": "use bind_to_port",
            "filter_chain_matcher": "chains are picked by filter_chain_match: matcher trees are not supported",
            "fcds_config": "filter chain discovery is not supported",
            "udp_listener_config": "UDP is not supported",
            "api_listener": "API listeners are for Envoy Mobile",
            "internal_listener": "internal listeners are not supported",
            "enable_mptcp": "multipath TCP is not supported",
        },
    ),
    "envoy.config.listener.v3.AdditionalAddress": MessageTable(
        "address", refused={"socket_options": "an additional address has the listener's socket options"}
    ),
    "envoy.config.listener.v3.FilterChain": MessageTable(
        "filter_chain_match filters transport_socket transport_socket_connect_timeout name",
        only={"use_proxy_proto": "false"},
        ignored={
            "metadata": "is for readers",
        },
    ),
    "envoy.config.listener.v3.FilterChainMatch": MessageTable(
        "destination_port prefix_ranges direct_source_prefix_ranges source_type source_prefix_ranges source_ports "
        "server_names transport_protocol application_protocols",
        refused={"address_suffix suffix_len": "is not implemented, in Envoy neither"},
    ),
    "envoy.config.listener.v3.ListenerFilter": MessageTable(
        "name typed_config filter_disabled",
        refused={"config_discovery": "extension discovery is not supported yet"},
        required="typed_config",
    ),
    _PREDICATE: MessageTable("*"),
    f"{_PREDICATE}.MatchSet": MessageTable("rules"),
    "envoy.type.v3.Int32Range": MessageTable("start end"),
    f"{_LISTENER}tls_inspector.v3.TlsInspector": MessageTable(
        "enable_ja3_fingerprinting enable_ja4_fingerprinting close_connection_on_client_hello_parsing_errors "
        "max_client_hello_size",
        ignored={"initial_read_buffer_size": "bytes are read once, as they come, and not peeked at"},
    ),
    f"{_LISTENER}http_inspector.v3.HttpInspector": MessageTable(),
    f"{_LISTENER}original_dst.v3.OriginalDst": MessageTable(),
    f"{_LISTENER}proxy_protocol.v3.ProxyProtocol": MessageTable("*"),
    f"{_LISTENER}proxy_protocol.v3.ProxyProtocol.Rule": MessageTable("tlv_type on_tlv_present"),
    f"{_LISTENER}proxy_protocol.v3.ProxyProtocol.KeyValuePair": MessageTable("metadata_namespace key"),
    "envoy.config.core.v3.ProxyProtocolPassThroughTLVs": MessageTable("match_type tlv_type"),
    "envoy.config.listener.v3.Filter": MessageTable(
        "name typed_config", refused={"config_discovery": "extension discovery is not supported yet"}
    ),
    "envoy.config.core.v3.TransportSocket": MessageTable("name typed_config", required="typed_config"),
    "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer": MessageTable(),
}
