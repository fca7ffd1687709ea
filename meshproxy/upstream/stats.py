"""The stats of clusters, under Envoy's names.

What would cost a look-up by name for every response (`upstream_rq_200`, `external.upstream_rq_2xx` …) is counted per
kind of response in one int, and spelt out by `refresh`, which whoever reads the stats calls first.
"""

from __future__ import annotations

from typing import ClassVar, Final

from meshproxy.net.resolver import ResolverCounts
from meshproxy.observe.histogram import Histogram
from meshproxy.observe.stats import StatsScope, response_names

_INTERNAL: Final = 1
_CANARY: Final = 2
_QUIET: Final = 4
_KINDS: Final = 8  # a status code's counters: internal or external, canary or not, quiet or not


class AltStats(StatsScope):
    """Responses and times of a cluster's requests, or of those that name a tree of their own
    (x-envoy-upstream-alt-stat-name): Envoy's `cluster.<name>.<alternative>.*`."""

    HISTOGRAMS: ClassVar[tuple[str, ...]] = (
        "upstream_rq_time",
        "internal_upstream_rq_time",
        "external_upstream_rq_time",
        "canary_upstream_rq_time",
    )
    ALIASES: ClassVar[dict[str, str]] = {
        "internal_upstream_rq_time": "internal.upstream_rq_time",
        "external_upstream_rq_time": "external.upstream_rq_time",
        "canary_upstream_rq_time": "canary.upstream_rq_time",
    }

    def __init__(self) -> None:
        super().__init__()
        self.upstream_rq_time = Histogram()
        self.internal_upstream_rq_time = Histogram()
        self.external_upstream_rq_time = Histogram()
        self.canary_upstream_rq_time = Histogram()
        self._responses: dict[int, int] = {}  # (status code * _KINDS + kind) -> how many,
        self._kind: int = 0  # less those of the kind that came last,
        self._of_kind: int = 0  # which are so many: a dict of numbers is slow to count in

    def charge_response(self, status: int, internal: bool, canary: bool, quiet: bool = False) -> None:
        """Count a response that a request ended with (upstream_rq_completed and the counters of its code; one that is
        `quiet` counts by its code among internal, external and canary ones only)."""
        kind = status * _KINDS
        if quiet:
            kind += _QUIET
        if internal:
            kind += _INTERNAL
        if canary:
            kind += _CANARY
        if kind != self._kind:
            self._note_kind()
            self._kind = kind
        self._of_kind += 1

    def _note_kind(self) -> None:
        if self._of_kind:
            self._responses[self._kind] = self._responses.get(self._kind, 0) + self._of_kind
            self._of_kind = 0

    def charge_time(self, duration_ms: int, internal: bool, canary: bool) -> None:
        """Record how long a request took, from its last byte to the last of its response."""
        self.upstream_rq_time.record(duration_ms)
        if internal:
            self.internal_upstream_rq_time.record(duration_ms)
        else:
            self.external_upstream_rq_time.record(duration_ms)
        if canary:
            self.canary_upstream_rq_time.record(duration_ms)

    def refresh(self) -> None:
        """Spell out the counters of response codes."""
        self._note_kind()
        responses, self._responses = self._responses, {}
        dynamic = self.dynamic
        for kind, count in responses.items():
            status = kind // _KINDS
            groups = ["", "internal." if kind & _INTERNAL else "external."]
            if kind & _CANARY:
                groups.append("canary.")
            for group in groups:
                codes = () if kind & _QUIET and not group else response_names(status)
                for name in ("completed", *codes):
                    key = f"{group}upstream_rq_{name}"
                    dynamic[key] = dynamic.get(key, 0) + count


