"""What the agent counts."""

from __future__ import annotations

from meshproxy.xds.secret_server import SecretStats


class AgentMetrics:
    """Counters."""

    def __init__(self) -> None:
        self.certificates = 0  # the first one as well
        self.failures = 0  # of attempts to have a key certified
        self.bundles = 0
        self.bundle_failures = 0
        self.sds = SecretStats()

    def text(self, *, ready: bool, left_s: float) -> str:
        """For Prometheus (text format 0.0.4)."""
        sds = self.sds
        rows = (
            ("ready", "gauge", int(ready)),
            ("certificate_left_seconds", "gauge", round(max(left_s, 0.0), 3)),
            ("certificates_total", "counter", self.certificates),
            ("renewal_failures_total", "counter", self.failures),
            ("bundles_total", "counter", self.bundles),
            ("bundle_failures_total", "counter", self.bundle_failures),
            ("sds_streams", "gauge", sds.streams),
            ("sds_pushes_total", "counter", sds.pushes),
            ("sds_refusals_total", "counter", sds.refusals),
            ("sds_streams_refused_total", "counter", sds.streams_refused),
        )
        return "".join(f"# TYPE meshproxy_agent_{name} {kind}\nmeshproxy_agent_{name} {n}\n" for name, kind, n in rows)
