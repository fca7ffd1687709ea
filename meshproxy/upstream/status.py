"""What the admin's `/clusters` shows, as plain values."""

from __future__ import annotations

from typing import Any, Final

from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.host import (
    EDS_STATUS_DRAINING,
    FAILED_ACTIVE_HC,
    FAILED_EDS_HEALTH,
    FAILED_OUTLIER_CHECK,
    Host,
)
from meshproxy.upstream.outlier import NO_RATE

_COUNTERS: Final = ("cx_connect_fail", "cx_total", "rq_error", "rq_success", "rq_timeout", "rq_total")
_GAUGES: Final = ("cx_active", "rq_active", "rq_pending_active")


def cluster_status(cluster: Cluster) -> dict[str, Any]:
    """One cluster, in the shape of admin.v3.ClusterStatus.

    `text` in it holds what only the text form shows: the outlier detector's averages (as Envoy, -1 for none), and for
    every host its address and its health flags in words.
    """
    status: dict[str, Any] = {"name": cluster.name, "observability_name": cluster.observability_name}
    hosts = sorted(cluster.hosts, key=_priority)
    status["host_statuses"] = [_host_status(host) for host in hosts]
    status["circuit_breakers"] = {"thresholds": [_thresholds(cluster, priority) for priority in (0, 1)]}
    status["text"] = _text(cluster, hosts)
    detector = cluster.detector
    if detector is not None:
        for name, value in (
            ("success_rate_ejection_threshold", detector.thresholds[0]),
            ("local_origin_success_rate_ejection_threshold", detector.thresholds[1]),
        ):
            if value != NO_RATE:
                status[name] = {"value": value}
    return status


def _priority(host: Host) -> int:
    return host.priority


def _text(cluster: Cluster, hosts: list[Host]) -> dict[str, Any]:
    detector = cluster.detector
    text: dict[str, Any] = {"hosts": [_host_text(host) for host in hosts], "outlier": None}
    if detector is not None:
        text["outlier"] = {
            "success_rate_average": detector.averages[0],
            "success_rate_ejection_threshold": detector.thresholds[0],
            "local_origin_success_rate_average": detector.averages[1],
            "local_origin_success_rate_ejection_threshold": detector.thresholds[1],
        }
    return text


def _thresholds(cluster: Cluster, priority: int) -> dict[str, Any]:
    breakers = cluster.breakers(priority)
    shown: dict[str, Any] = {"priority": "HIGH"} if priority else {}
    shown["max_connections"] = breakers.connections.max
    shown["max_pending_requests"] = breakers.pending.max
    shown["max_requests"] = breakers.requests.max
    shown["max_retries"] = breakers.retries.max
    return shown


def _host_status(host: Host) -> dict[str, Any]:
    locality = host.locality
    status: dict[str, Any] = {
        "address": _address(host),
        "stats": _stats(host),
        "health_status": _health(host),
        "weight": host.weight,
        "hostname": host.hostname,
        "locality": {"region": locality.region, "zone": locality.zone, "sub_zone": locality.sub_zone},
        "priority": host.priority,
    }
    for name, rate in (
        ("success_rate", host.outlier.external.rate),
        ("local_origin_success_rate", host.outlier.local.rate),
    ):
        if rate != NO_RATE:
            status[name] = {"value": rate}
    return status


def _address(host: Host) -> dict[str, Any]:
    address = host.address
    if address.path:
        return {"pipe": {"path": address.path}}
    return {"socket_address": {"address": address.ip, "port_value": address.port}}


def _stats(host: Host) -> list[dict[str, Any]]:
    counters = [{"name": name, "type": "COUNTER", "value": str(getattr(host.stats, name))} for name in _COUNTERS]
    return counters + [{"name": name, "type": "GAUGE", "value": str(getattr(host.stats, name))} for name in _GAUGES]


def _health(host: Host) -> dict[str, Any]:
    flags = host.health_flags
    shown: dict[str, Any] = {}
    if flags & FAILED_ACTIVE_HC:
        shown["failed_active_health_check"] = True
    if flags & FAILED_OUTLIER_CHECK:
        shown["failed_outlier_check"] = True
    if flags & EDS_STATUS_DRAINING:
        shown["eds_health_status"] = "DRAINING"
    elif flags & FAILED_EDS_HEALTH:
        shown["eds_health_status"] = "UNHEALTHY"
    else:
        shown["eds_health_status"] = "DEGRADED" if host.degraded else "HEALTHY"
    return shown


def _host_text(host: Host) -> dict[str, Any]:
    return {
        "address": host.address.text,
        "health_flags": host.health_flag_names(),
        "canary": host.canary,
        "success_rate": host.outlier.external.rate,
        "local_origin_success_rate": host.outlier.local.rate,
    }