class ClusterStats(AltStats):
    """Envoy's `cluster.<name>.*`, but for what stands under a name of its own below."""

    COUNTERS: ClassVar[tuple[str, ...]] = (
        "assignment_stale",
        "assignment_timeout_received",
        "assignment_use_cached",
        "bind_errors",
        "lb_healthy_panic",
        "lb_local_cluster_not_ok",
        "lb_recalculate_zone_structures",
        "lb_subsets_created",
        "lb_subsets_fallback",
        "lb_subsets_fallback_panic",
        "lb_subsets_removed",
        "lb_subsets_selected",
        "lb_zone_cluster_too_small",
        "lb_zone_no_capacity_left",
        "lb_zone_routing_all_directly",
        "lb_zone_routing_cross_zone",
        "lb_zone_routing_sampled",
        "membership_change",
        "original_dst_host_invalid",
        "retry_or_shadow_abandoned",
        "update_attempt",
        "update_empty",
        "update_failure",
        "update_no_rebuild",
        "update_success",
        "upstream_cx_close_notify",
        "upstream_cx_connect_attempts_exceeded",
        "upstream_cx_connect_fail",
        "upstream_cx_connect_timeout",
        "upstream_cx_connect_with_0_rtt",
        "upstream_cx_destroy",
        "upstream_cx_destroy_local",
        "upstream_cx_destroy_local_with_active_rq",
        "upstream_cx_destroy_remote",
        "upstream_cx_destroy_remote_with_active_rq",
        "upstream_cx_destroy_with_active_rq",
        "upstream_cx_http1_total",
        "upstream_cx_http2_total",
        "upstream_cx_http3_total",
        "upstream_cx_idle_timeout",
        "upstream_cx_max_duration_reached",
        "upstream_cx_max_requests",
        "upstream_cx_none_healthy",
        "upstream_cx_overflow",
        "upstream_cx_pool_overflow",
        "upstream_cx_preconnect_skipped",
        "upstream_cx_protocol_error",
        "upstream_cx_rx_bytes_total",
        "upstream_cx_total",
        "upstream_cx_tx_bytes_total",
        "upstream_flow_control_backed_up_total",
        "upstream_flow_control_drained_total",
        "upstream_flow_control_paused_reading_total",
        "upstream_flow_control_resumed_reading_total",
        "upstream_http3_broken",
        "upstream_internal_redirect_failed_total",
        "upstream_internal_redirect_succeeded_total",
        "upstream_queue_overloaded",
        "upstream_rq_0rtt",
        "upstream_rq_active_overflow",
        "upstream_rq_cancelled",
        "upstream_rq_maintenance_mode",
        "upstream_rq_max_duration_reached",
        "upstream_rq_pending_failure_eject",
        "upstream_rq_pending_overflow",
        "upstream_rq_pending_total",
        "upstream_rq_per_try_idle_timeout",
        "upstream_rq_per_try_timeout",
        "upstream_rq_retry",
        "upstream_rq_retry_backoff_exponential",
        "upstream_rq_retry_backoff_ratelimited",
        "upstream_rq_retry_limit_exceeded",
        "upstream_rq_retry_overflow",
        "upstream_rq_retry_success",
        "upstream_rq_rx_reset",
        "upstream_rq_rx_reset_no_error",
        "upstream_rq_timeout",
        "upstream_rq_total",
        "upstream_rq_tx_reset",
    )
    GAUGES = (
        "upstream_cx_active",
        "upstream_cx_rx_bytes_buffered",
        "upstream_cx_tx_bytes_buffered",
        "upstream_rq_active",
        "upstream_rq_pending_active",
    )
    LEVELS: ClassVar[tuple[str, ...]] = (
        "lb_subsets_active",
        "max_host_weight",
        "membership_degraded",
        "membership_excluded",
        "membership_healthy",
        "membership_total",
        "version",
        "warming_state",
    )
    SET_WITH = ("upstream_cx_total",)
    SET_AT_START = (
        "membership_degraded",
        "membership_excluded",
        "membership_healthy",
        "membership_total",
        "warming_state",
    )
    HISTOGRAMS = (
        "upstream_cx_connect_ms",
        "upstream_cx_length_ms",
        "upstream_rq_per_cx",
        *AltStats.HISTOGRAMS,
    )

    def __init__(self) -> None:
        super().__init__()
        self.assignment_stale: int = 0
        self.assignment_timeout_received: int = 0
        self.assignment_use_cached: int = 0
        self.bind_errors: int = 0
        self.lb_healthy_panic: int = 0
        self.lb_local_cluster_not_ok: int = 0
        self.lb_recalculate_zone_structures: int = 0
        self.lb_subsets_created: int = 0
        self.lb_subsets_fallback: int = 0
        self.lb_subsets_fallback_panic: int = 0
        self.lb_subsets_removed: int = 0
        self.lb_subsets_selected: int = 0
        self.lb_zone_cluster_too_small: int = 0
        self.lb_zone_no_capacity_left: int = 0
        self.lb_zone_routing_all_directly: int = 0
        self.lb_zone_routing_cross_zone: int = 0
        self.lb_zone_routing_sampled: int = 0
        self.membership_change: int = 0
        self.original_dst_host_invalid: int = 0
        self.retry_or_shadow_abandoned: int = 0
        self.update_attempt: int = 0
        self.update_empty: int = 0
        self.update_failure: int = 0
        self.update_no_rebuild: int = 0
        self.update_success: int = 0
        self.upstream_cx_close_notify: int = 0
        self.upstream_cx_connect_attempts_exceeded: int = 0
        self.upstream_cx_connect_fail: int = 0
        self.upstream_cx_connect_timeout: int = 0
        self.upstream_cx_connect_with_0_rtt: int = 0
        self.upstream_cx_destroy: int = 0
        self.upstream_cx_destroy_local: int = 0
        self.upstream_cx_destroy_local_with_active_rq: int = 0
        self.upstream_cx_destroy_remote: int = 0
        self.upstream_cx_destroy_remote_with_active_rq: int = 0
        self.upstream_cx_destroy_with_active_rq: int = 0
        self.upstream_cx_http1_total: int = 0
        self.upstream_cx_http2_total: int = 0
        self.upstream_cx_http3_total: int = 0
        self.upstream_cx_idle_timeout: int = 0
        self.upstream_cx_max_duration_reached: int = 0
        self.upstream_cx_max_requests: int = 0
        self.upstream_cx_none_healthy: int = 0
        self.upstream_cx_overflow: int = 0
        self.upstream_cx_pool_overflow: int = 0
        self.upstream_cx_preconnect_skipped: int = 0
        self.upstream_cx_protocol_error: int = 0
        self.upstream_cx_rx_bytes_total: int = 0
        self.upstream_cx_total: int = 0
        self.upstream_cx_tx_bytes_total: int = 0
        self.upstream_flow_control_backed_up_total: int = 0
        self.upstream_flow_control_drained_total: int = 0
        self.upstream_flow_control_paused_reading_total: int = 0
        self.upstream_flow_control_resumed_reading_total: int = 0
        self.upstream_http3_broken: int = 0
        self.upstream_internal_redirect_failed_total: int = 0
        self.upstream_internal_redirect_succeeded_total: int = 0
        self.upstream_queue_overloaded: int = 0
        self.upstream_rq_0rtt: int = 0
        self.upstream_rq_active_overflow: int = 0
        self.upstream_rq_cancelled: int = 0
        self.upstream_rq_maintenance_mode: int = 0
        self.upstream_rq_max_duration_reached: int = 0
        self.upstream_rq_pending_failure_eject: int = 0
        self.upstream_rq_pending_overflow: int = 0
        self.upstream_rq_pending_total: int = 0
        self.upstream_rq_per_try_idle_timeout: int = 0
        self.upstream_rq_per_try_timeout: int = 0
        self.upstream_rq_retry: int = 0
        self.upstream_rq_retry_backoff_exponential: int = 0
        self.upstream_rq_retry_backoff_ratelimited: int = 0
        self.upstream_rq_retry_limit_exceeded: int = 0
        self.upstream_rq_retry_overflow: int = 0
        self.upstream_rq_retry_success: int = 0
        self.upstream_rq_rx_reset: int = 0
        self.upstream_rq_rx_reset_no_error: int = 0
        self.upstream_rq_timeout: int = 0
        self.upstream_rq_total: int = 0
        self.upstream_rq_tx_reset: int = 0
        self.lb_subsets_active: int = 0
        self.max_host_weight: int = 0
        self.membership_degraded: int = 0
        self.membership_excluded: int = 0
        self.membership_healthy: int = 0
        self.membership_total: int = 0
        self.upstream_cx_active: int = 0
        self.upstream_cx_rx_bytes_buffered: int = 0
        self.upstream_cx_tx_bytes_buffered: int = 0
        self.upstream_rq_active: int = 0
        self.upstream_rq_pending_active: int = 0
        self.version: int = 0
        self.warming_state: int = 0
        self.upstream_cx_connect_ms = Histogram()
        self.upstream_cx_length_ms = Histogram()
        self.upstream_rq_per_cx = Histogram()
        self.dynamic["upstream_rq_completed"] = 0  # there is no need of a response for it


