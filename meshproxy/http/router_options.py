"""The options of the router, which ends every chain of HTTP filters."""

from __future__ import annotations

from meshproxy.http.access_log import AccessLog
from meshproxy.http.filter import HttpFilter


class RouterOptions(HttpFilter):
    """The router filter's own options: it stands at the end of the list of filters, and is no link of the chain."""

    def __init__(self) -> None:
        self.suppress_envoy_headers: bool = False
        self.respect_expected_rq_timeout: bool = False
        self.dynamic_stats: bool = True
        self.suppress_grpc_codes: bool = False
        self.upstream_log: tuple[AccessLog, ...] = ()

    def same(self, other: RouterOptions) -> bool:
        """Whether both say the same."""
        return (
            self.suppress_envoy_headers == other.suppress_envoy_headers
            and self.respect_expected_rq_timeout == other.respect_expected_rq_timeout
            and self.dynamic_stats == other.dynamic_stats
            and self.suppress_grpc_codes == other.suppress_grpc_codes
            and len(self.upstream_log) == len(other.upstream_log) == 0
        )
