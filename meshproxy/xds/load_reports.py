"""Load reports (LRS): what a proxy's requests to each locality come to, told to the server that asks, as Envoy's
`cluster_manager.load_stats_config` has it.

The server says which clusters it wants to hear of, and how often. Numbers are those since the report before.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, ClassVar, Final, Protocol

from envoy.config.core.v3.base_pb2 import Locality
from envoy.service.load_stats.v3.lrs_pb2 import LoadStatsRequest, LoadStatsResponse
from google.protobuf.message import DecodeError

from meshproxy.clock import monotonic
from meshproxy.codec import grpc
from meshproxy.config.context import BuildContext, Services
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.runtime import Runtime
from meshproxy.http.grpc.client import RpcCall, RpcError, RpcStatus
from meshproxy.observe.stats import StatsRegistry, StatsScope
from meshproxy.xds.api_source import build_api_source
from meshproxy.xds.node import own_node
from meshproxy.xds.pacing import pause
from meshproxy.xds.redial import Redial

_log: Final = logging.getLogger("meshproxy.xds")

_PATH: Final = b"/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats"
# What our node says that it understands: `LoadStatsResponse.send_all_clusters`.
_SENDS_ALL: Final = "envoy.lrs.supports_send_all_clusters"
_SHORTEST_MS: Final = 100.0
_COUNTS: Final = ("total_successful_requests", "total_error_requests", "total_issued_requests")
_IN_PROGRESS: Final = "total_requests_in_progress"


class LoadReporterStats(StatsScope):
    """Envoy's, under `load_reporter.`."""

    COUNTERS: ClassVar = ("requests", "responses", "errors", "retries")

    def __init__(self) -> None:
        super().__init__()
        self.requests = 0
        self.responses = 0
        self.errors = 0
        self.retries = 0


class LoadSource(Protocol):
    """Who has the numbers: all workers."""

    async def collect(self, names: list[str] | None, by_endpoint: bool) -> list[dict[str, Any]]:
        """What each worker has counted of these clusters (None: of all) since it was asked last: one dict for each that
        there is, as `upstream.load_report` makes it."""
        raise NotImplementedError