class DiscoveredStats(ClusterStats):
    """Of a cluster whose endpoints come from a control plane: with Envoy's statistics of a subscription."""

    COUNTERS: ClassVar[tuple[str, ...]] = (*ClusterStats.COUNTERS, "init_fetch_timeout", "update_rejected")
    LEVELS: ClassVar[tuple[str, ...]] = (*ClusterStats.LEVELS, "update_time")

    def __init__(self) -> None:
        super().__init__()
        self.init_fetch_timeout: int = 0
        self.update_rejected: int = 0
        self.update_time: int = 0


class OutlierStats(StatsScope):
    """Envoy's `cluster.<name>.outlier_detection.*`."""

    COUNTERS = (
        "ejections_consecutive_5xx",
        "ejections_detected_consecutive_5xx",
        "ejections_detected_consecutive_gateway_failure",
        "ejections_detected_consecutive_local_origin_failure",
        "ejections_detected_degradation",
        "ejections_detected_failure_percentage",
        "ejections_detected_local_origin_failure_percentage",
        "ejections_detected_local_origin_success_rate",
        "ejections_detected_success_rate",
        "ejections_enforced_consecutive_5xx",
        "ejections_enforced_consecutive_gateway_failure",
        "ejections_enforced_consecutive_local_origin_failure",
        "ejections_enforced_failure_percentage",
        "ejections_enforced_local_origin_failure_percentage",
        "ejections_enforced_local_origin_success_rate",
        "ejections_enforced_success_rate",
        "ejections_enforced_total",
        "ejections_overflow",
        "ejections_success_rate",
        "ejections_total",
    )
    GAUGES = ("ejections_active",)

    def __init__(self) -> None:
        super().__init__()
        self.ejections_consecutive_5xx: int = 0
        self.ejections_detected_consecutive_5xx: int = 0
        self.ejections_detected_consecutive_gateway_failure: int = 0
        self.ejections_detected_consecutive_local_origin_failure: int = 0
        self.ejections_detected_degradation: int = 0
        self.ejections_detected_failure_percentage: int = 0
        self.ejections_detected_local_origin_failure_percentage: int = 0
        self.ejections_detected_local_origin_success_rate: int = 0
        self.ejections_detected_success_rate: int = 0
        self.ejections_enforced_consecutive_5xx: int = 0
        self.ejections_enforced_consecutive_gateway_failure: int = 0
        self.ejections_enforced_consecutive_local_origin_failure: int = 0
        self.ejections_enforced_failure_percentage: int = 0
        self.ejections_enforced_local_origin_failure_percentage: int = 0
        self.ejections_enforced_local_origin_success_rate: int = 0
        self.ejections_enforced_success_rate: int = 0
        self.ejections_enforced_total: int = 0
        self.ejections_overflow: int = 0
        self.ejections_success_rate: int = 0
        self.ejections_total: int = 0
        self.ejections_active: int = 0


