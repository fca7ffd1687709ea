"""What the clusters' hosts had to do since the last report: the numbers of a load report (LRS).

Requests count nothing for it: what a host's numbers have grown by is reported. Hosts that did nothing are left out, and
so are localities that did nothing, as in Envoy.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final

from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.host import Host

_STEP: Final = 512  # hosts

Numbers = tuple[int, int, int, int]  # success, error, active, issued
_FIELDS: Final = (
    "total_successful_requests",
    "total_error_requests",
    "total_requests_in_progress",
    "total_issued_requests",
)


def report_load(cluster: Cluster, by_endpoint: bool) -> Generator[None, None, dict[str, Any]]:
    """One cluster, in steps, as plain values that are named like the fields of `endpoint.v3.ClusterStats`; it begins
    anew then. Dropped requests are by category, a locality is (region, zone, sub-zone), an address (IP or path, port).
    The server of the reports says whether it wants to know of each endpoint."""
    eds = cluster.config.eds
    service = "" if eds is None or eds.service_name == cluster.name else eds.service_name
    report: dict[str, Any] = {"cluster_name": cluster.name, "cluster_service_name": service}
    _report_dropped(cluster, report)
    localities: dict[tuple[int, str, str, str], _LocalityLoad] = {}
    for index, host in enumerate(cluster.hosts):
        numbers = _latch(host)
        if numbers != (0, 0, 0, 0):
            key = (host.priority, *host.locality.key)
            load = localities.get(key)
            if load is None:
                load = localities[key] = _LocalityLoad(host)
            load.add(host, numbers, by_endpoint)
        if index % _STEP == _STEP - 1:
            yield
    busy = [localities[key] for key in sorted(localities) if localities[key].busy]
    report["upstream_locality_stats"] = [load.as_values() for load in busy]
    return report


def _report_dropped(cluster: Cluster, report: dict[str, Any]) -> None:
    dropped, cluster.dropped = cluster.dropped, 0
    overload, cluster.dropped_by_policy = cluster.dropped_by_policy, 0
    report["total_dropped_requests"] = dropped
    report["dropped_requests"] = {cluster.config.drop_category: overload} if overload else {}


def _latch(host: Host) -> Numbers:
    """What the host's numbers have grown by, and what it has to do now."""
    stats = host.stats
    before = stats.reported
    stats.reported = (stats.rq_success, stats.rq_error, stats.rq_total)
    return stats.rq_success - before[0], stats.rq_error - before[1], stats.rq_active, stats.rq_total - before[2]


class _LocalityLoad:
    """Of the hosts of one locality in one priority."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._numbers: list[int] = [0, 0, 0, 0]
        self._endpoints: list[dict[str, Any]] = []

    @property
    def busy(self) -> bool:
        return any(self._numbers)

    def add(self, host: Host, numbers: Numbers, by_endpoint: bool) -> None:
        for index, number in enumerate(numbers):
            self._numbers[index] += number
        if by_endpoint:
            address = host.address
            named = (address.path, 0) if address.path else (address.ip, address.port)
            self._endpoints.append({"address": named, **dict(zip(_FIELDS, numbers, strict=True))})

    def as_values(self) -> dict[str, Any]:
        load: dict[str, Any] = {"locality": self._host.locality.key, "priority": self._host.priority}
        load.update(zip(_FIELDS, self._numbers, strict=True))
        load["upstream_endpoint_stats"] = self._endpoints
        return load
