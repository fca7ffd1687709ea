"""The stats of connection managers and of the router, under `http.<stat_prefix>.`, with Envoy's names."""

from __future__ import annotations

from typing import ClassVar

from meshproxy.observe.stats import Histogram, StatsScope


class ResponseStats(StatsScope):
    """Responses by class; Envoy counts them per listener as well."""

    COUNTERS: ClassVar[tuple[str, ...]] = (
        "downstream_rq_completed",
        *("downstream_rq_1xx", "downstream_rq_2xx", "downstream_rq_3xx", "downstream_rq_4xx", "downstream_rq_5xx"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.downstream_rq_completed: int = 0
        self.downstream_rq_1xx: int = 0
        self.downstream_rq_2xx: int = 0
        self.downstream_rq_3xx: int = 0
        self.downstream_rq_4xx: int = 0
        self.downstream_rq_5xx: int = 0

    def count_response(self, status: int) -> None:
        """Count a finished response by its class."""
        self.downstream_rq_completed += 1
        if status < 200:
            if status >= 100:
                self.downstream_rq_1xx += 1
        elif status < 300:
            self.downstream_rq_2xx += 1
        elif status < 400:
            self.downstream_rq_3xx += 1
        elif status < 500:
            self.downstream_rq_4xx += 1
        elif status < 600:
            self.downstream_rq_5xx += 1


class ConnectionManagerStats(ResponseStats):
    """One per stat prefix; connection managers with the same prefix share it."""

    COUNTERS: ClassVar[tuple[str, ...]] = (
        "downstream_cx_total",
        "downstream_cx_http1_total",
        "downstream_cx_http2_total",
        "downstream_cx_ssl_total",
        "downstream_cx_destroy",
        "downstream_cx_destroy_remote",
        "downstream_cx_destroy_local",
        "downstream_cx_destroy_active_rq",
        "downstream_cx_destroy_local_active_rq",
        "downstream_cx_destroy_remote_active_rq",
        "downstream_cx_drain_close",
        "downstream_cx_upgrades_total",
        "downstream_cx_idle_timeout",
        "downstream_cx_max_duration_reached",
        "downstream_cx_max_requests_reached",
        "downstream_cx_protocol_error",
        "downstream_cx_delayed_close_timeout",
        "downstream_cx_rx_bytes_total",
        "downstream_cx_tx_bytes_total",
        "downstream_flow_control_paused_reading_total",
        "downstream_flow_control_resumed_reading_total",
        "downstream_rq_total",
        "downstream_rq_http1_total",
        "downstream_rq_http2_total",
        "downstream_rq_rx_reset",
        "downstream_rq_tx_reset",
        "downstream_rq_non_relative_path",
        "downstream_rq_too_large",
        "downstream_rq_too_many_premature_resets",
        "rs_too_large",
        "downstream_rq_completed",
        "downstream_rq_1xx",
        "downstream_rq_2xx",
        "downstream_rq_3xx",
        "downstream_rq_4xx",
        "downstream_rq_5xx",
        "downstream_rq_failed_path_normalization",
        "downstream_rq_idle_timeout",
        "downstream_rq_max_duration_reached",
        "downstream_rq_timeout",
        "downstream_rq_header_timeout",
        "downstream_rq_redirected_with_normalized_path",
        "downstream_rq_response_before_rq_complete",
        "downstream_rq_ws_on_non_ws_route",
        "downstream_rq_filter_error",
        "no_route",
        "no_cluster",
        "rq_total",
        "rq_direct_response",
        "rq_redirect",  # stays 0, as in Envoy, which counts a redirect as a direct response
        "rq_reset_after_downstream_response_started",
        "passthrough_internal_redirect_bad_location",
        "passthrough_internal_redirect_no_route",
        "passthrough_internal_redirect_predicate",
        "passthrough_internal_redirect_too_many_redirects",
        "passthrough_internal_redirect_unsafe_scheme",
    )
    GAUGES: ClassVar[tuple[str, ...]] = (
        "downstream_cx_active",
        "downstream_cx_http1_active",
        "downstream_cx_http2_active",
        "downstream_cx_ssl_active",
        "downstream_cx_upgrades_active",
        "downstream_rq_active",
    )
    SET_WITH: ClassVar[tuple[str, ...]] = ("downstream_cx_total",)
    HISTOGRAMS: ClassVar[tuple[str, ...]] = ("downstream_cx_length_ms", "downstream_rq_time")

    def __init__(self) -> None:
        super().__init__()
        self.downstream_cx_total: int = 0
        self.downstream_cx_active: int = 0
        self.downstream_cx_http1_total: int = 0
        self.downstream_cx_http2_total: int = 0
        self.downstream_cx_http1_active: int = 0
        self.downstream_cx_http2_active: int = 0
        self.downstream_cx_ssl_total: int = 0
        self.downstream_cx_ssl_active: int = 0
        self.downstream_cx_destroy: int = 0
        self.downstream_cx_destroy_remote: int = 0
        self.downstream_cx_destroy_local: int = 0
        self.downstream_cx_destroy_active_rq: int = 0
        self.downstream_cx_destroy_local_active_rq: int = 0
        self.downstream_cx_destroy_remote_active_rq: int = 0
        self.downstream_cx_drain_close: int = 0
        self.downstream_cx_upgrades_total: int = 0
        self.downstream_cx_upgrades_active: int = 0
        self.downstream_cx_idle_timeout: int = 0
        self.downstream_cx_max_duration_reached: int = 0
        self.downstream_cx_max_requests_reached: int = 0
        self.downstream_cx_protocol_error: int = 0
        self.downstream_cx_delayed_close_timeout: int = 0
        self.downstream_cx_rx_bytes_total: int = 0
        self.downstream_cx_tx_bytes_total: int = 0
        self.downstream_cx_length_ms = Histogram()
        self.downstream_flow_control_paused_reading_total: int = 0
        self.downstream_flow_control_resumed_reading_total: int = 0
        self.downstream_rq_total: int = 0
        self.downstream_rq_active: int = 0
        self.downstream_rq_http1_total: int = 0
        self.downstream_rq_http2_total: int = 0
        self.downstream_rq_rx_reset: int = 0
        self.downstream_rq_tx_reset: int = 0
        self.downstream_rq_non_relative_path: int = 0
        self.downstream_rq_too_large: int = 0
        self.downstream_rq_too_many_premature_resets: int = 0
        self.rs_too_large: int = 0
        self.downstream_rq_failed_path_normalization: int = 0
        self.downstream_rq_idle_timeout: int = 0
        self.downstream_rq_max_duration_reached: int = 0
        self.downstream_rq_timeout: int = 0
        self.downstream_rq_header_timeout: int = 0
        self.downstream_rq_redirected_with_normalized_path: int = 0
        self.downstream_rq_response_before_rq_complete: int = 0
        self.downstream_rq_ws_on_non_ws_route: int = 0
        self.downstream_rq_filter_error: int = 0
        self.downstream_rq_time = Histogram()
        self.no_route: int = 0
        self.no_cluster: int = 0
        self.rq_total: int = 0
        self.rq_direct_response: int = 0
        self.rq_redirect: int = 0
        self.rq_reset_after_downstream_response_started: int = 0
        self.passthrough_internal_redirect_bad_location: int = 0
        self.passthrough_internal_redirect_no_route: int = 0
        self.passthrough_internal_redirect_predicate: int = 0
        self.passthrough_internal_redirect_too_many_redirects: int = 0
        self.passthrough_internal_redirect_unsafe_scheme: int = 0
