"""What every `build_*` function is handed: where errors go, and what outlives the build."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol, TypeVar

from meshproxy.config.datasource import ReadFile, file_stamp, load_data_source
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.runtime import Runtime
from meshproxy.config.token_buckets import TokenBuckets
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.net.resolver import ResolverSettings
from meshproxy.observe.stats import StatsRegistry, StatsScope
from meshproxy.tls.certs import Certified

S = TypeVar("S", bound=StatsScope)

_RELEASED_A_STEP: Final = 256  # scopes of statistics: well below a millisecond


class Closeable(Protocol):
    def close(self) -> None: ...


class Services:
    """What a process has, that resources use when they are in force."""

    def __init__(
        self, dispatcher: Dispatcher, clusters: Any, open_rpc_client: Any = None, subscriptions: Any = None
    ) -> None:
        self.dispatcher = dispatcher
        self.clusters = clusters  # its ClusterManager
        self.open_rpc_client = open_rpc_client  # `rpc.clients.open_rpc_client`: for `http.grpc.client.open_client`
        self.subscriptions = subscriptions  # `config.subscription.Subscriptions`; None: there is no control plane
        self.secrets: Any = None  # its `config.secrets.SecretStore`, once somebody refers to a secret


class BuildContext:
    """One per top-level resource (a listener, a cluster, a route configuration).

    It remembers what the build acquired (stats scopes, log files): the resource that came of it closes the context when
    it goes (that stops its `init_targets`), and a build that failed closes it at once. `references` are the clusters
    that must exist, each with the path of the field that names it. `files` are those on whose change the resource is to
    be built anew; `tls` are the contexts that it made.
    """

    def __init__(
        self, errors: ConfigErrors, runtime: Runtime, stats: StatsRegistry, *, postpones: bool = False
    ) -> None:
        self.errors = errors
        self.runtime = runtime
        self.stats = stats
        self.stat_prefix: str = ""  # `http.ingress.` while HTTP filters are built; `cluster.x.`
        self.listener_stat_prefix: str = ""  # `listener.<address>.`, while a listener is built
        self.service_cluster: str = ""  # node.cluster and node.id of the bootstrap
        self.service_node: str = ""
        self.service_zone: str = ""  # node.locality.zone
        self.node_metadata: dict[str, Any] = {}  # node.metadata
        self.tracing_provider: Any = None  # the bootstrap's `tracing.http`, for those who name no provider
        self.buffer_limit_bytes: int = 1024 * 1024  # of the connections of the listener that is built
        self.outbound: bool = False  # while a listener is built: its traffic_direction
        self.ticket_seed: bytes = b""  # of the keys of TLS session tickets; b"": each context has a random key
        self.resolver = ResolverSettings()  # the bootstrap's, for those who have none of their own
        self.services: Services | None = None  # None: what is built is only to be checked
        self.static_secrets: Any = None  # the bootstrap's, a `config.secrets.StaticSecrets`; None: there are none
        self.token_buckets = TokenBuckets()  # of the process, where what is built is to be used
        self.source: bytes = b""  # the key of the ConfigSource that the resource came from; b"": of none
        self.resource: str = ""  # what is built, as `listeners.main`; and its path
        self.resource_path: str = ""
        self.filters: dict[str, Any] = {}  # while routes are built: the HTTP filters that they may override, by name
        self.filter_name: str = ""  # while an override is built: whose it is
        self.given_files: dict[str, ReadFile] = {}  # to be taken as they are here, whatever the disk holds by now
        self._postpones = postpones
        self._begin()

    def _begin(self) -> None:
        """Nothing was built yet."""
        self.references: list[tuple[str, str]] = []
        self.files: dict[str, ReadFile] = {}
        self.tls: list[Certified] = []
        self.init_targets: list[Any] = []  # `config.subscription.InitTarget`s: what was built waits for all of them
        self._postponed: list[tuple[str, dict[str, Any], Iterator[None]]] = []
        self._when_in_force: list[Callable[[], None]] = []
        self._acquired: list[tuple[str, type[StatsScope]]] = []
        self._closeables: list[Closeable] = []

    def for_part(self, resource: str, errors: ConfigErrors) -> BuildContext:
        """For a part of what is built here that has a life of its own, as `resource`: it comes, and changes, when this
        build is over. Its work is done in steps; what it acquires is its own, and so are its paths."""
        part = copy.copy(self)
        part.resource, part.resource_path = resource, ""
        part.errors = errors
        part.tracing_provider = None
        part._postpones = True
        part._begin()
        return part

    def scope(self, prefix: str, kind: type[S]) -> S:
        """The stats scope of `kind` under `prefix`, e.g. `http.ingress.`; shared by all who ask for the same."""
        self._acquired.append((prefix, kind))
        return self.stats.acquire(prefix, kind)

    def name_of(self, path: str) -> str:
        """A name for what stands at `path`: the same in every worker, wherever its resource stands among others."""
        return self.resource + path.removeprefix(self.resource_path)

    def when_in_force(self, action: Callable[[], None]) -> None:
        """Do it when the resource takes effect (a gauge tells of what is in use), which not every build does."""
        self._when_in_force.append(action)

    def take_effect(self) -> None:
        """What was built is in force now; a second call does nothing."""
        actions, self._when_in_force = self._when_in_force, []
        for action in actions:
            action()

    def keep(self, closeable: Closeable) -> None:
        """Close it when the resource goes (an access log gives back its file)."""
        self._closeables.append(closeable)

    def load(self, source: Any, path: str) -> bytes | None:
        """The bytes of a DataSource, by which the resource goes; None, with an error, when there are none."""
        if source.WhichOneof("specifier") != "filename":
            return load_data_source(source, path, self.errors)
        name = source.filename
        given = self.given_files.get(name)
        if given is not None:
            self.files[name] = given
            return given[1]
        was = file_stamp(name)
        data = load_data_source(source, path, self.errors)
        self.files.setdefault(name, (was, data or b""))
        return data

    def later(self, steps: Iterator[None]) -> None:
        """Work in many steps that nothing else of the build waits for: it is done now, unless the caller wants to do it
        bit by bit (`postponed`)."""
        self._postponed.append((self.stat_prefix, self.filters, steps))
        if not self._postpones:
            for _ in self.postponed():
                pass

    def postponed(self) -> Iterator[None]:
        """Do what is left, with other work between the steps."""
        while self._postponed:
            self.stat_prefix, self.filters, steps = self._postponed.pop(0)
            yield from steps

    def close_in_steps(self) -> Iterator[None]:
        """As `close`, with other work between the steps. What is left when nobody goes on is given back at once."""
        try:
            while self._acquired:
                for prefix, kind in self._acquired[-_RELEASED_A_STEP:]:
                    self.stats.release(prefix, kind)
                del self._acquired[-_RELEASED_A_STEP:]
                yield
        finally:
            self.close()

    def close(self) -> None:
        """Give back all that this build acquired, and wait for nothing; a second call does nothing."""
        targets, self.init_targets = self.init_targets, []
        for target in targets:
            target.stop()
        acquired, self._acquired = self._acquired, []
        for prefix, kind in acquired:
            self.stats.release(prefix, kind)
        closeables, self._closeables = self._closeables, []
        for closeable in closeables:
            closeable.close()
