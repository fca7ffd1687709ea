"""A server for the admin to ask: plain values, and a record of what it was told to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from envoy.config.core.v3.base_pb2 import Node

from meshproxy.errors import ConfigError
from meshproxy.net.address import Address
from meshproxy.observe.export import StatsExporter
from meshproxy.observe.snapshot import Snapshot
from meshproxy.observe.stats_config import StatsSettings
from meshproxy.server.admin.backend import (
    DRAINING,
    LIVE,
    AdminBackend,
    ConfigSection,
    ListenerStatus,
    RuntimeStatus,
    ServerDescription,
)


class FakeBackend(AdminBackend):
    """Every answer is an attribute that a test may set; `told` has the calls that change something."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.server_state = LIVE
        self.listener_statuses: list[ListenerStatus] = [ListenerStatus("ingress", [Address("127.0.0.1", 34513)])]
        self.snapshot = Snapshot()
        self.snapshot.counters = {"cluster.v1.upstream_rq_total": 3, "cluster.v1.upstream_rq_retry": 0}
        self.snapshot.levels = {"server.live": 1, "server.uptime": 7}
        self.cluster_statuses: list[dict[str, Any]] = []
        self.certificate_statuses: list[dict[str, Any]] = []
        self.sections: list[ConfigSection] = []
        self.sections_with_eds: list[ConfigSection] = []
        self.explanation: dict[str, Any] = {
            "request": {"method": "GET", "authority": "a", "path": "/", "source": "127.0.0.1", "tls": False},
            "listener": {"name": "ingress", "path": "l", "address": "127.0.0.1:1", "listener_filters": []},
            "filter_chains_passed_over": [],
            "filter_chain": None,
            "outcome": {"kind": "close", "reason": "no filter chain matches"},
        }
        self.targets: list[tuple[str, list[str]]] = []
        self.layers = ["static", "adm"]
        self.values: dict[str, tuple[list[str], str]] = {"foo.bar": (["7", ""], "7")}
        self.levels = {"admin": "error", "upstream": "error"}
        self.options: dict[str, Any] = {
            "concurrency": 1,
            "drain_time": "20s",
            "file_flush_interval": "1s",
            "log_level": "error",
            "parent_shutdown_time": "900s",
        }

    def state(self) -> str:
        return self.server_state

    def describe(self) -> ServerDescription:
        return ServerDescription("abc/0.1.0/Clean/RELEASE", 7.9, self.options, Node(id="n1", cluster="c1"))

    def listeners(self) -> Sequence[ListenerStatus]:
        return self.listener_statuses

    async def stats(self) -> StatsExporter:
        return StatsExporter(self.snapshot, StatsSettings())

    async def clusters(self) -> Sequence[Mapping[str, Any]]:
        return self.cluster_statuses

    async def certificates(self) -> Sequence[Mapping[str, Any]]:
        return self.certificate_statuses

    async def config_sections(self, include_eds: bool) -> Sequence[ConfigSection]:
        return self.sections_with_eds if include_eds else self.sections

    async def explain(self, pairs: Sequence[tuple[str, str]]) -> Mapping[str, Any]:
        self.told.append(("explain", *pairs))
        return self.explanation

    async def unready_targets(self) -> Sequence[tuple[str, Sequence[str]]]:
        return self.targets

    def runtime(self) -> RuntimeStatus:
        return RuntimeStatus(self.layers, self.values)

    def log_levels(self) -> Mapping[str, str]:
        return self.levels

    async def set_log_levels(self, levels: Mapping[str, str]) -> None:
        self.told.append(("set_log_levels", dict(levels)))
        for component, level in levels.items():
            for name in [component] if component else list(self.levels):
                self.levels[name] = level

    async def modify_runtime(self, changes: Mapping[str, str]) -> None:
        if "adm" not in self.layers:
            raise ConfigError("", "No admin layer specified")
        self.told.append(("modify_runtime", dict(changes)))

    async def reset_counters(self) -> None:
        self.told.append(("reset_counters",))

    async def fail_health_checks(self, fail: bool) -> None:
        self.told.append(("fail_health_checks", fail))
        self.server_state = DRAINING if fail else LIVE

    async def drain_listeners(self, *, inbound_only: bool, graceful: bool, skip_exit: bool) -> None:
        self.told.append(("drain_listeners", inbound_only, graceful, skip_exit))

    async def reopen_logs(self) -> None:
        self.told.append(("reopen_logs",))

    def quit(self) -> None:
        self.told.append(("quit",))
