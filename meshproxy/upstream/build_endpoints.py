"""From a `ClusterLoadAssignment` to endpoints."""

from __future__ import annotations

import ipaddress
from typing import Any, Final

from google.protobuf import json_format

from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.values import int_or, socket_address
from meshproxy.net.address import Address
from meshproxy.upstream.config import EndpointConfig
from meshproxy.upstream.host import EDS_HEALTH_FLAGS, NO_LOCALITY, Locality

_MAX_WEIGHT: Final = 2**32 - 1


def build_endpoints(message: Any, path: str, by_name: bool, errors: ConfigErrors) -> list[EndpointConfig]:
    """The endpoints of all localities; `by_name`: their addresses are names to resolve."""
    endpoints: list[EndpointConfig] = []
    if message.named_endpoints:
        errors.add(child(path, "named_endpoints"), "not supported")
    if message.policy.drop_overloads:
        errors.add(child(child(path, "policy"), "drop_overloads"), "not supported yet")
    for index, group in enumerate(message.endpoints):
        where = item(path, "endpoints", index)
        if group.HasField("leds_cluster_locality_config"):
            errors.add(child(where, "leds_cluster_locality_config"), "not supported")
        locality = _locality(group)
        weights = 0
        for number, lb_endpoint in enumerate(group.lb_endpoints):
            endpoint = _build_endpoint(lb_endpoint, item(where, "lb_endpoints", number), by_name, errors)
            if endpoint is not None:
                endpoint.locality = locality
                endpoint.priority = group.priority
                weights += endpoint.weight
                endpoints.append(endpoint)
        if weights > _MAX_WEIGHT:
            errors.add(where, f"the sum of the weights of a locality must not exceed {_MAX_WEIGHT}")
    _check_priorities(endpoints, message, path, errors)
    return endpoints


def _check_priorities(endpoints: list[EndpointConfig], message: Any, path: str, errors: ConfigErrors) -> None:
    levels = {group.priority for group in message.endpoints}
    for level in range(max(levels, default=0)):
        if level not in levels:
            errors.add(path, f"priorities must not leave gaps: there is no priority {level}")


def _locality(group: Any) -> Locality:
    if not group.HasField("locality"):
        return NO_LOCALITY
    locality = group.locality
    return Locality(locality.region, locality.zone, locality.sub_zone)


def _build_endpoint(message: Any, path: str, by_name: bool, errors: ConfigErrors) -> EndpointConfig | None:
    if message.WhichOneof("host_identifier") != "endpoint":
        errors.add(child(path, "endpoint"), "is required")
        return None
    endpoint = message.endpoint
    where = child(path, "endpoint")
    if endpoint.additional_addresses:
        errors.add(child(where, "additional_addresses"), "not supported")
    address_path = child(where, "address")
    parts = socket_address(endpoint.address, address_path, errors)
    if parts is None:
        return None
    built = _with_address(parts, endpoint.hostname, address_path, by_name, errors)
    if built is not None:
        built.weight = int_or(message, "load_balancing_weight", 1)
        built.health_flags = EDS_HEALTH_FLAGS[message.health_status]
        _add_metadata(built, message)
    return built


def _with_address(
    parts: tuple[str, int] | str, hostname: str, path: str, by_name: bool, errors: ConfigErrors
) -> EndpointConfig | None:
    if isinstance(parts, str):
        if by_name:
            errors.add(path, "a Unix socket cannot be resolved: the cluster's type must be STATIC")
            return None
        return EndpointConfig(Address("", 0, parts), "", hostname)
    name, port = parts
    if by_name:
        return EndpointConfig(Address(name, port), name, hostname)
    try:
        ip = str(ipaddress.ip_address(name))
    except ValueError:
        errors.add(path, f"malformed IP address: {name}. Consider setting the cluster's type to STRICT_DNS")
        return None
    return EndpointConfig(Address(ip, port), "", hostname)


def _add_metadata(built: EndpointConfig, message: Any) -> None:
    if message.HasField("metadata"):
        fields = message.metadata.filter_metadata
        built.metadata = {name: json_format.MessageToDict(value) for name, value in fields.items()}
        built.canary = built.metadata.get("envoy.lb", {}).get("canary") is True
