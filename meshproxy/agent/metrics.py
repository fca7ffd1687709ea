"""What the agent counts."""

from __future__ import annotations

from meshproxy.rpc.server.core import ServerStats
from meshproxy.xds.secret_server import SecretStats


class AgentMetrics:
    """Counters."""

    def __init__(self) -> None:
        self.certificates = 0  # the first one as well
        self.failures = 0  # of attempts to have a key certified
        self.bundles = 0
        self.bundle_failures = 0
        self.sds = SecretStats()
        self.server = ServerStats()  # of the socket

    def text(self, *, ready: bool, left_s: float) -> str:
        """For Prometheus (text format 0.0.4)."""
        sds, server = self.sds, self.server
        rows = (
            ("ready", "gauge", int(ready)),
            ("certificate_left_seconds", "gauge", round(max(left_s, 0.0), 3)),
            ("certificates_total", "counter", self.certificates),
            ("renewal_failures_total", "counter", self.failures),
            ("bundles_total", "counter", self.bundles),
            ("bundle_failures_total", "counter", self.bundle_failures),
            ("sds_connections", "gauge", server.connections_active),
            ("sds_peers_refused_total", "counter", server.peers_refused),
            ("sds_connections_refused_total", "counter", server.connections_refused),
            ("sds_connections_evicted_total", "counter", server.connections_evicted),
            ("sds_connection_errors_total", "counter", server.connection_errors),
            ("sds_calls_refused_total", "counter", server.held_refused),
            ("sds_streams", "gauge", sds.streams),
            ("sds_pushes_total", "counter", sds.pushes),
            ("sds_refusals_total", "counter", sds.refusals),
            ("sds_streams_refused_total", "counter", sds.streams_refused),
        )
        return "".join(f"# TYPE meshproxy_agent_{name} {kind}\nmeshproxy_agent_{name} {n}\n" for name, kind, n in rows)
