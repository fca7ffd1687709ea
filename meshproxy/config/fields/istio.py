"""Istio's own messages, which every sidecar of it is configured with."""

from __future__ import annotations

from typing import Final

from meshproxy.config.fields.table import MessageTable, Tables

_ALPN: Final = "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig"
_PEER: Final = "io.istio.http.peer_metadata.Config"
_NO_EXCHANGE: Final = "`istio-peer-exchange` is never offered nor accepted (ALPN), so that nobody exchanges anything"
_NOTHING_FOUND: Final = "finds nobody: a peer tells who it is in headers, or not at all"

TABLES: Final[Tables] = {
    _ALPN: MessageTable("alpn_override"),
    _ALPN + ".AlpnOverride": MessageTable("upstream_protocol alpn_override"),
    "stats.PluginConfig": MessageTable(
        later_whole="Istio's metrics are not recorded",
        ignored={
            "disable_host_header_fallback tcp_reporting_duration metrics definitions reporter rotation_interval "
            "graceful_deletion_interval": "says how Istio's metrics are recorded"
        },
    ),
    _PEER: MessageTable(
        "downstream_discovery upstream_discovery downstream_propagation upstream_propagation additional_labels",
        ignored={"shared_with_upstream": "connections upstream have no filters that could read it"},
    ),
    _PEER + ".DiscoveryMethod": MessageTable(
        "istio_headers", ignored={"baggage workload_discovery upstream_filter_state": _NOTHING_FOUND}
    ),
    _PEER + ".PropagationMethod": MessageTable(
        "istio_headers", ignored={"baggage": "is for tunnels of HBONE, which are not supported"}
    ),
    _PEER + ".IstioHeaders": MessageTable("skip_external_clusters"),
    "envoy.tcp.metadataexchange.config.MetadataExchange": MessageTable(
        ignored={"protocol enable_discovery additional_labels": _NO_EXCHANGE}
    ),
}
