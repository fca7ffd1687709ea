"""The endpoints of a service's port, or of a subset of them, as a `ClusterLoadAssignment`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from envoy.config.core.v3.base_pb2 import Locality, Metadata
from envoy.config.endpoint.v3.endpoint_components_pb2 import LbEndpoint, LocalityLbEndpoints
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment

from meshproxy.pilot.resources.messages import address, uint32

if TYPE_CHECKING:
    from meshproxy.pilot.mesh.services import Endpoint
    from meshproxy.pilot.resources.locality import Group

_SOCKET_MATCH: Final = "envoy.transport_socket_match"


def of_subset(endpoints: Iterable[Endpoint], labels: Iterable[tuple[str, str]]) -> tuple[Endpoint, ...]:
    """Those that have all these labels."""
    wanted = set(labels)
    if not wanted:
        return tuple(endpoints)
    return tuple(endpoint for endpoint in endpoints if wanted <= set(endpoint.labels))


def assignment(name: str, groups: Sequence[Group]) -> ClusterLoadAssignment:
    message = ClusterLoadAssignment(cluster_name=name)
    message.endpoints.extend(_locality_endpoints(group) for group in groups)
    return message


def _locality_endpoints(group: Group) -> LocalityLbEndpoints:
    message = LocalityLbEndpoints(priority=group.priority, load_balancing_weight=uint32(max(group.weight, 1)))
    region, zone, sub_zone = [*group.locality.split("/"), "", ""][:3]
    message.locality.CopyFrom(Locality(region=region, zone=zone, sub_zone=sub_zone))  # gRPC asks that it be there
    message.lb_endpoints.extend(_endpoint(endpoint) for endpoint in group.endpoints)
    return message


def _endpoint(endpoint: Endpoint) -> LbEndpoint:
    message = LbEndpoint(load_balancing_weight=uint32(endpoint.weight or 1))
    if endpoint.address.startswith(("unix://", "/")):
        message.endpoint.address.pipe.path = endpoint.address.removeprefix("unix://")
    else:
        message.endpoint.address.CopyFrom(address(endpoint.address, endpoint.port))
    if endpoint.tls_mode == "istio":
        message.metadata.CopyFrom(_TAKES_MESH_TLS)
    return message


def _mesh_tls() -> Metadata:
    metadata = Metadata()
    metadata.filter_metadata[_SOCKET_MATCH]["tlsMode"] = "istio"
    return metadata


_TAKES_MESH_TLS: Final = _mesh_tls()
