"""Envoy's statistics of a control plane: under `control_plane.` for ADS."""

from __future__ import annotations

from typing import ClassVar

from meshproxy.observe.stats import StatsScope


class ControlPlaneStats(StatsScope):
    """Of the streams to one control plane. `identifier` is what it calls itself: a text, so it is in `status` only."""

    COUNTERS: ClassVar = ("rate_limit_enforced", "unknown_type")
    GAUGES: ClassVar = ("connected_state", "pending_requests")
    SET_AT_START: ClassVar = ("connected_state",)

    def __init__(self) -> None:
        super().__init__()
        self.rate_limit_enforced = 0
        self.unknown_type = 0  # responses of a type that nobody has asked for
        self.connected_state = 0  # streams that are open
        self.pending_requests = 0  # that wait until they may be sent
