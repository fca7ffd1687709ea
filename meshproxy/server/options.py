"""What the command line decides about a process."""

from __future__ import annotations

from dataclasses import dataclass


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
    file_flush_interval_msec: int = 1000
    admin_address_path: str = ""
    service_node: str = ""
    service_cluster: str = ""
    service_zone: str = ""
    allow_unknown_static_fields: bool = False
    reject_unknown_dynamic_fields: bool = False
    enable_core_dump: bool = False
    xds_cache: str = ""  # a file that keeps what a control plane said

    @property
    def drain_over_s(self) -> float:
        """Over how long a drain that is not urgent tells more and more connections to close; 0: all at once."""
        return self.drain_time_s if self.drain_strategy == "gradual" else 0.0
