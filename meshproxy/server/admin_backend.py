"""The supervisor as its admin interface sees it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.subscription import CLUSTER_TYPE
from meshproxy.observe.export import StatsExporter
from meshproxy.observe.log import active_levels, parse_level, set_level
from meshproxy.server.admin.backend import (
    DRAINING,
    INITIALIZING,
    LIVE,
    PRE_INITIALIZING,
    AdminBackend,
    ConfigSection,
    ListenerStatus,
    RuntimeStatus,
    ServerDescription,
)
from meshproxy.server.admin.config_sections import ConfigEntry, config_sections
from meshproxy.server.admin.dynamic_sections import dynamic_sections
from meshproxy.server.admin.handlers import AdminHandlers
from meshproxy.server.admin.server import AdminServer
from meshproxy.server.admin_config import build_admin
from meshproxy.server.cluster_status import merge_clusters
from meshproxy.server.warming import CLUSTER, LISTENER
from meshproxy.server.whole_file import write_whole
from meshproxy.version import __version__

if TYPE_CHECKING:
    from meshproxy.server.supervisor import Supervisor

_STATES: Final = (LIVE, DRAINING, PRE_INITIALIZING, INITIALIZING)


# Words by which a text may hold a secret: the fields that the API marks as sensitive, and what wraps them.
_SECRET: Final = re.compile(r"(?i)private.?key|password|secret|token|ticket|credential|inline.?bytes")


def _without_secrets(text: str) -> str:
    return "[redacted]" if _SECRET.search(text) else text


class SupervisorBackend(AdminBackend):
    """Answers from what the supervisor holds, and asks the workers for the rest."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def state(self) -> str:
        supervisor = self._supervisor
        return DRAINING if not supervisor.healthy else _STATES[supervisor.state]

    def describe(self) -> ServerDescription:
        supervisor = self._supervisor
        options = supervisor.options
        shown: dict[str, Any] = {
            "concurrency": options.concurrency,
            "config_path": options.config_path,
            "config_yaml": _without_secrets(options.config_yaml),
            "admin_address_path": options.admin_address_path,
            "log_level": options.log_level,
            "component_log_level": options.component_log_level,
            "service_cluster": options.service_cluster,
            "service_node": options.service_node,
            "service_zone": options.service_zone,
            "drain_time": f"{options.drain_time_s:g}s",
            "drain_strategy": options.drain_strategy.capitalize(),
            "allow_unknown_static_fields": options.allow_unknown_static_fields,
        }
        uptime = time.monotonic() - supervisor.started
        return ServerDescription(__version__, uptime, shown, supervisor.bootstrap.node)

    def listeners(self) -> Sequence[ListenerStatus]:
        return [ListenerStatus(name, addresses) for name, addresses in self._supervisor.sockets.addresses()]

    async def stats(self) -> StatsExporter:
        supervisor = self._supervisor
        total = await supervisor.collect_stats()
        total.gauges["server.total_connections"] = sum(await supervisor.each("connections"))
        return StatsExporter(total, supervisor.stats_settings, supervisor.intervals)

    async def clusters(self) -> Sequence[Mapping[str, Any]]:
        statuses = merge_clusters(await self._supervisor.parts("clusters"))
        records = self._supervisor.control_plane.resources.of_type(CLUSTER_TYPE)
        added = {record.name for record in records if record.taken is not None}
        for status in statuses:
            if status["name"] in added:
                status["added_via_api"] = True
        return statuses

    async def certificates(self) -> Sequence[Mapping[str, Any]]:
        return await self._supervisor.parts_of_one("certificates")

    async def explain(self, pairs: Sequence[tuple[str, str]]) -> Mapping[str, Any]:
        answers = await self._supervisor.parts_of_one("explain", list(pairs))
        return answers[0] if answers else {"error": "no worker runs"}

    async def config_sections(self, include_eds: bool) -> Sequence[ConfigSection]:
        supervisor = self._supervisor
        endpoints = await supervisor.parts_of_one("endpoints") if include_eds else None
        warming = await supervisor.parts_of_one("unready")
        clusters = {name for kind, name, _ in warming if kind == CLUSTER}
        listeners = {name for kind, name, _ in warming if kind == LISTENER}
        bootstrap, updated = supervisor.bootstrap, supervisor.updated
        static = bootstrap.static_resources
        own = {cluster.name for cluster in static.clusters}
        added = [(name, assignment) for name, assignment in endpoints or () if name not in own]
        refused, because = None, ""
        if supervisor.last_error is not None:
            failed = supervisor.last_error
            refused, because = ConfigEntry("", failed.bootstrap or b"", failed.at), failed.because
        return config_sections(
            ConfigEntry("", bootstrap, updated),
            [ConfigEntry(cluster.name, cluster, updated) for cluster in static.clusters],
            [ConfigEntry(listener.name, listener, updated) for listener in static.listeners],
            [ConfigEntry(routes.name, routes, updated) for routes in _static_routes(static.listeners)],
            None if endpoints is None else [ConfigEntry(name, each, 0.0) for name, each in endpoints if name in own],
            refused,
            because,
            secrets=[ConfigEntry(secret.name, secret, 0.0) for secret in static.secrets],
            dynamic=dynamic_sections(supervisor.control_plane.resources, clusters, listeners, added),
        )

    async def unready_targets(self) -> Sequence[tuple[str, Sequence[str]]]:
        unready = await self._supervisor.parts_of_one("unready")
        return [(f"{kind} {name}", [f"target {target}" for target in targets]) for kind, name, targets in unready]

    def runtime(self) -> RuntimeStatus:
        runtime = self._supervisor.runtime
        entries = {key: (values, runtime.final_value(key)) for key, values in runtime.entries().items()}
        return RuntimeStatus(runtime.layer_names(), entries)

    def log_levels(self) -> Mapping[str, str]:
        return active_levels()

    async def set_log_levels(self, levels: Mapping[str, str]) -> None:
        for component, level in levels.items():
            number = parse_level(level)
            set_level(number, component)
            await self._supervisor.each("set_log_level", number, component)

    async def modify_runtime(self, changes: Mapping[str, str]) -> None:
        self._supervisor.runtime.modify(dict(changes))
        await self._supervisor.each("modify_runtime", dict(changes))

    async def reset_counters(self) -> None:
        await self._supervisor.reset_counters()

    async def fail_health_checks(self, fail: bool) -> None:
        await self._supervisor.fail_health_checks(fail)

    async def drain_listeners(self, *, inbound_only: bool, graceful: bool, skip_exit: bool) -> None:
        await self._supervisor.drain_listeners(inbound_only, graceful, skip_exit)

    async def reopen_logs(self) -> None:
        await self._supervisor.each("reopen_logs")

    def quit(self) -> None:
        self._supervisor.quit()


