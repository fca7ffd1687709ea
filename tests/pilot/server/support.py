"""Resources of the tests' own, what serves them, and the messages that clients send."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.base_pb2 import Node
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.service.discovery.v3 import discovery_pb2 as discovery

from meshproxy.config.subscription import CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE
from meshproxy.pilot.snapshot import Proxy, Resource, Snapshot

MESSAGES: dict[str, Any] = {
    CLUSTER_TYPE: Cluster,
    ENDPOINT_TYPE: ClusterLoadAssignment,
    LISTENER_TYPE: Listener,
    ROUTE_TYPE: RouteConfiguration,
}
NODE = Node(id="client-1", cluster="tests")


def cluster(name: str, version: int = 1) -> Resource:
    """A cluster that is another one for each version."""
    message = Cluster(name=name, type=Cluster.EDS)
    message.connect_timeout.FromSeconds(version)
    message.eds_cluster_config.eds_config.ads.SetInParent()
    return Resource.of(name, message)


def endpoints(name: str, port: int = 80) -> Resource:
    """An assignment of one endpoint."""
    message = ClusterLoadAssignment(cluster_name=name)
    address = message.endpoints.add().lb_endpoints.add().endpoint.address.socket_address
    address.address, address.port_value = "127.0.0.1", port
    return Resource.of(name, message)


def listener(name: str, version: int = 1) -> Resource:
    """A listener that is another one for each version."""
    message = Listener(name=name)
    message.listener_filters_timeout.FromSeconds(version)
    return Resource.of(name, message)


def routes(name: str, *clusters: str) -> Resource:
    """A route configuration that uses these clusters."""
    message = RouteConfiguration(name=name)
    for index, used in enumerate(clusters):
        host = message.virtual_hosts.add(name=used, domains=[f"{index}.test"])
        route = host.routes.add()
        route.match.prefix, route.route.cluster = "/", used
    return Resource.of(name, message)


def snapshot(**types: Iterable[Resource]) -> Snapshot:
    """By `clusters`, `endpoints`, `listeners`, `routes`."""
    urls = {"clusters": CLUSTER_TYPE, "endpoints": ENDPOINT_TYPE, "listeners": LISTENER_TYPE, "routes": ROUTE_TYPE}
    return Snapshot({urls[name]: {each.name: each for each in found} for name, found in types.items()})


def changed(before: Snapshot, **types: Iterable[Resource]) -> Snapshot:
    """Another snapshot, which shares the types that are not named."""
    return Snapshot({**before.types, **snapshot(**types).types})


def ask(type_url: str, *names: str, nonce: str = "", version: str = "", error: str = "", node: Any = NODE) -> Any:
    """A DiscoveryRequest."""
    request = discovery.DiscoveryRequest(
        type_url=type_url, resource_names=names, response_nonce=nonce, version_info=version, node=node
    )
    if error:
        request.error_detail.message = error
    return request


def ask_delta(
    type_url: str,
    *names: str,
    drop: Iterable[str] = (),
    nonce: str = "",
    error: str = "",
    have: Mapping[str, str] | None = None,
    node: Any = NODE,
) -> Any:
    """A DeltaDiscoveryRequest."""
    request = discovery.DeltaDiscoveryRequest(
        type_url=type_url,
        resource_names_subscribe=names,
        resource_names_unsubscribe=drop,
        response_nonce=nonce,
        initial_resource_versions=have or {},
        node=node,
    )
    if error:
        request.error_detail.message = error
    return request


class FixedBuilder:
    """A mesh is a mapping of scopes to snapshots; the namespace of a proxy is its scope."""

    def __init__(self) -> None:
        self.built: list[tuple[Hashable, Snapshot | None]] = []
        self.failing: set[Hashable] = set()

    def scope_of(self, mesh: Any, proxy: Proxy) -> Hashable:
        if proxy.namespace not in mesh:
            raise LookupError(proxy.namespace)
        return proxy.namespace

    def build_snapshot(self, mesh: Any, scope: Any, previous: Snapshot | None) -> Snapshot:
        self.built.append((scope, previous))
        if scope in self.failing:
            raise RuntimeError(f"{scope} is not to be built")
        found: Snapshot = mesh[scope]
        return found


def fixed_proxy(node: Any) -> Proxy:
    """The proxy of a node whose cluster is its namespace."""
    return Proxy(node.id, namespace=node.cluster)
