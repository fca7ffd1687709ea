"""The admin's commands: finds the handler of a path, and answers what is asked wrongly as Envoy does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from meshproxy.server.admin.backend import AdminBackend
from meshproxy.server.admin.commands import BY_PATH, help_text, home_page
from meshproxy.server.admin.exchange import HTML, AdminError, AdminRequest, AdminResponse
from meshproxy.server.admin.handlers_clusters import clusters
from meshproxy.server.admin.handlers_config import config_dump
from meshproxy.server.admin.handlers_control import (
    drain_listeners,
    fail_health_checks,
    modify_runtime,
    pass_health_checks,
    quit_server,
    reopen_logs,
    reset_counters,
    set_logging,
)
from meshproxy.server.admin.handlers_explain import explain
from meshproxy.server.admin.handlers_info import (
    certs,
    hot_restart_version,
    init_dump,
    listeners,
    memory,
    ready,
    runtime,
    server_info,
)
from meshproxy.server.admin.handlers_stats import prometheus, stats

Handler = Callable[[AdminBackend, AdminRequest], Awaitable[AdminResponse]]


async def _home(backend: AdminBackend, request: AdminRequest) -> AdminResponse:
    return AdminResponse(home_page(), content_type=HTML)


async def _help(backend: AdminBackend, request: AdminRequest) -> AdminResponse:
    return AdminResponse(help_text())


_HANDLERS: Final[dict[str, Handler]] = {
    "/": _home,
    "/certs": certs,
    "/clusters": clusters,
    "/config_dump": config_dump,
    "/drain_listeners": drain_listeners,
    "/explain": explain,
    "/healthcheck/fail": fail_health_checks,
    "/healthcheck/ok": pass_health_checks,
    "/help": _help,
    "/hot_restart_version": hot_restart_version,
    "/init_dump": init_dump,
    "/listeners": listeners,
    "/logging": set_logging,
    "/memory": memory,
    "/quitquitquit": quit_server,
    "/ready": ready,
    "/reopen_logs": reopen_logs,
    "/reset_counters": reset_counters,
    "/runtime": runtime,
    "/runtime_modify": modify_runtime,
    "/server_info": server_info,
    "/stats": stats,
    "/stats/prometheus": prometheus,
}


class AdminHandlers:
    """`handle` is what an `AdminServer` serves.

    With `allow` only the targets (path and query) for which it is true are served: `Admin.allow_paths`.
    """

    def __init__(self, backend: AdminBackend, allow: Callable[[str], bool] | None = None) -> None:
        self._backend = backend
        self._allow = allow

    async def handle(self, request: AdminRequest) -> AdminResponse:
        """The answer to a request, errors included."""
        if self._allow is not None and not self._allow(request.target):
            return AdminResponse(f"request to path {request.target} not allowed", 403)
        command = BY_PATH.get(request.path)
        if command is None:
            return AdminResponse("invalid path. " + help_text(), 404)
        if command.mutates and request.method != "POST":
            return AdminResponse(f"Method {request.method} not allowed, POST required.", 405)
        try:
            return await _HANDLERS[request.path](self._backend, request)
        except AdminError as error:
            return error.response
