"""Whether a unary call that failed is made again, and when: the conditions and the back-off of Envoy's retries."""

from __future__ import annotations

import random
from typing import Final

from meshproxy.codec import grpc
from meshproxy.codec import headers as h
from meshproxy.codec.headers import HeaderMap
from meshproxy.errors import (
    RESET_CONNECT_FAILURE,
    RESET_CONNECT_TIMEOUT,
    RESET_LOCAL_CONNECT_FAILURE,
    RESET_OVERFLOW,
    RESET_REMOTE_REFUSED,
)
from meshproxy.route import retry_policy as on
from meshproxy.route.retry_policy import RetryPolicy
from meshproxy.route.route import PRIORITY_DEFAULT
from meshproxy.upstream.cluster import Cluster

NEVER: Final = -1.0

_OF_CODES: Final = {
    grpc.CANCELLED: on.RETRY_GRPC_CANCELLED,
    grpc.DEADLINE_EXCEEDED: on.RETRY_GRPC_DEADLINE_EXCEEDED,
    grpc.RESOURCE_EXHAUSTED: on.RETRY_GRPC_RESOURCE_EXHAUSTED,
    grpc.INTERNAL: on.RETRY_GRPC_INTERNAL,
    grpc.UNAVAILABLE: on.RETRY_GRPC_UNAVAILABLE,
}
_CONNECT_FAILURES: Final = (RESET_CONNECT_FAILURE, RESET_LOCAL_CONNECT_FAILURE, RESET_CONNECT_TIMEOUT)


def conditions_of_head(headers: HeaderMap, status: int) -> int:
    """Which conditions of `retry_on` the head of an answer meets, with the HTTP status that it has."""
    if headers.known & h.ENVOY and headers.get(b"x-envoy-ratelimited") is not None:
        return on.RETRY_ENVOY_RATE_LIMITED
    met = _OF_CODES.get(grpc.grpc_status(headers) or grpc.OK, 0)
    if 500 <= status <= 599:
        met |= on.RETRY_5XX
    if 502 <= status <= 504:
        met |= on.RETRY_GATEWAY_ERROR
    if status == 409:
        met |= on.RETRY_4XX
    return met


def conditions_of_reset(reason: int, started: bool) -> int:
    """Which an attempt meets that was reset before its answer; `started`: the request was on the wire."""
    if reason == RESET_OVERFLOW:
        return 0
    met = on.RETRY_RESET | on.RETRY_5XX | on.RETRY_GATEWAY_ERROR
    if not started:
        met |= on.RETRY_RESET_BEFORE_REQUEST
    if reason == RESET_REMOTE_REFUSED:
        met |= on.RETRY_REFUSED_STREAM
    if reason in _CONNECT_FAILURES:
        met |= on.RETRY_CONNECT_FAILURE
    return met


class UnaryRetries:
    """Those of one call. Each counts in the cluster, and against its circuit breaker."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._left: int = policy.num_retries
        self._made: int = 0
        self._held: Cluster | None = None  # whose breaker counts the attempt that is under way

    def delay_ms(self, conditions: int, cluster: Cluster | None) -> float:
        """How long to wait before the next attempt, after one that met these conditions (0: it went well); NEVER."""
        wanted = bool(conditions & self._policy.retry_on)
        if self._held is not None and not wanted:
            self._held.stats.upstream_rq_retry_success += 1
        self.release()
        if not wanted or cluster is None:
            return NEVER
        if self._left == 0:
            cluster.stats.upstream_rq_retry_limit_exceeded += 1
            return NEVER
        if not cluster.breakers(PRIORITY_DEFAULT).retries.try_acquire():
            cluster.stats.upstream_rq_retry_overflow += 1
            return NEVER
        self._held = cluster
        self._left -= 1
        limit = min(self._policy.back_off_base_ms * 2**self._made, self._policy.back_off_max_ms)
        self._made += 1
        cluster.stats.upstream_rq_retry += 1
        cluster.stats.upstream_rq_retry_backoff_exponential += 1
        return float(random.randrange(max(1, limit)))

    def release(self) -> None:
        """No attempt follows any more."""
        cluster, self._held = self._held, None
        if cluster is not None:
            cluster.breakers(PRIORITY_DEFAULT).retries.release()
