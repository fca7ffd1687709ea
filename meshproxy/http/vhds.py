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
from meshproxy.observe.stats import stat_part
from meshproxy.route.build import build_virtual_host, file_domains
from meshproxy.route.table import HostRoutes, RouteTable

_MOST_WAITING: Final = 1_000  # requests that wait for virtual hosts, in one connection manager
_MOST_UNSERVED: Final = 1_000  # names that were asked for in vain and are kept
_LONGEST_HOST: Final = 261  # bytes: a name of 255, a colon and a port
_ANSWERS_A_STEP: Final = 8  # requests that go on: well below a millisecond


class VirtualHostStats(SubscriptionStats):
    """`http.<stat_prefix>.vhds.<route_config_name>.`"""


class DiscoveredHost:
    """A virtual host in force. `message` is kept, serialised, since another route configuration has it built anew."""

    def __init__(self, message: bytes, domains: list[bytes], routes: HostRoutes, context: BuildContext) -> None:
        self.message = message
        self.domains = domains
        self.routes = routes
        self.context = context


class HostRequest(ResourceWatcher):
    """A virtual host that a request asked for, watched by its name from then on. `waiting` hear what comes of it."""

    def __init__(self, owner: VirtualHostDiscovery, name: str, host: bytes) -> None:
        self.stats = owner.stats
        self._owner = owner
        self.name = name
        self.host = host
        self.brings = not owner.has(name)  # what comes by this name comes because it was asked for
        self.waiting: list[Callable[[bool], None]] = []
        self.subscription: Subscription | None = None

    def update(self, message: Any, version: str, errors: ConfigErrors) -> Iterator[None]:
        yield from self._owner.update_member(self.name, message, version, errors)
        self._owner.on_answer(self)

    def refused(self) -> None:
        """Nobody knows the host, then."""
        self._owner.on_answer(self)

    def missing(self) -> None:
        self._owner.missing_member(self.name)


class CarriedHosts:
    """Virtual hosts that came by themselves, as another configuration has them, with the others in its table."""

    def __init__(self, configuration: bytes, table: RouteTable) -> None:
        self.configuration = configuration
        self.table = table
        self.hosts: dict[str, DiscoveredHost] = {}

    def close(self) -> None:
        """They are not wanted."""
        _close(self.hosts)


