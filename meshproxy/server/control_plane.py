"""The supervisor's side of control planes: what they say is checked, and handed to the workers.

Every resource stands for itself: one that is refused leaves the others of its response alone, and its own last good
version in force. Clusters come before what names them: listeners and routes wait a while for clusters that are warming.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Generator, Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap
from google.protobuf import json_format

from meshproxy.config.config_source import source_key
from meshproxy.config.context import Services
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.fields import UNKNOWN_FIELD, NotYet, check_steps
from meshproxy.config.large_message import merge_in_steps
from meshproxy.config.messages import find_message, type_name
from meshproxy.config.runtime_layers import flatten
from meshproxy.config.subscription import (
    CLUSTER_TYPE,
    ENDPOINT_TYPE,
    LISTENER_TYPE,
    ROUTE_TYPE,
    RUNTIME_TYPE,
    SECRET_TYPE,
    VIRTUAL_HOST_TYPE,
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
from meshproxy.server.subscriptions import Delivery, Interest, Key, Reasons, collection_of, count_update
from meshproxy.xds.resources import WILDCARD, Rejection, ResourceSink, ResourceUpdate

if TYPE_CHECKING:
    from meshproxy.server.supervisor import Supervisor
    from meshproxy.xds.cache import ResourceCache
    from meshproxy.xds.client import XdsClient
    from meshproxy.xds.load_reports import LoadReporter

_log: Final = logging.getLogger("meshproxy.xds")
_FETCH_TIMEOUT_MS: Final = 15_000  # Envoy's default of `initial_fetch_timeout`
_CACHED_MS: Final = 1000  # so long one waits for a control plane, where a cache has told the same
_BATCH_BYTES: Final = 256 * 1024  # to another process at a time
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
        # Beside workers of other processes: has the clusters that control planes are reached by.
        self._own: LocalWorker | None = None
        self._load_reports: LoadReporter | None = None
        self._cache: ResourceCache | None = None
        self._cached: dict[str, tuple[bytes, list[ResourceUpdate]]] = {}  # clusters and listeners of it, until used
        # By type: who begins to watch is told what is in force before, or after, that changes.
        self._changing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._wanted: Counter[Key] = Counter()  # by how many workers
        self._first: dict[str, asyncio.Event] = {}  # of CDS and LDS: set with the first answer
        self._stats: dict[str, SubscriptionStats] = {}
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
        self._own = LocalWorker(self._supervisor.dispatcher, self._supervisor.options, self.on_interest)
        await self.reload(bootstrap)
        return self._own.worker.services

    async def reload(self, bootstrap: Any) -> None:
        """The bootstrap's static clusters are others now."""
        if self._own is None:
            return
        reduced = Bootstrap()
        reduced.CopyFrom(bootstrap)
        del reduced.static_resources.listeners[:]
        errors = await self._own.call("prepare", reduced.SerializeToString(), {}, b"", {})
        if errors:
            _log.error("the clusters of control planes stay as they were: %s", errors)
            await self._own.call("abandon")
            return
        await self._own.call("commit_clusters")
        await self._own.call("commit_listeners")  # there are none; clusters that are gone go

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
                    self.resources.record(source, type_url, update.name).take(TakenVersion(*checked), warms=False)

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
        timeout_ms = milliseconds_or(config, "initial_fetch_timeout", _FETCH_TIMEOUT_MS)
        is_cached = await self._take_cached(type_url)
        self._client.subscribe(source_key(config), type_url, WILDCARD)
        if is_cached:
            timeout_ms = min(timeout_ms or _CACHED_MS, _CACHED_MS)
        try:
            async with asyncio.timeout(timeout_ms / 1000.0 or None):
                await event.wait()
        except TimeoutError:
            stats.init_fetch_timeout += 1
            _log.warning("%s: no answer came in %g s; going on without", field, timeout_ms / 1000.0)

    def stats(self) -> Snapshot:
        """Of the clusters that this process has beside those of its workers."""
        snapshot = Snapshot() if self._own is None else self._own.worker.stats.snapshot()
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

    def changing(self, type_url: str) -> asyncio.Lock:
        """Held while resources of the type are handed over."""
        return self._changing[type_url]

    # -- who watches what

    def on_interest(self, worker: WorkerHandle, changes: list[Interest]) -> None:
        """A worker watches resources, or does no longer. What is known already it is told now."""
        known: list[Key] = []
        for source, type_url, name, wanted in changes:
            key = (source, type_url, name)
            if wanted:
                known.append(key)
                if key not in worker.interests:
                    worker.interests.add(key)
                    self._want(key)
            elif key in worker.interests:
                worker.interests.discard(key)
                self._unwant(key)
        self._connect_soon()
        if known:
            self._supervisor.dispatcher.spawn(self._tell_known(worker, known), "known resources")

    def _connect_soon(self) -> None:
        """Where nobody needed a control plane until now."""
        bootstrap = self._bootstrap
        if bootstrap is not None and self._wanted:
            self._bootstrap = None
            self._supervisor.dispatcher.spawn(self._connect_late(bootstrap), "control plane")

    async def _connect_late(self, bootstrap: Any) -> None:
        try:
            await self._connect(bootstrap)
        except Exception:  # noqa: BLE001  a bug must not be the end of all that is watched later
            _log.exception("no control plane can be reached")
            self._bootstrap = bootstrap

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
                records = self.resources.of(source, type_url)
                known = [(name, records[name]) for name in wanted if name in records]
                deliveries = _in_force({name: one.taken for name, one in known if one.taken is not None})
                refused = [name for name, one in known if one.taken is None]
                if known:
                    with contextlib.suppress(WorkerGone):
                        await worker.call("deliver", source, type_url, deliveries, [], refused, True)

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

    async def apply(
        self,
        source: bytes,
        type_url: str,
        updates: list[ResourceUpdate],
        removed: list[str],
        version: str,
        rejections: Sequence[Rejection] = (),
    ) -> list[Rejection]:
        """Take these, each for itself. Returns those that are refused, with all that is wrong with them. `rejections`
        are what the client could not even read of the same response."""
        size = sum(len(update.data) for update in updates)
        for each in rejections:
            _log.warning("%s %s is refused: %s", type_url.rpartition(".")[2], each.name, each.reason)
        GARBAGE.pause()
        try:
            known = {update.name for update in updates}
            lost = [each for each in rejections if each.name not in known]
            reasons = await self._apply(source, type_url, updates, removed, [each.name for each in lost])
        finally:
            GARBAGE.settle(size)
        for each in lost:
            self.resources.record(source, type_url, each.name).refusal = Refusal(version, b"", each.reason)
        rejected = bool(reasons or rejections)
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
            refused = [*reasons, *unreadable]
            reasons.update(await self._hand_over(source, type_url, deliveries, removed, refused))
            for update, message, not_yet in checked:
                await slices.rest()
                if update.name not in reasons and self._is_wanted(source, type_url, update.name):
                    record = self.resources.record(source, type_url, update.name)
                    record.take(TakenVersion(update, message, not_yet), warms=type_url == LISTENER_TYPE)
        for update in updates:
            if update.name in reasons:
                because = reasons[update.name]
                data = b"" if type_url == SECRET_TYPE else update.data  # a key that nobody uses is not kept
                refusal = Refusal(update.version, data, because)
                self.resources.record(source, type_url, update.name).refusal = refusal
                _log.warning("%s %s is refused: %s", type_url.rpartition(".")[2], update.name, because)
        for name in removed:
            records.pop(name, None)
        if self._cache is not None:
            taken = [update for update in updates if update.name not in reasons]
            self._cache.update(source, type_url, taken, removed)
        return reasons

    def _is_wanted(self, source: bytes, type_url: str, name: str) -> bool:
        """Whether anybody still is to be told of it."""
        if type_url in (CLUSTER_TYPE, LISTENER_TYPE):
            return True
        return _Wants(self._wanted.keys(), source, type_url)(name)

    async def _check(
        self, type_url: str, update: ResourceUpdate, reasons: dict[str, str], slices: Slices
    ) -> _Checked | None:
        """The API's rules and our tables. None where it breaks them; `reasons` has then all that is wrong."""
        if type_url == ENDPOINT_TYPE:
            return update, update.message, []  # whoever takes them looks at those that changed only
        errors = ConfigErrors()
        not_yet: list[NotYet] = []
        message = type(update.message)()
        await slices.run(merge_in_steps(message, update.data))
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
            answers: list[Any] = []
            for batch in self._batches(deliveries):
                answers += await self._supervisor.each("update_clusters", source, batch, [], columns)
            answers += await self._supervisor.each("update_clusters", source, [], removed, columns)
            reasons = join_reasons(answers)
            deliveries = [delivery for delivery in deliveries if delivery[0] not in reasons]
            refused = [*refused, *reasons]
        calls = []
        own = [] if self._own is None else [self._own]
        for worker in [*self._supervisor.workers, *own]:
            wants = _Wants(worker.interests, source, type_url)
            gone, bad = ([name for name in names if wants(name)] for names in (removed, refused))
            wanted = [delivery for delivery in deliveries if wants(delivery[0])]
            if wanted or gone or bad:
                calls.append(self._deliver(worker, source, type_url, wanted, gone, bad))
        reasons.update(join_reasons(await self._supervisor.gather(calls)))
        return reasons

    async def _deliver(
        self,
        worker: WorkerHandle,
        source: bytes,
        type_url: str,
        wanted: list[Delivery],
        gone: list[str],
        bad: list[str],
    ) -> Reasons:
        reasons: Reasons = []
        for batch in self._batches(wanted):
            reasons += await worker.call("deliver", source, type_url, batch, [], [], False)
        if gone or bad:
            await worker.call("deliver", source, type_url, [], gone, bad, False)
        return reasons

    def _batches(self, deliveries: list[Delivery]) -> Iterator[list[Delivery]]:
        """As `for_workers`, in parts that are written and read in a moment. In this process there is but one."""
        if self._own is None:
            if deliveries:
                yield deliveries
            return
        batch: list[Delivery] = []
        size = 0
        for delivery in deliveries:
            batch += self.for_workers([delivery])
            size += len(batch[-1][2])
            if size >= _BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

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

    # -- a file that changes

    async def renew(self, names: dict[str, set[str]], stale: list[tuple[str, str]]) -> None:
        """Hand clusters and listeners over again: whose names the bootstrap has given up, or whose files are others."""
        for field, name in stale:
            names[field].add(name)
        for field, type_url in (("clusters", CLUSTER_TYPE), ("listeners", LISTENER_TYPE)):
            for source, taken in self.resources.sources_of(type_url):
                chosen = _in_force({name: one for name, one in taken.items() if name in names[field]})
                if chosen:
                    kind = find_message(type_name(type_url))
                    assert kind is not None
                    parsed = [(name, version, kind.FromString(data)) for name, version, data in chosen]
                    async with self._changing[type_url]:
                        reasons = await self._hand_over(source, type_url, parsed, [], [])
                    for name, because in reasons.items():
                        _log.error("%s of the control plane stays as it was: %s", name, because)

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


class _Wants:
    """Whether a worker watches the resource of a name. One that begins just now is told when that is known."""

    def __init__(self, interests: Collection[Key], source: bytes, type_url: str) -> None:
        self._interests = interests
        self._source = source
        self._type_url = type_url

    def __call__(self, name: str) -> bool:
        names = (name, collection_of(name)) if self._type_url == VIRTUAL_HOST_TYPE else (name,)
        return any((self._source, self._type_url, each) in self._interests for each in names)


def _in_force(taken: dict[str, TakenVersion]) -> list[Delivery]:
    return [(name, one.version, one.checked) for name, one in taken.items()]


def join_reasons(answers: list[Any]) -> dict[str, str]:
    """Of several workers: all that is wrong with a resource, by its name."""
    found: dict[str, dict[str, None]] = {}
    for answer in answers:
        for name, path, reason in answer:
            found.setdefault(name, {})[f"{path}: {reason}" if path else reason] = None
    return {name: "\n".join(lines) for name, lines in found.items()}
