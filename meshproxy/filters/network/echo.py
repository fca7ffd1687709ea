"""The network filter that sends back what it receives: `envoy.filters.network.echo`."""

from __future__ import annotations

from typing import Any

from envoy.extensions.filters.network.echo.v3.echo_pb2 import Echo

from meshproxy.config.context import BuildContext
from meshproxy.http.network_filter import (
    NETWORK_FILTERS,
    ActiveConnection,
    ConnectionOwner,
    NetworkFilter,
    RawConnection,
)
from meshproxy.net.connection import Connection
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.observe.stream_info import ConnectionInfo
from meshproxy.upstream.manager import ClusterManager


class EchoFilter(NetworkFilter):
    def accept(
        self,
        dispatcher: Dispatcher,
        clusters: ClusterManager,
        owner: ConnectionOwner,
        connection: Connection,
        info: ConnectionInfo,
    ) -> ActiveConnection:
        echo = EchoConnection(owner, connection)
        connection.set_handler(echo)
        return echo

    def adopt(self, newer: NetworkFilter) -> None:
        """It has no configuration."""


class EchoConnection(RawConnection):
    def on_data(self, data: bytes) -> None:
        self.send(data)

    def on_eof(self) -> None:
        self.connection.close()

    def on_above_write_watermark(self) -> None:
        self.connection.read_disable(True)

    def on_below_write_watermark(self) -> None:
        self.connection.read_disable(False)


def build_echo(message: Any, path: str, context: BuildContext) -> NetworkFilter:
    return EchoFilter()


NETWORK_FILTERS.register(Echo, build_echo)
