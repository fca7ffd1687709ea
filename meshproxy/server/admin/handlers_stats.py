"""`/stats` and `/stats/prometheus`."""

from __future__ import annotations

from typing import Final

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
