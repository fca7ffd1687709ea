"""`/stats`, `/stats/prometheus` and `/clusters`."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from meshproxy.config.regex import Regex, RegexError
from meshproxy.errors import ConfigError
from meshproxy.observe.export import StatsQuery, parse_query
from meshproxy.server.admin.backend import AdminBackend
from meshproxy.server.admin.exchange import JSON, TEXT, AdminError, AdminRequest, AdminResponse

_FORMATS: Final = ("", "text", "json", "prometheus")


async def stats(backend: AdminBackend, request: AdminRequest) -> AdminResponse:
    """All stats, in the format that `format` asks for."""
    style = request.params.get("format", "")
    if style == "prometheus":
        return await prometheus(backend, request)
    if style not in _FORMATS:
        raise AdminError(400, "usage: /stats?format=(json|prometheus|text)\n\n")
    query = _query(request)
    exporter = await backend.stats()
    if style == "json":
        return AdminResponse(exporter.json(query), content_type=JSON)
    return AdminResponse(exporter.text(query), content_type=TEXT)


async def prometheus(backend: AdminBackend, request: AdminRequest) -> AdminResponse:
    """All stats in Prometheus' format, with Envoy's tags."""
    query = _query(request)
    exporter = await backend.stats()
    return AdminResponse(exporter.prometheus(query), content_type=TEXT)


def _query(request: AdminRequest) -> StatsQuery:
    try:
        query = parse_query(request.params)
    except ConfigError as error:
        raise AdminError(400, error.reason) from error
    except UnicodeEncodeError as error:
        raise AdminError(400, "Invalid re2 regex: invalid UTF-8") from error
    chosen = query.filter
    if chosen is not None and "invert_filter" in request.params:
        query.filter = lambda name: not chosen(name)
    return query


# -- clusters


async def clusters(backend: AdminBackend, request: AdminRequest) -> AdminResponse:
    """Every cluster with its hosts."""
    pattern = _cluster_filter(request.params.get("filter", ""))
    chosen = [one for one in await backend.clusters() if pattern is None or pattern.search(one["name"].encode())]
    if request.params.get("format") == "json":
        return AdminResponse(_clusters_json(chosen), content_type=JSON)
    return AdminResponse(_clusters_text(chosen))


def _cluster_filter(text: str) -> Regex | None:
    try:
        return Regex(text) if text else None
    except (RegexError, UnicodeEncodeError) as error:
        raise AdminError(400, "Invalid re2 regex") from error


def _clusters_json(clusters: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """envoy.admin.v3.Clusters, host by host: a cluster may have thousands."""
    if not clusters:
        yield "{}\n"
        return
    yield '{\n "cluster_statuses": ['
    for index, cluster in enumerate(clusters):
        yield ",\n  {" if index else "\n  {"
        separator = "\n"
        for name, value in cluster.items():
            if not _is_set(value):
                continue
            yield f"{separator}   {json.dumps(name)}: "
            yield from _hosts_json(value) if name == "host_statuses" else (_indented(value, 3).lstrip(),)
            separator = ",\n"
        yield "\n  }"
    yield "\n ]\n}\n"


def _hosts_json(hosts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    separator = "[\n"
    for host in hosts:
        yield separator + _indented(host, 4)
        separator = ",\n"
    yield "\n   ]"


def _indented(value: Any, depth: int) -> str:
    text = json.dumps(_without_defaults(value), indent=1, ensure_ascii=False)
    return textwrap.indent(text, " " * depth, lambda line: True)


def _without_defaults(value: Any) -> Any:
    """JSON of a protobuf message does not have fields at their default. Messages stay, even empty ones."""
    if isinstance(value, Mapping):
        return {name: _without_defaults(inner) for name, inner in value.items() if _is_set(inner)}
    if isinstance(value, (list, tuple)):
        return [_without_defaults(inner) for inner in value]
    return value


def _is_set(value: Any) -> bool:
    return isinstance(value, Mapping) or value not in ("", "0", 0, 0.0, False, None, [], ())


def _clusters_text(clusters: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for cluster in clusters:
        yield _cluster_text(cluster)
        for host in cluster.get("host_statuses", ()):
            yield _host_text(cluster["name"], host)


_LIMITS: Final = ("max_connections", "max_pending_requests", "max_requests", "max_retries")


def _cluster_text(cluster: Mapping[str, Any]) -> str:
    name = cluster["name"]
    lines = [f"{name}::observability_name::{cluster.get('observability_name') or name}"]
    if cluster.get("eds_service_name"):
        lines.append(f"{name}::eds_service_name::{cluster['eds_service_name']}")
    for prefix, key in (("", "success_rate"), ("local_origin_", "local_origin_success_rate")):
        ejection = _percent(cluster.get(f"{key}_ejection_threshold"))
        if ejection is not None:
            lines.append(f"{name}::outlier::{prefix}success_rate_ejection_threshold::{ejection:g}")
    for thresholds in cluster.get("circuit_breakers", {}).get("thresholds", ()):
        priority = "high_priority" if thresholds.get("priority") == "HIGH" else "default_priority"
        lines.extend(f"{name}::{priority}::{limit}::{thresholds.get(limit, 0)}" for limit in _LIMITS)
    lines.append(f"{name}::added_via_api::{_boolean(cluster.get('added_via_api'))}")
    return "\n".join(lines) + "\n"


def _host_text(cluster: str, host: Mapping[str, Any]) -> str:
    locality = host.get("locality", {})
    pairs: list[tuple[str, Any]] = sorted((stat["name"], stat.get("value", 0)) for stat in host.get("stats", ()))
    pairs += [
        ("hostname", host.get("hostname", "")),
        ("health_flags", _health_flags(host.get("health_status", {}))),
        ("weight", host.get("weight", 0)),
        ("region", locality.get("region", "")),
        ("zone", locality.get("zone", "")),
        ("sub_zone", locality.get("sub_zone", "")),
        ("canary", _boolean(host.get("canary"))),
        ("priority", host.get("priority", 0)),
        ("success_rate", _rate(host.get("success_rate"))),
        ("local_origin_success_rate", _rate(host.get("local_origin_success_rate"))),
    ]
    prefix = f"{cluster}::{_address_text(host['address'])}::"
    return "".join([f"{prefix}{name}::{value}\n" for name, value in pairs])


def _address_text(address: Mapping[str, Any]) -> str:
    if "pipe" in address:
        return str(address["pipe"]["path"])
    sock = address["socket_address"]
    ip, port = sock["address"], sock.get("port_value", 0)
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


# (field of HostHealthStatus, its value, the word in `health_flags`), in Envoy's order
_HEALTH_FLAGS: Final[tuple[tuple[str, Any, str], ...]] = (
    ("failed_active_health_check", True, "/failed_active_hc"),
    ("failed_outlier_check", True, "/failed_outlier_check"),
    ("eds_health_status", "UNHEALTHY", "/failed_eds_health"),
    ("failed_active_degraded_check", True, "/degraded_active_hc"),
    ("eds_health_status", "DEGRADED", "/degraded_eds_health"),
    ("pending_dynamic_removal", True, "/pending_dynamic_removal"),
    ("pending_active_hc", True, "/pending_active_hc"),
    ("excluded_via_immediate_hc_fail", True, "/excluded_via_immediate_hc_fail"),
    ("active_hc_timeout", True, "/active_hc_timeout"),
    ("eds_health_status", "DRAINING", "/eds_status_draining"),
)


def _health_flags(status: Mapping[str, Any]) -> str:
    return "".join([word for field, value, word in _HEALTH_FLAGS if status.get(field) == value]) or "healthy"


def _percent(value: Any) -> float | None:
    return float(value.get("value", 0.0)) if isinstance(value, Mapping) else None


def _rate(value: Any) -> str:
    rate = _percent(value)
    return "-1" if rate is None else f"{rate:g}"


def _boolean(value: Any) -> str:
    return "true" if value else "false"
