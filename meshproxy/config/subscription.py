"""What a resource of a control plane is to whoever needs it: watched by its name, and waited for.

Whoever builds a listener, a cluster, a TLS context or a chain of filters that names such a resource makes a
`ResourceWatcher` that is an `InitTarget` too. What was built takes traffic when all its targets are ready.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Final

from meshproxy.config.config_source import ConfigSource
from meshproxy.config.errors import ConfigErrors
from meshproxy.observe.stats import StatsScope

# The types of resources, as `DiscoveryRequest.type_url` has them.
_PREFIX: Final = "type.googleapis.com/"
LISTENER_TYPE: Final = _PREFIX + "envoy.config.listener.v3.Listener"
CLUSTER_TYPE: Final = _PREFIX + "envoy.config.cluster.v3.Cluster"
ROUTE_TYPE: Final = _PREFIX + "envoy.config.route.v3.RouteConfiguration"
VIRTUAL_HOST_TYPE: Final = _PREFIX + "envoy.config.route.v3.VirtualHost"
ENDPOINT_TYPE: Final = _PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
SECRET_TYPE: Final = _PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"
EXTENSION_TYPE: Final = _PREFIX + "envoy.config.core.v3.TypedExtensionConfig"
RUNTIME_TYPE: Final = _PREFIX + "envoy.service.runtime.v3.Runtime"


class SubscriptionStats(StatsScope):
    """Envoy's statistics of a subscription, under `cluster_manager.cds.`, `http.<prefix>.rds.<name>.` and so on.

    Who watches a resource makes the scope; `Subscriptions` counts in it.
    """

    COUNTERS: ClassVar[tuple[str, ...]] = (
        "config_reload",
        "init_fetch_timeout",
        "update_attempt",
        "update_success",
        "update_failure",
        "update_rejected",
    )
    LEVELS: ClassVar[tuple[str, ...]] = ("update_time", "version")

    def __init__(self) -> None:
        super().__init__()
        self.config_reload = 0  # updates that changed something
        self.init_fetch_timeout = 0
        self.update_attempt = 0
        self.update_success = 0
        self.update_failure = 0
        self.update_rejected = 0
        self.update_time = 0  # of the last success: milliseconds since the epoch
        self.version = 0  # a hash of its version


class ResourceWatcher:
    """Told of one resource (or, under the name `*`, of none: wildcards are the server's own)."""

    stats: Any = None  # a SubscriptionStats, or a scope with its attributes; None: nobody counts

    def update(self, message: Any, version: str, errors: ConfigErrors) -> Iterator[None]:
        """Take the resource, a parsed message that follows the API's rules. It is run to its end, with other work
        between its steps, each of which takes a millisecond at most; another update comes only after that.

        With errors, whose paths begin within the resource, it is refused: then all stays as it was.
        """
        raise NotImplementedError

    def refused(self) -> None:
        """The resource came, and breaks the API's rules, or asks for what cannot be done: `update` is not called.
        Whoever waits for the first one goes on without it."""

    def missing(self) -> None:
        """The control plane has no such resource: it was removed, or did not come in time. What there was may be kept,
        or not, as the type of resource has it; whoever waits goes on without."""
        raise NotImplementedError


class Subscription:
    """A resource that is watched."""

    def close(self) -> None:
        """Watch no longer. A second call does nothing."""
        raise NotImplementedError


class Subscriptions:
    """Where resources are asked for: `Services.subscriptions`. One for each process; the supervisor of several asks the
    control plane once for all of them."""

    # All workers get the same: those of one of them count it, in the watchers' statistics too.
    counts: bool = True

    def watch(self, source: ConfigSource, type_url: str, name: str, watcher: ResourceWatcher) -> Subscription:
        """`watcher` hears of the resource from now on: soon, where it is known already. Never from within this call."""
        raise NotImplementedError


class InitTarget:
    """What something waits for before it takes traffic. `start` may be called once; so may `stop`, started or not.

    `name` is what /init_dump shows of it.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.ready: bool = False
        self._on_ready: Callable[[], None] | None = None

    def start(self, on_ready: Callable[[], None]) -> None:
        """Begin; `on_ready` is called once, perhaps from within this call, when it is there."""
        self._on_ready = on_ready
        self.begin()

    def begin(self) -> None:
        """Ask for what is awaited."""
        raise NotImplementedError

    def set_ready(self) -> None:
        """It is there, or is not going to come. A second call does nothing."""
        self.ready = True
        on_ready, self._on_ready = self._on_ready, None
        if on_ready is not None:
            on_ready()

    def stop(self) -> None:
        """Nobody waits any more, and nobody uses it."""
        raise NotImplementedError


class InitManager:
    """The targets of one resource: started together; `on_ready` once all are ready, at once where there are none."""

    def __init__(self, targets: list[InitTarget]) -> None:
        self.targets = targets
        self._on_ready: Callable[[], None] | None = None
        self._left: int = 0

    def start(self, on_ready: Callable[[], None]) -> None:
        self._on_ready = on_ready
        self._left = len(self.targets) + 1
        for target in self.targets:
            target.start(self._one_less)
        self._one_less()

    def unready(self) -> list[InitTarget]:
        return [target for target in self.targets if not target.ready]

    def _one_less(self) -> None:
        self._left -= 1
        if self._left == 0 and self._on_ready is not None:
            on_ready, self._on_ready = self._on_ready, None
            on_ready()

    def stop(self) -> None:
        """The resource goes, whether it was ready or not."""
        self._on_ready = None
        for target in self.targets:
            target.stop()
