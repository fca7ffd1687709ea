"""The types of resources as a control plane knows them: in what order they go out, and what an empty request means."""

from __future__ import annotations

from typing import Final

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

WILDCARD: Final = "*"

# What others refer to goes first ("Eventual consistency considerations" of the xDS protocol).
PUSH_ORDER: Final = (
    CLUSTER_TYPE,
    ENDPOINT_TYPE,
    LISTENER_TYPE,
    ROUTE_TYPE,
    VIRTUAL_HOST_TYPE,
    SECRET_TYPE,
    EXTENSION_TYPE,
    RUNTIME_TYPE,
)
# A state-of-the-world response of these has all that the client asked for: what it leaves out is removed. Of all other
# types it may have only what changed. And a first request of these that names nothing asks for everything.
FULL_STATE: Final = frozenset({CLUSTER_TYPE, LISTENER_TYPE})
# What refers to clusters waits until those are warm.
REFERRERS: Final = (LISTENER_TYPE, ROUTE_TYPE, VIRTUAL_HOST_TYPE)

AGGREGATED_SERVICE: Final = "envoy.service.discovery.v3.AggregatedDiscoveryService"
_SERVICES: Final = {
    "envoy.service.cluster.v3.ClusterDiscoveryService": ("Clusters", CLUSTER_TYPE),
    "envoy.service.endpoint.v3.EndpointDiscoveryService": ("Endpoints", ENDPOINT_TYPE),
    "envoy.service.listener.v3.ListenerDiscoveryService": ("Listeners", LISTENER_TYPE),
    "envoy.service.route.v3.RouteDiscoveryService": ("Routes", ROUTE_TYPE),
    "envoy.service.route.v3.VirtualHostDiscoveryService": ("VirtualHosts", VIRTUAL_HOST_TYPE),
    "envoy.service.secret.v3.SecretDiscoveryService": ("Secrets", SECRET_TYPE),
    "envoy.service.extension.v3.ExtensionConfigDiscoveryService": ("ExtensionConfigs", EXTENSION_TYPE),
    "envoy.service.runtime.v3.RuntimeDiscoveryService": ("Runtime", RUNTIME_TYPE),
}


def stream_methods() -> dict[str, tuple[bool, str]]:
    """By the path of a method: whether it speaks the incremental variant, and its one type of resource ("": all)."""
    methods = {
        f"/{AGGREGATED_SERVICE}/StreamAggregatedResources": (False, ""),
        f"/{AGGREGATED_SERVICE}/DeltaAggregatedResources": (True, ""),
    }
    for service, (noun, type_url) in _SERVICES.items():
        methods[f"/{service}/Delta{noun}"] = (True, type_url)
        if type_url != VIRTUAL_HOST_TYPE:  # the API has it as an incremental one only
            methods[f"/{service}/Stream{noun}"] = (False, type_url)
    return methods


def label_of(type_url: str) -> str:
    """For metrics: the short name of a type that the pilot knows; clients make up others."""
    return short_name(type_url) if type_url in PUSH_ORDER else "other"


def short_name(type_url: str) -> str:
    """`Cluster` for `type.googleapis.com/envoy.config.cluster.v3.Cluster`."""
    return type_url.rpartition("/")[2].rpartition(".")[2]
