"""A snapshot as one bootstrap without a control plane: what a proxy would ask for stands in place of where it asks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.base_pb2 import Node
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.transport_sockets.proxy_protocol.v3.upstream_proxy_protocol_pb2 import (
    ProxyProtocolUpstreamTransport,
)
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import DownstreamTlsContext, UpstreamTlsContext

from meshproxy.config.subscription import CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE
from meshproxy.pilot.snapshot import Snapshot

MESSAGES: dict[str, Any] = {
    CLUSTER_TYPE: Cluster,
    ENDPOINT_TYPE: ClusterLoadAssignment,
    LISTENER_TYPE: Listener,
    ROUTE_TYPE: RouteConfiguration,
}


def messages(snapshot: Snapshot, type_url: str) -> dict[str, Any]:
    """The resources of a type, by name."""
    return {name: MESSAGES[type_url].FromString(one.data) for name, one in snapshot.of_type(type_url).items()}


def static_bootstrap(snapshot: Snapshot) -> Bootstrap:
    """All listeners with their routes, all clusters with their endpoints."""
    bootstrap = Bootstrap(node=Node(id="test", cluster="test"))
    assignments = messages(snapshot, ENDPOINT_TYPE)
    for cluster in messages(snapshot, CLUSTER_TYPE).values():
        if cluster.type == Cluster.EDS:
            cluster.type = Cluster.STATIC
            cluster.load_assignment.CopyFrom(assignments[cluster.eds_cluster_config.service_name])
            cluster.load_assignment.cluster_name = cluster.name
            cluster.ClearField("eds_cluster_config")
        bootstrap.static_resources.clusters.append(cluster)
    routes = messages(snapshot, ROUTE_TYPE)
    for listener in messages(snapshot, LISTENER_TYPE).values():
        for chain in [*listener.filter_chains, listener.default_filter_chain]:
            for filter_ in chain.filters:
                _put_routes(filter_, routes)
        bootstrap.static_resources.listeners.append(listener)
    return bootstrap


def with_secrets(bootstrap: Bootstrap, certificate: Path, key: Path, roots: Path) -> Bootstrap:
    """The same with secrets that stand in it too: Envoy's validation crashes where some come by ADS."""
    names: dict[str, Any] = {}
    files = (str(certificate), str(key), str(roots))
    for socket in _sockets(bootstrap):
        _put_secrets(socket, names, files)
    bootstrap.static_resources.secrets.extend(names.values())
    return bootstrap


def _sockets(bootstrap: Bootstrap) -> Iterator[Any]:
    for listener in bootstrap.static_resources.listeners:
        yield from (chain.transport_socket for chain in listener.filter_chains)
    for cluster in bootstrap.static_resources.clusters:
        yield cluster.transport_socket
        yield from (match.transport_socket for match in cluster.transport_socket_matches)


def _put_secrets(socket: Any, names: dict[str, Any], files: tuple[str, str, str]) -> None:
    if socket.typed_config.Is(ProxyProtocolUpstreamTransport.DESCRIPTOR):
        outer = ProxyProtocolUpstreamTransport.FromString(socket.typed_config.value)
        _put_secrets(outer.transport_socket, names, files)
        socket.typed_config.Pack(outer)
    for message_type in (UpstreamTlsContext, DownstreamTlsContext):
        if socket.typed_config.Is(message_type.DESCRIPTOR):
            context = message_type.FromString(socket.typed_config.value)
            _name_secrets(context.common_tls_context, names, files)
            socket.typed_config.Pack(context)


def _name_secrets(common: Any, names: dict[str, Any], files: tuple[str, str, str]) -> None:
    certificate, key, roots = files
    for config in common.tls_certificate_sds_secret_configs:
        config.ClearField("sds_config")
        secret = names.setdefault(config.name, Secret(name=config.name))
        secret.tls_certificate.certificate_chain.filename = certificate
        secret.tls_certificate.private_key.filename = key
    if common.HasField("combined_validation_context"):
        config = common.combined_validation_context.validation_context_sds_secret_config
        config.ClearField("sds_config")
        secret = names.setdefault(config.name, Secret(name=config.name))
        secret.validation_context.trusted_ca.filename = roots


def _put_routes(filter_: Any, routes: dict[str, Any]) -> None:
    if not filter_.typed_config.Is(HttpConnectionManager.DESCRIPTOR):
        return
    manager = HttpConnectionManager.FromString(filter_.typed_config.value)
    if manager.HasField("rds"):
        manager.route_config.CopyFrom(routes[manager.rds.route_config_name])
        filter_.typed_config.Pack(manager)
