"""Bootstraps that leave their resources to a control plane, and those resources as messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from google.protobuf import json_format

import meshproxy.filters.builtin
from tests.integration.config import Json, address, bootstrap, http2_cluster, listener

_BUILTIN = meshproxy.filters.builtin  # its messages are known by their names
ADS: Json = {"ads": {}, "resource_api_version": "V3"}


def ads_bootstrap(port: int, *, delta: bool = False, sources: Json | None = None, **fields: Any) -> str:
    """Everything comes from the control plane at `port`, on one aggregated stream; `sources` replaces some of it."""
    xds: Json = {
        "name": "xds",
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": {
            "cluster_name": "xds",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(port)}}]}],
        },
        **http2_cluster(),
    }
    dynamic = {
        "ads_config": {
            "api_type": "DELTA_GRPC" if delta else "GRPC",
            "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
        },
        "cds_config": ADS,
        "lds_config": ADS,
        **(sources or {}),
    }
    return bootstrap([], [xds], node={"id": "n", "cluster": "c"}, dynamic_resources=dynamic, **fields)


def rds_listener(name: str, routes: str = "routes", *, manager: Json | None = None, **fields: Any) -> Any:
    """A listener whose routes are a resource of their own; `manager` are fields of its HttpConnectionManager."""
    manager = {"rds": {"route_config_name": routes, "config_source": ADS}, **(manager or {})}
    made = listener(name, [], manager=manager, **fields)
    del made["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]
    return message(Listener, made)


def route_configuration(name: str, *routes: Json) -> Any:
    """Of one virtual host."""
    hosts = [{"name": "all", "domains": ["*"], "routes": list(routes)}]
    return message(RouteConfiguration, {"name": name, "virtual_hosts": hosts})


def eds_cluster(name: str, **fields: Any) -> Any:
    """A cluster whose endpoints are a resource of their own, under its name."""
    config = {"name": name, "type": "EDS", "connect_timeout": "2s", "eds_cluster_config": {"eds_config": ADS}, **fields}
    return message(Cluster, config)


def assignment(name: str, ports: Sequence[int], **fields: Any) -> Any:
    """Endpoints on loopback, in one locality."""
    endpoints = [{"endpoint": {"address": address(port)}} for port in ports]
    return message(ClusterLoadAssignment, {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}], **fields})


def message(kind: type[Any], content: Json) -> Any:
    """A message from its JSON."""
    return json_format.ParseDict(content, kind())
