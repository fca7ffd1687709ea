"""When hosts of an ORIGINAL_DST cluster go: nothing discovers them, requests name them."""

from __future__ import annotations

from meshproxy.net.timers import Timer, TimerWheel
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.config import EndpointConfig, OriginalDstConfig
from meshproxy.upstream.discovery import Discovery, DiscoveryListener


class OriginalDst(Discovery):
    """Sweeps from time to time (`cleanup_interval`)."""

    def __init__(
        self, cluster: Cluster, listener: DiscoveryListener, timers: TimerWheel, config: OriginalDstConfig
    ) -> None:
        super().__init__(cluster, listener)
        self._timers = timers
        self._interval_ms = config.cleanup_interval_ms
        self._timer: Timer = _Sweep(self)

    def start(self) -> None:
        self.ready()
        self._timers.arm(self._timer, self._interval_ms)

    def set_endpoints(self, endpoints: list[EndpointConfig]) -> None:
        """It has none."""

    def sweep(self) -> None:
        self.cluster.sweep_hosts()
        self._timers.arm(self._timer, self._interval_ms)

    def stop(self) -> None:
        self._timer.disarm()


class _Sweep(Timer):
    def __init__(self, discovery: OriginalDst) -> None:
        super().__init__()
        self._discovery = discovery

    def on_timer(self) -> None:
        self._discovery.sweep()
