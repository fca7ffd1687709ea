"""Istio's network filters: accepted, and do nothing.

- `istio.stats`: Istio's metrics are not recorded.
- `istio.metadata_exchange`: two proxies tell each other who they are before the first byte of a connection, when both
  have agreed on `istio-peer-exchange` (ALPN). We never offer nor accept that (config/tls_context.py), so a peer does
  what it does with one that is no proxy: it sends nothing, and expects nothing.
"""

from __future__ import annotations

from typing import Any

from meshproxy.api.istio_metadata_exchange_pb2 import MetadataExchange
from meshproxy.api.istio_stats_pb2 import PluginConfig
from meshproxy.config.context import BuildContext
from meshproxy.http.network_filter import NETWORK_FILTERS, ConnectionGate
from meshproxy.net.connection import Connection
from meshproxy.observe.stream_info import ConnectionInfo


class OpenGate(ConnectionGate):
    """Everybody may come in."""

    def admit(self, connection: Connection, info: ConnectionInfo) -> bool:
        return True


def build_open_gate(message: Any, path: str, context: BuildContext) -> ConnectionGate:
    return OpenGate()


NETWORK_FILTERS.register(PluginConfig, build_open_gate)
NETWORK_FILTERS.register(MetadataExchange, build_open_gate)
