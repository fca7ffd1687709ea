"""RDS: a connection manager's routes, from a control plane (`rds` of HttpConnectionManager)."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, ClassVar

from meshproxy.clock import monotonic, wall_time
from meshproxy.config.config_source import ConfigSource, build_config_source
from meshproxy.config.context import BuildContext, Services
from meshproxy.config.errors import ConfigErrors, child
from meshproxy.config.subscription import (
    ROUTE_TYPE,
    InitTarget,
    ResourceWatcher,
    Subscription,
    SubscriptionStats,
)
from meshproxy.http.filter import HTTP_FILTER_OVERRIDES
from meshproxy.http.manager_config import RoutesRef
from meshproxy.http.vhds import CarriedHosts, VirtualHostDiscovery, build_source, check_clusters, without_hosts
from meshproxy.observe.stats import stat_part
from meshproxy.route.build import build_route_configuration
from meshproxy.route.table import RouteTable


class RouteDiscoveryStats(SubscriptionStats):
    """`http.<stat_prefix>.rds.<route_config_name>.`"""

    LEVELS: ClassVar = (*SubscriptionStats.LEVELS, "config_reload_time_ms")

    def __init__(self) -> None:
        super().__init__()
        self.config_reload_time_ms = 0  # when the routes last changed: milliseconds since the epoch

    def reloaded(self, counts: bool) -> None:
        """The routes are others."""
        self.config_reload += counts
        self.config_reload_time_ms = int(wall_time(monotonic()) * 1000.0)


class RouteDiscovery(InitTarget, ResourceWatcher):
    """Keeps `routes.table` what the control plane says.

    Until its first answer the listener warms. Without one there are no routes: requests are answered 404. A table is
    built beside the one in force, whose context gives back what that had acquired when it is replaced.
    """

    def __init__(
        self, name: str, source: ConfigSource, routes: RoutesRef, services: Services, context: BuildContext
    ) -> None:
        super().__init__(f"RdsRouteConfigSubscription init {context.stat_prefix}rds.{name}")
        self.resource_name = name
        self.routes = routes
        self.stats: RouteDiscoveryStats = context.scope(
            f"{context.stat_prefix}rds.{stat_part(name)}.", RouteDiscoveryStats
        )
        self._source = source
        self._services = services
        self._template = context.for_part(f"routes.{name}", ConfigErrors())
        self._template.source = source.key
        self._context: BuildContext | None = None  # of the table in force
        self._virtual_hosts: VirtualHostDiscovery | None = None  # that of the table in force
        self._subscription: Subscription | None = None
        self._stopped = False

    def begin(self) -> None:
        self._subscription = self._services.subscriptions.watch(self._source, ROUTE_TYPE, self.resource_name, self)

    def update(self, message: Any, version: str, errors: ConfigErrors) -> Iterator[None]:
        context = self._template.for_part(self._template.resource, errors)
        old: Iterator[None] | None = None
        try:
            table = yield from self._build(message, context)
            if table is not None:
                old = yield from self._replace(table, message, context)
        except BaseException:
            context.close()
            raise
        if self._context is not context:
            context.close()
        self.set_ready()  # a first answer that is refused ends the waiting too, as in Envoy
        if old is not None:
            yield from old

    def refused(self) -> None:
        """An answer broke the API's rules: a first one ends the waiting."""
        self.set_ready()

    def missing(self) -> None:
        """It did not come in time, or was removed: as Envoy, the routes stay what they are."""
        self.set_ready()

    def stop(self) -> None:
        self._stopped = True
        self._set_virtual_hosts(None)
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None
        if self._context is not None:
            self._context.close()
            self._context = None

    def _build(self, message: Any, context: BuildContext) -> Generator[None, None, RouteTable | None]:
        table = build_route_configuration(message, "", context, HTTP_FILTER_OVERRIDES)
        yield from context.postponed()
        if table is None or context.errors:
            return None
        if table.validate_clusters:
            check_clusters(table, self._services.clusters, context.errors)
        table.referenced.clear()  # nobody asks again
        context.references.clear()
        return None if context.errors else table

    def _replace(
        self, table: RouteTable, message: Any, context: BuildContext
    ) -> Generator[None, None, Iterator[None] | None]:
        """Swap the table in, unless there are errors. Returns the steps that clear the old one away."""
        source = build_source(message, context) if message.HasField("vhds") else None
        running = self._virtual_hosts
        carried: CarriedHosts | None = None
        if running is not None and source is not None and running.source.key == source.key:
            carried = yield from running.carry_over(without_hosts(message), table, context.errors)
        if context.errors or self._stopped:
            if carried is not None:
                carried.close()
            return None
        old = self._put(table if carried is None else carried.table, context)
        if carried is not None and running is not None:
            running.take_over(carried)
        else:
            self._set_virtual_hosts(None if source is None else self._discovery(source, message))
        return old

    def _put(self, table: RouteTable, context: BuildContext) -> Iterator[None]:
        old, old_context = self.routes.table, self._context
        self.routes.table, self._context = table, context
        self.stats.reloaded(self._services.subscriptions.counts)
        context.take_effect()
        return _clear(old, old_context)

    def _discovery(self, source: ConfigSource, message: Any) -> VirtualHostDiscovery:
        configuration = without_hosts(message)
        return VirtualHostDiscovery(
            self.resource_name, source, configuration, self.routes, self._services, self._template
        )

    def _set_virtual_hosts(self, discovery: VirtualHostDiscovery | None) -> None:
        old, self._virtual_hosts = self._virtual_hosts, discovery
        if old is not None:
            old.stop()
        if discovery is not None:
            discovery.start()


def _clear(table: RouteTable | None, context: BuildContext | None) -> Iterator[None]:
    """What nobody uses any more."""
    if context is not None:
        yield from context.close_in_steps()
    if table is not None:
        yield
        yield from table.dismantle()


def build_route_discovery(message: Any, path: str, routes: RoutesRef, context: BuildContext) -> None:
    """From the `Rds` at `path`: a target of the listener's, where there is anybody to ask."""
    source = build_config_source(message.config_source, child(path, "config_source"), context)
    if not message.route_config_name:
        context.errors.add(child(path, "route_config_name"), "value is required")
        return
    services = context.services
    if source is not None and services is not None and services.subscriptions is not None:
        context.init_targets.append(RouteDiscovery(message.route_config_name, source, routes, services, context))
