"""What the command line decides about a process."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Options:
    """Flags of `meshproxy run`, under Envoy's names where Envoy has them. Times are in seconds."""

    config_path: str = ""
    config_yaml: str = ""
    concurrency: int = 1
    drain_time_s: float = 20.0
    shutdown_delay_s: float = 5.0
    drain_strategy: str = "gradual"
    log_level: str = "info"
    component_log_level: str = ""
    log_path: str = ""
    log_format: str = ""
    file_flush_interval_msec: int = 1000
    admin_address_path: str = ""
    service_node: str = ""
    service_cluster: str = ""
    service_zone: str = ""
    base_id: int = 0
    allow_unknown_static_fields: bool = False
    reject_unknown_dynamic_fields: bool = False
    ignore_unknown_dynamic_fields: bool = False
    skip_deprecated_logs: bool = False
    local_address_ip_version: str = "v4"
    mode: str = "serve"
    ignored: dict[str, str] = field(default_factory=dict)
