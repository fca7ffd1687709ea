"""Building route tables and requests in tests."""

from __future__ import annotations

from typing import Any

import yaml
from envoy.config.route.v3 import route_pb2

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.json_message import MessageParser
from meshproxy.config.registry import Registry
from meshproxy.config.runtime import Runtime
from meshproxy.net.address import Address
from meshproxy.observe.stats import StatsRegistry
from meshproxy.observe.stream_info import ConnectionInfo, StreamInfo
from meshproxy.route.build import OverrideBuilder, build_route_configuration
from meshproxy.route.table import RouteTable

Fields = list[tuple[str, str]]


def new_context() -> BuildContext:
    """A context whose runtime is empty."""
    return BuildContext(ConfigErrors(), Runtime(), StatsRegistry())


def try_build(config: Any, context: BuildContext | None = None) -> tuple[RouteTable | None, list[str]]:
    """The table of a RouteConfiguration (YAML text, or its parsed tree), and the errors."""
    context = context or new_context()
    tree = yaml.safe_load(config) if isinstance(config, str) else config
    message = route_pb2.RouteConfiguration()
    MessageParser(context.errors).fill(message, tree, "route_config")
    overrides: Registry[OverrideBuilder] = Registry("per-route filter configuration")
    table = build_route_configuration(message, "route_config", context, overrides)
    return table, [str(error) for error in context.errors.items]


def build(config: Any, context: BuildContext | None = None) -> RouteTable:
    """The table of a RouteConfiguration that has no errors."""
    table, errors = try_build(config, context)
    assert table is not None, errors
    return table


def build_routes(routes: str) -> RouteTable:
    """A table of one virtual host for every domain; `routes` is a YAML list."""
    host = {"name": "all", "domains": ["*"], "routes": yaml.safe_load(routes)}
    return build({"name": "test", "virtual_hosts": [host]})


def new_headers(
    path: str | None = "/", authority: str = "test.example", method: str = "GET", fields: Fields | None = None
) -> HeaderMap:
    """A request as the connection manager hands it on."""
    headers = HeaderMap([(b":method", method.encode()), (b":authority", authority.encode())])
    if path is not None:
        headers.add(b":path", path.encode())
    proto = dict(fields or []).get("x-forwarded-proto", "http").encode()
    headers.add(b":scheme", proto)
    headers.add(b"x-forwarded-proto", proto)
    for name, value in fields or []:
        if name != "x-forwarded-proto":
            headers.add(name.lower().encode(), value.encode("latin-1"))
    return headers


def new_info(headers: HeaderMap) -> StreamInfo:
    """The stream of a plaintext request."""
    address = Address("127.0.0.1", 1)
    info = StreamInfo(ConnectionInfo(1, address, address), 1.0)
    info.request_headers = headers
    return info
