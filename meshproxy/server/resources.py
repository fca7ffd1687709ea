"""A bootstrap as resources: every cluster and listener built, or every reason why not.

What did not change since the last time is not built again; what did is built beside the old one, and nothing is swapped
before all of it is right.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Generic, TypeVar

from meshproxy.config.context import BuildContext, Services
from meshproxy.config.datasource import ReadFile, file_stamp
from meshproxy.config.errors import ConfigErrors, item
from meshproxy.config.runtime import Layer, Runtime, build_layers
from meshproxy.config.token_buckets import TokenBuckets
from meshproxy.net.address import Address
from meshproxy.net.resolver import ResolverSettings
from meshproxy.observe.stats import StatsRegistry
from meshproxy.server.listener_config import ListenerConfig, build_listener, listener_addresses, listener_name
from meshproxy.tls.context import TlsContext
from meshproxy.upstream.build import build_cluster
from meshproxy.upstream.build_resolver import build_resolver
from meshproxy.upstream.config import ClusterConfig
from meshproxy.upstream.source_address import with_bind_config

T = TypeVar("T")


class Resource(Generic[T]):
    """A named resource: its serialised message, and what was built of it (None: the same as before).

    `references` are the clusters that it names, with the path below the resource's own: they must exist after every
    change. `files` and `tls` are those of its context.
    """

    def __init__(
        self,
        name: str,
        path: str,
        message: bytes,
        built: T | None,
        context: BuildContext | None,
        references: list[tuple[str, str]],
        files: dict[str, ReadFile],
        tls: list[TlsContext],
    ) -> None:
        self.name = name
        self.path = path
        self.message = message
        self.built = built
        self.context = context
        self.references = references
        self.files = files
        self.tls = tls

    def holds(self, message: bytes) -> bool:
        """Whether it is what would be built of this message now."""
        return self.message == message and all(file_stamp(name) in (None, was) for name, (was, _) in self.files.items())


class Resources:
    """What one bootstrap says, ready to be swapped in."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.resolver = ResolverSettings()
        self.clusters: dict[str, Resource[ClusterConfig]] = {}
        self.listeners: dict[str, Resource[ListenerConfig]] = {}

    def built_bytes(self) -> int:
        """The size of the messages that something was built of."""
        clusters = sum(len(one.message) for one in self.clusters.values() if one.context is not None)
        return clusters + sum(len(one.message) for one in self.listeners.values() if one.context is not None)

    def each(self) -> list[Resource[Any]]:
        """Clusters, then listeners."""
        return [*self.clusters.values(), *self.listeners.values()]

    def discard(self) -> None:
        """Not to be used after all: give back what the builds acquired."""
        contexts = [one.context for one in self.clusters.values()] + [one.context for one in self.listeners.values()]
        for context in contexts:
            if context is not None:
                context.close()


class ResourceBuilder:
    """Builds what a bootstrap has that `previous` has not. With errors, the result is only good to be discarded.

    `steps` is run to its end, with other work between its steps: each takes about a millisecond. A message that is
    `broken`, since it does not follow the API's rules, is only built to find more errors.
    """

    def __init__(
        self,
        bootstrap: Any,
        previous: Resources | None,
        runtime: Runtime,
        stats: StatsRegistry,
        errors: ConfigErrors,
        *,
        broken: bool = False,
        ticket_seed: bytes = b"",
        given_files: dict[str, ReadFile] | None = None,
        services: Services | None = None,
        token_buckets: TokenBuckets | None = None,
    ) -> None:
        self._broken = broken
        self._services = services
        self._token_buckets = token_buckets or TokenBuckets()
        self._ticket_seed = ticket_seed
        self._given_files = given_files or {}
        self.resources = Resources()
        self._bootstrap = bootstrap
        self._previous = previous or Resources()
        self._runtime = runtime
        self._stats = stats
        self._errors = errors

    def steps(self) -> Iterator[None]:
        """Build everything."""
        bootstrap, resources, previous = self._bootstrap, self.resources, self._previous
        resources.layers = build_layers(bootstrap.layered_runtime, "layered_runtime", self._errors)
        resources.resolver = build_resolver(bootstrap, "", self._errors) or ResolverSettings()
        static = bootstrap.static_resources
        clusters = (with_bind_config(cluster, bootstrap.cluster_manager) for cluster in static.clusters)
        yield from self._build_each(
            clusters,
            "clusters",
            build_cluster,
            # A cluster may resolve its names as the bootstrap says.
            previous.clusters if previous.resolver.key() == resources.resolver.key() else {},
            resources.clusters,
            _cluster_name,
        )
        yield from self._build_each(
            static.listeners, "listeners", build_listener, previous.listeners, resources.listeners, listener_name
        )
        self._check_references()
        self._check_addresses()

    def build(self) -> Resources:
        """All steps at once."""
        for _ in self.steps():
            pass
        return self.resources

    def _build_each(
        self,
        messages: Iterable[Any],
        field: str,
        build: Callable[[Any, str, BuildContext], T | None],
        previous: dict[str, Resource[T]],
        into: dict[str, Resource[T]],
        name_of: Callable[[Any], str],
    ) -> Generator[None, None, None]:
        for index, message in enumerate(messages):
            where = item("static_resources", field, index)
            name = name_of(message)
            if name in into:
                self._errors.add(f"{where}.name", f"the name {name!r} is used twice")
                continue
            serialised = message.SerializeToString(deterministic=True)
            old = previous.get(name)
            if old is not None and old.holds(serialised):
                into[name] = Resource(name, where, serialised, None, None, old.references, old.files, old.tls)
                continue
            context = self._context()
            context.resource, context.resource_path = f"{field}.{name}", where
            made: T | None = None
            try:
                made = build(message, where, context)
                yield from context.postponed()
            except Exception:
                if not self._broken:
                    raise
            references = [(cluster, path.removeprefix(where)) for cluster, path in context.references]
            into[name] = Resource(name, where, serialised, made, context, references, context.files, context.tls)
            yield

    def _context(self) -> BuildContext:
        context = BuildContext(self._errors, self._runtime, self._stats, postpones=True)
        context.service_cluster, context.service_node = self._bootstrap.node.cluster, self._bootstrap.node.id
        context.service_zone = self._bootstrap.node.locality.zone
        if self._bootstrap.tracing.HasField("http"):
            context.tracing_provider = self._bootstrap.tracing.http
        context.resolver = self.resources.resolver
        context.ticket_seed = self._ticket_seed
        context.given_files = self._given_files
        context.services = self._services
        context.token_buckets = self._token_buckets
        return context

    def _check_references(self) -> None:
        for listener in self.resources.listeners.values():
            for cluster, path in listener.references:
                if cluster not in self.resources.clusters:
                    self._errors.add(listener.path + path, f"unknown cluster {cluster!r}")

    def _check_addresses(self) -> None:
        users: dict[Address, str] = {}
        for index, message in enumerate(self._bootstrap.static_resources.listeners):
            name = listener_name(message)
            addresses = listener_addresses(message)
            for address in addresses:
                if address in users and (address.port or address.path):
                    where = item("static_resources", "listeners", index) + ".address"
                    self._errors.add(where, f"{address.text} is the address of the listener {users[address]!r} too")
            users.update(dict.fromkeys(addresses, name))


def _cluster_name(message: Any) -> str:
    return str(message.name)
