"""A connection manager that asks a control plane, which is the test."""

from __future__ import annotations

from typing import Any

from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.http.router.v3.router_pb2 import Router
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage

import meshproxy.filters.builtin  # noqa: F401  the filters are registered
from meshproxy.config.context import BuildContext, Services
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.subscription import InitManager
from meshproxy.filters.network.http_connection_manager import HttpNetworkFilter, build_http
from meshproxy.upstream.manager import ClusterManager
from tests.http.harness import Harness, get
from tests.support.subscriptions import FakeSubscriptions

ADS: dict[str, Any] = {"ads": {}}
PREFIX = "type.googleapis.com/envoy.extensions.filters.http."


class Discovered:
    """Listeners' connection managers, built in one process; `subscriptions` is what the control plane sees of them."""

    def __init__(self) -> None:
        self.harness = Harness()
        self.subscriptions = FakeSubscriptions()
        self.clusters = ClusterManager(self.harness.dispatcher, self.harness.registry, self.harness.runtime)

    def new_context(self) -> BuildContext:
        errors = ConfigErrors()
        context = BuildContext(errors, self.harness.runtime, self.harness.registry)
        context.services = Services(self.harness.dispatcher, self.clusters, subscriptions=self.subscriptions)
        context.resource = context.resource_path = "listeners.main"
        return context

    def build(self, **fields: Any) -> tuple[HttpNetworkFilter, BuildContext]:
        """One that has no errors; nobody has started its targets."""
        filters = fields.pop("http_filters", [])
        message = json_format.ParseDict({"stat_prefix": "in", **fields}, HttpConnectionManager())
        for each in filters:
            json_format.ParseDict(each, message.http_filters.add())
        router = AnyMessage()
        router.Pack(Router())
        message.http_filters.add(name="router").typed_config.CopyFrom(router)
        context = self.new_context()
        built = build_http(message, "m", context)
        assert isinstance(built, HttpNetworkFilter), str(context.errors)
        return built, context

    def start(self, context: BuildContext) -> list[str]:
        """Let the listener warm. The list grows when it is warm."""
        warm: list[str] = []
        InitManager(context.init_targets).start(lambda: warm.append("warm"))
        return warm

    def ask(self, built: HttpNetworkFilter, path: str = "/", host: str = "h") -> tuple[int, bytes]:
        """Status and body of the answer to a request on a new connection."""
        answer = self.harness.connect(built.config).send(get(path).replace(b"host: h", b"host: " + host.encode()))
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body

    def stat(self, name: str) -> int:
        snapshot = self.harness.registry.snapshot()
        return {**snapshot.counters, **snapshot.gauges, **snapshot.levels}[name]


def routes(body: str, name: str = "routes", **fields: Any) -> RouteConfiguration:
    """A RouteConfiguration that answers everything with `body`."""
    answer = {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": body}}}
    return route_configuration(name, [{"name": "v", "domains": ["*"], "routes": [answer]}], **fields)


def route_configuration(name: str, virtual_hosts: list[Any], **fields: Any) -> RouteConfiguration:
    return json_format.ParseDict({"name": name, "virtual_hosts": virtual_hosts, **fields}, RouteConfiguration())


def extension(name: str, kind: str, **config: Any) -> TypedExtensionConfig:
    """A TypedExtensionConfig with an HTTP filter: `kind` is `buffer.v3.Buffer` and the like."""
    return json_format.ParseDict(
        {"name": name, "typed_config": {"@type": PREFIX + kind, **config}}, TypedExtensionConfig()
    )
