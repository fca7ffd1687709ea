"""EDS: the hosts of a cluster are those of the load assignment that its control plane sends.

What Envoy does with it: an assignment takes the place of the whole one before. One that is refused, or missing, changes
nothing; but the cluster waits no longer. `endpoint_stale_after` takes all hosts away unless another assignment comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment

from meshproxy.config.errors import ConfigErrors
from meshproxy.config.runtime import Runtime
from meshproxy.config.subscription import ENDPOINT_TYPE, ResourceWatcher, Subscription, Subscriptions
from meshproxy.config.values import int_or, milliseconds_or
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.net.timers import CallTimer
from meshproxy.upstream.assignment import Assignment, AssignmentReader
from meshproxy.upstream.background import Background
from meshproxy.upstream.build_lb import build_drop_overload, drop_category
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.config import EdsConfig, EndpointConfig
from meshproxy.upstream.discovery import Discovery, DiscoveryListener

_NO_POLICY: Final = ClusterLoadAssignment.Policy()


class EdsDiscovery(Discovery):
    """Of one cluster. Where there is no control plane (`subscriptions` is None) it stays without hosts."""

    def __init__(
        self,
        cluster: Cluster,
        listener: DiscoveryListener,
        config: EdsConfig,
        subscriptions: Subscriptions | None,
        dispatcher: Dispatcher,
        runtime: Runtime,
    ) -> None:
        super().__init__(cluster, listener)
        self._config = config
        self._subscriptions = subscriptions
        self._subscription: Subscription | None = None
        self._watcher = AssignmentWatcher(self, config.service_name, dispatcher, runtime)

    def start(self) -> None:
        if self._subscriptions is None:
            self.ready()
            return
        config = self._config
        self._subscription = self._subscriptions.watch(config.source, ENDPOINT_TYPE, config.service_name, self._watcher)

    def set_endpoints(self, endpoints: list[EndpointConfig]) -> None:
        """The configuration has none."""

    def stop(self) -> None:
        self._watcher.stop()
        if self._subscription is not None:
            self._subscription.close()


class AssignmentWatcher(ResourceWatcher):
    """Takes the versions of one assignment."""

    def __init__(self, discovery: EdsDiscovery, name: str, dispatcher: Dispatcher, runtime: Runtime) -> None:
        self._discovery = discovery
        self._cluster = discovery.cluster
        self.stats = discovery.cluster.stats
        self._name = name
        self._timers = dispatcher.timers
        self._runtime = runtime
        self._reader = AssignmentReader()
        self._stopped = False
        self._stale = CallTimer(self._on_stale)
        self._stale_after_ms = 0  # of the version in force; 0: never
        self._last_priority = 0
        self._background = Background(dispatcher)
        self._emptying: Iterator[None] = iter(())  # of the cluster, since its assignment is stale

    def update(self, message: Any, version: str, errors: ConfigErrors) -> Iterator[None]:
        self._stale.disarm()  # nothing else changes the hosts meanwhile
        self._background.stop()
        yield from self._emptying
        before = len(errors)
        if message.cluster_name != self._name:
            errors.add("cluster_name", f"is {message.cluster_name!r}, where {self._name!r} was asked for")
        assignment = yield from self._reader.read(message, errors)
        build_drop_overload(assignment.policy, "policy", self._runtime, errors)
        if len(errors) == before:
            yield from self._take(assignment)
        self._await_next()
        self._discovery.ready()

    def refused(self) -> None:
        self._discovery.ready()

    def missing(self) -> None:
        """The hosts stay, as in Envoy."""
        if self._discovery.is_ready:
            self.stats.update_empty += 1
        self._discovery.ready()

    def stop(self) -> None:
        self._stopped = True
        self._stale.disarm()
        self._background.stop()

    def _take(self, assignment: Assignment) -> Iterator[None]:
        changed = self._take_policy(assignment.policy)
        changed = self._reader.take(assignment) or changed
        steps = self._cluster.update_endpoints(assignment.endpoints, changed)
        while not self._stopped:
            try:
                next(steps)
            except StopIteration as end:
                self.stats.update_no_rebuild += 0 if end.value else 1
                break
            yield
        self._show_weight(assignment)
        yield from self._reader.forget()

    def _show_weight(self, assignment: Assignment) -> None:
        """As Envoy's gauge: of the last priority that the cluster has ever had."""
        self._last_priority = max([self._last_priority, *(place.priority for place in assignment.places.values())])
        most = 1
        for endpoint in assignment.endpoints:
            if endpoint.weight > most and endpoint.priority == self._last_priority:
                most = endpoint.weight
        self.stats.max_host_weight = most

    def _take_policy(self, policy: Any) -> bool:
        """Whether it changes how hosts are chosen."""
        cluster, lb = self._cluster, self._cluster.config.lb
        cluster.config.drop_category = drop_category(policy)
        cluster.drop_overload = build_drop_overload(policy, "policy", self._runtime, ConfigErrors())
        self._stale_after_ms = milliseconds_or(policy, "endpoint_stale_after", 0)
        if self._stale_after_ms:
            self.stats.assignment_timeout_received += 1
        before = lb.overprovisioning_factor, lb.weighted_priority_health
        lb.overprovisioning_factor = int_or(policy, "overprovisioning_factor", 140)
        lb.weighted_priority_health = policy.weighted_priority_health
        return before != (lb.overprovisioning_factor, lb.weighted_priority_health)

    def _await_next(self) -> None:
        if self._stale_after_ms and not self._stopped:
            self._timers.arm(self._stale, float(self._stale_after_ms))

    def _on_stale(self) -> None:
        """No assignment came in time: that of the cluster is an empty one now."""
        self.stats.assignment_stale += 1
        self._emptying = self._take(Assignment(_NO_POLICY))
        self._background.start(self._emptying)
