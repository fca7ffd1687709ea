"""Which kind of client a configuration asks for."""

from __future__ import annotations

from meshproxy.config.context import Services
from meshproxy.http.grpc.client import RpcClient
from meshproxy.http.grpc.service import GrpcServiceConfig
from meshproxy.rpc.client import ClusterClient
from meshproxy.rpc.google import GoogleClient


def open_rpc_client(services: Services, config: GrpcServiceConfig) -> RpcClient:
    """What `Services.open_rpc_client` is, where there are gRPC clients."""
    if config.google is not None:
        return GoogleClient(services, config, config.google)
    return ClusterClient(services, config)
