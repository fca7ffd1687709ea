"""A snapshot as one bootstrap without a control plane: what a proxy would ask for stands in place of where it asks."""

from __future__ import annotations

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


def _put_routes(filter_: Any, routes: dict[str, Any]) -> None:
    if not filter_.typed_config.Is(HttpConnectionManager.DESCRIPTOR):
        return
    manager = HttpConnectionManager.FromString(filter_.typed_config.value)
    if manager.HasField("rds"):
        manager.route_config.CopyFrom(routes[manager.rds.route_config_name])
        filter_.typed_config.Pack(manager)
