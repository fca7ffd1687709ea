"""`/clusters`: every cluster with its hosts, in text and JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from meshproxy.config.regex import Regex, RegexError
from meshproxy.server.admin.backend import AdminBackend
from meshproxy.server.admin.exchange import JSON, AdminError, AdminRequest, AdminResponse

Status = Mapping[str, Any]

_TEXT: Final = "text"  # the key of a status that only the text form shows
_LIMITS: Final = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
# Enum values that are the default of their field, which JSON does not show.
_DEFAULTS: Final = {"type": "COUNTER", "priority": "DEFAULT", "eds_health_status": "UNKNOWN"}


async def clusters(backend: AdminBackend, request: AdminRequest) -> AdminResponse:
    """All clusters, or those whose name has a match of `filter`."""
    pattern = _filter(request.params.get("filter", ""))
    chosen = [one for one in await backend.clusters() if pattern is None or pattern.search(one["name"].encode())]
    if request.params.get("format") == "json":
        return AdminResponse(_write_json(chosen), content_type=JSON)
    return AdminResponse(_write_text(chosen))


def _filter(text: str) -> Regex | None:
    try:
        return Regex(text) if text else None
    except (RegexError, UnicodeEncodeError) as error:
        raise AdminError(400, "Invalid re2 regex") from error


# -- JSON


def _write_json(statuses: list[Status]) -> Iterator[str]:
    """envoy.admin.v3.Clusters, host by host: a cluster may have thousands."""
    if not statuses:
        yield "{}\n"
        return
    yield '{\n "cluster_statuses": ['
    comma = ""
    for status in _consumed(statuses):
        yield comma + "\n  {"
        comma = ","
        separator = "\n"
        for name, value in status.items():
            if name == _TEXT or not _is_set(name, value):
                continue
            yield f"{separator}   {json.dumps(name)}: "
            yield from _write_hosts(value) if name == "host_statuses" else (_indented(value, 3).lstrip(),)
            separator = ",\n"
        yield "\n  }"
    yield "\n ]\n}\n"


def _write_hosts(hosts: Sequence[Status]) -> Iterator[str]:
    separator = "[\n"
    for host in hosts:
        yield separator + _indented(host, 4)
        separator = ",\n"
    yield "\n   ]"


def _indented(value: Any, depth: int) -> str:
    text = json.dumps(_without_defaults(value), indent=1, ensure_ascii=False)
    return textwrap.indent(text, " " * depth)


def _without_defaults(value: Any) -> Any:
    """JSON of a protobuf message does not have fields at their default. Messages stay, even empty ones."""
    if isinstance(value, Mapping):
        return {name: _without_defaults(inner) for name, inner in value.items() if _is_set(name, inner)}
    if isinstance(value, (list, tuple)):
        return [_without_defaults(inner) for inner in value]
    return value


def _is_set(name: str, value: Any) -> bool:
    if isinstance(value, Mapping):
        return True
    return value not in ("", "0", 0, False, None, [], ()) and _DEFAULTS.get(name) != value


def _consumed(statuses: list[Status]) -> Iterator[Status]:
    """One by one, each freed when it is written: freeing thousands of hosts at once would hold the loop."""
    statuses.reverse()
    while statuses:
        yield statuses.pop()


# -- text


def _write_text(statuses: list[Status]) -> Iterator[str]:
    for status in _consumed(statuses):
        yield _cluster_text(status)
        for host, more in zip(status.get("host_statuses", ()), status[_TEXT]["hosts"], strict=True):
            yield _host_text(status["name"], host, more)


def _cluster_text(status: Status) -> str:
    name = status["name"]
    lines = [f"{name}::observability_name::{status['observability_name']}"]
    outlier = status[_TEXT]["outlier"]
    if outlier is not None:
        lines.extend(f"{name}::outlier::{key}::{value:g}" for key, value in outlier.items())
    for thresholds in status.get("circuit_breakers", {}).get("thresholds", ()):
        priority = "high_priority" if thresholds.get("priority") == "HIGH" else "default_priority"
        lines.extend(f"{name}::{priority}::{limit}::{thresholds.get(limit, 0)}" for limit in _LIMITS)
    lines.append(f"{name}::added_via_api::{_boolean(status.get('added_via_api'))}")
    if status.get("eds_service_name"):
        lines.append(f"{name}::eds_service_name::{status['eds_service_name']}")
    return "\n".join(lines) + "\n"


def _host_text(cluster: str, host: Status, more: Status) -> str:
    locality = host.get("locality", {})
    pairs: list[tuple[str, Any]] = sorted((stat["name"], stat.get("value", 0)) for stat in host.get("stats", ()))
    pairs += [
        ("hostname", host.get("hostname", "")),
        ("health_flags", more["health_flags"]),
        ("weight", host.get("weight", 0)),
        ("region", locality.get("region", "")),
        ("zone", locality.get("zone", "")),
        ("sub_zone", locality.get("sub_zone", "")),
        ("canary", _boolean(more["canary"])),
        ("priority", host.get("priority", 0)),
        ("success_rate", f"{more['success_rate']:g}"),
        ("local_origin_success_rate", f"{more['local_origin_success_rate']:g}"),
    ]
    prefix = f"{cluster}::{more['address']}::"
    return "".join([f"{prefix}{name}::{value}\n" for name, value in pairs])


def _boolean(value: Any) -> str:
    return "true" if value else "false"
