"""The filter on_demand: requests wait for their cluster, or their virtual host. Answers are those of Envoy 1.40."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.route.v3.route_components_pb2 import VirtualHost
from google.protobuf import json_format

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.subscription import CLUSTER_TYPE, ROUTE_TYPE, VIRTUAL_HOST_TYPE
from meshproxy.filters.network.http_connection_manager import HttpNetworkFilter
from meshproxy.upstream.build import build_cluster
from tests.http.discovery import ADS, PREFIX, Discovered, route_configuration
from tests.http.harness import Downstream, get

KIND = PREFIX + "on_demand.v3."
ODCDS = {"odcds": {"source": ADS, "timeout": "2s"}}
TO_CLUSTER: dict[str, Any] = {"match": {"prefix": "/"}, "route": {"cluster_header": "x-cluster"}}
NO_HOST = b"no healthy upstream"  # of a cluster that is there, and empty


class Proxy(Discovered):
    """With the filter, and routes to a cluster that the request names."""

    def with_routes(self, config: dict[str, Any], *virtual_hosts: dict[str, Any], **fields: Any) -> HttpNetworkFilter:
        filters = [{"name": "on_demand", "typed_config": {"@type": KIND + "OnDemand", **config}}]
        routes = {"name": "routes", "virtual_hosts": list(virtual_hosts), "validate_clusters": False, **fields}
        built, _ = self.build(route_config=routes, http_filters=filters)
        return built

    def deliver(self, name: str) -> None:
        """A cluster without hosts, as the server does it."""
        message = Cluster(name=name)
        context = BuildContext(ConfigErrors(), self.harness.runtime, self.harness.registry)
        config = build_cluster(message, "", context)
        assert config is not None
        self.clusters.add_or_update(config)
        self.subscriptions.deliver(CLUSTER_TYPE, name, message)

    def request(self, built: HttpNetworkFilter, cluster: str = "c") -> tuple[Downstream, bytes]:
        """A connection, and what came back so far."""
        self.harness.clusters = self.clusters
        downstream = self.harness.connect(built.config)
        return downstream, downstream.send(get("/", ("x-cluster", cluster)))


def any_host(**fields: Any) -> dict[str, Any]:
    return {"name": "v", "domains": ["*"], "routes": [{**TO_CLUSTER, **fields}]}


@pytest.fixture
def proxy() -> Proxy:
    return Proxy()


def test_a_request_waits_for_its_cluster(proxy: Proxy) -> None:
    built = proxy.with_routes(ODCDS, any_host())
    downstream, answer = proxy.request(built)
    assert (answer, proxy.subscriptions.names(CLUSTER_TYPE)) == (b"", ["c"])
    proxy.deliver("c")
    assert downstream.received().endswith(NO_HOST)
    assert proxy.request(built)[1].endswith(NO_HOST)  # the next one does not wait
    assert proxy.stat("http.in.no_cluster") == 0


def test_without_a_cluster_it_is_503(proxy: Proxy) -> None:
    built = proxy.with_routes(ODCDS, any_host())
    downstream, _ = proxy.request(built)
    proxy.subscriptions.miss(CLUSTER_TYPE, "c")
    answer = downstream.received()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert not answer.endswith(NO_HOST)
    assert proxy.stat("http.in.no_cluster") == 1


def test_it_waits_only_so_long(proxy: Proxy) -> None:
    built = proxy.with_routes(ODCDS, any_host())
    downstream, _ = proxy.request(built)
    proxy.harness.advance(1900)
    assert downstream.received() == b""
    proxy.harness.advance(200)
    assert downstream.received().startswith(b"HTTP/1.1 503 ")


def test_a_client_that_leaves_waits_no_longer(proxy: Proxy) -> None:
    built = proxy.with_routes(ODCDS, any_host())
    downstream, _ = proxy.request(built)
    downstream.leave()
    proxy.deliver("c")
    assert proxy.stat("http.in.rq_total") == 0


def test_without_odcds_and_without_a_name_nobody_is_asked(proxy: Proxy) -> None:
    assert proxy.request(proxy.with_routes({}, any_host()))[1].startswith(b"HTTP/1.1 503 ")
    assert proxy.request(proxy.with_routes(ODCDS, any_host()), "")[1].startswith(b"HTTP/1.1 503 ")
    assert proxy.subscriptions.watches == []


@pytest.mark.parametrize(("own", "asked"), [(ODCDS, ["c"]), ({}, [])])
def test_a_route_may_say_otherwise(proxy: Proxy, own: dict[str, Any], asked: list[str]) -> None:
    config = {"on_demand": {"@type": KIND + "PerRouteConfig", **own}}
    built = proxy.with_routes({} if own else ODCDS, any_host(typed_per_filter_config=config))
    proxy.request(built)
    assert proxy.subscriptions.names(CLUSTER_TYPE) == asked


def test_a_virtual_host_and_then_its_cluster(proxy: Proxy) -> None:
    filters = [{"name": "on_demand", "typed_config": {"@type": KIND + "OnDemand", **ODCDS}}]
    built, context = proxy.build(rds={"route_config_name": "routes", "config_source": ADS}, http_filters=filters)
    proxy.start(context)
    proxy.subscriptions.deliver(ROUTE_TYPE, "routes", route_configuration("routes", [], vhds={"config_source": ADS}))
    downstream, answer = proxy.request(built)
    assert (answer, proxy.subscriptions.names(VIRTUAL_HOST_TYPE)) == (b"", ["routes/*", "routes/h"])
    host = json_format.ParseDict({**any_host(), "name": "h", "domains": ["h"]}, VirtualHost())
    proxy.subscriptions.deliver(VIRTUAL_HOST_TYPE, "routes/h", host)
    assert (downstream.received(), proxy.subscriptions.names(CLUSTER_TYPE)) == (b"", ["c"])
    proxy.deliver("c")
    assert downstream.received().endswith(NO_HOST)
