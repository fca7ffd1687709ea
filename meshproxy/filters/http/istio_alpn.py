"""`istio.alpn`: what TLS offers upstream (ALPN), by the version of HTTP that will be spoken there.

An Istio sidecar's clusters offer `istio`, which a peer takes for TCP. This filter has requests offer what the peer
takes for HTTP (`istio-http/1.1` …), so that its policies for HTTP hold. Clusters whose metadata `istio` has
`alpn_override: "false"` are left as they are.
"""

from __future__ import annotations

from typing import Any, Final

from meshproxy.api.istio_alpn_pb2 import FilterConfig
from meshproxy.codec.headers import HeaderMap
from meshproxy.config.context import BuildContext
from meshproxy.http.filter import CONTINUE, HttpFilter, HttpFilterType, Result, register_http_filter
from meshproxy.http.stream import Stream
from meshproxy.observe.stream_info import PROTOCOL_HTTP2, PROTOCOL_HTTP10, PROTOCOL_HTTP11
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.config import HTTP1
from meshproxy.upstream.demand import ConnectionDemand, demand_for

_PROTOCOLS: Final = (PROTOCOL_HTTP10, PROTOCOL_HTTP11, PROTOCOL_HTTP2)  # by FilterConfig.Protocol


class IstioAlpn(HttpFilter):
    def __init__(self, overrides: dict[int, ConnectionDemand]) -> None:
        self._overrides = overrides

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        if stream.current_route() is None:
            return CONTINUE
        cluster = stream.cluster
        if cluster is not None and not _keeps_its_own(cluster):
            stream.offered = self._overrides.get(_spoken(cluster, stream.info.protocol))
        return CONTINUE


def _keeps_its_own(cluster: Cluster) -> bool:
    metadata = cluster.info.metadata
    if metadata is None:
        return False
    istio = metadata.get("istio")
    return istio is not None and istio.get("alpn_override") == "false"


def _spoken(cluster: Cluster, downstream: int) -> int:
    """The version of HTTP that the cluster will have; where it is yet to be negotiated, the best."""
    config = cluster.config
    if config.demands.by_protocol:
        return downstream
    return PROTOCOL_HTTP11 if config.protocol == HTTP1 else PROTOCOL_HTTP2


def build_istio_alpn(message: Any, path: str, context: BuildContext) -> HttpFilter:
    """Of several overrides for one protocol the first counts, as in Istio's proxy."""
    overrides: dict[int, ConnectionDemand] = {}
    for entry in message.alpn_override:
        protocol = _PROTOCOLS[entry.upstream_protocol]
        if entry.alpn_override and protocol not in overrides:
            overrides[protocol] = demand_for(tuple(entry.alpn_override))
    return IstioAlpn(overrides)


register_http_filter(FilterConfig, HttpFilterType(build_istio_alpn))
