"""A bootstrap as resources: every cluster and listener built, or every reason why not.

What did not change since the last time is not built again; what did is built beside the old one, and nothing is swapped
before all of it is right.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Final, Generic, TypeVar

from meshproxy.config.context import BuildContext, Services
from meshproxy.config.datasource import ReadFile, file_stamp
from meshproxy.config.errors import ConfigErrors, item
from meshproxy.config.runtime import Layer, Runtime
from meshproxy.config.runtime_layers import build_layers
from meshproxy.config.secrets import StaticSecrets, build_static_secrets
from meshproxy.config.token_buckets import TokenBuckets
from meshproxy.config.values import struct_fields
from meshproxy.net.address import Address
from meshproxy.net.resolver import ResolverSettings
from meshproxy.observe.stats import StatsRegistry
from meshproxy.server.certificate_drain import certificate_drain_settings
from meshproxy.server.listener_config import ListenerConfig, build_listener, listener_addresses, listener_name
from meshproxy.tls.certs import Certified
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
        tls: list[Certified],
    ) -> None:
        self.name = name
        self.path = path
        self.message = message
        self.built = built
        self.context = context
        self.references = references
        self.files = files
        self.tls = tls

    @classmethod
    def of(cls, name: str, path: str, message: bytes, built: T | None, context: BuildContext) -> Resource[T]:
        """What was built at `path`, with what the build left in its context."""
        references = [(cluster, where.removeprefix(path)) for cluster, where in context.references]
        return cls(name, path, message, built, context, references, context.files, context.tls)

    def take_effect(self) -> None:
        """What was built is in force now."""
        if self.context is not None:
            self.context.take_effect()

    def holds(self, message: bytes) -> bool:
        """Whether it is what would be built of this message now."""
        return self.message == message and all(file_stamp(name) in (None, was) for name, (was, _) in self.files.items())


class Resources:
    """What one bootstrap says, ready to be swapped in."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.resolver = ResolverSettings()
        self.secrets = StaticSecrets()
        self.certificate_drain: Any = None  # settings, where the bootstrap has them
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


class ResourceFactory:
    """Builds one resource at a time, as the bootstrap in force has it.

    `given_files` are to be taken as they are there, whatever the disk holds by now.
    """

    def __init__(
        self,
        bootstrap: Any,
        resolver: ResolverSettings,
        runtime: Runtime,
        stats: StatsRegistry,
        *,
        ticket_seed: bytes = b"",
        given_files: dict[str, ReadFile] | None = None,
        services: Services | None = None,
        token_buckets: TokenBuckets | None = None,
    ) -> None:
        self._bootstrap = bootstrap
        self._resolver = resolver
        self._node_metadata = struct_fields(bootstrap.node.metadata)
        self._runtime = runtime
        self._stats = stats
        self._ticket_seed = ticket_seed
        self._given_files = given_files or {}
        self._services = services
        self._token_buckets = token_buckets or TokenBuckets()
        self.static_secrets = StaticSecrets()

    def forget_given_files(self) -> None:
        """What is built from now on reads the disk."""
        self._given_files = {}

    def steps(
        self, kind: Kind[T], message: Any, path: str, context: BuildContext, *, broken: bool = False
    ) -> Generator[None, None, T | None]:
        """Build it: with other work between the steps, each of which takes about a millisecond. The result is only good
        to be thrown away where there were errors. A message that is `broken`, since it does not follow the API's rules,
        is only built to find more errors."""
        context.resource, context.resource_path = f"{kind.field}.{kind.name_of(message)}", path
        made: T | None = None
        try:
            made = kind.build(message, path, context)
            yield from context.postponed()
        except Exception:
            if not broken:
                raise
        return made

    def context(self, errors: ConfigErrors, source: bytes = b"") -> BuildContext:
        """For one resource that came from `source` (b"": from the bootstrap)."""
        context = BuildContext(errors, self._runtime, self._stats, postpones=True)
        node = self._bootstrap.node
        context.source = source
        context.service_cluster, context.service_node = node.cluster, node.id
        context.service_zone = node.locality.zone
        context.node_metadata = self._node_metadata
        if self._bootstrap.tracing.HasField("http"):
            context.tracing_provider = self._bootstrap.tracing.http
        context.resolver = self._resolver
        context.static_secrets = self.static_secrets
        context.ticket_seed = self._ticket_seed
        context.given_files = self._given_files
        context.services = self._services
        context.token_buckets = self._token_buckets
        return context