class CaresStats(StatsScope):
    """Envoy's `dns.cares.*`."""

    COUNTERS = ("get_addr_failure", "not_found", "reinits", "resolve_total", "timeouts")
    GAUGES = ("pending_resolutions",)

    def __init__(self) -> None:
        super().__init__()
        self.counts: ResolverCounts | None = None
        self.get_addr_failure: int = 0
        self.not_found: int = 0
        self.pending_resolutions: int = 0
        self.reinits: int = 0
        self.resolve_total: int = 0
        self.timeouts: int = 0

    def refresh(self) -> None:
        counts = self.counts
        if counts is not None:
            self.get_addr_failure = counts.get_addr_failure
            self.not_found = counts.not_found
            self.pending_resolutions = counts.pending_resolutions
            self.reinits = counts.reinits
            self.resolve_total = counts.resolve_total
            self.timeouts = counts.timeouts


class ClusterManagerStats(StatsScope):
    """Envoy's `cluster_manager.*`."""

    COUNTERS = (
        "cluster_added",
        "cluster_modified",
        "cluster_removed",
        "cluster_updated",
        "cluster_updated_via_merge",
        "update_merge_cancelled",
        "update_out_of_merge_window",
    )
    LEVELS = ("active_clusters", "warming_clusters")
    SET_AT_START = ("active_clusters", "warming_clusters")

    def __init__(self) -> None:
        super().__init__()
        self.cluster_added: int = 0
        self.cluster_modified: int = 0
        self.cluster_removed: int = 0
        self.cluster_updated: int = 0
        self.cluster_updated_via_merge: int = 0
        self.update_merge_cancelled: int = 0
        self.update_out_of_merge_window: int = 0
        self.active_clusters: int = 0
        self.warming_clusters: int = 0


class HostStats:
    """What `/clusters` shows of a host; carried over when a changed cluster takes the place of another."""

    def __init__(self) -> None:
        self.cx_active: int = 0
        self.cx_connect_fail: int = 0
        self.cx_total: int = 0
        self.rq_active: int = 0
        self.rq_error: int = 0
        self.rq_pending_active: int = 0
        self.rq_success: int = 0
        self.rq_timeout: int = 0
        self.rq_total: int = 0
        self.reported: tuple[int, int, int] = (0, 0, 0)  # successes, errors and all, in the load reports so far
