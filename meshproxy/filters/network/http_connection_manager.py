"""The network filter that makes connections HTTP: `envoy.filters.network.http_connection_manager`."""

from __future__ import annotations

from typing import Any, Final

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

SWAPPABLE_FILTER: Final = "meshproxy.filters.http.python.v1.Python"
SWAPPABLE_LOG: Final = "meshproxy.access_loggers.python.v1.Python"


class HttpNetworkFilter(NetworkFilter):
    """Makes a ConnectionManager of every connection; its routes, and filters and access loggers in Python, are
    swapped under open ones."""

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
        config, new = self.config, newer.config
        config.routes = new.routes  # whoever discovers routes goes on to swap them there
        config.access_logs, config.upstream_log = new.access_logs, new.upstream_log  # alike, but those in Python
        config.chain = config.chain.adopt(new.chain)
        for protocol, upgrade in config.upgrades.items():
            newer_chain = new.upgrades[protocol].chain
            if upgrade.chain is not None and newer_chain is not None:
                upgrade.chain = upgrade.chain.adopt(newer_chain)
        config.extensions = new.extensions
        for extension in config.extensions:
            extension.attach(config)


def build_http(message: Any, path: str, context: BuildContext) -> NetworkFilter | None:
    config = build_connection_manager(message, path, context)
    return None if config is None else HttpNetworkFilter(config, _fingerprint(message))


def _fingerprint(message: Any) -> bytes:
    """The whole configuration but its routes, its filters and loggers in Python, which streams pick up one by one."""
    copy = type(message)()
    copy.CopyFrom(message)
    copy.ClearField("route_config")
    copy.ClearField("rds")
    chains = [copy.http_filters, *(upgrade.filters for upgrade in copy.upgrade_configs)]
    for http_filter in (each for chain in chains for each in chain):
        if http_filter.typed_config.type_url.rpartition("/")[2] == SWAPPABLE_FILTER:
            http_filter.typed_config.ClearField("value")
    for log in copy.access_log:
        if log.typed_config.type_url.rpartition("/")[2] == SWAPPABLE_LOG:
            log.typed_config.ClearField("value")
    return bytes(copy.SerializeToString(deterministic=True))


NETWORK_FILTERS.register(HttpConnectionManager, build_http)
