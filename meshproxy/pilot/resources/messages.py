"""Small messages that many resources are made of."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from envoy.config.core.v3.address_pb2 import Address, SocketAddress
from envoy.config.core.v3.base_pb2 import TransportSocket
from envoy.config.core.v3.config_source_pb2 import AggregatedConfigSource, ApiConfigSource, ConfigSource
from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value

RESOURCE_API_V3: Final = 2  # envoy.config.core.v3.ApiVersion.V3
_AGENT_TIMEOUT_MS: Final = 15_000
_PILOT: Final = "ads"  # in the place of a cluster: the stream that the resource itself came on


def pack(message: Any) -> AnyMessage:
    """In an Any, the same bytes for the same message."""
    packed = AnyMessage()
    packed.Pack(message, deterministic=True)
    return packed


def extension(name: str, message: Any) -> TypedExtensionConfig:
    return TypedExtensionConfig(name=name, typed_config=pack(message))


def transport_socket(name: str, message: Any) -> TransportSocket:
    return TransportSocket(name=name, typed_config=pack(message))


def duration(milliseconds: float) -> Duration:
    microseconds = round(milliseconds * 1000)
    return Duration(seconds=microseconds // 1_000_000, nanos=microseconds % 1_000_000 * 1000)


def duration_of(time: timedelta) -> Duration:
    return Duration(seconds=time.days * 86_400 + time.seconds, nanos=time.microseconds * 1000)


def uint32(value: int) -> UInt32Value:
    return UInt32Value(value=value)


def boolean(value: bool) -> BoolValue:
    return BoolValue(value=value)


def address(host: str, port: int) -> Address:
    """An IP address, or a name where the cluster resolves names."""
    return Address(socket_address=SocketAddress(address=host, port_value=port))


def agent(cluster: str) -> ConfigSource:
    """From the proxy's own agent, as Istio's sidecars have their secrets, or from the pilot where that is called `ads`;
    whoever needs it does not wait for ever."""
    source = ConfigSource(resource_api_version=RESOURCE_API_V3, initial_fetch_timeout=duration(_AGENT_TIMEOUT_MS))
    if cluster == _PILOT:
        source.ads.SetInParent()
        return source
    api = source.api_config_source
    api.api_type = ApiConfigSource.GRPC
    api.transport_api_version = RESOURCE_API_V3
    api.set_node_on_first_message_only = True
    api.grpc_services.add().envoy_grpc.cluster_name = cluster
    return source


def ads() -> ConfigSource:
    """From the stream that the resource itself came on; whoever needs it waits for as long as it takes."""
    return ConfigSource(
        ads=AggregatedConfigSource(), resource_api_version=RESOURCE_API_V3, initial_fetch_timeout=Duration()
    )
