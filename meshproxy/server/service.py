"""A worker's verbs by name, with plain values only: the same whether it lives in this process or in another."""

from __future__ import annotations

import asyncio
import inspect
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from time import monotonic
from typing import Any, Final

from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap

from meshproxy.config.datasource import ReadFile
from meshproxy.config.errors import ConfigErrors
from meshproxy.net.slices import SLICE_S
from meshproxy.observe.log import set_level
from meshproxy.observe.log_file import LOG_FILES
from meshproxy.server.endpoint_dump import dump_endpoints
from meshproxy.server.explain.live import explain_live
from meshproxy.server.garbage import GARBAGE
from meshproxy.server.subscriptions import Delivery, Reasons
from meshproxy.server.worker import Worker
from meshproxy.tls.certs import days_until_first_expires, describe, seconds_until_first_staple_expires
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.status import cluster_status

Plain = Any  # what marshal takes

# These wait for others: whoever runs verbs in turn does not let them hold up the rest.
WAITING: Final = frozenset({"layers_ready", "warmed", "settled", "deliver"})


class WorkerService:
    """Runs verbs on a worker."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.sockets: dict[str, list[socket.socket]] = {}
        self._built_bytes: int = 0  # of the configuration that is prepared
        self._verbs: dict[str, Callable[..., Plain]] = {
            "prepare": self._prepare,
            "commit_clusters": worker.commit_clusters,
            "layers_ready": worker.layers_ready,
            "warmed": worker.warmed,
            "commit_listeners": self._commit_listeners,
            "serve": self._serve,
            "settled": worker.settled,
            "update_clusters": self._update_clusters,
            "prepare_listeners": self._prepare_listeners,
            "abandon_listeners": worker.abandon_listeners,
            "commit_updates": self._commit_updates,
            "deliver": self._deliver,
            "fetch_failed": worker.subscriptions.on_failure,
            "unready": worker.unready,
            "report_loads": worker.report_loads,
            "abandon": self._abandon,
            "snapshot": self._snapshot,
            "histograms": self._histograms,
            "reset_counters": worker.stats.reset_counters,
            "clusters": self._clusters,
            "endpoints": self._endpoints,
            "watched_files": worker.watched_files,
            "files": self._files,
            "certificates": self._certificates,
            "first_expiries": self._first_expiries,
            "runtime": worker.runtime.entries,
            "modify_runtime": worker.runtime.modify,
            "start_drain": worker.start_drain,
            "fail_health_checks": worker.fail_health_checks,
            "stop_accepting": worker.stop_accepting,
            "close_idle": worker.close_idle,
            "draining": worker.draining,
            "stale": worker.stale,
            "close_idle_draining": worker.close_idle_draining,
            "abort_draining": worker.abort_draining,
            "connections": worker.connections,
            "set_log_level": set_level,
            "reopen_logs": LOG_FILES.reopen,
            "started": self._started,
            "explain": self._explain,
        }

    async def run(self, verb: str, arguments: tuple[Plain, ...]) -> AsyncIterator[Plain]:
        """The parts of a verb's result, most often a single one; KeyError for a verb that does not exist.

        Traffic waits while a part is made and sent: no part may take more than a few milliseconds.
        """
        result = self._verbs[verb](*arguments)
        if isinstance(result, Iterator):
            until = monotonic() + SLICE_S
            for part in result:
                yield part
                if monotonic() >= until:
                    await asyncio.sleep(0)
                    until = monotonic() + SLICE_S
        else:
            yield await result if inspect.isawaitable(result) else result

    async def _update_clusters(
        self, source: bytes, updates: list[Delivery], removed: list[str], columns: dict[str, int]
    ) -> Reasons:
        return await _built(updates, self.worker.update_clusters(source, updates, removed, columns))

    async def _prepare_listeners(self, source: bytes, updates: list[Delivery], columns: dict[str, int]) -> Reasons:
        return await _built(updates, self.worker.prepare_listeners(source, updates, columns))

    async def _deliver(
        self,
        source: bytes,
        type_url: str,
        updates: list[Delivery],
        removed: list[str],
        refused: list[str],
        only_new: bool,
    ) -> Reasons:
        delivering = self.worker.subscriptions.deliver(source, type_url, updates, removed, refused, only_new)
        return await _built(updates, delivering)

    async def _commit_listeners(self) -> None:
        await self.worker.commit_listeners(self._take_sockets())
        GARBAGE.settle(self._built_bytes)

    async def _commit_updates(self, removed: list[str]) -> None:
        await self.worker.commit_updates(removed, self._take_sockets())

    async def _serve(self) -> None:
        await self.worker.serve(self._take_sockets())

    def _take_sockets(self) -> dict[str, list[socket.socket]]:
        """Those that came for this verb, by listener."""
        sockets, self.sockets = self.sockets, {}
        return sockets

    def _abandon(self) -> None:
        self.worker.abandon()
        GARBAGE.resume()

    async def _prepare(
        self, serialised: bytes, columns: dict[str, int], ticket_seed: bytes, given_files: dict[str, ReadFile]
    ) -> list[tuple[str, str]]:
        """Errors as (path, reason)."""
        errors = ConfigErrors()
        GARBAGE.pause()  # until `commit_listeners` or `abandon`
        await self.worker.prepare(Bootstrap.FromString(serialised), columns, errors, ticket_seed, given_files)
        self._built_bytes = self.worker.built_bytes()
        return [(error.path, error.reason) for error in errors.items]

    def _sorted_clusters(self) -> list[Cluster]:
        """By name, as Envoy keeps them."""
        return sorted(self.worker.clusters.clusters(), key=lambda cluster: cluster.name)

    def _clusters(self) -> Iterator[Plain]:
        """A part a cluster, for `/clusters`."""
        for cluster in self._sorted_clusters():
            yield cluster_status(cluster)

    def _endpoints(self) -> Iterator[Plain]:
        """A part a cluster: its name and serialised ClusterLoadAssignment."""
        for cluster in self._sorted_clusters():
            yield cluster.name, dump_endpoints(cluster).SerializeToString()

    def _files(self) -> Iterator[Plain]:
        """A part a file that the running configuration was built of: its name, its stamp and what it held."""
        yield from self.worker.files()

    def _certificates(self) -> Iterator[Plain]:
        """A part a context, for `/certs`."""
        for context in self.worker.tls_contexts():
            yield describe(context)

    def _first_expiries(self) -> tuple[int | None, int | None]:
        """Days until the first certificate expires, and seconds until the first OCSP response does."""
        contexts = self.worker.tls_contexts()
        return days_until_first_expires(contexts), seconds_until_first_staple_expires(contexts)

    def _snapshot(self, without: tuple[str, ...]) -> Iterator[Plain]:
        """Of all scopes but those with one of these prefixes."""
        for part in self.worker.stats.collect(without):
            yield part.dump()

    def _histograms(self) -> Iterator[Plain]:
        """Of those that recorded something."""
        for part in self.worker.stats.collect_histograms():
            if part.histograms:
                yield part.dump()

    async def _explain(self, pairs: list[tuple[str, str]]) -> Plain:
        return await explain_live(self.worker, pairs)

    def _started(self) -> None:
        GARBAGE.rebase()
        self.worker.manager_stats.workers_started = 1
        logging.getLogger("meshproxy.main").debug("worker started")


async def _built(updates: list[Delivery], building: Coroutine[Any, Any, Reasons]) -> Reasons:
    """Keep the collector away while resources are built; it does not look at large ones later either."""
    GARBAGE.pause()
    try:
        return await building
    finally:
        # In the supervisor's own process messages are handed on as they are, and it does the same around all of this.
        GARBAGE.settle(sum(len(message) for _, _, message in updates if isinstance(message, bytes)))
