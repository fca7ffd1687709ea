"""Resources for clients of gRPC's own (`xds:///reviews.default.svc.cluster.local:9080`): they know less of the API than
a proxy does, and refuse what they do not know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.api_listener_pb2 import ApiListener
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_components_pb2 import VirtualHost
from envoy.extensions.filters.http.fault.v3.fault_pb2 import HTTPFault
from envoy.extensions.filters.http.router.v3.router_pb2 import Router
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
    HttpFilter,
    Rds,
)

from meshproxy.pilot.resources import names
from meshproxy.pilot.resources.actions import FAULT
from meshproxy.pilot.resources.clusters import Outbound
from meshproxy.pilot.resources.connection_pool import set_outlier_detection
from meshproxy.pilot.resources.http_manager import ROUTER
from meshproxy.pilot.resources.messages import ads, pack
from meshproxy.pilot.resources.routes import route_configuration, service_routes

if TYPE_CHECKING:
    from envoy.config.route.v3.route_pb2 import RouteConfiguration

    from meshproxy.pilot.mesh.services import Service, ServicePort
    from meshproxy.pilot.resources.view import View


def grpc_cluster(made_from: Outbound) -> Cluster:
    """Endpoints in turn, or by a hash of the request: gRPC has no other policies that every version of it knows."""
    name = names.outbound_cluster(made_from.service.hostname, made_from.port.number, made_from.subset)
    cluster = Cluster(name=name, lb_policy=Cluster.ROUND_ROBIN)
    cluster.type = Cluster.EDS
    cluster.eds_cluster_config.service_name = name
    cluster.eds_cluster_config.eds_config.CopyFrom(ads())
    policy = made_from.policy
    if policy.load_balancer is not None and policy.load_balancer.consistent_hash is not None:
        cluster.lb_policy = Cluster.RING_HASH
    pool = policy.connection_pool
    if pool is not None and pool.http is not None and pool.http.http2_max_requests:
        cluster.circuit_breakers.thresholds.add().max_requests.value = pool.http.http2_max_requests
    set_outlier_detection(cluster, policy.outlier_detection)
    cluster.ClearField("common_lb_config")
    return cluster


def grpc_listeners(view: View, service: Service, port: ServicePort) -> list[Listener]:
    """One for each name under which the service may be dialled, since gRPC asks for the very name."""
    manager = HttpConnectionManager(stat_prefix=f"outbound_{port.number}")
    manager.rds.CopyFrom(Rds(config_source=ads(), route_config_name=route_name(service, port)))
    manager.http_filters.append(HttpFilter(name=FAULT, typed_config=pack(HTTPFault())))
    manager.http_filters.append(HttpFilter(name=ROUTER, typed_config=pack(Router())))
    domains = names.domains_of(service.hostname, (), view.scope.namespace, view.scope.domain)
    api = ApiListener(api_listener=pack(manager))
    return [Listener(name=f"{domain}:{port.number}", api_listener=api) for domain in domains]


def grpc_routes(view: View, service: Service, port: ServicePort) -> RouteConfiguration:
    """All names of the service alike."""
    host = VirtualHost(name=f"{service.hostname}:{port.number}", domains=["*"])
    host.routes.extend(service_routes(view, service, port))
    for route in host.routes:
        if route.HasField("route"):
            # gRPC knows of no other time-out.
            route.route.max_stream_duration.grpc_timeout_header_max.CopyFrom(route.route.timeout)
            route.route.ClearField("max_grpc_timeout")
    return route_configuration(route_name(service, port), [host])


def route_name(service: Service, port: ServicePort) -> str:
    return names.outbound_cluster(service.hostname, port.number)
