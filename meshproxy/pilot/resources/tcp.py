"""Connections that are passed on as they are: `tcp_proxy`, and the chains of rules for TCP and TLS."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from envoy.config.listener.v3.listener_components_pb2 import Filter
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy

from meshproxy.pilot.resources.messages import duration_of, pack

TCP_PROXY: Final = "envoy.filters.network.tcp_proxy"


def tcp_proxy(
    stat_prefix: str,
    clusters: Sequence[tuple[str, int]],
    *,
    source_hash: bool = False,
    idle_timeout: timedelta | None = None,
) -> Filter:
    """To one cluster, or to several by weight. `source_hash`: a caller stays with one host."""
    message = TcpProxy(stat_prefix=stat_prefix)
    if len(clusters) == 1:
        message.cluster = clusters[0][0]
    else:
        for name, weight in clusters:
            message.weighted_clusters.clusters.add(name=name, weight=weight)
    if source_hash:
        message.hash_policy.add().source_ip.SetInParent()
    if idle_timeout is not None:
        message.idle_timeout.CopyFrom(duration_of(idle_timeout))
    return Filter(name=TCP_PROXY, typed_config=pack(message))
