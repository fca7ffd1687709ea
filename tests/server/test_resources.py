"""A bootstrap as resources: what is built anew when it changes, and what stays."""

from __future__ import annotations

from typing import Any

from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap

from meshproxy.config.errors import ConfigErrors
from meshproxy.config.json_message import MessageParser
from meshproxy.config.runtime import Runtime
from meshproxy.observe.stats import StatsRegistry
from meshproxy.server.resources import ResourceBuilder, Resources

CARES = "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig"


def build(previous: Resources | None, errors: ConfigErrors, **fields: Any) -> Resources:
    bootstrap = Bootstrap()
    clusters = [{"name": "c", "type": "STRICT_DNS"}]
    MessageParser(errors).fill(bootstrap, {"static_resources": {"clusters": clusters}, **fields}, "")
    stats = StatsRegistry()
    return ResourceBuilder(bootstrap, previous, Runtime(stats=stats), stats, errors).build()


def with_server(address: str) -> dict[str, Any]:
    servers = [{"socket_address": {"address": address, "port_value": 53}}]
    return {"typed_dns_resolver_config": {"name": "any", "typed_config": {"@type": CARES, "resolvers": servers}}}


def test_another_resolver_of_the_bootstrap_makes_the_clusters_anew() -> None:
    errors = ConfigErrors()
    first = build(None, errors, **with_server("10.0.0.1"))
    same = build(first, errors, **with_server("10.0.0.1"))
    other = build(first, errors, **with_server("10.0.0.2"))
    assert not errors
    built = [resources.clusters["c"].built for resources in (first, same, other)]
    assert [config is None for config in built] == [False, True, False]
    assert built[0] is not None
    assert built[2] is not None
    assert [config.dns.resolver.servers for config in (built[0], built[2])] == [("10.0.0.1:53",), ("10.0.0.2:53",)]
    assert built[0].fingerprint != built[2].fingerprint


def test_errors_of_the_bootstraps_resolver() -> None:
    errors = ConfigErrors()
    build(None, errors, **with_server("nobody"))
    assert [error.path for error in errors.items] == [
        "typed_dns_resolver_config.typed_config.resolvers[0].socket_address"
    ]
