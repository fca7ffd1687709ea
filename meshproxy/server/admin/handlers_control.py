"""What changes the server: drains, health checks, logging, runtime, counters, and its end. All are POST."""

from __future__ import annotations

from typing import Final

from meshproxy.errors import ConfigError
from meshproxy.server.admin.backend import AdminBackend
from meshproxy.server.admin.exchange import AdminError, AdminRequest, AdminResponse

_LEVELS: Final = ("trace", "debug", "info", "warning", "error", "critical", "off")
_LOGGING_USAGE: Final = (
    "usage: /logging?<name>=<level> (change single level)\n"
    "usage: /logging?paths=name1:level1,name2:level2,... (change multiple levels)\n"
    "usage: /logging?level=<level> (change all levels)\n"
    f"levels: {' '.join(_LEVELS)} \n"
)
_RUNTIME_USAGE: Final = (
    "usage: /runtime_modify?key1=value1&key2=value2&keyN=valueN\n"
    "       or send the parameters as form values\n"
    "use an empty value to remove a previously added override"
)


async def drain_listeners(backend: AdminBackend, request: AdminRequest) -> AdminResponse:
    """Parameters count by being there, whatever their value."""
    params = request.params
    await backend.drain_listeners(
        inbound_only="inboundonly" in params, graceful="graceful" in params, skip_exit="skip_exit" in params
    )
    return AdminResponse("OK\n")


async def fail_health_checks(backend: AdminBackend, request: AdminRequest) -> AdminResponse:
    """`/ready` answers 503 DRAINING from now on."""
    await backend.fail_health_checks(True)
    return AdminResponse("OK\n")


async def pass_health_checks(backend: AdminBackend, request: AdminRequest) -> AdminResponse:
    """Undo `/healthcheck/fail`."""
    await backend.fail_health_checks(False)
    return AdminResponse("OK\n")


async def reset_counters(backend: AdminBackend, request: AdminRequest) -> AdminResponse:
    """Counters to zero."""
    await backend.reset_counters()
    return AdminResponse("OK\n")


async def reopen_logs(backend: AdminBackend, request: AdminRequest) -> AdminResponse:
    """Access logs open their files again."""
    await backend.reopen_logs()
    return AdminResponse("OK\n")


async def quit_server(backend: AdminBackend, request: AdminRequest) -> AdminResponse:
    """The process ends when this answer is out."""
    backend.quit()
    return AdminResponse("OK\n")


async def modify_runtime(backend: AdminBackend, request: AdminRequest) -> AdminResponse:
    """The parameters of the query, or else of the body, are keys of the admin layer."""
    changes = request.params or request.form()
    if not changes:
        raise AdminError(400, _RUNTIME_USAGE)
    try:
        await backend.modify_runtime(changes)
    except ConfigError as error:
        raise AdminError(503, error.reason) from error
    return AdminResponse("OK\n")


async def set_logging(backend: AdminBackend, request: AdminRequest) -> AdminResponse:
    """Change levels as the one parameter says (none: only show them)."""
    try:
        changes = _log_changes(backend, request.params)
    except ConfigError as error:
        text = f"error: {error.reason}\n\n{_LOGGING_USAGE}{_active_loggers(backend)}"
        raise AdminError(400, text) from error
    if changes:
        await backend.set_log_levels(changes)
    return AdminResponse(_active_loggers(backend))


def _log_changes(backend: AdminBackend, params: dict[str, str]) -> dict[str, str]:
    """Component ("" for all) to level. Raises ConfigError in Envoy's words."""
    if len(params) > 1:
        raise AdminError(400, "error: invalid number of parameters\n")
    if not params:
        return {}
    (name, value) = next(iter(params.items()))
    if name == "level":
        return {"": _level(value)} if value else {}
    if name == "group":
        raise ConfigError("", "group parameter requires fine-grain logging to be enabled")
    if name != "paths":
        return _checked(backend, {name: value})
    changes: dict[str, str] = {}
    for entry in filter(None, value.split(",")):
        component, _, level = entry.partition(":")
        if not component or not level:
            raise ConfigError("", "empty logger name or empty logger level")
        changes[component] = level
    return _checked(backend, changes)


def _checked(backend: AdminBackend, changes: dict[str, str]) -> dict[str, str]:
    known = backend.log_levels()
    for component, level in changes.items():
        _level(level)
        if component not in known:
            raise ConfigError("", "unknown logger name")
    return changes


def _level(name: str) -> str:
    if name not in _LEVELS:
        raise ConfigError("", "unknown logger level")
    return name


def _active_loggers(backend: AdminBackend) -> str:
    lines = [f"  {component}: {level}\n" for component, level in backend.log_levels().items()]
    return "active loggers:\n" + "".join(lines)
