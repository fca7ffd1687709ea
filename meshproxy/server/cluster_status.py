"""The clusters of all workers as one view: numbers add up, everything else is alike in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Status = dict[str, Any]
_SUMMED = frozenset(
    (
        *("cx_active", "cx_total", "cx_connect_fail"),
        *("rq_active", "rq_pending_active", "rq_total", "rq_success", "rq_error", "rq_timeout"),
    )
)


def merge_clusters(workers: Sequence[Sequence[Status]]) -> list[Status]:
    """One ClusterStatus (in JSON's shape) per cluster, of every worker's."""
    if not workers:
        return []
    merged = list(workers[0])
    for others in workers[1:]:
        by_name = {status["name"]: status for status in others}
        for status in merged:
            other = by_name.get(status["name"])
            if other is not None:
                _add_hosts(status, other)
    return merged


def _add_hosts(status: Status, other: Status) -> None:
    stats = {_key(host): host for host in other.get("host_statuses", ())}
    for host in status.get("host_statuses", ()):
        twin = stats.get(_key(host))
        if twin is None:
            continue
        values = {stat["name"]: stat for stat in twin.get("stats", ())}
        for stat in host.get("stats", ()):
            added = values.get(stat["name"])
            if added is not None and stat["name"] in _SUMMED:
                stat["value"] = str(int(stat.get("value", 0)) + int(added.get("value", 0)))


def _key(host: Status) -> str:
    return repr(host.get("address"))
