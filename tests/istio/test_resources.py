"""What a default sidecar of Istio is sent: it is taken as it is, and what is not done of it is told."""

from __future__ import annotations

from typing import Any

import pytest

from meshproxy.config.context import BuildContext, Services
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.fields import check_fields
from meshproxy.config.runtime import Runtime
from meshproxy.config.subscription import ROUTE_TYPE, SECRET_TYPE
from meshproxy.config.validate import validate_message
from meshproxy.http.filter import HTTP_FILTER_OVERRIDES
from meshproxy.net.address import Address
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.observe.stats import StatsRegistry
from meshproxy.route.build import build_route_configuration
from meshproxy.server.listener_config import build_listener
from meshproxy.upstream.build import build_cluster
from tests.http.harness import FakeLoop
from tests.istio.golden import resources
from tests.support.subscriptions import FakeSubscriptions

FILES = [
    ("client", "clusters"),
    ("client", "listeners"),
    ("client", "routes"),
    ("client", "endpoints"),
    ("server", "clusters"),
    ("server", "listeners"),
]
ALL = [(proxy, kind, name) for proxy, kind in FILES for name in resources(proxy, kind)]
# Clusters whose connections must not be redirected again; whose routes are watched; how many chains there are.
LED_ON = ("inbound|9080||", "inbound|3306||", "InboundPassthroughCluster")
ROUTES_OF = {"0.0.0.0_9080": ["9080"], "0.0.0.0_80": ["80"], "10.96.0.11_7000": ["9080"]}
CHAINS = {"virtualInbound": 13, "virtualOutbound": 2, "0.0.0.0_9080": 2, "0.0.0.0_80": 2, "10.96.0.11_7000": 2}
METRICS = "Istio's metrics are not recorded"


@pytest.mark.parametrize(("proxy", "kind", "name"), ALL)
def test_it_is_accepted_and_only_istios_metrics_are_not_done(proxy: str, kind: str, name: str) -> None:
    message = resources(proxy, kind)[name]
    errors = ConfigErrors()
    not_yet = check_fields(message, "", errors, lenient=True)
    validate_message(message, "", errors)
    assert str(errors) == ""
    assert {note for _, note in not_yet} == ({METRICS} if kind == "listeners" else set())
    assert all("filters" in path for path, _ in not_yet)


class Building:
    """A context for one resource, with a control plane that says nothing by itself."""

    def __init__(self) -> None:
        self.errors = ConfigErrors()
        self.subscriptions = FakeSubscriptions()
        self.context = BuildContext(self.errors, Runtime(), StatsRegistry())
        self.context.services = Services(Dispatcher(FakeLoop()), None, subscriptions=self.subscriptions)

    def ready_for(self, message: Any) -> Any:
        """The message as builders get it."""
        check_fields(message, "", self.errors, lenient=True)
        assert not self.errors, str(self.errors)
        return message

    def done(self) -> None:
        """All that it waits for is asked for."""
        assert not self.errors, str(self.errors)
        for target in self.context.init_targets:
            target.start(lambda: None)


@pytest.mark.parametrize("name", resources("client", "clusters"))
def test_a_cluster_of_the_client(name: str) -> None:
    building = Building()
    config = build_cluster(building.ready_for(resources("client", "clusters")[name]), "", building.context)
    building.done()
    assert config is not None
    mutual = name.endswith("details.shop.svc.cluster.local")
    assert len(config.transports.matches) == (2 if mutual else 0)
    assert set(building.subscriptions.names(SECRET_TYPE)) == ({"default", "ROOTCA"} if mutual else set())


@pytest.mark.parametrize("name", resources("server", "clusters"))
def test_a_cluster_of_the_server(name: str) -> None:
    building = Building()
    config = build_cluster(building.ready_for(resources("server", "clusters")[name]), "", building.context)
    building.done()
    assert config is not None
    comes_from = None if config.sources is None else config.sources.to(Address("10.50.0.2", 1)).address
    assert (comes_from.ip if comes_from is not None else None) == ("127.0.0.6" if name in LED_ON else None)


@pytest.mark.parametrize(("proxy", "name"), [(p, name) for p, kind, name in ALL if kind == "listeners"])
def test_a_listener(proxy: str, name: str) -> None:
    building = Building()
    config = build_listener(building.ready_for(resources(proxy, "listeners")[name]), "", building.context)
    building.done()
    assert config is not None
    assert building.subscriptions.names(ROUTE_TYPE) == ROUTES_OF.get(name, [])
    assert len(config.all_chains()) == CHAINS.get(name, 1)
    encrypted = [chain for chain in config.all_chains() if chain.transport is not None]
    assert len(encrypted) == (5 if name == "virtualInbound" else 0)
    assert config.socket.binds is name.startswith("virtual")


@pytest.mark.parametrize("name", resources("client", "routes"))
def test_routes(name: str) -> None:
    building = Building()
    message = building.ready_for(resources("client", "routes")[name])
    assert build_route_configuration(message, "", building.context, HTTP_FILTER_OVERRIDES) is not None
    building.done()