async def start_admin(supervisor: Supervisor, errors: ConfigErrors) -> AdminServer | None:
    """Serve the bootstrap's admin address, if it has one, and write it where `--admin-address-path` says."""
    admin = supervisor.bootstrap.admin
    if not admin.HasField("address"):
        return None
    context = BuildContext(errors, supervisor.runtime, supervisor.stats)
    config = build_admin(admin, "admin", context)
    if config is None:
        return None
    handlers = AdminHandlers(SupervisorBackend(supervisor), config.allow)
    server = AdminServer(supervisor.dispatcher, handlers.handle, access_logs=config.access_logs)
    path = supervisor.options.admin_address_path
    address = config.address
    try:
        await server.start(address, config.socket_options, config.mode)
    except OSError as error:
        errors.add("admin.address", f"cannot serve {address.text}: {_reason(error)}")
    try:
        if path and not errors:
            write_whole(path, server.address.text)
    except OSError as error:
        errors.add("", f"--admin-address-path: cannot write {path}: {_reason(error)}")
    if errors:
        await server.close()
        return None
    return server


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


def _static_routes(listeners: Any) -> Iterator[Any]:
    """The route configurations that stand in connection managers."""
    for listener in listeners:
        for chain in [*listener.filter_chains, listener.default_filter_chain]:
            for entry in chain.filters:
                manager = HttpConnectionManager()
                if entry.typed_config.Is(manager.DESCRIPTOR) and entry.typed_config.Unpack(manager):
                    if manager.HasField("route_config"):
                        yield manager.route_config
