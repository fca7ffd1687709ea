"""The transport sockets that a filter chain can have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from envoy.extensions.transport_sockets.raw_buffer.v3.raw_buffer_pb2 import RawBuffer
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import DownstreamTlsContext

from meshproxy.config.context import BuildContext
from meshproxy.config.registry import Registry
from meshproxy.config.tls_context import build_downstream_tls
from meshproxy.net.transport_socket import TransportSocketFactory

# (message, path, context, server names of the filter chain) -> the factory, None for plain bytes or after errors
TransportSocketBuilder = Callable[[Any, str, BuildContext, tuple[str, ...]], TransportSocketFactory | None]
DOWNSTREAM_TRANSPORT_SOCKETS: Final[Registry[TransportSocketBuilder]] = Registry("downstream transport socket")


def _plain(message: Any, path: str, context: BuildContext, server_names: tuple[str, ...]) -> None:
    return None


DOWNSTREAM_TRANSPORT_SOCKETS.register(RawBuffer, _plain)
DOWNSTREAM_TRANSPORT_SOCKETS.register(DownstreamTlsContext, build_downstream_tls)
