"""Clusters in plain values: the shares of a split and who takes this request, and hosts with health and weight."""

from __future__ import annotations

from typing import Any, Final

from meshproxy.codec.headers import HeaderMap
from meshproxy.observe.stream_info import StreamInfo
from meshproxy.route.hash_policy import NO_HASH
from meshproxy.route.route import Route
from meshproxy.route.weighted import WeightedRoutes
from meshproxy.server.explain import words
from meshproxy.upstream import config as upstream
from meshproxy.upstream.config import ClusterConfig, EndpointConfig
from meshproxy.upstream.host import Host

Plain = dict[str, Any]

_POLICIES: Final = {
    upstream.ROUND_ROBIN: "ROUND_ROBIN",
    upstream.LEAST_REQUEST: "LEAST_REQUEST",
    upstream.RANDOM: "RANDOM",
    upstream.RING_HASH: "RING_HASH",
    upstream.MAGLEV: "MAGLEV",
    upstream.CLUSTER_PROVIDED: "CLUSTER_PROVIDED",
    upstream.PICK_FIRST: "PICK_FIRST",
}


class ClusterView:
    """A cluster as it is configured, or as it runs: then `hosts` are those that it has at this moment."""

    def __init__(self, path: str, config: ClusterConfig, hosts: list[Host] | None) -> None:
        self.path = path
        self.config = config
        self.hosts = hosts

    def plain(self) -> Plain:
        config = self.config
        configured = [_configured(endpoint) for endpoint in config.endpoints]
        hosts = configured if self.hosts is None else [_running(host) for host in self.hosts]
        return {
            "name": config.name,
            "path": self.path,
            "lb_policy": _POLICIES[config.lb.policy] if config.lb.extension is None else "PYTHON",
            "hosts": hosts,
            "hosts_are": "configured" if self.hosts is None else "live",
        }

    def hash_of(self, route: Route, headers: HeaderMap, info: StreamInfo) -> int | None:
        """The hash by which a host is chosen; None where none is asked for, or the request has none."""
        policy = self.config.lb.hash_policy or route.hash_policy
        if not self.config.lb.takes_hash or policy is None:
            return None
        found = policy.hash(headers, info, None)
        return None if found == NO_HASH else found


def _configured(endpoint: EndpointConfig) -> Plain:
    host = Host(endpoint.address, endpoint.hostname, endpoint.priority, endpoint.locality)
    host.weight = endpoint.weight
    host.health_flags = endpoint.health_flags
    shown = _running(host)
    if endpoint.dns_name:
        shown["address"] = f"{endpoint.dns_name}:{endpoint.address.port}"
        shown["resolved"] = False
    return shown


def _running(host: Host) -> Plain:
    zone = "/".join(part for part in host.locality.key if part)
    return {
        "address": host.address.text,
        "hostname": host.hostname,
        "health": host.health_flag_names(),
        "healthy": host.healthy,
        "weight": host.weight,
        "priority": host.priority,
        "locality": zone,
    }


def split_plain(weighted: WeightedRoutes, taken: Route, headers: HeaderMap, info: StreamInfo) -> Plain:
    """The clusters of a split, their shares, and by what this request takes one of them."""
    weights = weighted.current_weights()
    total = sum(weights) or 1
    number = weighted.number(headers, info)
    return {
        "method": "rendezvous" if weighted.seeds else "intervals",
        "decided_by": _decided_by(weighted, number),
        "sticky": number != NO_HASH,
        "number": None if number == NO_HASH else number,
        "clusters": [
            {
                "name": cluster_name(route),
                "weight": weight,
                "share": weight / total,
                "taken": route is taken,
            }
            for route, weight in zip(weighted.routes, weights, strict=True)
        ],
    }


def _decided_by(weighted: WeightedRoutes, number: int) -> str:
    if weighted.hash_policy is not None:
        return "the hash policy" if number != NO_HASH else "chance: the hash policy finds nothing in the request"
    if weighted.header_name:
        name = words.text(weighted.header_name)
        return f"header {name}" if number != NO_HASH else f"chance: header {name} has no number"
    return "chance"


def cluster_name(route: Route) -> str:
    """Its name, or where it stands in the request."""
    return route.cluster_name or f"(header {words.text(route.cluster_header)})"
