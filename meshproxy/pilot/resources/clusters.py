"""Clusters: one for each port of each service and each of its subsets, and those that every sidecar has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.address_pb2 import BindConfig, SocketAddress
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions

from meshproxy.pilot.documents.destination_rule import TrafficPolicy
from meshproxy.pilot.resources import connection_pool, names
from meshproxy.pilot.resources.connection_pool import HTTP_OPTIONS, set_connection_pool, set_outlier_detection
from meshproxy.pilot.resources.endpoints import assignment
from meshproxy.pilot.resources.load_balancing import PASSTHROUGH, set_load_balancer
from meshproxy.pilot.resources.locality import Origin, locality_setting, placed
from meshproxy.pilot.resources.messages import ads, duration, pack
from meshproxy.pilot.resources.upstream_tls import set_transport_socket

if TYPE_CHECKING:
    from meshproxy.pilot.mesh.services import Endpoint, Service, ServicePort

_INBOUND_SOURCE: Final = "127.0.0.6"  # what interception must not catch again


_BY_RESOLUTION: Final = {
    "STATIC": Cluster.EDS,
    "DNS": Cluster.STRICT_DNS,
    "DNS_ROUND_ROBIN": Cluster.LOGICAL_DNS,
}


@dataclass(frozen=True, slots=True)
class Outbound:
    """All that an outbound cluster is made from. `endpoints` only where the proxy does not ask for them by EDS."""

    service: Service
    port: ServicePort
    subset: str
    policy: TrafficPolicy
    intercepted: bool
    mesh_endpoints: bool  # some of its endpoints take the mesh's own TLS
    others: bool = False  # some do not
    identities: tuple[str, ...] = ()  # who its endpoints may prove to be
    endpoints: tuple[Endpoint, ...] = ()
    sds: str = ""  # the proxy's cluster for secrets, where it needs some
    origin: Origin | None = None  # where the proxy is, where that matters for `endpoints`


def kind_of(service: Service, policy: TrafficPolicy, *, intercepted: bool) -> Cluster.DiscoveryType:
    """How the cluster comes by its hosts. Without interception, what was to go where it went is resolved by name."""
    balancer = policy.load_balancer
    as_it_came = service.resolution == "NONE" or (balancer is not None and balancer.simple == PASSTHROUGH)
    if as_it_came:
        return Cluster.ORIGINAL_DST if intercepted else Cluster.STRICT_DNS
    return _BY_RESOLUTION[service.resolution]


def outbound_cluster(made_from: Outbound) -> Cluster:
    service, port, policy = made_from.service, made_from.port, made_from.policy
    name = names.outbound_cluster(service.hostname, port.number, made_from.subset)
    cluster = Cluster(name=name, alt_stat_name=name + ";")
    cluster.type = kind_of(service, policy, intercepted=made_from.intercepted)
    _set_discovery(cluster, made_from)
    set_connection_pool(cluster, policy, http_version(port.protocol))
    if cluster.type != Cluster.ORIGINAL_DST:
        set_load_balancer(cluster, policy.load_balancer)
    set_outlier_detection(cluster, policy.outlier_detection)
    set_transport_socket(
        cluster,
        policy,
        sni=names.outbound_sni(service.hostname, port.number, made_from.subset),
        version=connection_pool.version_of(policy, http_version(port.protocol)),
        mesh_endpoints=made_from.mesh_endpoints,
        others=made_from.others,
        sans=service.subject_alt_names,
        identities=made_from.identities,
        sds=made_from.sds,
    )
    _set_metadata(cluster, made_from)
    return cluster


def http_version(protocol: str) -> str:
    """For `set_connection_pool`: empty for what is not HTTP, or is HTTP within TLS that passes through."""
    if protocol in ("HTTP2", "GRPC"):
        return connection_pool.HTTP2
    if protocol in ("HTTP", "GRPC-WEB"):
        return connection_pool.HTTP1
    return ""


def _set_discovery(cluster: Cluster, made_from: Outbound) -> None:
    if cluster.type == Cluster.EDS:
        cluster.eds_cluster_config.service_name = cluster.name
        cluster.eds_cluster_config.eds_config.CopyFrom(ads())
    elif cluster.type == Cluster.ORIGINAL_DST:
        cluster.lb_policy = Cluster.CLUSTER_PROVIDED
    else:
        cluster.dns_lookup_family = Cluster.V4_PREFERRED
        groups = placed(made_from.endpoints, locality_setting(made_from.policy), made_from.origin)
        cluster.load_assignment.CopyFrom(assignment(cluster.name, groups))


def _set_metadata(cluster: Cluster, made_from: Outbound) -> None:
    """What istioctl and people look for."""
    facts_of_cluster = cluster.metadata.filter_metadata["istio"]
    if made_from.subset:
        facts_of_cluster["subset"] = made_from.subset
    if made_from.service.external:
        facts_of_cluster["external"] = True
    facts = {"host": made_from.service.hostname, "name": _short_name(made_from.service.hostname)}
    facts_of_cluster.get_or_create_list("services").add_struct().update(
        facts | {"namespace": made_from.service.namespace}
    )


def _short_name(hostname: str) -> str:
    return hostname.partition(".")[0]


def inbound_cluster(port: int, version: str, application: tuple[str, int] | None) -> Cluster:
    """The application itself: where the caller wanted to go, or at a known address."""
    cluster = Cluster(name=names.inbound_cluster(port), alt_stat_name=names.inbound_cluster(port) + ";")
    set_connection_pool(cluster, TrafficPolicy(), version)
    if application is None:
        _set_original(cluster)
        cluster.upstream_bind_config.CopyFrom(_bind(_INBOUND_SOURCE))
    else:
        cluster.type = Cluster.STATIC
        endpoint = cluster.load_assignment.endpoints.add().lb_endpoints.add().endpoint
        cluster.load_assignment.cluster_name = cluster.name
        endpoint.address.socket_address.address, endpoint.address.socket_address.port_value = application
    return cluster


def _bind(source: str) -> BindConfig:
    return BindConfig(source_address=SocketAddress(address=source, port_value=0))


def black_hole() -> Cluster:
    """For what must not go anywhere."""
    cluster = Cluster(name=names.BLACK_HOLE, connect_timeout=duration(10_000))
    cluster.type = Cluster.STATIC
    return cluster


def passthrough(name: str, source: str = "") -> Cluster:
    """To where the connection was going, in the version of HTTP that it came with."""
    cluster = Cluster(name=name, connect_timeout=duration(10_000))
    _set_original(cluster)
    if source:
        cluster.upstream_bind_config.CopyFrom(_bind(source))
    options = HttpProtocolOptions()
    options.use_downstream_protocol_config.http_protocol_options.SetInParent()
    options.use_downstream_protocol_config.http2_protocol_options.SetInParent()
    cluster.typed_extension_protocol_options[HTTP_OPTIONS].CopyFrom(pack(options))
    return cluster


def _set_original(cluster: Cluster) -> None:
    cluster.type = Cluster.ORIGINAL_DST
    cluster.lb_policy = Cluster.CLUSTER_PROVIDED


def standing_clusters(*, intercepted: bool) -> Sequence[Cluster]:
    """Those that need no service."""
    if not intercepted:
        return (black_hole(),)
    return (
        black_hole(),
        passthrough(names.PASSTHROUGH),
        passthrough(names.INBOUND_PASSTHROUGH, _INBOUND_SOURCE),
    )
