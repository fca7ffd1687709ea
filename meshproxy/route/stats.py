"""What is counted of a request under the name of its route or of its virtual cluster."""

from __future__ import annotations

from meshproxy.observe.histogram import Histogram
from meshproxy.observe.stats import StatsScope, response_names


class RequestStats(StatsScope):
    """Envoy's `vhost.<virtual host>.route.<stat_prefix>.*` and `vhost.<virtual host>.vcluster.<name>.*`.

    The counters of status codes (`upstream_rq_200`, `upstream_rq_2xx`, `upstream_rq_completed`) appear with their first
    response.
    """

    COUNTERS = (
        "upstream_rq_retry",
        "upstream_rq_retry_limit_exceeded",
        "upstream_rq_retry_overflow",
        "upstream_rq_retry_success",
        "upstream_rq_timeout",
        "upstream_rq_total",
    )
    HISTOGRAMS = ("upstream_rq_time",)

    def __init__(self) -> None:
        super().__init__()
        self.upstream_rq_retry: int = 0
        self.upstream_rq_retry_limit_exceeded: int = 0
        self.upstream_rq_retry_overflow: int = 0
        self.upstream_rq_retry_success: int = 0
        self.upstream_rq_timeout: int = 0
        self.upstream_rq_total: int = 0  # attempts, as far as they got a connection
        self.upstream_rq_time = Histogram()
        self._responses: dict[int, int] = {}  # status code -> how many

    def charge_response(self, status: int) -> None:
        """Count a response that a request ended with."""
        responses = self._responses
        responses[status] = responses.get(status, 0) + 1

    def refresh(self) -> None:
        """Spell out the counters of status codes."""
        responses, self._responses = self._responses, {}
        dynamic = self.dynamic
        for status, count in responses.items():
            for name in ("completed", *response_names(status)):
                key = f"upstream_rq_{name}"
                dynamic[key] = dynamic.get(key, 0) + count
