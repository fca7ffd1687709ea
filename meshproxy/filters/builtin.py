"""Every filter that comes with the proxy. Importing this module registers them all."""

from __future__ import annotations

from typing import Final

from meshproxy.filters.http import (
    buffer,
    compressor,
    cors,
    credential_injector,
    decompressor,
    fault,
    grpc_http1_bridge,
    grpc_http1_reverse_bridge,
    grpc_json_transcoder,
    grpc_stats,
    grpc_web,
    header_mutation,
    header_to_metadata,
    health_check,
    istio_alpn,
    istio_peer_metadata,
    istio_stats,
    local_ratelimit,
    on_demand,
    python,
    rbac,
    router,
    set_metadata,
)
from meshproxy.filters.listener import http_inspector, original_dst, proxy_protocol, tls_inspector
from meshproxy.filters.listener import python as python_listener
from meshproxy.filters.network import (
    connection_limit,
    direct_response,
    echo,
    http_connection_manager,
    istio,
    tcp_proxy,
)
from meshproxy.filters.network import local_ratelimit as network_local_ratelimit
from meshproxy.filters.network import python as python_network
from meshproxy.filters.network import rbac as network_rbac
from meshproxy.http import python_balancer, python_logger

HTTP_FILTER_MODULES: Final = (
    buffer,
    compressor,
    cors,
    credential_injector,
    decompressor,
    fault,
    grpc_http1_bridge,
    grpc_http1_reverse_bridge,
    grpc_json_transcoder,
    grpc_stats,
    grpc_web,
    header_mutation,
    header_to_metadata,
    health_check,
    istio_alpn,
    istio_peer_metadata,
    istio_stats,
    local_ratelimit,
    on_demand,
    python,
    rbac,
    router,
    set_metadata,
)
NETWORK_FILTER_MODULES: Final = (
    connection_limit,
    direct_response,
    echo,
    http_connection_manager,
    istio,
    network_local_ratelimit,
    network_rbac,
    python_network,
    tcp_proxy,
)
LISTENER_FILTER_MODULES: Final = (
    http_inspector,
    original_dst,
    proxy_protocol,
    python_listener,
    tls_inspector,
)
OTHER_MODULES: Final = (python_balancer, python_logger)
