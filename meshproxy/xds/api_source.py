"""`envoy.config.core.v3.ApiConfigSource`: a control plane behind gRPC, and how it is to be asked."""

from __future__ import annotations

from typing import Any, Final

from envoy.config.core.v3.config_source_pb2 import ApiConfigSource

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child, item
from meshproxy.config.subscription import (
    CLUSTER_TYPE,
    ENDPOINT_TYPE,
    EXTENSION_TYPE,
    LISTENER_TYPE,
    ROUTE_TYPE,
    RUNTIME_TYPE,
    SECRET_TYPE,
    VIRTUAL_HOST_TYPE,
)
from meshproxy.config.values import int_or, milliseconds_or
from meshproxy.http.grpc.service import GrpcServiceConfig, build_grpc_service

_DELTA: Final = (ApiConfigSource.DELTA_GRPC, ApiConfigSource.AGGREGATED_DELTA_GRPC)
_SOTW: Final = (ApiConfigSource.GRPC, ApiConfigSource.AGGREGATED_GRPC)

_AGGREGATED: Final = "discovery.v3.AggregatedDiscoveryService", "AggregatedResources"
# Of a stream for one type alone: the service, and its methods without `Stream` or `Delta`.
_METHODS: Final = {
    CLUSTER_TYPE: ("cluster.v3.ClusterDiscoveryService", "Clusters"),
    ENDPOINT_TYPE: ("endpoint.v3.EndpointDiscoveryService", "Endpoints"),
    LISTENER_TYPE: ("listener.v3.ListenerDiscoveryService", "Listeners"),
    ROUTE_TYPE: ("route.v3.RouteDiscoveryService", "Routes"),
    VIRTUAL_HOST_TYPE: ("route.v3.VirtualHostDiscoveryService", "VirtualHosts"),
    SECRET_TYPE: ("secret.v3.SecretDiscoveryService", "Secrets"),
    EXTENSION_TYPE: ("extension.v3.ExtensionConfigDiscoveryService", "ExtensionConfigs"),
    RUNTIME_TYPE: ("runtime.v3.RuntimeDiscoveryService", "Runtime"),
}

# Envoy's, in common/config/utility.h and grpc_stream.h.
_MAX_TOKENS: Final = 100
_FILL_RATE: Final = 10.0
_BACK_OFF_BASE_MS: Final = 500
_BACK_OFF_MAX_MS: Final = 30_000


class ApiSource:
    """A control plane. Of several `services` the next one is asked when one cannot be reached."""

    def __init__(self, services: list[GrpcServiceConfig], *, delta: bool) -> None:
        self.services = services
        self.delta = delta
        self.node_on_first_message_only: bool = False
        self.max_tokens: int = 0  # of requests at once; 0: without limit
        self.tokens_per_s: float = _FILL_RATE
        self.back_off_base_ms: float = _BACK_OFF_BASE_MS
        self.back_off_max_ms: float = _BACK_OFF_MAX_MS


def build_api_source(message: Any, path: str, context: BuildContext) -> ApiSource | None:
    """From the message at `path`; None with errors."""
    before = len(context.errors)
    if message.api_type not in _DELTA + _SOTW:
        context.errors.add(child(path, "api_type"), "only GRPC and DELTA_GRPC are supported")
    if len(message.config_validators):
        context.errors.add(child(path, "config_validators"), "are not supported")
    if not message.grpc_services:
        context.errors.add(child(path, "grpc_services"), "at least one is required")
    services = [
        build_grpc_service(each, item(path, "grpc_services", index), context, per_stream=False)
        for index, each in enumerate(message.grpc_services)
    ]
    if len(context.errors) != before:
        return None
    source = ApiSource([each for each in services if each is not None], delta=message.api_type in _DELTA)
    source.node_on_first_message_only = message.set_node_on_first_message_only
    if message.HasField("rate_limit_settings"):
        limits = message.rate_limit_settings
        source.max_tokens = int_or(limits, "max_tokens", _MAX_TOKENS)
        source.tokens_per_s = limits.fill_rate.value if limits.HasField("fill_rate") else _FILL_RATE
    _set_back_off(source, message.grpc_services[0].envoy_grpc.retry_policy)
    return source


def _set_back_off(source: ApiSource, policy: Any) -> None:
    """By which streams are opened again: that of the first service, as in Envoy."""
    if policy.HasField("retry_back_off"):
        back_off = policy.retry_back_off
        source.back_off_base_ms = float(max(milliseconds_or(back_off, "base_interval", _BACK_OFF_BASE_MS), 1))
        longest = milliseconds_or(back_off, "max_interval", int(10 * source.back_off_base_ms))
        source.back_off_max_ms = max(float(longest), source.back_off_base_ms)


def stream_path(type_url: str, *, delta: bool) -> bytes | None:
    """The method of a stream for one type, or (with an empty type) for all; None where there is no such service."""
    service, noun = _METHODS.get(type_url, ("", "")) if type_url else _AGGREGATED
    if not service or (type_url == VIRTUAL_HOST_TYPE and not delta):  # which there are by delta only
        return None
    return f"/envoy.service.{service}/{'Delta' if delta else 'Stream'}{noun}".encode()
