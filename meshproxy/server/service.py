"""A worker's verbs by name, with plain values only: the same whether it lives in this process or in another."""

from __future__ import annotations

import asyncio
import inspect
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from time import monotonic
from typing import Any

from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap

from meshproxy.config.datasource import ReadFile
from meshproxy.config.errors import ConfigErrors
from meshproxy.observe.log import set_level
from meshproxy.observe.log_file import LOG_FILES
from meshproxy.server.endpoint_dump import dump_endpoints
from meshproxy.server.explain.live import explain_live
from meshproxy.server.garbage import GARBAGE
from meshproxy.server.slices import SLICE_S
from meshproxy.server.worker import Worker
from meshproxy.tls.certs import days_until_first_expires, describe
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.status import cluster_status

Plain = Any  # what marshal takes


class WorkerService:
    """Runs verbs on a worker."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.sockets: dict[str, list[socket.socket]] = {}
        self._built_bytes: int = 0  # of the configuration that is prepared
        self._verbs: dict[str, Callable[..., Plain]] = {
            "prepare": self._prepare,
            "commit": self._commit,
            "listen": self._listen,
            "abandon": self._abandon,
            "snapshot": self._snapshot,
            "histograms": self._histograms,
            "reset_counters": worker.stats.reset_counters,
            "clusters": self._clusters,
            "endpoints": self._endpoints,
            "watched_files": worker.watched_files,
            "files": self._files,
            "certificates": self._certificates,
            "days_until_first_cert_expiring": self._days_until_first_expires,
            "runtime": worker.runtime.entries,
            "modify_runtime": worker.runtime.modify,
            "start_drain": worker.start_drain,
            "fail_health_checks": worker.fail_health_checks,
            "stop_accepting": worker.stop_accepting,
            "close_idle": worker.close_idle,
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

    async def _commit(self) -> None:
        sockets, self.sockets = self.sockets, {}
        await self.worker.commit(sockets)
        GARBAGE.settle(self._built_bytes)

    def _abandon(self) -> None:
        self.worker.abandon()
        GARBAGE.resume()

    async def _prepare(
        self, serialised: bytes, columns: dict[str, int], ticket_seed: bytes, given_files: dict[str, ReadFile]
    ) -> list[tuple[str, str]]:
        """Errors as (path, reason)."""
        errors = ConfigErrors()
        GARBAGE.pause()  # until `commit` or `abandon`
        await self.worker.prepare(Bootstrap.FromString(serialised), columns, errors, ticket_seed, given_files)
        self._built_bytes = self.worker.built_bytes()
        return [(error.path, error.reason) for error in errors.items]

    async def _listen(self) -> None:
        """For a worker that replaces another: accept only now, with all the rest in place."""
        sockets, self.sockets = self.sockets, {}
        await self.worker.listen(sockets)

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

    def _days_until_first_expires(self) -> int | None:
        return days_until_first_expires(self.worker.tls_contexts())

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
        self.worker.manager_stats.workers_started = 1
        logging.getLogger("meshproxy.main").debug("worker started")
