"""VHDS: virtual hosts of a discovered route configuration that come by themselves (`vhds` of RouteConfiguration).

The control plane may bring them at any time; a request for a host that nobody knows asks for it (the filter on_demand).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any, Final

from envoy.config.core.v3.config_source_pb2 import ApiConfigSource
from envoy.config.route.v3.route_components_pb2 import VirtualHost
from envoy.config.route.v3.route_pb2 import RouteConfiguration

from meshproxy.config.config_source import ConfigSource, build_config_source
from meshproxy.config.context import BuildContext, Services
from meshproxy.config.errors import ConfigErrors, child
from meshproxy.config.subscription import VIRTUAL_HOST_TYPE, ResourceWatcher, Subscription, SubscriptionStats
from meshproxy.http.filter import HTTP_FILTER_OVERRIDES
from meshproxy.http.manager_config import RoutesRef
from meshproxy.route.build import build_virtual_host, file_domains
from meshproxy.route.table import HostRoutes, RouteTable

_MOST_WAITING: Final = 1_000  # requests that wait for virtual hosts, in one connection manager
_LONGEST_HOST: Final = 261  # bytes: a name of 255, a colon and a port
_ANSWERS_A_STEP: Final = 8  # requests that go on: well below a millisecond


class DiscoveredHost:
    """A virtual host in force. `message` is kept, serialised, since another route configuration has it built anew."""

    def __init__(self, message: bytes, domains: list[bytes], routes: HostRoutes, context: BuildContext) -> None:
        self.message = message
        self.domains = domains
        self.routes = routes
        self.context = context


class HostRequest(ResourceWatcher):
    """A virtual host that a request asked for, watched by its name from then on. `waiting` are told what comes of it."""

    def __init__(self, owner: VirtualHostDiscovery, name: str, host: bytes) -> None:
        self._owner = owner
        self.name = name
        self.host = host
        self.waiting: list[Callable[[bool], None]] = []
        self.subscription: Subscription | None = None

    def update(self, message: Any, version: str, errors: ConfigErrors) -> Iterator[None]:
        yield from self._owner.update_member(self.name, message, version, errors)
        self._owner.answer(self)

    def refused(self) -> None:
        """Nobody knows the host, then."""
        self._owner.answer(self)

    def missing(self) -> None:
        self._owner.missing_member(self.name)
        self._owner.give_up(self)


class VirtualHostDiscovery(ResourceWatcher):
    """The virtual hosts of one route configuration, which are added to `routes.table` as they come.

    It watches `<route configuration>/*`: what the control plane brings unasked. `configuration` is the serialised
    RouteConfiguration in force, without virtual hosts: what it says holds for those that come, too.
    """

    def __init__(
        self, name: str, source: ConfigSource, configuration: bytes, routes: RoutesRef, services: Services
    ) -> None:
        self._name = name
        self.source = source
        self.configuration = configuration
        self._routes = routes
        self._services = services
        self._template: BuildContext | None = None
        self._hosts: dict[str, DiscoveredHost] = {}  # by the resource's name, `<route configuration>/<host>`
        self._changes: int = 0  # of `_hosts`
        self._requests: dict[str, HostRequest] = {}
        self._waiting: int = 0
        self._answers: list[tuple[Callable[[bool], None], bool]] = []
        self._subscription: Subscription | None = None
        self._stopped = False

    def start(self, template: BuildContext) -> None:
        """Take what comes. Builds are like those of `template`."""
        self._template = template
        self.stats = template.scope(f"{template.stat_prefix}vhds.{self._name}.", SubscriptionStats)
        subscriptions = self._services.subscriptions
        self._subscription = subscriptions.watch(self.source, VIRTUAL_HOST_TYPE, f"{self._name}/*", self)

    def stop(self) -> None:
        """The route configuration has no virtual hosts of others any more, or is gone itself."""
        self._stopped = True
        if self._subscription is not None:
            self._subscription.close()
        for request in list(self._requests.values()):
            self.give_up(request)
        for host in self._hosts.values():
            host.context.close()
        self._hosts = {}
