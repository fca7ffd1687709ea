"""ODCDS: a cluster that is not there is asked for when the first request needs it; requests wait for it, for a while.

As in Envoy a name that was asked for stays subscribed, so that its cluster keeps being told of, and comes later if it
comes late. Since clients may choose names (`cluster_header`), of those without a cluster only so many are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from meshproxy.config.config_source import ConfigSource, build_config_source
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors, child
from meshproxy.config.subscription import CLUSTER_TYPE, ResourceWatcher, SubscriptionStats
from meshproxy.config.values import milliseconds_or
from meshproxy.net.timers import CallTimer, TimerWheel
from meshproxy.observe.stats import StatsRegistry
from meshproxy.upstream.manager import FOUND, MISSING, TIMED_OUT, ClusterManager, ClusterRequest

_MOST_WAITING: Final = 10_000
_MOST_MISSING: Final = 1_000  # names without a cluster that are kept


class OnDemandConfig:
    """Where clusters are asked for, and how long a request waits for one; 0: for ever."""

    def __init__(self, source: ConfigSource, timeout_ms: float, subscriptions: Any) -> None:
        self.source = ConfigSource(source.key, 0.0)  # requests have their own time
        self.timeout_ms = timeout_ms
        self.subscriptions = subscriptions  # None: there is no control plane


def build_on_demand(
    message: Any, field: str, default_timeout_ms: int, path: str, context: BuildContext
) -> OnDemandConfig | None:
    """From a message whose `field` is the ConfigSource; None after errors."""
    source = build_config_source(getattr(message, field), child(path, field), context)
    if source is None:
        return None
    subscriptions = None if context.services is None else context.services.subscriptions
    return OnDemandConfig(source, float(milliseconds_or(message, "timeout", default_timeout_ms)), subscriptions)


class OnDemandClusters:
    """Those of one process."""

    def __init__(self, manager: ClusterManager, timers: TimerWheel, registry: StatsRegistry) -> None:
        self.manager = manager
        self.timers = timers
        self.stats = registry.acquire("cluster_manager.odcds.", SubscriptionStats)
        self._watchers: dict[tuple[bytes, str], _ClusterWatcher] = {}
        self._sources: set[bytes] = set()  # that were ever asked
        self._missing: dict[tuple[bytes, str], None] = {}  # keys of those that nobody waits for, the oldest first
        self._waiting = 0

    def request(self, name: str, config: OnDemandConfig, callback: Callable[[int], None]) -> ClusterRequest | None:
        """See `ClusterManager.request_cluster`."""
        if config.subscriptions is None or not name or self._waiting >= _MOST_WAITING:
            return None
        key = (config.source.key, name)
        self._sources.add(config.source.key)
        watcher = self._watchers.get(key)
        if watcher is None:
            watcher = self._watchers[key] = _ClusterWatcher(self, key)
            watcher.subscription = config.subscriptions.watch(config.source, CLUSTER_TYPE, name, watcher)
        self._missing.pop(key, None)
        self._waiting += 1
        return watcher.add(callback, config.timeout_ms)

    def on_active(self, name: str) -> None:
        """A cluster takes traffic."""
        for source in list(self._sources):
            self._missing.pop((source, name), None)
            watcher = self._watchers.get((source, name))
            if watcher is not None:
                watcher.tell(FOUND)

    def on_request_done(self, watcher: _ClusterWatcher) -> None:
        """One waits no longer."""
        self._waiting -= 1
        if watcher.key in self._watchers and not watcher.requests and self.manager.get(watcher.key[1]) is None:
            self._missing[watcher.key] = None
            if len(self._missing) > _MOST_MISSING:
                self._forget(next(iter(self._missing)))

    def _forget(self, key: tuple[bytes, str]) -> None:
        del self._missing[key]
        self._watchers.pop(key).subscription.close()

    def close(self) -> None:
        """Nobody waits any more."""
        watchers, self._watchers, self._missing = self._watchers, {}, {}
        for watcher in watchers.values():
            watcher.close()


class _ClusterWatcher(ResourceWatcher):
    """A name, and who waits for its cluster."""

    def __init__(self, owner: OnDemandClusters, key: tuple[bytes, str]) -> None:
        self._owner = owner
        self.key = key
        self.stats = owner.stats
        self.subscription: Any = None
        self.requests: list[_Request] = []

    def add(self, callback: Callable[[int], None], timeout_ms: float) -> ClusterRequest:
        request = _Request(self, callback)
        self.requests.append(request)
        if timeout_ms > 0.0:
            self._owner.timers.arm(request.timer, timeout_ms)
        return request

    def update(self, message: Any, version: str, errors: ConfigErrors) -> Iterator[None]:
        """The cluster manager has it already: it is warm, or becomes it."""
        if self._owner.manager.get(self.key[1]) is not None:
            self.tell(FOUND)
        yield from ()

    def missing(self) -> None:
        self.tell(MISSING)

    def tell(self, status: int) -> None:
        """All who wait."""
        for request in list(self.requests):
            request.finish(status)

    def drop(self, request: _Request) -> None:
        self.requests.remove(request)
        self._owner.on_request_done(self)

    def close(self) -> None:
        self.subscription.close()
        for request in list(self.requests):
            request.cancel()


class _Request(ClusterRequest):
    """One that waits."""

    def __init__(self, watcher: _ClusterWatcher, callback: Callable[[int], None]) -> None:
        super().__init__()
        self._watcher = watcher
        self._callback: Callable[[int], None] | None = callback
        self.timer = CallTimer(self._on_timeout)

    def finish(self, status: int) -> None:
        callback = self._callback
        self.cancel()
        if callback is not None:
            callback(status)

    def cancel(self) -> None:
        if self._callback is not None:
            self._callback = None
            self.timer.disarm()
            self._watcher.drop(self)

    def _on_timeout(self) -> None:
        self.finish(TIMED_OUT)
