"""What people and tools read of a pilot over HTTP: `/debug/…`, `/metrics`, `/ready`, `/healthz`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from html import escape
from typing import Any, Final

from meshproxy.pilot.server.kinds import short_name
from meshproxy.pilot.server.protocol import Subscription
from meshproxy.pilot.server.server import DiscoveryServer
from meshproxy.pilot.server.snapshots import Scope
from meshproxy.pilot.server.streams import ClientStream
from meshproxy.server.admin.exchange import HTML, JSON, AdminRequest, AdminResponse

Page = Callable[[AdminRequest], AdminResponse]

_METRICS_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
_ABOUT: Final = {
    "/debug/clients": "the streams that are open, what each asks for and has; ?id=NODE for one, with names",
    "/debug/snapshots": "what is served, one for each distinct scope; ?scope=NUMBER for one, with its resources",
    "/debug/rejections": "what clients refused, and documents that are refused",
    "/debug/authority": "issuers with their ends, what was issued, revoked and refused; no keys",
    "/metrics": "for Prometheus",
    "/ready": "200 as soon as clients are served",
    "/healthz": "200",
}


class Pages:
    """`handle` answers an `AdminServer`. `rules` says what the documents come to, and which are refused; `authority`,
    what there is to say of it, or None."""

    def __init__(
        self, server: DiscoveryServer, rules: Callable[[], Any], authority: Callable[[], Any] = lambda: None
    ) -> None:
        self._server = server
        self._streams = server.streams
        self._rules = rules
        self._authority = authority
        self._pages: dict[str, Page] = {
            "/": self._index,
            "/debug": self._index,
            "/debug/clients": self._clients,
            "/debug/snapshots": self._snapshots,
            "/debug/rejections": self._rejections,
            "/debug/authority": self._show_authority,
            "/metrics": self._metrics,
            "/ready": self._ready,
            "/healthz": lambda _: AdminResponse("ok\n"),
        }

    async def handle(self, request: AdminRequest) -> AdminResponse:
        """The page that is asked for."""
        page = self._pages.get(request.path.rstrip("/") or "/")
        if page is None:
            return AdminResponse("there is no such page; / lists them\n", 404)
        if request.method not in ("GET", "HEAD"):
            return AdminResponse("pages are read by GET\n", 405)
        return page(request)

    def _index(self, _request: AdminRequest) -> AdminResponse:
        rows = "".join(f'<li><a href="{path}">{path}</a> {escape(about)}</li>\n' for path, about in _ABOUT.items())
        return AdminResponse(f"<!doctype html>\n<title>pilot</title>\n<ul>\n{rows}</ul>\n", content_type=HTML)

    def _clients(self, request: AdminRequest) -> AdminResponse:
        wanted = request.params.get("id")
        clients = [client for client in self._streams.clients if wanted is None or client.proxy.id == wanted]
        return _json_rows(clients, lambda client: self._client(client, with_names=wanted is not None))

    def _client(self, client: ClientStream, *, with_names: bool) -> dict[str, Any]:
        scope = self._streams.snapshots.scope_of(client)
        return {
            "id": client.proxy.id,
            "address": client.address,
            "since": _at(client.began_at),
            "protocol": client.protocol,
            "mode": client.proxy.mode,
            "namespace": client.proxy.namespace,
            "service_account": client.proxy.service_account,
            "snapshot": None if scope is None else scope.number,
            "requests": client.requests,
            "bytes_sent": client.bytes_sent,
            "types": {short_name(each.type_url): _subscription(each, with_names) for each in client.stream.ordered},
        }

    def _snapshots(self, request: AdminRequest) -> AdminResponse:
        wanted = request.params.get("scope")
        scopes = [scope for scope in self._streams.snapshots.scopes.values() if wanted in (None, str(scope.number))]
        return _json_rows(scopes, lambda scope: _scope(scope, with_names=wanted is not None))

    def _rejections(self, _request: AdminRequest) -> AdminResponse:
        refused = [
            {
                "at": _at(rejection.at),
                "client": client,
                "type": short_name(rejection.type_url),
                "version": rejection.version,
                "reason": rejection.reason,
            }
            for client, rejection in self._streams.rejections.values()
        ]
        return _json({"clients": refused, "rules": self._rules()})

    def _show_authority(self, _request: AdminRequest) -> AdminResponse:
        shown = self._authority()
        return AdminResponse("this pilot has no authority\n", 404) if shown is None else _json(shown)

    def _metrics(self, _request: AdminRequest) -> AdminResponse:
        return AdminResponse(self._streams.metrics.text(), content_type=_METRICS_TEXT)

    def _ready(self, _request: AdminRequest) -> AdminResponse:
        return AdminResponse("ready\n") if self._server.ready else AdminResponse("not ready\n", 503)


def _subscription(subscription: Subscription, with_names: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "state": _state(subscription),
        "version": subscription.sent_version,
        "accepted_version": subscription.accepted_version,
        "asked": "*" if subscription.wanted.wildcard else len(subscription.wanted.names),
        "has": sum(1 for resource in subscription.held.values() if resource.version),
        "responses": subscription.responses,
    }
    if subscription.in_flight:
        shown["waiting_s"] = round(time.monotonic() - subscription.sent_at, 3)
    if subscription.rejection is not None:
        shown["rejected"] = {"version": subscription.rejection.version, "reason": subscription.rejection.reason}
    if with_names:
        shown["resources"] = {name: resource.version or None for name, resource in sorted(subscription.held.items())}
    return shown


def _state(subscription: Subscription) -> str:
    if subscription.in_flight:
        return "sent"
    if subscription.rejection is not None:
        return "rejected"
    return "accepted" if subscription.responses or subscription.accepted_version else "asked"


def _scope(scope: Scope, *, with_names: bool) -> dict[str, Any]:
    types = {} if scope.view is None else scope.view.snapshot.types
    shown: dict[str, Any] = {
        "number": scope.number,
        "clients": len(scope.clients),
        "built": None if scope.view is None else _at(scope.built_at),
        "build_s": round(scope.build_s, 4),
        "resources": {short_name(type_url): len(resources) for type_url, resources in types.items()},
        "bytes": sum(len(each.data) for resources in types.values() for each in resources.values()),
    }
    if scope.error:
        shown["error"] = scope.error
    if with_names:
        shown["scope"] = repr(scope.key)
        shown["resources"] = {
            short_name(type_url): {name: resource.version for name, resource in sorted(resources.items())}
            for type_url, resources in types.items()
        }
    return shown


def _at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _json(tree: Any) -> AdminResponse:
    return AdminResponse(json.dumps(tree, indent=1) + "\n", content_type=JSON)


def _json_rows(items: Iterable[Any], row: Callable[[Any], Any]) -> AdminResponse:
    """A list, written while it is read."""

    def pieces() -> Iterable[str]:
        before = "[\n"
        for each in items:
            yield before + json.dumps(row(each))
            before = ",\n"
        yield "[]\n" if before == "[\n" else "\n]\n"

    return AdminResponse(pieces(), content_type=JSON)
