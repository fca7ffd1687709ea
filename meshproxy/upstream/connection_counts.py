"""What one upstream connection adds to the stats of its cluster and its host."""

from __future__ import annotations

from meshproxy.clock import monotonic
from meshproxy.errors import RESET_CONNECT_TIMEOUT
from meshproxy.upstream.host import Host
from meshproxy.upstream.stats import ClusterStats


class ConnectionCounts:
    """One per connection, from the attempt to open it to its end."""

    def __init__(self, host: Host, stats: ClusterStats) -> None:
        self._host = host
        self._stats = stats
        self._opened_at: float = monotonic()
        host.stats.cx_total += 1
        host.stats.cx_active += 1
        stats.upstream_cx_total += 1
        stats.upstream_cx_active += 1

    def another_attempt(self) -> None:
        """Envoy counts an attempt at each address of a host, but one connection that is open, or failed."""
        self._host.stats.cx_total += 1
        self._stats.upstream_cx_total += 1

    def connected(self) -> None:
        self._stats.upstream_cx_connect_ms.record(int((monotonic() - self._opened_at) * 1000.0))

    def connect_failed(self, reason: int) -> None:
        """It never opened; this is its end."""
        stats = self._stats
        if reason == RESET_CONNECT_TIMEOUT:
            stats.upstream_cx_connect_timeout += 1
        stats.upstream_cx_connect_fail += 1
        self._host.stats.cx_connect_fail += 1
        self.destroyed(reason == RESET_CONNECT_TIMEOUT, False)

    def destroyed(self, local: bool, with_stream: bool) -> None:
        """It is closed: by us, or by the peer; `with_stream`: while it was in use."""
        self._host.stats.cx_active -= 1
        stats = self._stats
        stats.upstream_cx_active -= 1
        stats.upstream_cx_length_ms.record(int((monotonic() - self._opened_at) * 1000.0))
        stats.upstream_cx_destroy += 1
        stats.upstream_cx_destroy_with_active_rq += with_stream
        if local:
            stats.upstream_cx_destroy_local += 1
            stats.upstream_cx_destroy_local_with_active_rq += with_stream
        else:
            stats.upstream_cx_destroy_remote += 1
            stats.upstream_cx_destroy_remote_with_active_rq += with_stream
