"""The transport sockets that a cluster can have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from envoy.extensions.transport_sockets.raw_buffer.v3.raw_buffer_pb2 import RawBuffer
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import UpstreamTlsContext

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child
from meshproxy.config.registry import Registry
from meshproxy.config.tls_context import build_upstream_tls
from meshproxy.net.transport_socket import TransportSocket, TransportSocketFactory
from meshproxy.upstream.host import Host

# (message, path, context, `cluster.<name>.`) -> the factory, None for plain bytes or after errors
TransportSocketBuilder = Callable[[Any, str, BuildContext, str], TransportSocketFactory | None]
UPSTREAM_TRANSPORT_SOCKETS: Final[Registry[TransportSocketBuilder]] = Registry("upstream transport socket")


def build_transport_socket(
    message: Any, path: str, context: BuildContext, stat_prefix: str
) -> TransportSocketFactory | None:
    """What a core.v3.TransportSocket describes; None for plain bytes, and after errors."""
    if not message.HasField("typed_config") and message.name == "envoy.transport_sockets.raw_buffer":
        return None
    where = child(path, "typed_config")
    found = UPSTREAM_TRANSPORT_SOCKETS.find(message.typed_config, where, context)
    if found is None:
        return None
    config, builder = found
    return builder(config, where, context, stat_prefix)


def new_transport_socket(factory: TransportSocketFactory, host: Host) -> TransportSocket:
    """For one connection to `host`."""
    return factory.new(host.hostname if factory.asks_for_host else "")


def _plain(message: Any, path: str, context: BuildContext, stat_prefix: str) -> None:
    return None


UPSTREAM_TRANSPORT_SOCKETS.register(RawBuffer, _plain)
UPSTREAM_TRANSPORT_SOCKETS.register(UpstreamTlsContext, build_upstream_tls)
