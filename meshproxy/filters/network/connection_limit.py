"""The network filter that bounds how many connections a filter chain has: `envoy.filters.network.connection_limit`.

The bound is for one worker, as in Envoy. A connection beyond it is closed, at once or after `delay`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from envoy.extensions.filters.network.connection_limit.v3.connection_limit_pb2 import ConnectionLimit

from meshproxy.config.context import BuildContext
from meshproxy.config.runtime import RuntimeBool
from meshproxy.config.values import milliseconds_or
from meshproxy.http.network_filter import NETWORK_FILTERS, ConnectionGate
from meshproxy.net.connection import Connection, ConnectionHandler
from meshproxy.net.timers import CallTimer
from meshproxy.observe.stats import StatsScope
from meshproxy.observe.stream_info import ConnectionInfo


class ConnectionLimitStats(StatsScope):
    """Under `connection_limit.<stat_prefix>.`."""

    COUNTERS: ClassVar[tuple[str, ...]] = ("limited_connections",)
    GAUGES: ClassVar[tuple[str, ...]] = ("active_connections",)

    def __init__(self) -> None:
        super().__init__()
        self.limited_connections: int = 0
        self.active_connections: int = 0


class ConnectionLimitGate(ConnectionGate):
    def __init__(
        self, stats: ConnectionLimitStats, max_connections: int, delay_ms: float, enabled: RuntimeBool
    ) -> None:
        self._stats = stats
        self._max_connections = max_connections
        self._delay_ms = delay_ms
        self._enabled = enabled
        self._active = 0

    def admit(self, connection: Connection, info: ConnectionInfo) -> bool:
        if self._enabled.value and self._active >= self._max_connections:
            self._stats.limited_connections += 1
            Limited(connection, self._delay_ms)
            return False
        self._active += 1
        self._stats.active_connections += 1
        return True

    def leave(self) -> None:
        self._active -= 1
        self._stats.active_connections -= 1


class Limited(ConnectionHandler):
    """A connection beyond the limit: nothing that it says is heard until it is closed."""

    def __init__(self, connection: Connection, delay_ms: float) -> None:
        connection.set_handler(self)
        if delay_ms <= 0.0:
            connection.close()
        else:
            connection.dispatcher.timers.arm(CallTimer(connection.close), delay_ms)

    def on_data(self, data: bytes) -> None:
        """Nobody listens."""


def build_connection_limit(message: Any, path: str, context: BuildContext) -> ConnectionGate:
    enabled = message.runtime_enabled
    switch = context.runtime.switch(
        enabled.runtime_key, enabled.default_value.value if message.HasField("runtime_enabled") else True
    )
    return ConnectionLimitGate(
        context.scope(f"connection_limit.{message.stat_prefix}.", ConnectionLimitStats),
        message.max_connections.value,
        milliseconds_or(message, "delay", 0),
        switch,
    )


NETWORK_FILTERS.register(ConnectionLimit, build_connection_limit)
