"""The network filter that answers every connection with the same bytes and closes it:
`envoy.filters.network.direct_response`."""

from __future__ import annotations

from typing import Any

from envoy.extensions.filters.network.direct_response.v3.config_pb2 import Config

from meshproxy.config.context import BuildContext
from meshproxy.config.datasource import load_data_source
from meshproxy.config.errors import child
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

_LINGER_MS = 1_000.0  # what the peer has sent meanwhile is read, or the kernel's reset would destroy the answer


class DirectResponseFilter(NetworkFilter):
    def __init__(self, response: bytes) -> None:
        self.response = response
        self.fingerprint = response

    def accept(
        self,
        dispatcher: Dispatcher,
        clusters: ClusterManager,
        owner: ConnectionOwner,
        connection: Connection,
        info: ConnectionInfo,
    ) -> ActiveConnection:
        answered = DirectResponseConnection(owner, connection, self.response)
        connection.set_handler(answered)
        if connection.established:
            answered.on_connected(connection)
        return answered

    def adopt(self, newer: NetworkFilter) -> None:
        """Open connections have their answer."""


class DirectResponseConnection(RawConnection):
    def __init__(self, owner: ConnectionOwner, connection: Connection, response: bytes) -> None:
        super().__init__(owner, connection)
        self._response = response

    def on_connected(self, connection: Connection) -> None:
        if self._response:
            self.send(self._response)
        connection.close(_LINGER_MS)

    def on_data(self, data: bytes) -> None:
        """It does not matter what the peer says."""


def build_direct_response(message: Any, path: str, context: BuildContext) -> NetworkFilter | None:
    if not message.HasField("response"):
        return DirectResponseFilter(b"")
    response = load_data_source(message.response, child(path, "response"), context.errors)
    return None if response is None else DirectResponseFilter(response)


NETWORK_FILTERS.register(Config, build_direct_response)
