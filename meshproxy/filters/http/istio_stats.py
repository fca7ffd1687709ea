"""`istio.stats` for HTTP: accepted, and does nothing: Istio's metrics are not recorded."""

from __future__ import annotations

from typing import Any

from meshproxy.api.istio_stats_pb2 import PluginConfig
from meshproxy.config.context import BuildContext
from meshproxy.http.filter import HttpFilter, HttpFilterType, register_http_filter


class IstioStats(HttpFilter):
    """It has no hooks, so that it costs nothing."""


def build_istio_stats(message: Any, path: str, context: BuildContext) -> HttpFilter:
    return IstioStats()


register_http_filter(PluginConfig, HttpFilterType(build_istio_stats))
