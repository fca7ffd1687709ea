"""Circuit breakers: how much of each resource a cluster may have in use, at each priority of its routes.

A limit is checked and counted in one place, `ResourceLimit`, whatever the count stands in.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import mypyc_attr

from meshproxy.config.runtime import Runtime, RuntimeInt
from meshproxy.observe.stats import StatsScope

PRIORITY_DEFAULT: Final = 0  # core.v3.RoutingPriority
PRIORITY_HIGH: Final = 1
PRIORITY_NAMES: Final = ("default", "high")

DEFAULT_LIMIT: Final = 1024
DEFAULT_RETRIES: Final = 3
_UNLIMITED: Final = 2**64 - 1


class Thresholds:
    """What `CircuitBreakers.Thresholds` says of one priority. `budget_percent` below 0: retries have a plain limit."""

    def __init__(self) -> None:
        self.max_connections: int = DEFAULT_LIMIT
        self.max_pending_requests: int = DEFAULT_LIMIT
        self.max_requests: int = DEFAULT_LIMIT
        self.max_retries: int = DEFAULT_RETRIES
        self.budget_percent: float = -1.0
        self.min_retry_concurrency: int = 3
        self.track_remaining: bool = False
        self.max_connections_per_host: int = 0  # 0: no limit


@mypyc_attr(allow_interpreted_subclasses=True)
class ResourceLimit:
    """One resource: so many are in use, so many may be. A runtime key may override the limit while traffic runs."""

    def __init__(self, limit: RuntimeInt) -> None:
        self.limit = limit
        self.in_use: int = 0
        self._used: bool = False  # by `acquire`

    def can_acquire(self) -> bool:
        return self.in_use < self.limit.value

    def try_acquire(self) -> bool:
        """Take one, if there is one left; whoever got it releases it."""
        if self.in_use < self.limit.value:
            self.in_use += 1
            return True
        return False

    def acquire(self) -> None:
        """Take one even beyond the limit (a pool's only connection)."""
        self._used = True
        self.in_use += 1

    def release(self) -> None:
        self.in_use -= 1

    @property
    def open(self) -> bool:
        """Whether use has opened the breaker; one that allows nothing does not open by refusing (as in Envoy)."""
        return not self.can_acquire() and (self.max > 0 or self._used)

    @property
    def max(self) -> int:
        return self.limit.value

    @property
    def remaining(self) -> int:
        return max(0, self.max - self.in_use)


class RetryLimit(ResourceLimit):
    """The limit of retries: a plain one or, from `percent` 0 on, a share of the requests that are active or pending.

    `limit` is then the floor of the share.
    """

    def __init__(self, limit: RuntimeInt, requests: ResourceLimit, pending: ResourceLimit) -> None:
        super().__init__(limit)
        self.percent: float = -1.0
        self._requests = requests
        self._pending = pending

    def can_acquire(self) -> bool:
        return self.in_use < self.max

    def try_acquire(self) -> bool:
        if self.in_use < self.max:
            self.in_use += 1
            return True
        return False

    @property
    def max(self) -> int:
        if self.percent < 0.0:
            return self.limit.value
        return max(self.limit.value, int((self._requests.in_use + self._pending.in_use) * self.percent / 100.0))


class Breakers:
    """The limits of one cluster at one priority. They outlive a change of the cluster: what is in use stays counted."""

    def __init__(self, cluster_name: str, priority: int, thresholds: Thresholds, runtime: Runtime) -> None:
        self._key = f"circuit_breakers.{cluster_name}.{PRIORITY_NAMES[priority]}."
        self.max_connections_per_host: int = 0
        unset = RuntimeInt("", 0)
        self.connections = ResourceLimit(unset)
        self.pending = ResourceLimit(unset)
        self.requests = ResourceLimit(unset)
        self.retries = RetryLimit(unset, self.requests, self.pending)
        self.update(thresholds, runtime)

    def update(self, thresholds: Thresholds, runtime: Runtime) -> None:
        """Take new limits."""
        key = self._key
        self.max_connections_per_host = thresholds.max_connections_per_host
        self.connections.limit = runtime.integer(key + "max_connections", thresholds.max_connections)
        self.pending.limit = runtime.integer(key + "max_pending_requests", thresholds.max_pending_requests)
        self.requests.limit = runtime.integer(key + "max_requests", thresholds.max_requests)
        self.retries.percent = thresholds.budget_percent
        if thresholds.budget_percent < 0.0:
            self.retries.limit = runtime.integer(key + "max_retries", thresholds.max_retries)
        else:
            self.retries.limit = RuntimeInt("", thresholds.min_retry_concurrency)


class BreakerStats(StatsScope):
    """Envoy's `cluster.<name>.circuit_breakers.<priority>.*`; whoever reads it calls `refresh` first."""

    GAUGES = ("cx_open", "cx_pool_open", "rq_open", "rq_pending_open", "rq_retry_open")

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
            self.rq_open = int(breakers.requests.open)
            self.rq_pending_open = int(breakers.pending.open)
            self.rq_retry_open = int(breakers.retries.open)


class RemainingStats(StatsScope):
    """What `track_remaining` adds to `BreakerStats`."""

    GAUGES = ("remaining_cx", "remaining_cx_pools", "remaining_pending", "remaining_retries", "remaining_rq")

    def __init__(self) -> None:
        super().__init__()
        self.breakers: Breakers | None = None
        self.remaining_cx: int = 0
        self.remaining_cx_pools: int = _UNLIMITED
        self.remaining_pending: int = 0
        self.remaining_retries: int = 0
        self.remaining_rq: int = 0

    def refresh(self) -> None:
        breakers = self.breakers
        if breakers is not None:
            self.remaining_cx = breakers.connections.remaining
            self.remaining_pending = breakers.pending.remaining
            self.remaining_retries = breakers.retries.remaining
            self.remaining_rq = breakers.requests.remaining