class _Load:
    """Of one locality or endpoint."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = dict.fromkeys((*_COUNTS, _IN_PROGRESS), 0)
        self.endpoints: dict[tuple[str, int], _Load] = {}

    def begin_round(self) -> None:
        """What is in progress is not added up over time."""
        self.counts[_IN_PROGRESS] = 0
        for endpoint in self.endpoints.values():
            endpoint.begin_round()

    def add(self, part: dict[str, Any]) -> None:
        for name in self.counts:
            self.counts[name] += part.get(name, 0)
        for each in part.get("upstream_endpoint_stats", ()):
            self.endpoints.setdefault(tuple(each["address"]), _Load()).add(each)

    @property
    def idle(self) -> bool:
        return not any(self.counts.values())


class _ClusterLoad:
    """Of one cluster, since its last report."""

    def __init__(self) -> None:
        self.service = ""
        self.since = monotonic()
        self.dropped = 0
        self.dropped_by: dict[str, int] = {}
        self.localities: dict[tuple[str, str, str, int], _Load] = {}

    def begin_round(self) -> None:
        for locality in self.localities.values():
            locality.begin_round()

    def add(self, part: dict[str, Any]) -> None:
        """What one worker has counted."""
        self.service = part["cluster_service_name"] or self.service
        self.dropped += part["total_dropped_requests"]
        for category, count in part["dropped_requests"].items():
            self.dropped_by[category] = self.dropped_by.get(category, 0) + count
        for each in part["upstream_locality_stats"]:
            self.localities.setdefault((*each["locality"], each["priority"]), _Load()).add(each)

    def write(self, name: str, into: Any) -> None:
        """As ClusterStats. A locality where nothing happened is left out, as Envoy does."""
        into.cluster_name, into.cluster_service_name = name, self.service
        into.total_dropped_requests = self.dropped
        into.load_report_interval.FromMilliseconds(int((monotonic() - self.since) * 1000.0))
        for category, count in self.dropped_by.items():
            into.dropped_requests.add(category=category, dropped_count=count)
        for (region, zone, sub_zone, priority), load in self.localities.items():
            if not load.idle:
                written = into.upstream_locality_stats.add(priority=priority, **load.counts)
                written.locality.CopyFrom(Locality(region=region, zone=zone, sub_zone=sub_zone))
                _write_endpoints(load, written)


def _write_endpoints(load: _Load, into: Any) -> None:
    for (address, port), endpoint in load.endpoints.items():
        if endpoint.idle:
            continue
        written = into.upstream_endpoint_stats.add(**endpoint.counts).address
        if port:
            written.socket_address.address, written.socket_address.port_value = address, port
        else:
            written.pipe.path = address


class LoadReporter:
    """`config` is the ApiConfigSource."""

    def __init__(self, services: Services, node: Any, config: Any, registry: StatsRegistry, source: LoadSource) -> None:
        self._dispatcher = services.dispatcher
        self._source = source
        self._stats = registry.acquire("load_reporter.", LoadReporterStats)
        self._node = own_node(node)
        self._node.client_features.append(_SENDS_ALL)
        self._loads: dict[str, _ClusterLoad] = {}
        self._wanted: frozenset[str] | None = frozenset()  # None: all there are
        self._endpoints = False
        self._reporting = asyncio.Lock()  # what is counted is not to be lost between the workers and the report
        self._interval_ms = 0.0
        errors = ConfigErrors()
        path = "cluster_manager.load_stats_config"
        api = build_api_source(config, path, BuildContext(errors, Runtime(), registry))
        if api is None:
            _log.error("no load reports: %s", errors)
        self._redial = (
            None if api is None else Redial(services, api, _PATH, "load report server", self._talk, self._on_end)
        )

    def start(self) -> None:
        """Call the server."""
        if self._redial is not None:
            self._redial.start()

    async def close(self) -> None:
        """Report no more."""
        if self._redial is not None:
            await self._redial.close()

    # -- one call

    async def _talk(self, call: RpcCall) -> None:
        self._loads.clear()
        self._wanted, self._interval_ms = frozenset(), 0.0
        if not await self._send(call, {}):
            await call.receive()  # it tells why
            return
        reporter: asyncio.Task[Any] | None = None
        try:
            async for data in call:
                async with self._reporting:
                    await self._on_response(data)
                    if reporter is not None:
                        reporter.cancel()
                if reporter is not None:
                    await asyncio.gather(reporter, return_exceptions=True)
                reporter = asyncio.create_task(self._report_on(call), name="load reports")
        finally:
            if reporter is not None:
                reporter.cancel()
                await asyncio.gather(reporter, return_exceptions=True)

    async def _on_response(self, data: bytes) -> None:
        try:
            response = LoadStatsResponse.FromString(data)
        except DecodeError:
            raise RpcError(RpcStatus(grpc.INTERNAL, "what the server sent is no LoadStatsResponse")) from None
        if self._redial is not None:
            self._redial.hear("")
        self._stats.responses += 1
        self._wanted = None if response.send_all_clusters else frozenset(response.clusters)
        self._endpoints = response.report_endpoint_granularity
        self._interval_ms = max(float(response.load_reporting_interval.ToMilliseconds()), _SHORTEST_MS)
        await self._begin()

    async def _begin(self) -> None:
        """Those who are asked for as before are counted on; the others begin now."""
        parts = await self._collect()
        there = {part["cluster_name"] for part in parts}
        wanted = there if self._wanted is None else self._wanted
        self._loads = {name: load for name, load in self._loads.items() if name in wanted}
        self._add(parts)
        for name in wanted:
            self._loads.setdefault(name, _ClusterLoad())

    async def _report_on(self, call: RpcCall) -> None:
        while True:
            await pause(self._dispatcher, self._interval_ms)
            async with self._reporting:
                if not await self._report(call):
                    return

    async def _report(self, call: RpcCall) -> bool:
        parts = await self._collect()
        there = {part["cluster_name"] for part in parts}
        for name in there:
            self._loads.setdefault(name, _ClusterLoad())
        self._add(parts)
        due = {name: load for name, load in self._loads.items() if name in there}
        self._loads = {name: load for name, load in self._loads.items() if self._wanted is not None or name in there}
        self._loads.update({name: _ClusterLoad() for name in due})
        return await self._send(call, due)

    async def _collect(self) -> list[dict[str, Any]]:
        names = None if self._wanted is None else sorted(self._wanted)
        return await self._source.collect(names, self._endpoints)

    def _add(self, parts: list[dict[str, Any]]) -> None:
        """What the workers have counted of those who are reported."""
        for load in self._loads.values():
            load.begin_round()
        for part in parts:
            wanted = self._loads.get(part["cluster_name"])
            if wanted is not None:
                wanted.add(part)

    async def _send(self, call: RpcCall, loads: dict[str, _ClusterLoad]) -> bool:
        request = LoadStatsRequest(node=self._node)
        for name, load in loads.items():
            load.write(name, request.cluster_stats.add())
        self._stats.requests += 1
        return await call.send(request.SerializeToString())

    def _on_end(self, reason: str) -> None:
        self._stats.errors += 1
        self._stats.retries += 1
