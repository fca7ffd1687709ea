"""`envoy.filters.http.health_check`: answers health checks, or lets them pass and remembers the answer for a while.

Access logs know a request that is one (by its headers), and the statistics of responses leave it out. While an operator
lets health checks fail (POST /healthcheck/fail), each is answered 503, and every response tells the health checkers in
front of us so, by x-envoy-immediate-health-check-fail.
"""

from __future__ import annotations

from typing import Any, Final

from envoy.extensions.filters.http.health_check.v3.health_check_pb2 import HealthCheck

from meshproxy.clock import monotonic
from meshproxy.codec import headers as h
from meshproxy.codec.headers import HeaderMap, status_code
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child
from meshproxy.config.values import milliseconds
from meshproxy.http.filter import (
    CONTINUE,
    STOP,
    DataResult,
    HttpFilter,
    HttpFilterType,
    Result,
    register_http_filter,
)
from meshproxy.http.stream import Stream
from meshproxy.observe import response_flags as flags
from meshproxy.observe.stats import StatsScope
from meshproxy.route.header_matcher import HeaderMatcher, build_header_matchers, matches_all
from meshproxy.upstream.manager import ClusterManager

# What is in a stream's state, of a health check.
_PASSES: Final = 1
_IS_ANSWERED: Final = 2
_DEGRADED: Final = b"x-envoy-degraded"
_NO_LIMIT: Final = 1 << 62


class HealthCheckStats(StatsScope):
    """Under `http.<stat_prefix>.health_check.`: the health checks that are answered here."""

    COUNTERS = (
        "request_total",
        "ok",
        "failed",
        "cached_response",
        "degraded",
        "failed_cluster_empty",
        "failed_cluster_not_found",
        "failed_cluster_unhealthy",
    )

    def __init__(self) -> None:
        super().__init__()
        self.request_total: int = 0
        self.ok: int = 0
        self.failed: int = 0
        self.cached_response: int = 0
        self.degraded: int = 0
        self.failed_cluster_empty: int = 0
        self.failed_cluster_not_found: int = 0
        self.failed_cluster_unhealthy: int = 0


class Cache:
    """The upstream's last answer. It is forgotten every `period_ms`, however old it is by then; each worker asks for
    itself."""

    def __init__(self, period_ms: int) -> None:
        self.status: int = 200
        self.degraded: bool = False
        self._period_s: float = period_ms / 1000.0
        self._began: float = monotonic()
        self._period: int = -1  # in which it was remembered

    def is_fresh(self) -> bool:
        return self._period_s > 0.0 and self._period == self._now()

    def remember(self, status: int, degraded: bool) -> None:
        self.status = status
        self.degraded = degraded
        if self._period_s > 0.0:
            self._period = self._now()

    def _now(self) -> int:
        return int((monotonic() - self._began) / self._period_s)


class Requirement:
    """How much of a cluster must be healthy, in percent."""

    def __init__(self, cluster: str, percent: float) -> None:
        self.cluster = cluster
        self.percent = percent

    def failure(self, clusters: ClusterManager, stats: HealthCheckStats) -> str:
        """Why it is not met, as the details have it; "" when it is."""
        cluster = clusters.get(self.cluster)
        if cluster is None:
            stats.failed_cluster_not_found += 1
            return "health_check_failed_no_cluster_found"
        members = cluster.stats
        total = members.membership_total
        if total == 0:
            if self.percent == 0.0:
                return ""
            stats.failed_cluster_empty += 1
            return "health_check_failed_cluster_empty"
        if 100.0 * (members.membership_healthy + members.membership_degraded) < total * self.percent:
            stats.failed_cluster_unhealthy += 1
            return "health_check_failed_cluster_unhealthy"
        return ""


class Verdict:
    """What a health check is answered."""

    def __init__(self, status: int, details: str, degraded: bool = False) -> None:
        self.status = status
        self.details = details
        self.degraded = degraded


class HealthCheckFilter(HttpFilter):
    def __init__(self, matchers: list[HeaderMatcher], stats: HealthCheckStats) -> None:
        self.stats = stats
        self.pass_through: bool = False
        self.cache: Cache | None = None
        self.requirements: list[Requirement] = []
        self.service_cluster: bytes = b""
        self._matchers = matchers

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        if not matches_all(self._matchers, headers):
            return CONTINUE
        stream.info.health_check = True
        fresh = self.cache is not None and self.cache.is_fresh()
        if self.pass_through and not fresh and not stream.manager.owner.failing:
            stream.state[self.slot] = _PASSES
            return CONTINUE
        stream.state[self.slot] = _IS_ANSWERED
        if end:
            self._answer(stream)
            return STOP
        stream.buffer_request(stream.manager.buffer_limit_bytes or _NO_LIMIT)
        return CONTINUE

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        if stream.state[self.slot] != _IS_ANSWERED:
            return CONTINUE
        self._answer(stream)
        return STOP

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        if stream.state[self.slot] is not None:
            if self.cache is not None:
                degraded = headers.known & h.ENVOY != 0 and headers.get(_DEGRADED) is not None
                self.cache.remember(status_code(headers), degraded)
            headers.set(b"x-envoy-upstream-healthchecked-cluster", self.service_cluster)
        if stream.manager.owner.failing:
            headers.set(b"x-envoy-immediate-health-check-fail", b"true")
        return CONTINUE

    def _answer(self, stream: Stream) -> None:
        stats = self.stats
        verdict = self._verdict(stream)
        stats.request_total += 1
        extra: HeaderMap | None = None
        if verdict.degraded:
            stats.degraded += 1
            extra = HeaderMap([(_DEGRADED, b"")])
        if 200 <= verdict.status < 300:
            stats.ok += 1
            flag = 0
        else:
            stats.failed += 1
            flag = flags.LOCAL_HEALTHCHECK_FAILED
        stream.send_local_reply(verdict.status, b"", verdict.details, flag, extra)

    def _verdict(self, stream: Stream) -> Verdict:
        if stream.manager.owner.failing:
            return Verdict(503, "health_check_failed")
        cache = self.cache
        if cache is not None:
            self.stats.cached_response += 1
            return Verdict(cache.status, "health_check_cached", cache.degraded)
        for requirement in self.requirements:
            failure = requirement.failure(stream.manager.clusters, self.stats)
            if failure:
                return Verdict(503, failure)
        return Verdict(200, "health_check_ok_cluster_healthy" if self.requirements else "health_check_ok")


def build_health_check(message: Any, path: str, context: BuildContext) -> HealthCheckFilter:
    matchers = build_header_matchers(message.headers, path, "headers", context.errors)
    built = HealthCheckFilter(matchers, context.scope(f"{context.stat_prefix}health_check.", HealthCheckStats))
    built.pass_through = message.pass_through_mode.value
    built.service_cluster = context.service_cluster.encode()
    percentages = message.cluster_min_healthy_percentages
    built.requirements = [Requirement(name, percent.value) for name, percent in percentages.items()]
    if message.HasField("cache_time"):
        if not built.pass_through:
            context.errors.add(child(path, "cache_time"), "is for pass_through_mode")
        built.cache = Cache(milliseconds(message.cache_time))
    return built


register_http_filter(HealthCheck, HttpFilterType(build_health_check))
