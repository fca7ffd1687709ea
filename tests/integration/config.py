"""Bootstraps of the integration tests: small pieces that are put together as dictionaries and written as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]
_UPSTREAM = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_TYPES = "type.googleapis.com/envoy.extensions.filters"


def address(port: int = 0, host: str = "127.0.0.1") -> Json:
    """A TCP address."""
    return {"socket_address": {"address": host, "port_value": port}}


def pipe(path: str) -> Json:
    """The address of a Unix socket."""
    return {"pipe": {"path": path}}


def forward(prefix: str, cluster: str, **action: Any) -> Json:
    """A route to a cluster."""
    return {"match": {"prefix": prefix}, "route": {"cluster": cluster, **action}}


def direct(prefix: str, body: str, status: int = 200) -> Json:
    """A route that answers by itself."""
    return {"match": {"prefix": prefix}, "direct_response": {"status": status, "body": {"inline_string": body}}}


def header_filter(name: str, value: str) -> Json:
    """An HTTP filter that adds a response header."""
    mutation = {"append": {"header": {"key": name, "value": value}}}
    return {
        "name": f"header.{name}",
        "typed_config": {
            "@type": f"{_TYPES}.http.header_mutation.v3.HeaderMutation",
            "mutations": {"response_mutations": [mutation]},
        },
    }


ROUTER: Json = {"name": "router", "typed_config": {"@type": f"{_TYPES}.http.router.v3.Router"}}


def listener(
    name: str,
    routes: Sequence[Json],
    *,
    at: Json | None = None,
    filters: Sequence[Json] = (),
    manager: Json | None = None,
    **fields: Any,
) -> Json:
    """A listener with one HTTP filter chain; `manager` are fields of its HttpConnectionManager."""
    connection_manager = {
        "@type": f"{_TYPES}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "route_config": {
            "name": f"{name}-routes",
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": list(routes)}],
        },
        "http_filters": [*filters, ROUTER],
        **(manager or {}),
    }
    chain = {"filters": [{"name": "http", "typed_config": connection_manager}]}
    return {"name": name, "address": at or address(), "filter_chains": [chain], **fields}


def cluster(name: str, *endpoints: int | str, **fields: Any) -> Json:
    """A static cluster; an endpoint is a port of loopback, or the path of a Unix socket."""
    hosts = [
        {"endpoint": {"address": address(endpoint) if isinstance(endpoint, int) else pipe(endpoint)}}
        for endpoint in endpoints
    ]
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": hosts}]},
        **fields,
    }


def http2_cluster(common: Json | None = None, **http2: Any) -> Json:
    """Fields of a cluster whose upstream speaks HTTP/2; `http2` are those of its Http2ProtocolOptions."""
    more = {} if common is None else {"common_http_protocol_options": common}
    return protocol(explicit_http_config={"http2_protocol_options": http2}, **more)


def protocol(**config: Any) -> Json:
    """Fields of a cluster: its HttpProtocolOptions."""
    options = {"@type": f"type.googleapis.com/{_UPSTREAM}", **config}
    return {"typed_extension_protocol_options": {_UPSTREAM: options}}


def bootstrap(listeners: Sequence[Json], clusters: Sequence[Json] = (), **fields: Any) -> str:
    """The whole file."""
    return json.dumps(
        {
            "admin": {"address": address()},
            "static_resources": {"listeners": list(listeners), "clusters": list(clusters)},
            **fields,
        }
    )


def runtime(**values: Any) -> Json:
    """A layered runtime with one static layer, and the admin's; "__" in a name stands for a dot."""
    layer = {name.replace("__", "."): value for name, value in values.items()}
    return {"layers": [{"name": "static", "static_layer": layer}, {"name": "admin", "admin_layer": {}}]}


def tcp_listener(name: str, to: str, *, at: Json | None = None, proxy: Json | None = None, **fields: Any) -> Json:
    """A listener whose connections go on to a cluster as they are; `proxy` are fields of its TcpProxy."""
    config = {"@type": f"{_TYPES}.network.tcp_proxy.v3.TcpProxy", "stat_prefix": name, "cluster": to, **(proxy or {})}
    chain = {"filters": [{"name": "tcp", "typed_config": config}]}
    return {"name": name, "address": at or address(), "filter_chains": [chain], **fields}
