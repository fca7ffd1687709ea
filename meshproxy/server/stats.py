"""The stats of listeners, of their manager and of the server, with Envoy's names."""

from __future__ import annotations

from typing import ClassVar, Final

from meshproxy.observe.snapshot import Snapshot
from meshproxy.observe.stats import Histogram, StatsScope

MANAGERS: Final = ("listener_manager.", "cluster_manager.", "runtime.")  # prefixes of what all workers count alike


class ListenerStats(StatsScope):
    """Under `listener.<address>.`."""

    COUNTERS: ClassVar[tuple[str, ...]] = (
        "downstream_cx_total",
        "downstream_cx_destroy",
        "downstream_cx_overflow",
        "downstream_global_cx_overflow",
        "downstream_pre_cx_timeout",
        "downstream_listener_filter_remote_close",
        "downstream_listener_filter_error",
        "downstream_cx_transport_socket_connect_timeout",
        "no_filter_chain_match",
    )
    GAUGES: ClassVar[tuple[str, ...]] = ("downstream_cx_active", "downstream_pre_cx_active")
    SET_WITH: ClassVar[tuple[str, ...]] = ("downstream_cx_total",)
    HISTOGRAMS: ClassVar[tuple[str, ...]] = ("downstream_cx_length_ms",)

    def __init__(self) -> None:
        super().__init__()
        self.downstream_cx_total: int = 0
        self.downstream_cx_destroy: int = 0
        self.downstream_cx_overflow: int = 0
        self.downstream_global_cx_overflow: int = 0
        self.downstream_pre_cx_timeout: int = 0
        self.downstream_listener_filter_remote_close: int = 0
        self.downstream_listener_filter_error: int = 0
        self.downstream_cx_transport_socket_connect_timeout: int = 0
        self.no_filter_chain_match: int = 0
        self.downstream_cx_active: int = 0
        self.downstream_pre_cx_active: int = 0
        self.downstream_cx_length_ms = Histogram()


class ListenerManagerStats(StatsScope):
    """Under `listener_manager.`."""

    COUNTERS: ClassVar[tuple[str, ...]] = (
        "listener_added",
        "listener_modified",
        "listener_removed",
        "listener_stopped",
        "listener_create_success",
        "listener_create_failure",
        "listener_in_place_updated",
    )
    LEVELS: ClassVar[tuple[str, ...]] = (
        "total_listeners_active",
        "total_listeners_warming",
        "total_listeners_draining",
        "total_filter_chains_draining",
        "workers_started",
    )
    SET_AT_START: ClassVar[tuple[str, ...]] = (
        "total_listeners_active",
        "total_listeners_warming",
        "workers_started",
    )

    def __init__(self) -> None:
        super().__init__()
        self.listener_added: int = 0
        self.listener_modified: int = 0
        self.listener_removed: int = 0
        self.listener_stopped: int = 0
        self.listener_create_success: int = 0
        self.listener_create_failure: int = 0
        self.listener_in_place_updated: int = 0
        self.total_listeners_active: int = 0
        self.total_listeners_warming: int = 0
        self.total_listeners_draining: int = 0
        self.total_filter_chains_draining: int = 0
        self.workers_started: int = 0


NO_CERTIFICATES: Final = 4294967295  # days_until_first_cert_expiring, as Envoy says it


class ServerStats(StatsScope):
    """Under `server.`; kept by the process that owns the others."""

    COUNTERS: ClassVar[tuple[str, ...]] = (
        "config_reload_success",
        "config_reload_failure",
        "worker_restarts",
        "static_unknown_fields",
        "dynamic_unknown_fields",
        "dynamic_not_done_fields",  # ours: of resources of control planes, accepted and listed in /config_dump
    )
    GAUGES: ClassVar[tuple[str, ...]] = (
        "live",
        "state",
        "uptime",
        "concurrency",
        "total_connections",
        "parent_connections",
        "hot_restart_epoch",
        "hot_restart_generation",
        "days_until_first_cert_expiring",
        "seconds_until_first_ocsp_response_expiring",
        "memory_allocated",
        "memory_physical_size",
        "version",
    )
    SET_AT_START: ClassVar[tuple[str, ...]] = GAUGES

    def __init__(self) -> None:
        super().__init__()
        self.config_reload_success: int = 0
        self.config_reload_failure: int = 0
        self.worker_restarts: int = 0
        self.static_unknown_fields: int = 0
        self.dynamic_unknown_fields: int = 0
        self.dynamic_not_done_fields: int = 0
        self.live: int = 0
        self.state: int = 0
        self.uptime: int = 0
        self.concurrency: int = 0
        self.total_connections: int = 0
        self.parent_connections: int = 0
        self.hot_restart_epoch: int = 0
        self.hot_restart_generation: int = 0
        self.days_until_first_cert_expiring: int = NO_CERTIFICATES
        self.seconds_until_first_ocsp_response_expiring: int = 0
        self.memory_allocated: int = 0
        self.memory_physical_size: int = 0
        self.version: int = 0


def drop_managers(snapshot: Snapshot) -> None:
    """Take out what the managers count: it happens in every worker alike, and is told once."""
    snapshot.counters = {name: count for name, count in snapshot.counters.items() if not name.startswith(MANAGERS)}
