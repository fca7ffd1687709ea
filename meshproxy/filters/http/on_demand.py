"""`envoy.filters.http.on_demand`: a request whose virtual host, or whose cluster, is not known yet waits until the
control plane has said what it is (VHDS, ODCDS).

Found or not, the request goes on then: the router answers where there is no route (404 NR) or no cluster (503 NC).
"""

from __future__ import annotations

from typing import Any

from envoy.extensions.filters.http.on_demand.v3.on_demand_pb2 import OnDemand, PerRouteConfig

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child
from meshproxy.http.filter import CONTINUE, STOP, HttpFilter, HttpFilterType, Result, register_http_filter
from meshproxy.http.stream import Stream
from meshproxy.route.route import ROUTE_CLUSTER, Route
from meshproxy.upstream.manager import ClusterRequest
from meshproxy.upstream.on_demand import OnDemandConfig, build_on_demand

_TIMEOUT_MS = 5_000


class OnDemandSettings:
    """An OnDemand, or a PerRouteConfig in its place; `clusters` is None where none are asked for."""

    def __init__(self, clusters: OnDemandConfig | None) -> None:
        self.clusters = clusters


class OnDemandFilter(HttpFilter):
    """Holds a request's headers."""

    def __init__(self, settings: OnDemandSettings) -> None:
        self.settings = settings

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        route = stream.current_route()
        if route is None:
            waiting = WaitingStream(self, stream)
            return STOP if stream.config.routes.request_virtual_host(headers, waiting.on_virtual_host) else CONTINUE
        if route.kind == ROUTE_CLUSTER and stream.cluster is None:
            return self.request_cluster(stream, route, headers)
        return CONTINUE

    def settings_for(self, route: Route) -> OnDemandSettings:
        """Those of a route take the place of the filter's own."""
        override = route.filter_configs.get(self.name)
        return override if isinstance(override, OnDemandSettings) else self.settings

    def request_cluster(self, stream: Stream, route: Route, headers: HeaderMap) -> int:
        """STOP when it is asked for."""
        config = self.settings_for(route).clusters
        if config is None:
            return CONTINUE
        name = route.resolve_cluster(headers)
        request = stream.manager.clusters.request_cluster(name, config, WaitingStream(self, stream).on_cluster)
        stream.state[self.slot] = request
        return CONTINUE if request is None else STOP

    def on_stream_done(self, stream: Stream) -> None:
        request = stream.state[self.slot]
        if isinstance(request, ClusterRequest):
            request.cancel()


class WaitingStream:
    """A stream that the filter holds."""

    def __init__(self, owner: OnDemandFilter, stream: Stream) -> None:
        self._owner = owner
        self._stream = stream

    def on_virtual_host(self, found: bool) -> None:
        """The host of a route may have to be followed by its cluster."""
        stream = self._stream
        if stream.done:
            return
        stream.pick_route_again(self._owner)
        route = stream.route
        if route is not None and route.kind == ROUTE_CLUSTER and stream.cluster is None:
            if self._owner.request_cluster(stream, route, stream.request_headers) == STOP:
                return
        stream.resume_request()

    def on_cluster(self, status: int) -> None:
        stream = self._stream
        if not stream.done:
            stream.pick_route_again(self._owner)
            stream.resume_request()


def build_settings(message: Any, path: str, context: BuildContext) -> OnDemandSettings:
    """Of an OnDemand or a PerRouteConfig."""
    clusters: OnDemandConfig | None = None
    if message.HasField("odcds"):
        clusters = build_on_demand(message.odcds, "source", _TIMEOUT_MS, child(path, "odcds"), context)
    return OnDemandSettings(clusters)


def build_filter(message: Any, path: str, context: BuildContext) -> OnDemandFilter:
    return OnDemandFilter(build_settings(message, path, context))


register_http_filter(OnDemand, HttpFilterType(build_filter, PerRouteConfig, build_settings))
