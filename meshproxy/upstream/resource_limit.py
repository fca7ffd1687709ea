"""Circuit breakers: how much of each resource a cluster may have in use, at each priority of its routes.

The limits hold for all workers together. One is checked and counted in one place, `ResourceLimit`, whatever the count
stands in: an attribute, or memory that workers share.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import mypyc_attr

from meshproxy.config.runtime import Runtime, RuntimeInt
from meshproxy.net.cells import Counters, SharedCounter
from meshproxy.observe.stats import StatsScope

PRIORITY_DEFAULT: Final = 0  # core.v3.RoutingPriority
PRIORITY_HIGH: Final = 1
PRIORITY_NAMES: Final = ("default", "high")

DEFAULT_LIMIT: Final = 1024
DEFAULT_RETRIES: Final = 3
_UNLIMITED: Final = 2**64 - 1

# What is counted, as a number of the cluster's column; those of routes with high priority follow.
_CONNECTIONS: Final = 0
_POOLS: Final = 1
_PENDING: Final = 2
_REQUESTS: Final = 3
_RETRIES: Final = 4
_OF_ONE_PRIORITY: Final = 5


def breakers_counter(cluster_name: str) -> str:
    """The name of what a cluster's workers count together."""
    return f"cluster.{cluster_name}"


class Thresholds:
    """What `CircuitBreakers.Thresholds` says of one priority. `budget_percent` below 0: retries have a plain limit."""

    def __init__(self) -> None:
        self.max_connections: int = DEFAULT_LIMIT
        self.max_pending_requests: int = DEFAULT_LIMIT
        self.max_requests: int = DEFAULT_LIMIT
        self.max_retries: int = DEFAULT_RETRIES
        self.max_connection_pools: int | None = None  # None: no limit
        self.budget_percent: float = -1.0
        self.min_retry_concurrency: int = 3
        self.track_remaining: bool = False
        self.max_connections_per_host: int = 0  # 0: no limit


@mypyc_attr(allow_interpreted_subclasses=True)
class ResourceLimit:
    """One resource: so many are in use, so many may be. A runtime key may override the limit while traffic runs."""

    def __init__(self, limit: RuntimeInt, shared: SharedCounter | None = None) -> None:
        self.limit = limit
        self.in_use: int = 0  # by this worker
        self._shared = shared  # None: there is no other one
        self._used: bool = False  # by `acquire`

    def total(self) -> int:
        """So many are in use, by all workers."""
        shared = self._shared
        return self.in_use if shared is None else shared.total()

    def can_acquire(self) -> bool:
        return self.total() < self.limit.value

    def try_acquire(self) -> bool:
        """Take one, if there is one left; whoever got it releases it."""
        if self._shared is not None:
            return self._try_acquire_shared(self._shared)
        if self.in_use < self.limit.value:
            self.in_use += 1
            return True
        return False

    def _try_acquire_shared(self, shared: SharedCounter) -> bool:
        if shared.total() < self.limit.value:
            self.in_use += 1
            shared.add(1)
            return True
        return False

    def acquire(self) -> None:
        """Take one even beyond the limit (a pool's only connection)."""
        self._used = True
        self.in_use += 1
        if self._shared is not None:
            self._shared.add(1)

    def release(self) -> None:
        self.in_use -= 1
        if self._shared is not None:
            self._shared.add(-1)

    @property
    def open(self) -> bool:
        """Whether use has opened the breaker; one that allows nothing does not open by refusing (as in Envoy)."""
        return not self.can_acquire() and (self.max > 0 or self._used)

    @property
    def max(self) -> int:
        return self.limit.value

    @property
    def remaining(self) -> int:
        return max(0, self.max - self.total())


class RetryLimit(ResourceLimit):
    """The limit of retries: a plain one or, from `percent` 0 on, a share of the requests that are active or pending.

    `limit` is then the floor of the share.
    """

    def __init__(
        self, limit: RuntimeInt, requests: ResourceLimit, pending: ResourceLimit, shared: SharedCounter | None = None
    ) -> None:
        super().__init__(limit, shared)
        self.percent: float = -1.0
        self._requests = requests
        self._pending = pending

    def can_acquire(self) -> bool:
        return self.total() < self.max

    def try_acquire(self) -> bool:
        if not self.can_acquire():
            return False
        self.in_use += 1
        if self._shared is not None:
            self._shared.add(1)
        return True

    @property
    def max(self) -> int:
        if self.percent < 0.0:
            return self.limit.value
        return max(self.limit.value, int((self._requests.total() + self._pending.total()) * self.percent / 100.0))


