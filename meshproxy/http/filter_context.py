"""What a configured Python filter has besides its streams: one object for each configuration and worker."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

from meshproxy.config.context import Services
from meshproxy.config.filter_secret import FilterSecret
from meshproxy.errors import MeshProxyError, MissingSecretError
from meshproxy.http.async_client import HttpClient
from meshproxy.net.dispatcher import Task, new_future
from meshproxy.net.timers import Timer
from meshproxy.observe.log import named_log
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
        self.log = named_log("filter", name)
        self.secrets: dict[str, FilterSecret] = {}  # those that the configuration names: `secret` tells what they are
        self._stats = stats
        self._services = services
        self._tasks: set[Task[Any]] = set()
        self._timers: set[FilterTimer] = set()
        self._in_force: bool = False
        self._waiters: list[Any] = []  # futures of tasks that wait until it is
        self._held: list[Coroutine[Any, Any, Any]] = []  # what these are to run

    def count(self, counter: str, amount: int = 1) -> None:
        """Add to a counter of the filter's own, which `/stats` shows beside those that every Python filter has."""
        dynamic = self._stats.dynamic
        dynamic[counter] = dynamic.get(counter, 0) + amount

    def secret(self, name: str, key: str = "") -> bytes:
        """The secret of this name among the configuration's `secrets`, or of its several values the one called `key`.

        Ask whenever you need it: it changes while the filter runs. Raises MissingSecretError where it is not there; a
        listener waits for its secrets, but not for ever, and `on_start` comes before they do.
        """
        held = self.secrets.get(name)
        if held is None:
            raise MissingSecretError(f"the configuration of filter {self.name} names no secret {name!r}")
        current = held.current
        value = None if current is None else current.values.get(key) if key else current.value
        if not value:
            raise MissingSecretError(f"the secret {name!r} of filter {self.name} is not there (yet)")
        return value

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> Task[Any]:
        """Run a background task, which is cancelled when the filter ends; what it raises is logged and counted.

        What `on_start` spawns begins when the configuration is in force, with the clusters that it has.
        """
        runs = coroutine
        if not self._in_force:
            self._held.append(coroutine)
            runs = self._run_in_force(coroutine)
        task = self._bound().dispatcher.run(runs, f"filter {self.name}", self._on_task_done)
        self._tasks.add(task)
        return task

    async def _run_in_force(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        if not self._in_force:
            waiter = new_future()
            self._waiters.append(waiter)
            await waiter
        self._held.remove(coroutine)
        return await coroutine

    def take_effect(self) -> None:
        """The configuration is in force."""
        self._in_force = True
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _on_task_done(self, task: Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            error = task.exception()
            if error is not None:
                self._stats.task_errors += 1
                self.log.error("a task failed", exc_info=error)

    @property
    def call(self) -> HttpClient:
        """`await context.call("users", path=b"/ann")`: a request through one of the proxy's clusters. Raises CallError
        where there is no response."""
        services = self._bound()
        return HttpClient(services.clusters, services.dispatcher.timers)

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
        except (Exception, SystemExit) as error:
            self._stats.task_errors += 1
            self.log.error("a timer failed", exc_info=error)

    def close(self) -> None:
        """The filter has ended."""
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        held, self._held = self._held, []
        for coroutine in held:
            coroutine.close()  # it never began
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
