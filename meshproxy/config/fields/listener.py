"""Listeners and their filter chains."""

from __future__ import annotations

from typing import Final

from meshproxy.config.fields.table import MessageTable, Tables

_ONE_CHAIN = "filter chain matching is not supported yet"
_NO_TLS = "transport sockets are not supported yet: a listener that should speak TLS must not speak plain text"

TABLES: Final[Tables] = {
    "envoy.config.listener.v3.Listener": MessageTable(
        "name address additional_addresses stat_prefix filter_chains default_filter_chain "
        "per_connection_buffer_limit_bytes socket_options traffic_direction enable_reuse_port reuse_port "
        "tcp_backlog_size ignore_global_conn_limit access_log",
        only={
            "drain_type": "DEFAULT",
            "use_original_dst": "false",
            "transparent": "false",
            "freebind": "false",
            "bind_to_port": "true",
        },
        ignored={
            "metadata": "is for readers",
            "listener_filters_timeout continue_on_listener_filters_timeout": "there are no listener filters",
            "connection_balance_config max_connections_to_accept_per_socket_event": "the kernel balances connections",
            "tcp_fast_open_queue_length": "connections are made without TCP fast open",
            "bypass_overload_manager": "there is no overload manager",
        },
        refused={
            "deprecated_v1": "use bind_to_port",
            "listener_filters": "listener filters are not supported yet",
            "filter_chain_matcher": _ONE_CHAIN,
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
        "filter_chain_match filters transport_socket name",
        only={"use_proxy_proto": "false"},
        ignored={
            "metadata": "is for readers",
            "transport_socket_connect_timeout": "a plain connection has no handshake",
        },
    ),
    "envoy.config.listener.v3.FilterChainMatch": MessageTable(
        ignored={"address_suffix suffix_len": "Envoy ignores it too"},
        refused={
            "destination_port prefix_ranges direct_source_prefix_ranges source_type source_prefix_ranges source_ports "
            "server_names transport_protocol application_protocols": _ONE_CHAIN
        },
    ),
    "envoy.config.listener.v3.Filter": MessageTable(
        "name typed_config", refused={"config_discovery": "extension discovery is not supported yet"}
    ),
    "envoy.config.core.v3.TransportSocket": MessageTable("name typed_config", required="typed_config"),
    "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer": MessageTable(),
    "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext": MessageTable(refused_whole=_NO_TLS),
    "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext": MessageTable(refused_whole=_NO_TLS),
}
