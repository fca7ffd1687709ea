"""What a configured Python filter has besides its streams: one object for each configuration and worker."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, ClassVar

from meshproxy.codec.headers import Field
from meshproxy.config.context import Services
from meshproxy.errors import MeshProxyError
from meshproxy.http import async_client
from meshproxy.http.async_client import HttpResponse
from meshproxy.net.dispatcher import Task
from meshproxy.net.timers import Timer
from meshproxy.observe.stats import StatsScope


class FilterStats(StatsScope):
    """Of a filter in Python; `dynamic` holds what it counts itself."""

    COUNTERS: ClassVar[tuple[str, ...]] = ("errors", "failed_open", "hook_timeouts", "slow_hooks", "task_errors")
    GAUGES: ClassVar[tuple[str, ...]] = ("streams_active",)

    def __init__(self) -> None:
        super().__init__()
        self.errors: int = 0
        self.failed_open: int = 0
        self.hook_timeouts: int = 0
        self.slow_hooks: int = 0
        self.task_errors: int = 0
        self.streams_active: int = 0


class FilterContext:
    """A configured filter: `name`, `config`, and what lives as long as it does.

    `state` is the filter's own: whatever its streams share (a cache, a table that a background task refreshes).
    """

    def __init__(self, name: str, config: Any, stats: FilterStats, services: Services | None) -> None:
        self.name = name
        self.config = config
        self.state: Any = None
        self.log = logging.getLogger("meshproxy.filter")
        self._stats = stats
        self._services = services
        self._tasks: set[Task[Any]] = set()
        self._timers: set[FilterTimer] = set()

    def count(self, counter: str, amount: int = 1) -> None:
        """Add to a counter of the filter's own, which `/stats` shows beside those that every Python filter has."""
        dynamic = self._stats.dynamic
        dynamic[counter] = dynamic.get(counter, 0) + amount

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> Task[Any]:
        """Run a background task, which is cancelled when the filter ends; what it raises is logged and counted."""
        task = self._bound().dispatcher.run(coroutine, f"filter {self.name}", self._on_task_done)
        self._tasks.add(task)
        return task

    def _on_task_done(self, task: Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            error = task.exception()
            if error is not None:
                self._stats.task_errors += 1
                self.log.error("a task of filter %s failed", self.name, exc_info=error)

    async def call(
        self,
        cluster: str,
        *,
        method: bytes = b"GET",
        path: bytes = b"/",
        authority: bytes = b"",
        headers: Iterable[Field] = (),
        body: bytes = b"",
        timeout_ms: float = 5000.0,
        limit_bytes: int = 1 << 20,
    ) -> HttpResponse:
        """Send a request through one of the proxy's clusters. Raises CallError where there is no response."""
        services = self._bound()
        return await async_client.call(
            services.clusters,
            services.dispatcher.timers,
            cluster,
            method=method,
            path=path,
            authority=authority,
            headers=headers,
            body=body,
            timeout_ms=timeout_ms,
            limit_bytes=limit_bytes,
        )

    def call_later(self, delay_ms: float, callback: Callable[[], object]) -> FilterTimer:
        """Call back once, unless the filter ends before, or the timer is disarmed."""
        timer = FilterTimer(self, callback)
        self._timers.add(timer)
        self._bound().dispatcher.timers.arm(timer, delay_ms)
        return timer

    def on_timer(self, timer: FilterTimer) -> None:
        self._timers.discard(timer)
        try:
            timer.callback()
        except Exception as error:
            self._stats.task_errors += 1
            self.log.error("a timer of filter %s failed", self.name, exc_info=error)

    def close(self) -> None:
        """The filter has ended."""
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        timers, self._timers = self._timers, set()
        for timer in timers:
            timer.disarm()

    def _bound(self) -> Services:
        if self._services is None:
            raise MeshProxyError(f"filter {self.name} is not in force: there is nothing to use")
        return self._services


class FilterTimer(Timer):
    """Of a configured filter; `disarm` cancels it."""

    def __init__(self, context: FilterContext, callback: Callable[[], object]) -> None:
        super().__init__()
        self.callback = callback
        self._context = context

    def on_timer(self) -> None:
        self._context.on_timer(self)
