"""The network filter that makes connections HTTP: `envoy.filters.network.http_connection_manager`."""

from __future__ import annotations

from typing import Any

from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)

from meshproxy.config.context import BuildContext
from meshproxy.http.build import build_connection_manager
from meshproxy.http.connection_manager import ConnectionManager
from meshproxy.http.manager_config import ConnectionManagerConfig
from meshproxy.http.network_filter import NETWORK_FILTERS, ActiveConnection, ConnectionOwner, NetworkFilter
from meshproxy.net.connection import Connection
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.observe.stream_info import ConnectionInfo
from meshproxy.upstream.manager import ClusterManager


class HttpNetworkFilter(NetworkFilter):
    """Makes a ConnectionManager of every connection; its route table is swapped under open ones."""

    def __init__(self, config: ConnectionManagerConfig, fingerprint: bytes) -> None:
        self.config = config
        self.fingerprint = fingerprint

    def accept(
        self,
        dispatcher: Dispatcher,
        clusters: ClusterManager,
        owner: ConnectionOwner,
        connection: Connection,
        info: ConnectionInfo,
    ) -> ActiveConnection:
        manager = ConnectionManager(self.config, dispatcher, clusters, owner, connection, info)
        connection.set_handler(manager.handler)
        return manager.handler

    def adopt(self, newer: NetworkFilter) -> None:
        assert isinstance(newer, HttpNetworkFilter)
        self.config.routes.table = newer.config.routes.table


def build_http(message: Any, path: str, context: BuildContext) -> NetworkFilter | None:
    config = build_connection_manager(message, path, context)
    return None if config is None else HttpNetworkFilter(config, _fingerprint(message))


def _fingerprint(message: Any) -> bytes:
    """The whole configuration but its routes, which streams pick up one by one."""
    copy = type(message)()
    copy.CopyFrom(message)
    copy.ClearField("route_config")
    return bytes(copy.SerializeToString(deterministic=True))


NETWORK_FILTERS.register(HttpConnectionManager, build_http)
