"""The endpoints of a service's port, or of a subset of them, as a `ClusterLoadAssignment`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from envoy.config.core.v3.base_pb2 import Locality, Metadata
from envoy.config.endpoint.v3.endpoint_components_pb2 import LbEndpoint, LocalityLbEndpoints
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment

from meshproxy.pilot.mesh.services import TAKES_MESH_TLS
from meshproxy.pilot.resources.messages import address, uint32

if TYPE_CHECKING:
    from meshproxy.pilot.mesh.services import Endpoint
    from meshproxy.pilot.resources.locality import Group

_MOST: Final = 2**32 - 1
_SCALED: Final = 2**31
_SOCKET_MATCH: Final = "envoy.transport_socket_match"


def of_subset(endpoints: Iterable[Endpoint], labels: Iterable[tuple[str, str]]) -> tuple[Endpoint, ...]:
    """Those that have all these labels."""
    wanted = set(labels)
    if not wanted:
        return tuple(endpoints)
    return tuple(endpoint for endpoint in endpoints if wanted <= set(endpoint.labels))


def assignment(name: str, groups: Sequence[Group]) -> ClusterLoadAssignment:
    message = ClusterLoadAssignment(cluster_name=name)
    weights = _weights(group.weight for group in groups)
    message.endpoints.extend(map(_locality_endpoints, groups, weights))
    return message


def _locality_endpoints(group: Group, weight: int) -> LocalityLbEndpoints:
    message = LocalityLbEndpoints(priority=group.priority, load_balancing_weight=uint32(weight))
    region, zone, sub_zone = [*group.locality.split("/"), "", ""][:3]
    message.locality.CopyFrom(Locality(region=region, zone=zone, sub_zone=sub_zone))  # gRPC asks that it be there
    weights = _weights(endpoint.weight for endpoint in group.endpoints)
    message.lb_endpoints.extend(map(_endpoint, group.endpoints, weights))
    return message


def _weights(said: Iterable[int]) -> list[int]:
    """1 for none. A proxy refuses weights whose sum is no uint32: the same shares then, in smaller numbers."""
    weights = [max(weight, 1) for weight in said]
    total = sum(weights)
    if total <= _MOST:
        return weights
    return [max(weight * _SCALED // total, 1) for weight in weights]


def _endpoint(endpoint: Endpoint, weight: int) -> LbEndpoint:
    message = LbEndpoint(load_balancing_weight=uint32(weight))
    if endpoint.address.startswith(("unix://", "/")):
        message.endpoint.address.pipe.path = endpoint.address.removeprefix("unix://")
    else:
        message.endpoint.address.CopyFrom(address(endpoint.address, endpoint.port))
    if endpoint.tls_mode == TAKES_MESH_TLS:
        message.metadata.CopyFrom(_TAKES_MESH_TLS)
    return message


def _mesh_tls() -> Metadata:
    metadata = Metadata()
    metadata.filter_metadata[_SOCKET_MATCH]["tlsMode"] = TAKES_MESH_TLS
    return metadata


_TAKES_MESH_TLS: Final = _mesh_tls()
