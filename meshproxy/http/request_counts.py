"""Where a request is counted, when that is not just in its cluster: most requests have none of this."""

from __future__ import annotations

from meshproxy.codec.headers import ENVOY, HeaderMap
from meshproxy.observe.stream_info import StreamInfo
from meshproxy.route.route import Route
from meshproxy.route.stats import RequestStats
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.host import Host
from meshproxy.upstream.stats import AltStats


class RequestCounts:
    """Counts one request in its cluster, its route (`stat_prefix`), its virtual cluster, and where it asks for itself.

    Without `dynamic_stats` of the router, responses and times are counted nowhere but at the host.
    """

    def __init__(self, cluster: Cluster, dynamic: bool, groups: list[RequestStats], alt: AltStats | None) -> None:
        self._cluster = cluster
        self._dynamic = dynamic
        self._groups = groups
        self._alt = alt

    def on_attempt(self) -> None:
        """An attempt got its connection."""
        for group in self._groups:
            group.upstream_rq_total += 1

    def on_response_headers(
        self, status: int, host: Host, internal: bool, canary: bool, undecided: bool = False, quiet: bool = False
    ) -> None:
        """As `Cluster.on_response_headers`."""
        if not self._dynamic:
            if status < 500 and not undecided:
                host.stats.rq_success += 1
            return
        self._cluster.on_response_headers(status, host, internal, canary, undecided, quiet)
        self._charge(status, internal, canary, quiet)

    def on_response_complete(self, duration_ms: int, internal: bool, canary: bool) -> None:
        """As `Cluster.on_response_complete`."""
        if self._dynamic:
            self._cluster.on_response_complete(duration_ms, internal, canary)
            for group in self._groups:
                group.upstream_rq_time.record(duration_ms)
            if self._alt is not None:
                self._alt.charge_time(duration_ms, internal, canary)

    def count_local_response(self, status: int, host: Host | None, internal: bool, quiet: bool = False) -> None:
        """As `Cluster.count_local_response`."""
        if self._dynamic:
            self._cluster.count_local_response(status, host, internal, quiet)
            self._charge(status, internal, host is not None and host.canary, quiet)

    def on_timeout(self) -> None:
        """The overall timeout passed."""
        for group in self._groups:
            group.upstream_rq_timeout += 1

    def on_retry(self) -> None:
        for group in self._groups:
            group.upstream_rq_retry += 1

    def on_retry_success(self) -> None:
        for group in self._groups:
            group.upstream_rq_retry_success += 1

    def on_retry_limit_exceeded(self) -> None:
        for group in self._groups:
            group.upstream_rq_retry_limit_exceeded += 1

    def on_retry_overflow(self) -> None:
        for group in self._groups:
            group.upstream_rq_retry_overflow += 1

    def _charge(self, status: int, internal: bool, canary: bool, quiet: bool) -> None:
        for group in self._groups:
            group.charge_response(status)
        if self._alt is not None:
            self._alt.charge_response(status, internal, canary, quiet)


def is_canary(headers: HeaderMap) -> bool:
    """Whether a response says that it comes of a canary."""
    return headers.known & ENVOY != 0 and headers.get(b"x-envoy-upstream-canary") == b"true"


def request_counts(
    route: Route, cluster: Cluster, dynamic: bool, headers: HeaderMap, info: StreamInfo, alternative: bytes | None
) -> RequestCounts | None:
    """For a request on `route`; None when only its cluster counts it. Finds its virtual cluster.

    `alternative` is its x-envoy-upstream-alt-stat-name.
    """
    groups: list[RequestStats] = []
    virtual_cluster = route.virtual_host.virtual_cluster(headers)
    if virtual_cluster is not None:
        info.virtual_cluster_name = virtual_cluster.name
        groups.append(virtual_cluster.stats)
    if route.stats is not None:
        groups.append(route.stats)
    alt = cluster.named_stats(alternative.decode("latin-1"), AltStats) if alternative and dynamic else None
    return RequestCounts(cluster, dynamic, groups, alt) if groups or alt is not None or not dynamic else None
