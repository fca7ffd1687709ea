"""From a `ClusterLoadAssignment` to endpoints."""

from __future__ import annotations

import ipaddress
from typing import Any, Final

from google.protobuf import json_format

from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.values import int_or, socket_address
from meshproxy.net.address import Address
from meshproxy.upstream.config import LOGICAL_DNS, STRICT_DNS, EndpointConfig
from meshproxy.upstream.host import EDS_HEALTH_FLAGS, NO_LOCALITY, Locality

_PROXY_TLVS: Final = "envoy.transport_sockets.proxy_protocol"  # TLVs of this endpoint's PROXY protocol headers
MAX_WEIGHT: Final = 2**32 - 1


def build_endpoints(message: Any, path: str, discovery: int, errors: ConfigErrors) -> list[EndpointConfig]:
    """The endpoints of all localities; `discovery` says whether their addresses are names to resolve."""
    by_name = discovery in (STRICT_DNS, LOGICAL_DNS)
    endpoints: list[EndpointConfig] = []
    if message.named_endpoints:
        errors.add(child(path, "named_endpoints"), "not supported")
    for index, group in enumerate(message.endpoints):
        where = item(path, "endpoints", index)
        if group.HasField("leds_cluster_locality_config"):
            errors.add(child(where, "leds_cluster_locality_config"), "not supported")
        locality = build_locality(group)
        metadata = filter_metadata(group)
        weights = 0
        for number, lb_endpoint in enumerate(group.lb_endpoints):
            endpoint = build_endpoint(lb_endpoint, item(where, "lb_endpoints", number), by_name, errors)
            if endpoint is not None:
                endpoint.locality = locality
                endpoint.priority = 0 if discovery == LOGICAL_DNS else group.priority  # its only host, as in Envoy
                endpoint.locality_metadata = metadata
                weights += endpoint.weight
                endpoints.append(endpoint)
        if weights > MAX_WEIGHT:
            errors.add(where, f"the sum of the weights of a locality must not exceed {MAX_WEIGHT}")
    if discovery != LOGICAL_DNS:
        _check_priorities(message, path, errors)
    return endpoints


def _check_priorities(message: Any, path: str, errors: ConfigErrors) -> None:
    levels = {group.priority for group in message.endpoints}
    for level in range(max(levels, default=0)):
        if level not in levels:
            errors.add(path, f"priorities must not leave gaps: there is no priority {level}")


def build_locality(group: Any) -> Locality:
    """Of a LocalityLbEndpoints."""
    if not group.HasField("locality"):
        return NO_LOCALITY
    locality = group.locality
    weight = int_or(group, "load_balancing_weight", 0)
    return Locality(locality.region, locality.zone, locality.sub_zone, weight)


def build_endpoint(message: Any, path: str, by_name: bool, errors: ConfigErrors) -> EndpointConfig | None:
    """One LbEndpoint, but for what its locality says; None after errors. `by_name`: its address is to be resolved."""
    if message.WhichOneof("host_identifier") != "endpoint":
        errors.add(child(path, "endpoint"), "is required")
        return None
    endpoint = message.endpoint
    where = child(path, "endpoint")
    address_path = child(where, "address")
    parts = socket_address(endpoint.address, address_path, errors)
    if parts is None:
        return None
    if _PROXY_TLVS in message.metadata.typed_filter_metadata:
        errors.add(child(child(path, "metadata"), f"typed_filter_metadata[{_PROXY_TLVS}]"), "is not supported yet")
    built = _with_address(parts, endpoint.hostname, address_path, by_name, errors)
    if built is not None:
        _add_addresses(built, endpoint, where, by_name, errors)
        built.weight = int_or(message, "load_balancing_weight", 1)
        built.health_flags = EDS_HEALTH_FLAGS[message.health_status]
        _add_metadata(built, message)
    return built


def _add_addresses(built: EndpointConfig, endpoint: Any, path: str, by_name: bool, errors: ConfigErrors) -> None:
    """Further addresses of the host, which Envoy does not look at where addresses come from DNS."""
    if by_name:
        if endpoint.additional_addresses:
            errors.warn(child(path, "additional_addresses"), "takes no effect, as in Envoy: the addresses are DNS's")
        return
    more: list[Address] = []
    for index, entry in enumerate(endpoint.additional_addresses):
        where = child(item(path, "additional_addresses", index), "address")
        parts = socket_address(entry.address, where, errors)
        address = None if parts is None else _with_address(parts, "", where, False, errors)
        if address is not None:
            more.append(address.address)
    if more:
        built.set_more(more)


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


def filter_metadata(message: Any) -> dict[str, Any] | None:
    """`metadata.filter_metadata` as plain values; None where there is no metadata."""
    if not message.HasField("metadata"):
        return None
    fields = message.metadata.filter_metadata
    return {name: json_format.MessageToDict(value) for name, value in fields.items()}


def _add_metadata(built: EndpointConfig, message: Any) -> None:
    built.metadata = filter_metadata(message)
    if built.metadata is not None:
        built.canary = built.metadata.get("envoy.lb", {}).get("canary") is True