class Kind(Generic[T]):
    """Clusters, or listeners: the field of the bootstrap that has them, and how one is built."""

    def __init__(
        self, field: str, build: Callable[[Any, str, BuildContext], T | None], name_of: Callable[[Any], str]
    ) -> None:
        self.field = field
        self.build = build
        self.name_of = name_of


class ResourceBuilder:
    """Builds what a bootstrap has that `previous` has not. With errors, the result is only good to be discarded.

    `steps` is run to its end, with other work between its steps: each takes about a millisecond.
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
        self.resources = Resources()
        self._bootstrap = bootstrap
        self._previous = previous or Resources()
        self._errors = errors
        self.resources.resolver = build_resolver(bootstrap, "", errors) or ResolverSettings()
        self.resources.certificate_drain = certificate_drain_settings(bootstrap)
        self.factory = ResourceFactory(
            bootstrap,
            self.resources.resolver,
            runtime,
            stats,
            ticket_seed=ticket_seed,
            given_files=given_files,
            services=services,
            token_buckets=token_buckets,
        )

    def steps(self) -> Iterator[None]:
        """Build everything."""
        bootstrap, resources, previous = self._bootstrap, self.resources, self._previous
        resources.layers = build_layers(bootstrap.layered_runtime, "layered_runtime", self._errors)
        static = bootstrap.static_resources
        clusters = (with_bind_config(cluster, bootstrap.cluster_manager) for cluster in static.clusters)
        context = self.factory.context(self._errors)
        resources.secrets = yield from build_static_secrets(static.secrets, "static_resources", context)
        self.factory.static_secrets = resources.secrets
        if previous.secrets.digest != resources.secrets.digest:
            previous = Resources()
        # A cluster may resolve its names as the bootstrap says.
        same = previous.resolver.key() == resources.resolver.key()
        yield from self._build_each(CLUSTERS, clusters, previous.clusters if same else {}, resources.clusters)
        yield from self._build_each(LISTENERS, static.listeners, previous.listeners, resources.listeners)
        self._check_references()
        self._check_addresses()

    def build(self) -> Resources:
        """All steps at once."""
        for _ in self.steps():
            pass
        return self.resources

    def _build_each(
        self, kind: Kind[T], messages: Iterable[Any], previous: dict[str, Resource[T]], into: dict[str, Resource[T]]
    ) -> Generator[None, None, None]:
        for index, message in enumerate(messages):
            where = item("static_resources", kind.field, index)
            name = kind.name_of(message)
            if name in into:
                self._errors.add(f"{where}.name", f"the name {name!r} is used twice")
                continue
            serialised = message.SerializeToString(deterministic=True)
            old = previous.get(name)
            if old is not None and old.holds(serialised):
                into[name] = Resource(name, where, serialised, None, None, old.references, old.files, old.tls)
                continue
            context = self.factory.context(self._errors)
            made = yield from self.factory.steps(kind, message, where, context, broken=self._broken)
            into[name] = Resource.of(name, where, serialised, made, context)
            yield

    def _check_references(self) -> None:
        """Clusters that are named must exist, unless a control plane may bring them."""
        if self._bootstrap.dynamic_resources.HasField("cds_config"):
            return
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


CLUSTERS: Final = Kind[ClusterConfig]("clusters", build_cluster, _cluster_name)
LISTENERS: Final = Kind[ListenerConfig]("listeners", build_listener, listener_name)
