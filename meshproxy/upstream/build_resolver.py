"""From Envoy's ways of describing a DNS resolver to `ResolverSettings`.

There are three: an extension (`typed_dns_resolver_config`), `dns_resolution_config`, and, oldest, `dns_resolvers` with
`use_tcp_for_dns_lookups`. The first of these that is set counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.typed_struct import unpack_any
from meshproxy.config.values import int_or, milliseconds_or
from meshproxy.net.address import Address, is_ip
from meshproxy.net.resolver import ResolverSettings

_DNS_PORT: Final = 53
_TYPES: Final = "envoy.extensions.network.dns_resolver."


def build_resolver(message: Any, path: str, errors: ConfigErrors) -> ResolverSettings | None:
    """The resolver that a Cluster, a DnsCluster or the bootstrap asks for; None where it asks for none.

    An extension that is not there is an error.
    """
    typed = message.typed_dns_resolver_config
    if typed.typed_config.type_url:
        return _build_typed(typed.typed_config, child(child(path, "typed_dns_resolver_config"), "typed_config"), errors)
    fields = message.DESCRIPTOR.fields_by_name
    if "dns_resolution_config" in fields and _counts(message):
        config = message.dns_resolution_config
        return _build_servers(config, child(path, "dns_resolution_config"), errors)
    settings = ResolverSettings()
    if "dns_resolvers" in fields:
        if not message.dns_resolvers:
            return None
        settings.servers = _servers(message.dns_resolvers, path, "dns_resolvers", errors)
        settings.use_tcp = message.use_tcp_for_dns_lookups
        return settings
    if "use_tcp_for_dns_lookups" in fields and message.use_tcp_for_dns_lookups:
        settings.use_tcp = True
        return settings
    return None


def _counts(message: Any) -> bool:
    """Whether `dns_resolution_config` does: a cluster's only when it names servers."""
    if message.DESCRIPTOR.name == "Cluster":
        return len(message.dns_resolution_config.resolvers) > 0
    return bool(message.HasField("dns_resolution_config"))


def _build_typed(any_message: Any, path: str, errors: ConfigErrors) -> ResolverSettings | None:
    message: Any = unpack_any(any_message, path, errors)
    if message is None:
        return None
    name = message.DESCRIPTOR.full_name
    build = _BUILDERS.get(name)
    if build is None:
        errors.add(path, f"{name} is not supported as a DNS resolver (supported: {', '.join(_BUILDERS)})")
        return None
    return build(message, path, errors)


def _build_servers(message: Any, path: str, errors: ConfigErrors) -> ResolverSettings:
    """What c-ares' own configuration and `DnsResolutionConfig` share."""
    settings = ResolverSettings()
    settings.servers = _servers(message.resolvers, path, "resolvers", errors)
    settings.use_tcp = message.dns_resolver_options.use_tcp_for_dns_lookups
    settings.no_default_search_domain = message.dns_resolver_options.no_default_search_domain
    return settings


def _build_cares(message: Any, path: str, errors: ConfigErrors) -> ResolverSettings:
    settings = _build_servers(message, path, errors)
    settings.servers_as_fallback = message.use_resolvers_as_fallback
    settings.filter_unroutable_families = message.filter_unroutable_families
    settings.udp_max_queries = int_or(message, "udp_max_queries", 0)
    settings.max_channel_ms = float(milliseconds_or(message, "max_udp_channel_duration", 0))
    settings.timeout_s = int_or(message, "query_timeout_seconds", settings.timeout_s)
    settings.tries = int_or(message, "query_tries", settings.tries)
    settings.rotate = message.rotate_nameservers
    settings.reinit_on_timeout = message.reinit_channel_on_timeout
    return settings


def _build_getaddrinfo(message: Any, path: str, errors: ConfigErrors) -> ResolverSettings:
    settings = ResolverSettings()
    settings.getaddrinfo = True
    settings.retries = int_or(message, "num_retries", -1)
    settings.threads = int_or(message, "num_resolver_threads", 1)
    return settings


_BUILDERS: Final[dict[str, Callable[[Any, str, ConfigErrors], ResolverSettings]]] = {
    _TYPES + "cares.v3.CaresDnsResolverConfig": _build_cares,
    _TYPES + "getaddrinfo.v3.GetAddrInfoDnsResolverConfig": _build_getaddrinfo,
}


def _servers(addresses: Iterable[Any], path: str, field: str, errors: ConfigErrors) -> tuple[str, ...]:
    servers: list[str] = []
    for index, address in enumerate(addresses):
        where = item(path, field, index)
        if address.WhichOneof("address") != "socket_address":
            errors.add(where, "a DNS resolver needs an IP address")
        elif not is_ip(address.socket_address.address):
            errors.add(child(where, "socket_address"), f"malformed IP address: {address.socket_address.address}")
        else:
            parts = address.socket_address
            servers.append(Address(parts.address, parts.port_value or _DNS_PORT).text)
    return tuple(servers)