class VirtualHostDiscovery(ResourceWatcher):
    """The virtual hosts of one route configuration, which are added to `routes.table` as they come.

    It watches `<route configuration>/*`: what the control plane brings unasked. `configuration` is the serialised
    RouteConfiguration in force, without virtual hosts: what it says holds for those that come, too. `template` is what
    their builds are like. A name that was asked for stays watched, since its host may come or change later; clients
    choose the names, so of those whose answer was refused or is for another host only so many are kept.
    """

    def __init__(
        self,
        name: str,
        source: ConfigSource,
        configuration: bytes,
        routes: RoutesRef,
        services: Services,
        template: BuildContext,
    ) -> None:
        self.source = source
        self.configuration = configuration
        self._context = template.for_part(template.resource, ConfigErrors())
        prefix = f"{template.stat_prefix}vhds.{stat_part(name)}."
        self.stats: VirtualHostStats = self._context.scope(prefix, VirtualHostStats)
        self._name = name
        self._routes = routes
        self._services = services
        self._template = template
        self._hosts: dict[str, DiscoveredHost] = {}  # by the resource's name, `<route configuration>/<host>`
        self._changes: int = 0  # of `_hosts`
        self._requests: dict[str, HostRequest] = {}
        self._unserved: dict[str, None] = {}  # names of requests that were answered in vain, the oldest first
        self._waiting: int = 0
        self._answers: list[tuple[Callable[[bool], None], bool]] = []
        self._subscription: Subscription | None = None
        self._stopped = False

    def start(self) -> None:
        """Take what comes."""
        every = f"{self._name}/*"
        self._subscription = self._services.subscriptions.watch(self.source, VIRTUAL_HOST_TYPE, every, self)
        self._routes.virtual_hosts = self

    def stop(self) -> None:
        """The routes are those of another configuration from now on, or nobody's."""
        self._stopped = True
        if self._routes.virtual_hosts is self:
            self._routes.virtual_hosts = None
        if self._subscription is not None:
            self._subscription.close()
        for request in list(self._requests.values()):
            self._give_up(request)
        _close(self._hosts)
        self._context.close()

    # -- what requests ask for

    def request(self, host: bytes, callback: Callable[[bool], None]) -> bool:
        """As `RoutesRef.request_virtual_host`, which has looked for the host in the table."""
        if self._waiting >= _MOST_WAITING or len(host) > _LONGEST_HOST:
            return False
        name = f"{self._name}/{host.lower().decode('latin-1')}"
        asked = self._requests.get(name)
        if asked is None:
            asked = self._requests[name] = HostRequest(self, name, host)
            asked.subscription = self._services.subscriptions.watch(self.source, VIRTUAL_HOST_TYPE, name, asked)
        elif not asked.waiting:
            return False  # the answer is known: it is not for this host
        asked.waiting.append(callback)
        self._waiting += 1
        return True

    def has(self, name: str) -> bool:
        """Whether a virtual host of this name is in force."""
        return name in self._hosts

    def on_answer(self, asked: HostRequest) -> None:
        """The control plane has answered, be it with another's host, or with what was refused."""
        self.answer(asked)
        self._unserved.pop(asked.name, None)
        if self._requests.get(asked.name) is asked and not self._knows(asked):
            self._unserved[asked.name] = None
            if len(self._unserved) > _MOST_UNSERVED:
                self._forget(next(iter(self._unserved)))

    def _forget(self, name: str) -> None:
        """Nobody wants it, and whoever does later asks again."""
        asked = self._requests[name]
        del self._unserved[name]
        if not self._knows(asked):  # other routes may have it by now
            self._give_up(asked)
            if asked.brings:
                self._drop(name)

    def answer(self, asked: HostRequest) -> None:
        """Those who wait for it go on, found or not."""
        found = self._knows(asked)
        waiting, asked.waiting = asked.waiting, []
        self._waiting -= len(waiting)
        if waiting and not self._answers:
            self._services.dispatcher.post(self._answer_some)
        self._answers += [(callback, found) for callback in waiting]

    def _answer_some(self) -> None:
        some, self._answers = self._answers[:_ANSWERS_A_STEP], self._answers[_ANSWERS_A_STEP:]
        if self._answers:
            self._services.dispatcher.post(self._answer_some)
        for callback, found in some:
            callback(found)

    def _answer_found(self) -> None:
        """A host came that others may wait for by another name, an alias."""
        for asked in list(self._requests.values()):
            if asked.waiting and self._knows(asked):
                self.answer(asked)

    def _knows(self, asked: HostRequest) -> bool:
        table = self._routes.table
        return table is not None and table.find_name(asked.host) is not None

    def _give_up(self, asked: HostRequest) -> None:
        """Nobody has the host: whoever wants it later asks again."""
        del self._requests[asked.name]
        self._unserved.pop(asked.name, None)
        if asked.subscription is not None:
            asked.subscription.close()
        self.answer(asked)

    # -- what comes

    def update_member(self, name: str, message: Any, version: str, errors: ConfigErrors) -> Iterator[None]:
        """Take a virtual host, by the name of its resource. With errors, all stays as it was."""
        while True:
            configuration = self.configuration
            made = yield from self._build(configuration, message, errors)
            if made is None:
                return
            if configuration == self.configuration:
                break
            made.context.close()  # other routes came meanwhile
        self._take(name, made, message, errors)

    def _take(self, name: str, made: DiscoveredHost, message: Any, errors: ConfigErrors) -> None:
        table = self._copy_without(name)
        if table is None or self._stopped:
            made.context.close()
            return
        _add(table, made, message, errors)
        if errors:
            made.context.close()
            return
        old = self._hosts.get(name)
        self._hosts[name] = made
        self._set(table)
        made.context.take_effect()
        if old is not None:
            old.context.close()
        self._answer_found()

    def missing_member(self, name: str) -> None:
        """A virtual host was removed, or does not exist."""
        self._drop(name)
        asked = self._requests.get(name)
        if asked is not None and not self._knows(asked):  # it may be known by an alias
            self._give_up(asked)

    def _drop(self, name: str) -> None:
        table = self._copy_without(name)
        held = self._hosts.pop(name, None)
        if held is not None:
            held.context.close()
            if table is not None:
                self._set(table)

    def missing(self) -> None:
        """Nothing came unasked, which says nothing."""

    def _copy_without(self, name: str) -> RouteTable | None:
        """The table in force, for a change, less the host that is to be replaced or removed."""
        if self._routes.table is None:
            return None
        table = self._routes.table.copy()
        held = self._hosts.get(name)
        if held is not None:
            table.remove(held.routes, held.domains)
        return table

    def _set(self, table: RouteTable) -> None:
        table.seal()
        self._routes.table = table
        self._changes += 1
        self.stats.config_reload += self._services.subscriptions.counts

    def _build(
        self, configuration: bytes, message: Any, errors: ConfigErrors
    ) -> Generator[None, None, DiscoveredHost | None]:
        context = self._template.for_part(f"{self._template.resource}.{message.name}", errors)
        common = RouteConfiguration.FromString(configuration)
        try:
            routes, named = yield from build_virtual_host(common, message, context, HTTP_FILTER_OVERRIDES)
        except BaseException:
            context.close()
            raise
        if named.validate_clusters and not errors:
            check_clusters(named, self._services.clusters, errors)
        if errors:
            context.close()
            return None
        domains = [domain.lower().encode() for domain in message.domains]
        return DiscoveredHost(message.SerializeToString(), domains, routes, context)

    # -- another route configuration

    def carry_over(
        self, configuration: bytes, base: RouteTable, errors: ConfigErrors
    ) -> Generator[None, None, CarriedHosts | None]:
        """All hosts in force, built anew as `configuration` has it, in a copy of its table, `base`. None with errors.
        What it returns is to be taken over, or closed, in the same step."""
        while True:
            changes = self._changes
            carried = CarriedHosts(configuration, base.copy())
            try:
                yield from self._carry(carried, errors)
            except BaseException:
                carried.close()
                raise
            if errors:
                carried.close()
                return None
            if changes == self._changes:
                carried.table.seal()
                return carried
            carried.close()

    def _carry(self, carried: CarriedHosts, errors: ConfigErrors) -> Iterator[None]:
        for name, old in list(self._hosts.items()):
            message = VirtualHost.FromString(old.message)
            own = ConfigErrors()
            made = yield from self._build(carried.configuration, message, own)
            if made is not None:
                carried.hosts[name] = made
                _add(carried.table, made, message, own)
            if own:
                errors.add("vhds", f"with the virtual host {name}: {own}")
                return
            yield

    def take_over(self, carried: CarriedHosts) -> None:
        """The table with these hosts is in force."""
        old, self._hosts = self._hosts, carried.hosts
        self.configuration = carried.configuration
        self._changes += 1
        for host in self._hosts.values():
            host.context.take_effect()
        _close(old)
        self._answer_found()


