"""The process that owns everything but the traffic: configuration, sockets, signals, admin, and the workers.

With one worker it is all one process; with more, workers are processes of their own, told the same verbs over a socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Coroutine, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meshproxy.config.datasource import ReadFile
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.runtime import Runtime
from meshproxy.config.runtime_layers import build_layers
from meshproxy.config.subscription import CLUSTER_TYPE, LISTENER_TYPE
from meshproxy.errors import ConfigError
from meshproxy.net.cells import CellColumns
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.net.slices import in_slices
from meshproxy.observe.export import Intervals
from meshproxy.observe.snapshot import Snapshot, load_snapshot, merge
from meshproxy.observe.stats import StatsRegistry
from meshproxy.observe.stats_config import StatsSettings, build_stats_settings
from meshproxy.server.bootstrap import read_bootstrap, read_bootstrap_apart
from meshproxy.server.control_plane import ControlPlane, join_reasons
from meshproxy.server.handle import LocalWorker, RemoteWorker, WorkerFailed, WorkerGone, WorkerHandle
from meshproxy.server.listener_config import listener_name
from meshproxy.server.listening import ListeningSockets, Retired
from meshproxy.server.options import Options
from meshproxy.server.stats import MANAGERS, NO_CERTIFICATES, ServerStats, drop_managers
from meshproxy.server.subscriptions import Delivery
from meshproxy.server.watch import FilesWatch, FileWatch
from meshproxy.server.worker import ALL_CONNECTIONS, listener_counter
from meshproxy.upstream.resource_limit import breakers_counter

if TYPE_CHECKING:
    from meshproxy.server.admin.server import AdminServer

_log: Final = logging.getLogger("meshproxy.main")

# server.state
LIVE: Final = 0
DRAINING: Final = 1
PRE_INITIALIZING: Final = 2
INITIALIZING: Final = 3

_POLL_S: Final = 0.1
_IDLE_MS: Final = 1000.0  # a connection idle for so long may be closed while the process ends
_ACCEPT_QUEUE_S: Final = 0.25  # for what waits in accept queues when the listeners close
_FLUSH_S: Final = 5.0  # the interval that /stats shows histograms of; a killed worker's counters are at most so old
_WARM_S: Final = 15.0  # so long new clusters keep listeners waiting that are changed with them
_RESTART_S: Final = 1.0  # between two starts of the same worker


class StartFailed(Exception):
    """The process cannot start: `errors` say why."""

    def __init__(self, errors: ConfigErrors) -> None:
        super().__init__(str(errors))
        self.errors = errors


class Refused:
    """A configuration that could not be applied: when (Unix time), why, and what it says as far as it could be read."""

    def __init__(self, bootstrap: Any | None, because: str) -> None:
        self.at = time.time()
        self.bootstrap = bootstrap
        self.because = because


class Supervisor:
    """Starts, reloads and ends the process. `run` returns its exit code."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.dispatcher = Dispatcher(asyncio.get_running_loop())
        self.stats = StatsRegistry()
        self.server_stats = self.stats.acquire("server.", ServerStats)
        self.runtime = Runtime()  # what the admin shows and changes; each worker has its own copy
        self.sockets = ListeningSockets(options.concurrency)
        self.workers: list[WorkerHandle] = []
        self._columns = CellColumns(options.concurrency) if options.concurrency > 1 else None
        self._files_in_use: dict[str, ReadFile] = {}  # by the workers; for one that comes later
        self._ticket_seed = secrets.token_bytes(32)  # of TLS session tickets; told to workers only
        self._kept_counters = Snapshot()  # what dead workers had counted
        self._replacements: list[asyncio.Task[None]] = []  # of dead workers, under way
        self.bootstrap: Any = None
        self.last_error: Refused | None = None
        self.updated: float = time.time()  # when the running configuration came into force
        self.state = PRE_INITIALIZING
        self.healthy = True  # POST /healthcheck/fail
        self.started: float = time.monotonic()
        self.stats_settings = StatsSettings()
        self.intervals = Intervals()
        self._watch = FileWatch(Path(options.config_path), self.reload_soon) if options.config_path else None
        self._files = FilesWatch(self.reload_soon)  # certificates
        self.control_plane = ControlPlane(self)
        self._admin: AdminServer | None = None
        self._reloading = asyncio.Lock()
        self._applying = asyncio.Lock()  # sockets and listeners change for one reason at a time
        self._reload_waits = False
        self._sweeping = False
        self._ending = asyncio.Event()
        self._signals = 0
        self._quit = False
        self._drained = asyncio.Event()

    # -- the life of the process

    async def run(self) -> int:
        """Serve until a signal (or the admin) ends it. Raises StartFailed."""
        try:
            self._handle_signals()
            async with self._reloading:
                await self._start()
            self.state = LIVE
            self.dispatcher.spawn(self._look_after_workers(), "workers")
            if self._watch is not None:
                self.dispatcher.spawn(self._watch.run(), "config file watch")
            self.dispatcher.spawn(self._files.run(), "certificate watch")
            _log.info("all clusters and listeners are up; starting to serve")
            await self._ending.wait()
            await self._drain()
            if self._admin is not None:
                await self._admin.close()
            return 0
        finally:
            await self._close()

    async def _start(self) -> None:
        from meshproxy.server.admin_backend import start_admin

        errors = ConfigErrors()
        bootstrap = read_bootstrap(self.options, errors)
        if bootstrap is None or errors:
            raise StartFailed(errors)
        for warning in errors.warnings:
            _log.warning("%s", warning)
        self.workers = [self._new_worker(index) for index in range(self.options.concurrency)]
        settings = await self._build(bootstrap, errors)
        if not errors:
            self._take_facts(bootstrap, settings)
            self._admin = await start_admin(self, errors)
        try:
            if not errors:
                await self._bring_up(bootstrap)
        except WorkerGone as gone:
            errors.add("", f"{gone}: it ended while it started")
        if errors:
            raise StartFailed(errors)

    async def _bring_up(self, bootstrap: Any) -> None:
        """For the first time, and in Envoy's order: static clusters, those of a control plane, listeners."""
        await self._commit("commit_clusters")
        await self.control_plane.begin(bootstrap)
        await self.each("layers_ready")
        await self.each("warmed", 0.0)
        self.state = INITIALIZING
        await self.control_plane.first_clusters(bootstrap)
        await self.each("warmed", 0.0)
        await self._swap("commit_listeners")
        await self.control_plane.first_listeners(bootstrap)
        await self.each("settled", self.sockets.names())
        await self._note_files()
        for worker in self.workers:
            await worker.call("serve")
            await worker.call("started")

    def _new_worker(self, index: int) -> WorkerHandle:
        if self._columns is None:
            return LocalWorker(self.dispatcher, self.options, self.control_plane.on_interest)
        fd = self._columns.fd
        return RemoteWorker(index, self.options, fd, self._on_worker_death, self.control_plane.on_interest)

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_end_signal)
        loop.add_signal_handler(signal.SIGHUP, self.reload_soon)
        loop.add_signal_handler(signal.SIGUSR1, self._reopen_logs)

    async def _close(self) -> None:
        self.state = DRAINING
        await self.control_plane.close()
        for worker in self.workers:
            await worker.close()
        self.sockets.close()
        await self.dispatcher.close()
        if self._columns is not None:
            self._columns.close()

    # -- configuration

    async def _apply(self, bootstrap: Any, errors: ConfigErrors) -> None:
        """All workers take `bootstrap`, or none does and `errors` say why."""
        async with self._applying:
            settings = await self._build(bootstrap, errors)
            if errors:
                return
            await self._commit("commit_clusters")
            await self.each("warmed", _WARM_S)
            await self._swap("commit_listeners")
            await self._note_files()
            before = self.bootstrap
            self._take_facts(bootstrap, settings)
        await self.control_plane.reload(bootstrap)
        await self.control_plane.renew(_names_gone(before, bootstrap), await self.parts_of_one("stale"))

    async def _build(self, bootstrap: Any, errors: ConfigErrors) -> StatsSettings:
        """Have all workers build it, and bind what is to be bound; with errors, nothing of it stays."""
        settings = build_stats_settings(bootstrap.stats_config, "stats_config", errors.items)
        await self._prepare(bootstrap.SerializeToString(), self.assign_columns(bootstrap), errors)
        if not errors:
            self.sockets.plan(bootstrap, errors)
        if errors:
            self.sockets.abandon()
            await self.each("abandon")
        return settings

    def _take_facts(self, bootstrap: Any, settings: StatsSettings) -> None:
        """It is in force, or is going to be."""
        self.runtime.replace_layers(build_layers(bootstrap.layered_runtime, "layered_runtime", ConfigErrors()))
        self.stats_settings = settings
        self.bootstrap = bootstrap
        self.updated = time.time()

    async def _note_files(self) -> None:
        """Watch the files that the configuration was built of."""
        if self.options.concurrency > 1:
            self._files_in_use = dict(await self.parts_of_one("files"))
        self._files.watch((name, was) for read in await self.each("watched_files") for name, was in read)

    async def _swap(self, verb: str, *arguments: Any, removed: list[str] | None = None) -> Retired:
        """Have all workers go on with the sockets as they are planned. Of listeners that are not `removed` (None: of
        none) the old sockets are returned, to be closed when the new ones are in use."""
        for index, worker in enumerate(self.workers):
            await worker.give_sockets(self.sockets.new_sockets(index))
        retired, later = self.sockets.accept_plan(removed)
        if retired.refuse_new():
            await asyncio.sleep(_ACCEPT_QUEUE_S)
        await self._commit(verb, *arguments)
        retired.close()
        return later

    async def update_listeners(self, source: bytes, deliveries: list[Delivery], removed: list[str]) -> dict[str, str]:
        """Add, change and remove listeners of a control plane. Why some are refused, by name."""
        async with self._applying:
            own = {listener_name(one) for one in self.bootstrap.static_resources.listeners}
            # As in Envoy, the bootstrap's own are not to be changed.
            wanted = {name: message for name, _, message in deliveries if name not in own}
            columns = self.assign_columns(self.bootstrap, wanted)
            chosen = [delivery for delivery in deliveries if delivery[0] in wanted]
            answers = await self.each("prepare_listeners", source, self.control_plane.for_workers(chosen), columns)
            reasons = join_reasons(answers)
            good = {name: message for name, message in wanted.items() if name not in reasons}
            unbound: dict[str, str] = {}
            gone = [name for name in removed if name not in own]
            self.sockets.plan_updates(good, gone, unbound)
            if unbound or reasons:
                await self.each("abandon_listeners", [*unbound, *reasons])
            later = await self._swap("commit_updates", gone, removed=gone)
            await self._note_files()
        self._sweep_soon()
        self.dispatcher.spawn(self._let_go(list(good), later), "listeners that were replaced")
        return {**reasons, **unbound}

    async def _let_go(self, names: list[str], retired: Retired) -> None:
        """The old sockets of listeners that have others now: when those have taken over."""
        await self.each("settled", names)
        if retired.refuse_new():
            await asyncio.sleep(_ACCEPT_QUEUE_S)
        retired.close()
        self.control_plane.resources.forget_before(LISTENER_TYPE, names)

    def assign_columns(
        self, bootstrap: Any, listeners: Iterable[str] = (), clusters: Iterable[str] = ()
    ) -> dict[str, int]:
        """Where workers count together what the limits of `bootstrap`, and of these resources, hold for."""
        if self._columns is None:
            return {}
        configurations = [bootstrap] if self.bootstrap is None else [self.bootstrap, bootstrap]
        static = [each.static_resources for each in configurations]
        names = [*(listener_name(one) for each in static for one in each.listeners), *listeners]
        breakers = [*(one.name for each in static for one in each.clusters), *clusters]
        dynamic = self.control_plane.resources
        names += [record.name for record in dynamic.of_type(LISTENER_TYPE)]
        breakers += [record.name for record in dynamic.of_type(CLUSTER_TYPE)]
        return self._columns.assign([ALL_CONNECTIONS, *map(listener_counter, names), *map(breakers_counter, breakers)])

    async def _prepare(self, serialised: bytes, columns: dict[str, int], errors: ConfigErrors) -> None:
        """Have every worker build the configuration.

        All find the same errors, unless a file that it names changes meanwhile.
        """
        try:
            answers = await self.each("prepare", serialised, columns, self._ticket_seed, {})
        except Exception as error:  # noqa: BLE001  a bug in a build must not cost what runs
            _log.exception("a configuration could not be built")
            errors.add("", f"internal error: {type(error).__name__}: {error}")
            return
        if not answers:
            errors.add("", "no worker is there to build it; they are being started anew")
        for path, reason in dict.fromkeys((path, reason) for answer in answers for path, reason in answer):
            errors.add(path, reason)

    async def _commit(self, verb: str, *arguments: Any) -> None:
        """Have every worker swap in what it has prepared; one that cannot is replaced."""
        calls = (worker.call(verb, *arguments) for worker in self.workers)
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for worker, answer in zip(self.workers, answers, strict=True):
            if isinstance(answer, WorkerFailed) and isinstance(worker, RemoteWorker):
                _log.error("%s", answer)
                worker.process.kill()
            elif isinstance(answer, BaseException) and not isinstance(answer, WorkerGone):
                raise answer
        if not self.healthy:
            await self.each("fail_health_checks", True)

    def reload_soon(self) -> None:
        """SIGHUP, or the file changed. One reload that has not read the file yet is enough for all who ask."""
        if not self._reload_waits:
            self._reload_waits = True
            self.dispatcher.spawn(self.reload(), "reload")

    async def reload(self) -> bool:
        """Read the file again. A bad one leaves what runs running; the log, /config_dump and a counter say so."""
        async with self._reloading:
            self._reload_waits = False
            if self._ending.is_set():
                return False
            errors = ConfigErrors()
            bootstrap = await read_bootstrap_apart(self.options, errors)
            for warning in errors.warnings:
                _log.warning("%s", warning)
            if bootstrap is not None and not errors:
                if bootstrap == self.bootstrap and not self._files.changed():
                    self.last_error = None
                    _log.info("the configuration has not changed")
                    return True
                before = self.bootstrap
                await self._apply(bootstrap, errors)
                if not errors:
                    _warn_of_lasting(before, bootstrap)
            if errors:
                self.server_stats.config_reload_failure += 1
                self.last_error = Refused(bootstrap, str(errors))
                _log.error("the new configuration is refused; the old one stays in force:\n%s", errors)
                return False
            self.server_stats.config_reload_success += 1
            self.last_error = None
            _log.info("the new configuration is in force")
            self._sweep_soon()
            return True

    def _sweep_soon(self) -> None:
        """Something has been replaced, or is going to be when what takes its place is warm."""
        if not self._sweeping:
            self._sweeping = True
            self.dispatcher.spawn(self._end_drained(), "drain of replaced chains")

    async def _end_drained(self) -> None:
        """Connections of replaced chains end with their next answer, when idle, or when their drain time is over."""
        drain_ms = self.options.drain_time_s * 1000.0
        idle_ms = min(_IDLE_MS * 5, drain_ms / 2)
        try:
            while True:
                await asyncio.sleep(_POLL_S * 5)
                await self.each("close_idle_draining", idle_ms)
                await self.each("abort_draining", drain_ms)
                if not any(await self.each("draining")):
                    return
        finally:
            self._sweeping = False

    # -- workers

    async def each(self, verb: str, *arguments: Any) -> list[Any]:
        """Run a verb on every worker that lives."""
        return await self.gather([worker.call(verb, *arguments) for worker in self.workers])

    async def gather(self, calls: list[Coroutine[Any, Any, Any]]) -> list[Any]:
        """What calls of workers come to, of those that live."""
        found = []
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(answer, WorkerGone):
                continue
            if isinstance(answer, BaseException):
                raise answer
            found.append(answer)
        return found

    async def parts(self, verb: str, *arguments: Any) -> list[list[Any]]:
        """As `each`, for a verb whose result has several parts."""
        return await self.gather([worker.parts(verb, *arguments) for worker in self.workers])

    async def parts_of_one(self, verb: str, *arguments: Any) -> list[Any]:
        """As `parts`, of one worker, for what all have alike; none when no worker lives."""
        for worker in self.workers:
            with contextlib.suppress(WorkerGone):
                return await worker.parts(verb, *arguments)
        return []

    def _on_worker_death(self, worker: RemoteWorker) -> None:
        if self._ending.is_set() and self.state == DRAINING and self._drained.is_set():
            return
        if self.state in (PRE_INITIALIZING, INITIALIZING):
            return  # `_start` fails
        self.server_stats.worker_restarts += 1
        self.control_plane.forget_worker(worker)
        if self._columns is not None:
            self._columns.clear(worker.index)
        if worker.last_snapshot is not None:
            kept = merge(load_snapshot(part) for part in worker.last_snapshot).without_gauges()
            drop_managers(kept)
            self._kept_counters.add(kept)
        _log.error("worker %d (pid %d) is gone; starting another", worker.index, worker.process.pid)
        self._replacements.append(self.dispatcher.spawn(self._replace(worker), f"replace worker {worker.index}"))

    async def _replace(self, dead: RemoteWorker) -> None:
        await dead.close()
        if time.monotonic() - dead.born < _RESTART_S:
            await asyncio.sleep(_RESTART_S)
        # Nothing that it gets now is pushed to the others meanwhile.
        async with self._reloading, self._applying, self.control_plane.changing(CLUSTER_TYPE):
            index = dead.index
            worker = self._new_worker(index)
            assert isinstance(worker, RemoteWorker)
            self.workers[index] = worker
            try:
                await self._equip(worker)
            except WorkerGone:
                return  # its death starts the next one
            except WorkerFailed as failed:
                _log.error("%s", failed)
                worker.process.kill()

    async def _equip(self, worker: RemoteWorker) -> None:
        """Bring a new worker to where the others are. Raises WorkerGone and WorkerFailed."""
        serialised = self.bootstrap.SerializeToString()
        columns = self.assign_columns(self.bootstrap)
        errors = await worker.call("prepare", serialised, columns, self._ticket_seed, self._files_in_use)
        if errors:
            raise WorkerFailed(f"worker {worker.index} cannot take the running configuration: {errors}")
        await worker.call("commit_clusters")
        await self.control_plane.equip_clusters(worker, columns)
        await worker.call("warmed", _WARM_S)
        await worker.call("commit_listeners")
        await self.control_plane.equip_listeners(worker, columns)
        await worker.call("modify_runtime", self._runtime_overrides())
        if self._ending.is_set():
            await worker.call("start_drain")
        elif not self.healthy:
            await worker.call("fail_health_checks", True)
        await worker.give_sockets(self.sockets.all_sockets(worker.index))
        await worker.call("serve")
        await worker.call("started")

    async def _look_after_workers(self) -> None:
        while True:
            if self.options.concurrency > 1:
                await self._snapshots()
            parts = [part for parts in await self.parts("histograms") for part in parts]
            self.intervals.flush(merge(load_snapshot(part) for part in parts))
            await asyncio.sleep(_FLUSH_S)

    async def _snapshots(self) -> list[Any]:
        """The stats of every worker that lives; they are kept, for the case that it dies."""
        workers = list(self.workers)
        # What the managers count happens in every worker alike, and is told once.
        calls = (worker.parts("snapshot", MANAGERS if index else ()) for index, worker in enumerate(workers))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        found = []
        for worker, answer in zip(workers, answers, strict=True):
            if isinstance(answer, WorkerGone):
                continue
            if isinstance(answer, BaseException):
                raise answer
            found.append(answer)
            if isinstance(worker, RemoteWorker):
                worker.last_snapshot = answer
        return found

    async def collect_stats(self) -> Snapshot:
        """The stats of the whole process tree, of workers that died too."""
        total = Snapshot()
        parts = [load_snapshot(part) for parts in await self._snapshots() for part in parts]
        self.refresh_stats()
        await self._refresh_expiries()
        parts += [self._kept_counters, self.stats.snapshot(), self.control_plane.stats()]
        await in_slices(_add_all(total, parts))
        return total

    async def reset_counters(self) -> None:
        """POST /reset_counters."""
        self.stats.reset_counters()
        self._kept_counters = Snapshot()
        for worker in self.workers:
            if isinstance(worker, RemoteWorker):
                worker.last_snapshot = None
        await self.each("reset_counters")

    async def fail_health_checks(self, fail: bool) -> None:
        """POST /healthcheck/fail and ok: while they fail, /ready does, and every answer ends its connection."""
        self.healthy = not fail
        if not self._ending.is_set():
            await self.each("fail_health_checks", fail)

    def _runtime_overrides(self) -> dict[str, str]:
        """What an operator set in the admin layer, for a worker that comes later."""
        layers = [layer for layer in self.runtime.layers if layer.is_admin]
        return {key: str(value) for layer in layers for key, value in layer.values.items()}

    async def _refresh_expiries(self) -> None:
        stats = self.server_stats
        stats.days_until_first_cert_expiring = NO_CERTIFICATES
        stats.seconds_until_first_ocsp_response_expiring = 0
        for days, seconds in await self.parts_of_one("first_expiries"):
            stats.days_until_first_cert_expiring = NO_CERTIFICATES if days is None else int(days)
            stats.seconds_until_first_ocsp_response_expiring = int(seconds or 0)

    def refresh_stats(self) -> None:
        """Bring those of the server's own stats up to date that nothing counts along the way."""
        stats = self.server_stats
        stats.state = self.state
        stats.live = int(self.healthy and self.state == LIVE)
        stats.uptime = int(time.monotonic() - self.started)
        stats.concurrency = self.options.concurrency
        with open("/proc/self/statm", "rb") as statm:
            stats.memory_physical_size = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        stats.memory_allocated = stats.memory_physical_size

    def _reopen_logs(self) -> None:
        self.dispatcher.spawn(self.each("reopen_logs"), "reopen logs")

    # -- the end

    def _on_end_signal(self) -> None:
        self._signals += 1
        if self.state in (PRE_INITIALIZING, INITIALIZING):
            self._exit_now()
        if self._signals > 1:
            _log.warning("second signal: ending at once")
            self._exit_now()
        self.end()

    def _exit_now(self) -> None:
        for worker in self.workers:
            if isinstance(worker, RemoteWorker):
                worker.process.kill()
        self.sockets.close()
        logging.shutdown()
        sys.stdout.flush()
        os._exit(1)

    def end(self) -> None:
        """Begin to end: /ready fails from now on."""
        if self._ending.is_set():
            return
        self.state = DRAINING
        _log.info("draining: new connections are still served for %g s", self.options.shutdown_delay_s)
        self._ending.set()

    def quit(self) -> None:
        """POST /quitquitquit: end soon, without the drain of a signal."""
        self._quit = True
        self.dispatcher.loop.call_later(_POLL_S, self.end)

    async def _drain(self) -> None:
        """Answer, but let nobody stay; then accept no more; then wait for what is under way."""
        if self._quit:
            return
        await self.each("start_drain")
        await asyncio.sleep(self.options.shutdown_delay_s)
        await self._await_replacements()
        await self._close_listeners(inbound_only=False)
        deadline = time.monotonic() + self.options.drain_time_s
        while time.monotonic() < deadline and sum(await self.each("connections")):
            await self.each("close_idle", min(_IDLE_MS, self.options.drain_time_s * 250.0))
            await asyncio.sleep(_POLL_S)
        self._drained.set()

    async def _await_replacements(self) -> None:
        """Connections may wait in the accept queue of a worker that died: closing the listeners would reset them."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.options.drain_time_s):
                while self._replacements:
                    await asyncio.wait([self._replacements[-1]])
                    self._replacements = [task for task in self._replacements if not task.done()]

    async def drain_listeners(self, inbound_only: bool, graceful: bool, skip_exit: bool) -> None:
        """POST /drain_listeners: `graceful` ends connections with their next answer, for the drain time, before the
        listeners close; without it they close at once, and connections that there are stay."""
        if graceful:
            await self.each("start_drain", inbound_only, True)
            if not skip_exit:
                self.dispatcher.spawn(self._close_listeners_later(inbound_only), "drain listeners")
        else:
            await self._close_listeners(inbound_only)

    async def _close_listeners_later(self, inbound_only: bool) -> None:
        await asyncio.sleep(self.options.drain_time_s)
        await self._close_listeners(inbound_only)

    async def _close_listeners(self, inbound_only: bool) -> None:
        """Accept no more, but what waits in the accept queues already."""
        self.sockets.refuse_new(inbound_only)
        await asyncio.sleep(_ACCEPT_QUEUE_S if self.options.drain_time_s else 0.0)
        await self.each("stop_accepting", inbound_only)
        self.sockets.stop(inbound_only)


def _names_gone(before: Any, bootstrap: Any) -> dict[str, set[str]]:
    """Clusters and listeners that the file does not have any more: those of a control plane may have their names."""
    old, new = before.static_resources, bootstrap.static_resources
    return {
        "clusters": {one.name for one in old.clusters} - {one.name for one in new.clusters},
        "listeners": {listener_name(one) for one in old.listeners} - {listener_name(one) for one in new.listeners},
    }


def _warn_of_lasting(before: Any, bootstrap: Any) -> None:
    """What a reload cannot change."""
    for field, what in (
        ("admin", "the admin interface"),
        ("dynamic_resources", "the connection to the control plane"),
        ("node", "what control planes know of this proxy"),
    ):
        if getattr(before, field) != getattr(bootstrap, field):
            _log.warning("%s: %s stays as it is until the next start", field, what)


def _add_all(total: Snapshot, parts: list[Snapshot]) -> Iterator[None]:
    while parts:  # each is freed at once: all of them together would take as long as a slice may
        total.add(parts.pop())
        yield


def describe(errors: ConfigErrors) -> str:
    """Every error on a line of its own."""
    return "\n".join(_line(error) for error in errors.sorted())


def _line(error: ConfigError) -> str:
    return f"  {error.path}: {error.reason}" if error.path else f"  {error.reason}"
