"""The HTTP connection managers of listeners, and their filters in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from envoy.config.listener.v3.listener_components_pb2 import Filter
from envoy.extensions.filters.http.cors.v3.cors_pb2 import Cors
from envoy.extensions.filters.http.fault.v3.fault_pb2 import HTTPFault
from envoy.extensions.filters.http.grpc_stats.v3.config_pb2 import FilterConfig as GrpcStats
from envoy.extensions.filters.http.router.v3.router_pb2 import Router
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
    HttpFilter,
    Rds,
)

from meshproxy.pilot.resources.actions import CORS, FAULT
from meshproxy.pilot.resources.messages import ads, boolean, duration, pack

if TYPE_CHECKING:
    from envoy.config.route.v3.route_pb2 import RouteConfiguration

MANAGER: Final = "envoy.filters.network.http_connection_manager"
ROUTER: Final = "envoy.filters.http.router"
GRPC_STATS: Final = "envoy.filters.http.grpc_stats"


def manager(stat_prefix: str, routes: RouteConfiguration | str, filters: Sequence[HttpFilter]) -> HttpConnectionManager:
    """`routes` in place, or the name under which the control plane has them."""
    message = HttpConnectionManager(
        codec_type=HttpConnectionManager.AUTO,
        stat_prefix=stat_prefix,
        normalize_path=boolean(True),
        stream_idle_timeout=duration(0),
        http_filters=[*filters, *standard_filters()],
    )
    message.upgrade_configs.add(upgrade_type="websocket")
    if isinstance(routes, str):
        message.rds.CopyFrom(Rds(config_source=ads(), route_config_name=routes))
    else:
        message.route_config.CopyFrom(routes)
    return message


def manager_filter(message: HttpConnectionManager) -> Filter:

    return Filter(name=MANAGER, typed_config=pack(message))


def standard_filters() -> list[HttpFilter]:
    """What is always there, since routes say what it does: nothing where they say nothing."""
    return [
        HttpFilter(name=GRPC_STATS, typed_config=_GRPC_STATS),
        HttpFilter(name=FAULT, typed_config=_FAULT),
        HttpFilter(name=CORS, typed_config=_CORS),
        HttpFilter(name=ROUTER, typed_config=_ROUTER),
    ]


_GRPC_STATS: Final = pack(GrpcStats(emit_filter_state=True, stats_for_all_methods=boolean(False)))
_FAULT: Final = pack(HTTPFault())
_CORS: Final = pack(Cors())
_ROUTER: Final = pack(Router())