def _add(table: RouteTable, made: DiscoveredHost, message: Any, errors: ConfigErrors) -> None:
    table.virtual_hosts.append(made.routes)
    file_domains(table, made.routes, message.domains, "", errors)


def _close(hosts: dict[str, DiscoveredHost]) -> None:
    for host in hosts.values():
        host.context.close()
    hosts.clear()


def build_source(message: Any, context: BuildContext) -> ConfigSource | None:
    """Where a RouteConfiguration that has `vhds` says that its virtual hosts come from; None with errors."""
    path = child("vhds", "config_source")
    source = message.vhds.config_source
    kind = source.WhichOneof("config_source_specifier")
    if kind not in ("ads", "self", "api_config_source"):
        context.errors.add(path, "virtual hosts come by a stream (delta), not from files")
        return None
    if kind == "api_config_source" and source.api_config_source.api_type != ApiConfigSource.DELTA_GRPC:
        context.errors.add(child(path, "api_config_source.api_type"), "virtual hosts come by DELTA_GRPC only")
        return None
    return build_config_source(source, path, context)


def without_hosts(message: Any) -> bytes:
    """A RouteConfiguration but for its virtual hosts, serialised."""
    rest = RouteConfiguration()
    for field, value in message.ListFields():
        if field.name == "virtual_hosts":
            continue
        if field.is_repeated:
            getattr(rest, field.name).MergeFrom(value)
        elif field.message_type is not None:
            getattr(rest, field.name).CopyFrom(value)
        else:
            setattr(rest, field.name, value)
    return bytes(rest.SerializeToString(deterministic=True))


def check_clusters(table: RouteTable, clusters: Any, errors: ConfigErrors) -> None:
    """A cluster that is not there is an error where the routes want that checked (`validate_clusters`); by default it
    is one of the requests."""
    known = {cluster.config.name for cluster in (*clusters.clusters(), *clusters.warming())}
    for name, path in table.check_clusters(known.__contains__):
        errors.add(path, f"unknown cluster {name!r}")
