"""`meshproxy.filters.network.python`: a network filter that is a class in Python (docs/writing-filters.md).

What it does in a connection is http/filtered_connection.py's matter.
"""

from __future__ import annotations

from typing import Any, Final

from meshproxy.api.network_filter_pb2 import Python
from meshproxy.config.context import BuildContext
from meshproxy.config.values import milliseconds_or
from meshproxy.http.filtered_connection import FilterPlace, FilterSettings
from meshproxy.http.network_filter import NETWORK_FILTERS, ConnectionFilter
from meshproxy.http.python_version import ConnectionStats, build_version, refuse_coroutines
from meshproxy.http.user_classes import NetworkFilter
from meshproxy.net.connection import Connection
from meshproxy.net.transport_socket import TransportSocket
from meshproxy.observe.stream_info import ConnectionInfo

_DEFAULT_HOOK_TIMEOUT_MS: Final = 5_000


class PythonNetworkFilter(ConnectionFilter):
    """A configured class."""

    def __init__(self, settings: FilterSettings) -> None:
        self._settings = settings

    def new(self, connection: Connection, info: ConnectionInfo, inner: TransportSocket | None) -> TransportSocket:
        return FilterPlace(self._settings, connection, info, inner)


def build_python(message: Any, path: str, context: BuildContext) -> ConnectionFilter | None:
    prefix = f"{context.listener_stat_prefix}python.{context.filter_name}."
    version = build_version(message, path, context, NetworkFilter, prefix, ConnectionStats)
    if version is None or refuse_coroutines(version.kind, ("on_close",), path, context):
        return None
    settings = FilterSettings(version)
    settings.fail_open = message.fail_open
    settings.hook_timeout_ms = float(milliseconds_or(message, "hook_timeout", _DEFAULT_HOOK_TIMEOUT_MS))
    return PythonNetworkFilter(settings)


NETWORK_FILTERS.register(Python, build_python)
