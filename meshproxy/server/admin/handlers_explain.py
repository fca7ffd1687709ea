"""`/explain`: what becomes of a request, in words and in JSON."""

from __future__ import annotations

import json
import urllib.parse

from meshproxy.server.admin.backend import AdminBackend
from meshproxy.server.admin.exchange import JSON, AdminError, AdminRequest, AdminResponse
from meshproxy.server.explain.text import render

_FORMATS = ("text", "json")


async def explain(backend: AdminBackend, request: AdminRequest) -> AdminResponse:
    """The parameters are named as the flags of `meshproxy explain`; `header` may be there several times."""
    pairs = _pairs(request.target.partition("?")[2])
    form = next((value for name, value in pairs if name == "format"), "text")
    if form not in _FORMATS:
        raise AdminError(400, f"format: {form!r} is neither text nor json\n")
    answer = await backend.explain([(name, value) for name, value in pairs if name != "format"])
    if "error" in answer:
        raise AdminError(400, f"{answer['error']}\n")
    if form == "json":
        return AdminResponse(json.dumps(answer, indent=1, ensure_ascii=False) + "\n", content_type=JSON)
    return AdminResponse(render(dict(answer)))


def _pairs(query: str) -> list[tuple[str, str]]:
    """All parameters; "+" stands for itself, as everywhere in the admin."""
    cut = [each.partition("=") for each in query.split("&") if each]
    return [(_decode(name), _decode(value)) for name, _, value in cut]


def _decode(text: str) -> str:
    return urllib.parse.unquote(text, "utf-8", "surrogateescape")
