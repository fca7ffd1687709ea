"""The supervisor's side of control planes: what they say is checked, and handed to the workers.

Every resource stands for itself: one that is refused leaves the others of its response alone, and its own last good
version in force. Clusters come before what names them: listeners and routes wait a while for clusters that are warming.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, defaultdict
from collections.abc import Generator, Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap
from google.protobuf import json_format

from meshproxy.config.config_source import source_key
from meshproxy.config.context import Services
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.fields import UNKNOWN_FIELD, NotYet, check_steps
from meshproxy.config.runtime_layers import flatten
from meshproxy.config.subscription import (
    CLUSTER_TYPE,
    ENDPOINT_TYPE,
    LISTENER_TYPE,
    ROUTE_TYPE,
    RUNTIME_TYPE,
    SubscriptionStats,
)
from meshproxy.config.validate import validate_steps
from meshproxy.config.values import milliseconds_or
from meshproxy.net.slices import Slices
from meshproxy.observe.snapshot import Snapshot
from meshproxy.server.dynamic import DynamicResources, Refusal, TakenVersion
from meshproxy.server.garbage import GARBAGE
from meshproxy.server.handle import LocalWorker, WorkerGone, WorkerHandle
from meshproxy.server.stats import drop_managers
from meshproxy.server.subscriptions import Delivery, Interest, Key, count_update
from meshproxy.server.worker import Worker
from meshproxy.xds.resources import WILDCARD, Rejection, ResourceSink, ResourceUpdate

if TYPE_CHECKING:
    from meshproxy.server.supervisor import Supervisor
    from meshproxy.xds.cache import ResourceCache
    from meshproxy.xds.client import XdsClient
    from meshproxy.xds.load_reports import LoadReporter

_log: Final = logging.getLogger("meshproxy.xds")
_FETCH_TIMEOUT_MS: Final = 15_000  # Envoy's default of `initial_fetch_timeout`
_CACHED_MS: Final = 1000  # so long one waits for a control plane, where a cache has told the same
_WARM_S: Final = 5.0  # so long listeners and routes wait for clusters, from when those came

# A resource that follows the rules: what came, what is handed on (without what cannot be done), and what is not done.
_Checked = tuple[ResourceUpdate, Any, list[NotYet]]


class ControlPlane(ResourceSink):
    """What the xDS client brings goes to the workers."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.resources = DynamicResources()
        self._client: XdsClient | None = None  # None: nobody needs one yet
        self._bootstrap: Any = None  # in force, while there is no client
        self._own: Worker | None = None  # has the clusters that control planes are reached by, beside other workers
        self._load_reports: LoadReporter | None = None
        self._cache: ResourceCache | None = None
        self._cached: dict[str, tuple[bytes, list[ResourceUpdate]]] = {}  # clusters and listeners of it, until used
        # By type: who begins to watch is told what is in force before, or after, that changes.
        self._changing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._wanted: Counter[Key] = Counter()  # by how many workers
        self._first: dict[str, asyncio.Event] = {}  # of CDS and LDS: set with the first answer
        self._stats: dict[str, SubscriptionStats] = {}
        # By source and type: the names of what the client could not even read of the response that is applied next.
        self._unreadable: dict[tuple[bytes, str], list[str]] = {}
        self._clusters_at: float = 0.0  # when clusters came last

    # -- start

    async def begin(self, bootstrap: Any) -> None:
        """Connect, as `bootstrap` has it: its static clusters are in force. Or later, when something is watched."""
        self._bootstrap = bootstrap
        reports_loads = bootstrap.cluster_manager.HasField("load_stats_config")
        if bootstrap.HasField("dynamic_resources") or reports_loads or self._wanted:
            await self._connect(bootstrap)

    async def _connect(self, bootstrap: Any) -> None:
        from meshproxy.xds.client import XdsClient

        self._bootstrap = None
        dynamic = bootstrap.dynamic_resources
        ads = dynamic.ads_config if dynamic.HasField("ads_config") else None
        services = await self._services(bootstrap)
        client = XdsClient(services, bootstrap.node, ads, self._supervisor.stats, self)
        await self._load_cache(client, bootstrap.node.id)
        self._client = client
        client.start()
        if bootstrap.cluster_manager.HasField("load_stats_config"):
            self._start_load_reports(services, bootstrap)
        for key in self._wanted:
            self._client.subscribe(*key)

    async def _services(self, bootstrap: Any) -> Services:
        """One worker shares its clusters; several have them, and this process its own."""
        (first, *_) = self._supervisor.workers
        if isinstance(first, LocalWorker):
            return first.worker.services
        reduced = Bootstrap(node=bootstrap.node, layered_runtime=bootstrap.layered_runtime)
        reduced.static_resources.clusters.extend(bootstrap.static_resources.clusters)
        self._own = Worker(self._supervisor.dispatcher)
        errors = ConfigErrors()
        await self._own.prepare(reduced, {}, errors)
        assert not errors, str(errors)  # the workers have built the same
        await self._own.commit_clusters()
        return self._own.services

    def _start_load_reports(self, services: Services, bootstrap: Any) -> None:
        from meshproxy.xds.load_reports import LoadReporter

        config, registry = bootstrap.cluster_manager.load_stats_config, self._supervisor.stats
        self._load_reports = LoadReporter(services, bootstrap.node, config, registry, self)
        self._load_reports.start()

    async def collect(self, names: list[str] | None, by_endpoint: bool) -> list[dict[str, Any]]:
        """As `xds.load_reports.LoadSource` has it: what the clusters of all workers had to do since the last time."""
        return [one for part in await self._supervisor.each("report_loads", names, by_endpoint) for one in part]

    async def _load_cache(self, client: XdsClient, node: str) -> None:
        """What was in force when the proxy ended: it is so again, until the control plane has something else to say."""
        path = self._supervisor.options.xds_cache
        if not path:
            return
        from meshproxy.xds.cache import ResourceCache

        self._cache = ResourceCache(self._supervisor.dispatcher, Path(path), node)
        for source, type_url, updates in self._cache.load():
            client.restore(source, type_url, {update.name: update.version for update in updates})
            if type_url in (CLUSTER_TYPE, LISTENER_TYPE):
                self._cached[type_url] = (source, updates)
                continue
            reasons: dict[str, str] = {}
            for update in updates:  # whoever watches it is told then
                checked = await self._check(type_url, update, reasons, Slices())
                if checked is not None:
                    self.resources.record(source, type_url, update.name).take(TakenVersion(*checked))

    async def _take_cached(self, type_url: str) -> bool:
        """Put clusters, or listeners, of the cache in force; False when there are none."""
        source, updates = self._cached.pop(type_url, (b"", []))
        if updates:
            await self._apply(source, type_url, updates, [])
        return bool(updates)

    async def first_clusters(self, bootstrap: Any) -> None:
        """Ask for clusters, and wait for the first answer, or until the time for it is over."""
        await self._first_answer(bootstrap.dynamic_resources, "cds_config", CLUSTER_TYPE, "cluster_manager.cds.")

    async def first_listeners(self, bootstrap: Any) -> None:
        """The same of listeners."""
        await self._first_answer(bootstrap.dynamic_resources, "lds_config", LISTENER_TYPE, "listener_manager.lds.")

    async def _first_answer(self, dynamic: Any, field: str, type_url: str, prefix: str) -> None:
        if not dynamic.HasField(field) or self._client is None:
            return
        config = getattr(dynamic, field)
        stats = self._stats[type_url] = self._supervisor.stats.acquire(prefix, SubscriptionStats)
        stats.update_attempt += 1
        event = self._first[type_url] = asyncio.Event()
        self._client.subscribe(source_key(config), type_url, WILDCARD)
        timeout_ms = milliseconds_or(config, "initial_fetch_timeout", _FETCH_TIMEOUT_MS)
        if await self._take_cached(type_url):
            timeout_ms = min(timeout_ms or _CACHED_MS, _CACHED_MS)
        try:
            async with asyncio.timeout(timeout_ms / 1000.0 or None):
                await event.wait()
        except TimeoutError:
            stats.init_fetch_timeout += 1
            _log.warning("%s: no answer came in %g s; going on without", field, timeout_ms / 1000.0)

    def stats(self) -> Snapshot:
        """Of the clusters that this process has beside those of its workers."""
        snapshot = Snapshot() if self._own is None else self._own.stats.snapshot()
        drop_managers(snapshot)
        return snapshot

    async def close(self) -> None:
        """Leave the control planes."""
        if self._load_reports is not None:
            await self._load_reports.close()
        if self._client is not None:
            await self._client.close()
        if self._cache is not None:
            await self._cache.close()
        if self._own is not None:
            await self._own.close()

    # -- who watches what

    def on_interest(self, worker: WorkerHandle, changes: list[Interest]) -> None:
        """A worker watches resources, or does no longer. What is known already it is told now."""
        known: list[Key] = []
        for source, type_url, name, wanted in changes:
            key = (source, type_url, name)
            if wanted:
                self._want(key)
                known.append(key)
            else:
                self._unwant(key)
        if self._bootstrap is not None and self._wanted:
            self._supervisor.dispatcher.spawn(self._connect(self._bootstrap), "control plane")
            self._bootstrap = None
        self._supervisor.dispatcher.spawn(self._tell_known(worker, known), "known resources")

    def forget_worker(self, worker: WorkerHandle) -> None:
        """It is gone, with all that it watched."""
        for key in worker.interests:
            self._unwant(key)
        worker.interests = set()

    def _want(self, key: Key) -> None:
        self._wanted[key] += 1
        if self._wanted[key] == 1 and self._client is not None:
            self._client.subscribe(*key)

    def _unwant(self, key: Key) -> None:
        self._wanted[key] -= 1
        if self._wanted[key] <= 0:
            del self._wanted[key]
            if self._client is not None:
                self._client.unsubscribe(*key)
            source, type_url, name = key
            if type_url not in (CLUSTER_TYPE, LISTENER_TYPE):
                self.resources.of(source, type_url).pop(name, None)

    async def _tell_known(self, worker: WorkerHandle, keys: list[Key]) -> None:
        names: dict[tuple[bytes, str], list[str]] = {}
        for source, type_url, name in keys:
            names.setdefault((source, type_url), []).append(name)
        for (source, type_url), wanted in names.items():
            async with self._changing[type_url]:
                known = [(name, self.resources.taken(source, type_url, name)) for name in wanted]
                deliveries = [(name, taken.version, taken.checked) for name, taken in known if taken is not None]
                if deliveries:
                    with contextlib.suppress(WorkerGone):
                        await worker.call("deliver", source, type_url, deliveries, [], [], True)

    # -- what the client brings

    def on_attempt(self, source: bytes, type_url: str) -> None:
        """A connection is tried."""

    def on_failure(self, source: bytes, type_url: str, reason: str) -> None:
        """It failed, or broke."""
        stats = self._stats.get(type_url)
        if stats is not None:
            stats.update_failure += 1
        elif type_url:
            failed = self._supervisor.each("fetch_failed", source, type_url)
            self._supervisor.dispatcher.spawn(failed, "fetch failed")

    def on_rejected(self, source: bytes, type_url: str, rejections: list[Rejection], version: str) -> None:
        """The client could not even read these; `apply` follows, with the rest of the response."""
        self._unreadable[source, type_url] = [rejection.name for rejection in rejections]
        for rejection in rejections:
            _log.warning("%s %s is refused: %s", type_url.rpartition(".")[2], rejection.name, rejection.reason)

    async def apply(
        self, source: bytes, type_url: str, updates: list[ResourceUpdate], removed: list[str], version: str
    ) -> list[Rejection]:
        """Take these, each for itself. Returns those that are refused, with all that is wrong with them."""
        size = sum(len(update.data) for update in updates)
        unreadable = self._unreadable.pop((source, type_url), [])
        GARBAGE.pause()
        try:
            reasons = await self._apply(source, type_url, updates, removed, unreadable)
        finally:
            GARBAGE.keep(size)
        rejected = bool(reasons or unreadable)
        if not rejected:
            self.resources.versions[type_url] = version
        stats = self._stats.get(type_url)
        if stats is not None:
            count_update(stats, version, rejected)
            stats.config_reload += 0 if rejected else 1
        if type_url in self._first:
            self._first[type_url].set()
        return [Rejection(name, reason) for name, reason in reasons.items()]

    async def _apply(
        self,
        source: bytes,
        type_url: str,
        updates: list[ResourceUpdate],
        removed: list[str],
        unreadable: Sequence[str] = (),
    ) -> dict[str, str]:
        """Why resources are refused, by name. Who watches one of the `unreadable` ones is told as well."""
        records = self.resources.of(source, type_url)
        reasons: dict[str, str] = {}
        checked: list[_Checked] = []
        slices = Slices()
        for update in updates:
            await slices.rest()
            record = records.get(update.name)
            if record is not None and record.is_taken(update):
                continue
            found = await self._check(type_url, update, reasons, slices)
            if found is not None:
                checked.append(found)
        await self._make_before_break(type_url)
        deliveries = [(update.name, update.version, message) for update, message, _ in checked]
        async with self._changing[type_url]:
            refused = [*reasons, *(name for name in unreadable if name not in {each.name for each in updates})]
            reasons.update(await self._hand_over(source, type_url, deliveries, removed, refused))
            for update, message, not_yet in checked:
                await slices.rest()
                if update.name not in reasons:
                    self.resources.record(source, type_url, update.name).take(TakenVersion(update, message, not_yet))
        for update in updates:
            if update.name in reasons:
                because = reasons[update.name]
                self.resources.record(source, type_url, update.name).refusal = Refusal(update, because)
                _log.warning("%s %s is refused: %s", type_url.rpartition(".")[2], update.name, because)
        for name in removed:
            records.pop(name, None)
        if self._cache is not None:
            taken = [update for update in updates if update.name not in reasons]
            self._cache.update(source, type_url, taken, removed)
        return reasons

    async def _check(
        self, type_url: str, update: ResourceUpdate, reasons: dict[str, str], slices: Slices
    ) -> _Checked | None:
        """The API's rules and our tables. None where it breaks them; `reasons` has then all that is wrong."""
        if type_url == ENDPOINT_TYPE:
            return update, update.message, []  # whoever takes them looks at those that changed only
        errors = ConfigErrors()
        not_yet: list[NotYet] = []
        message = type(update.message)()
        message.CopyFrom(update.message)
        await slices.run(_check_steps(message, errors, not_yet))
        unknown = [(path, note) for path, note in not_yet if note.startswith(UNKNOWN_FIELD)]
        self._supervisor.server_stats.dynamic_unknown_fields += len(unknown)
        self._supervisor.server_stats.dynamic_not_done_fields += len(not_yet) - len(unknown)
        if self._supervisor.options.reject_unknown_dynamic_fields:
            for path, note in unknown:
                errors.add(path, note)
        if errors:
            reasons[update.name] = str(errors)
            return None
        return update, message, not_yet

    async def _make_before_break(self, type_url: str) -> None:
        """Listeners and routes come after the clusters that they name: those that are warming get a while."""
        left_s = self._clusters_at + _WARM_S - monotonic()
        if type_url in (LISTENER_TYPE, ROUTE_TYPE) and left_s > 0.0:
            await self._supervisor.each("warmed", left_s)

    async def _hand_over(
        self, source: bytes, type_url: str, deliveries: list[Delivery], removed: list[str], refused: list[str]
    ) -> dict[str, str]:
        """To all workers; what one of them refuses is refused."""
        if type_url == LISTENER_TYPE:
            return await self._supervisor.update_listeners(source, deliveries, removed)
        reasons: dict[str, str] = {}
        if type_url == RUNTIME_TYPE:
            self._set_runtime(source, deliveries, removed)
        if type_url == CLUSTER_TYPE:
            self._clusters_at = monotonic()
            names = [name for name, _, _ in deliveries]
            columns = self._supervisor.assign_columns(self._supervisor.bootstrap, clusters=names)
            answers = await self._supervisor.each(
                "update_clusters", source, self.for_workers(deliveries), removed, columns
            )
            reasons = join_reasons(answers)
            deliveries = [delivery for delivery in deliveries if delivery[0] not in reasons]
            refused = [*refused, *reasons]
        answers = await self._supervisor.each(
            "deliver", source, type_url, self.for_workers(deliveries), removed, refused, False
        )
        reasons.update(join_reasons(answers))
        return reasons

    def _set_runtime(self, source: bytes, deliveries: list[Delivery], removed: list[str]) -> None:
        """What the admin shows has the same values as the workers."""
        for name, _, message in deliveries:
            values = flatten(json_format.MessageToDict(message.layer), "layer", ConfigErrors())
            self._supervisor.runtime.set_discovered((name, source), values)
        for name in removed:
            self._supervisor.runtime.set_discovered((name, source), {})

    def for_workers(self, deliveries: list[Delivery]) -> list[Delivery]:
        """In this process messages are handed on as they are."""
        if self._own is None:
            return deliveries
        return [(name, version, message.SerializeToString()) for name, version, message in deliveries]

    # -- a worker that takes the place of a dead one

    async def equip_clusters(self, worker: WorkerHandle, columns: dict[str, int]) -> None:
        """Give it the clusters that are in force."""
        for source, taken in self.resources.sources_of(CLUSTER_TYPE):
            await worker.call("update_clusters", source, _in_force(taken), [], columns)

    async def equip_listeners(self, worker: WorkerHandle, columns: dict[str, int]) -> None:
        """The same of listeners; it accepts when it is told to serve."""
        for source, taken in self.resources.sources_of(LISTENER_TYPE):
            await worker.call("prepare_listeners", source, _in_force(taken), columns)
            await worker.call("commit_updates", [])


def _check_steps(message: Any, errors: ConfigErrors, not_yet: list[NotYet]) -> Generator[None, None, None]:
    not_yet += yield from check_steps(message, "", errors, lenient=True)
    yield from validate_steps(message, "", errors)


def _in_force(taken: dict[str, TakenVersion]) -> list[Delivery]:
    return [(name, one.version, one.checked) for name, one in taken.items()]


def join_reasons(answers: list[Any]) -> dict[str, str]:
    """Of several workers: all that is wrong with a resource, by its name."""
    found: dict[str, dict[str, None]] = {}
    for answer in answers:
        for name, path, reason in answer:
            found.setdefault(name, {})[f"{path}: {reason}" if path else reason] = None
    return {name: "\n".join(lines) for name, lines in found.items()}