class Breakers:
    """The limits of one cluster at one priority. They outlive a change of the cluster: what is in use stays counted."""

    def __init__(
        self, cluster_name: str, priority: int, thresholds: Thresholds, runtime: Runtime, counters: Counters
    ) -> None:
        self._key = f"circuit_breakers.{cluster_name}.{PRIORITY_NAMES[priority]}."
        self.max_connections_per_host: int = 0
        unset = RuntimeInt("", 0)
        name, first = breakers_counter(cluster_name), priority * _OF_ONE_PRIORITY
        self.connections = ResourceLimit(unset, counters.shared(name, first + _CONNECTIONS))
        self.pools = ResourceLimit(unset, counters.shared(name, first + _POOLS))  # with connections, or with requests
        self.pending = ResourceLimit(unset, counters.shared(name, first + _PENDING))
        self.requests = ResourceLimit(unset, counters.shared(name, first + _REQUESTS))
        retries = counters.shared(name, first + _RETRIES)
        self.retries = RetryLimit(unset, self.requests, self.pending, retries)
        self.update(thresholds, runtime)

    def update(self, thresholds: Thresholds, runtime: Runtime) -> None:
        """Take new limits."""
        key = self._key
        self.max_connections_per_host = thresholds.max_connections_per_host
        self.connections.limit = runtime.integer(key + "max_connections", thresholds.max_connections)
        most = thresholds.max_connection_pools
        self.pools.limit = runtime.integer(key + "max_connection_pools", _UNLIMITED if most is None else most)
        self.pending.limit = runtime.integer(key + "max_pending_requests", thresholds.max_pending_requests)
        self.requests.limit = runtime.integer(key + "max_requests", thresholds.max_requests)
        self.retries.percent = thresholds.budget_percent
        if thresholds.budget_percent < 0.0:
            self.retries.limit = runtime.integer(key + "max_retries", thresholds.max_retries)
        else:
            self.retries.limit = RuntimeInt("", thresholds.min_retry_concurrency)


class BreakerStats(StatsScope):
    """Envoy's `cluster.<name>.circuit_breakers.<priority>.*`; whoever reads it calls `refresh` first.

    Every worker tells them of all workers.
    """

    LEVELS = ("cx_open", "cx_pool_open", "rq_open", "rq_pending_open", "rq_retry_open")

    def __init__(self) -> None:
        super().__init__()
        self.breakers: Breakers | None = None
        self.cx_open: int = 0
        self.cx_pool_open: int = 0
        self.rq_open: int = 0
        self.rq_pending_open: int = 0
        self.rq_retry_open: int = 0

    def refresh(self) -> None:
        breakers = self.breakers
        if breakers is not None:
            self.cx_open = int(breakers.connections.open)
            self.cx_pool_open = int(breakers.pools.open)
            self.rq_open = int(breakers.requests.open)
            self.rq_pending_open = int(breakers.pending.open)
            self.rq_retry_open = int(breakers.retries.open)


class RemainingStats(StatsScope):
    """What `track_remaining` adds to `BreakerStats`."""

    LEVELS = ("remaining_cx", "remaining_cx_pools", "remaining_pending", "remaining_retries", "remaining_rq")

    def __init__(self) -> None:
        super().__init__()
        self.breakers: Breakers | None = None
        self.remaining_cx: int = 0
        self.remaining_cx_pools: int = 0
        self.remaining_pending: int = 0
        self.remaining_retries: int = 0
        self.remaining_rq: int = 0

    def refresh(self) -> None:
        breakers = self.breakers
        if breakers is not None:
            self.remaining_cx = breakers.connections.remaining
            self.remaining_cx_pools = breakers.pools.remaining
            self.remaining_pending = breakers.pending.remaining
            self.remaining_retries = breakers.retries.remaining
            self.remaining_rq = breakers.requests.remaining
