"""A worker's verbs by name, with plain values only: the same whether it lives in this process or in another."""

from __future__ import annotations

import asyncio
import inspect
import logging
import socket
from collections.abc import Callable
from typing import Any

from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap

from meshproxy.config.errors import ConfigErrors
from meshproxy.observe.log import set_level
from meshproxy.observe.log_file import LOG_FILES
from meshproxy.observe.snapshot import Snapshot
from meshproxy.server.worker import Worker

Plain = Any  # what marshal takes


class WorkerService:
    """Runs verbs on a worker."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.sockets: dict[str, list[socket.socket]] = {}
        self._verbs: dict[str, Callable[..., Plain]] = {
            "prepare": self._prepare,
            "commit": self._commit,
            "listen": self._listen,
            "abandon": worker.abandon,
            "snapshot": self._snapshot,
            "reset_counters": worker.stats.reset_counters,
            "clusters": worker.clusters.status,
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
        }

    async def run(self, verb: str, arguments: tuple[Plain, ...]) -> Plain:
        """The result of a verb; KeyError for one that does not exist."""
        result = self._verbs[verb](*arguments)
        return await result if inspect.isawaitable(result) else result

    async def _commit(self) -> None:
        sockets, self.sockets = self.sockets, {}
        await self.worker.commit(sockets)

    def _prepare(self, serialised: bytes) -> list[tuple[str, str]]:
        """Errors as (path, reason)."""
        bootstrap = Bootstrap()
        bootstrap.ParseFromString(serialised)
        errors = ConfigErrors()
        self.worker.prepare(bootstrap, errors)
        return [(error.path, error.reason) for error in errors.items]

    async def _listen(self) -> None:
        """For a worker that replaces another: accept only now, with all the rest in place."""
        sockets, self.sockets = self.sockets, {}
        await self.worker.listen(sockets)

    async def _snapshot(self) -> Plain:
        """In slices, since requests wait meanwhile."""
        snapshot = Snapshot()
        for _ in self.worker.stats.collect(snapshot):
            await asyncio.sleep(0)
        return snapshot.dump()

    def _started(self) -> None:
        self.worker.manager_stats.workers_started = 1
        logging.getLogger("meshproxy.main").debug("worker started")
