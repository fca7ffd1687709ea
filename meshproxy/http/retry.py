"""Whether a failed attempt is made again, and when (Envoy's retry semantics)."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Final

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
from meshproxy.http.request_counts import RequestCounts
from meshproxy.route import retry_policy as on
from meshproxy.route.retry_policy import RetryPolicy
from meshproxy.route.route import Route
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.host import Host, LbContext

if TYPE_CHECKING:
    from meshproxy.http.stream import Stream

IDEMPOTENT: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))  # RFC 9110 section 9.2.2

# What becomes of an attempt.
NO: Final = 0
RETRY: Final = 1
RETRY_LIMIT: Final = 2  # it would be retried, were there tries left
NO_OVERFLOW: Final = 3  # … were the circuit breaker for retries not open

_HEADERS: Final = frozenset(
    (
        b"x-envoy-retry-on",
        b"x-envoy-retry-grpc-on",
        b"x-envoy-max-retries",
        b"x-envoy-retriable-status-codes",
        b"x-envoy-retriable-header-names",
    )
)
# grpc-status in the head of a response -> the condition that retries it
_GRPC_STATUSES: Final[dict[int | None, int]] = {
    grpc.CANCELLED: on.RETRY_GRPC_CANCELLED,
    grpc.DEADLINE_EXCEEDED: on.RETRY_GRPC_DEADLINE_EXCEEDED,
    grpc.RESOURCE_EXHAUSTED: on.RETRY_GRPC_RESOURCE_EXHAUSTED,
    grpc.INTERNAL: on.RETRY_GRPC_INTERNAL,
    grpc.UNAVAILABLE: on.RETRY_GRPC_UNAVAILABLE,
}
_GRPC_BITS: Final = sum(_GRPC_STATUSES.values())
_CONNECT_FAILURES: Final = (RESET_CONNECT_FAILURE, RESET_LOCAL_CONNECT_FAILURE, RESET_CONNECT_TIMEOUT)
_LIST: Final = re.compile(rb"[\s,]+")


def retry_state_for(route: Route, cluster: Cluster, headers: HeaderMap, stream: Stream) -> RetryState | None:
    """The retry state of a request, from the policy of its cluster, or else of its route, and from its headers (which
    are taken out); None: never retried."""
    policy = cluster.config.retry or route.retry
    bits = 0
    tries = 1
    codes: frozenset[int] = frozenset()
    names: tuple[bytes, ...] = ()
    if policy is not None:
        bits, tries, codes = policy.retry_on, policy.num_retries, policy.retriable_status_codes
    if headers.known & h.ENVOY_RETRY:
        value = headers.get(b"x-envoy-retry-on")
        grpc_on = headers.get(b"x-envoy-retry-grpc-on")
        bits |= on.parse_retry_on("" if value is None else value.decode("latin-1"))
        bits |= on.parse_retry_grpc_on("" if grpc_on is None else grpc_on.decode("latin-1"))
        most = headers.get(b"x-envoy-max-retries")
        if most is not None and most.isdigit() and len(most) < 10:
            tries = int(most)
        codes |= _codes(headers.get(b"x-envoy-retriable-status-codes"))
        listed = headers.get(b"x-envoy-retriable-header-names")
        if listed is not None:
            names = tuple(name.lower() for name in _LIST.split(listed) if name)
        headers.remove_names(_HEADERS)
    if bits == 0 or (policy is not None and not policy.allows_request(headers)):
        return None
    return RetryState(policy, cluster, bits, tries, codes, names, route.priority, stream)


def _codes(value: bytes | None) -> frozenset[int]:
    return frozenset() if value is None else on.parse_status_codes(value.decode("latin-1"))


def _rate_limited_ms(policy: RetryPolicy, headers: HeaderMap) -> float:
    """What the response's reset headers ask to wait, in ms; 0 when none does, or it is beyond the policy's limit."""
    for reset in policy.reset_headers:
        value = headers.get(reset.name)
        if value is None or not value.isdigit() or len(value) > 12:
            continue
        seconds = float(int(value))
        if reset.unix_timestamp:
            seconds -= time.time()
        if 0.0 < seconds * 1000.0 <= policy.reset_max_ms:
            return seconds * 1000.0
    return 0.0


class RetryState:
    """The retries of one request."""

    def __init__(
        self,
        policy: RetryPolicy | None,
        cluster: Cluster,
        bits: int,
        tries: int,
        codes: frozenset[int],
        header_names: tuple[bytes, ...],
        priority: int,
        stream: Stream,
    ) -> None:
        self.policy = policy
        self.cluster = cluster
        self.bits = bits
        self.remaining = tries
        self.codes = codes
        self.header_names = header_names
        self.priority = priority
        self.stream = stream
        self.counts: RequestCounts | None = None
        self.backoff_ms: float = 0.0
        self.lb_context: LbContext | None = None
        self._retried: int = 0
        self._rate_limited: bool = False  # the back-off is what the upstream asked for
        self._holds_retry: bool = False
        self._base_ms: float = 25.0
        self._max_ms: float = 250.0
        if policy is not None:
            self._base_ms = float(policy.back_off_base_ms)
            self._max_ms = float(policy.back_off_max_ms)
            if policy.avoid_previous_hosts or policy.omit_canary_hosts or policy.omit_labels:
                self.lb_context = LbContext()
                self.lb_context.max_attempts = policy.host_selection_retry_max_attempts
                self.lb_context.omit_canary = policy.omit_canary_hosts
                self.lb_context.omit_labels = policy.omit_labels

    def give_up(self) -> None:
        """The request cannot be sent again (its body is too large to keep)."""
        self.bits = 0

    def on_host_attempted(self, host: Host) -> None:
        """The next attempt avoids this host, where the policy says so."""
        context = self.lb_context
        if context is not None and self.policy is not None and self.policy.avoid_previous_hosts:
            context.avoid.append(host)

    def on_response(self, headers: HeaderMap, status: int) -> int:
        """The decision about a response's head."""
        return self._decide(self._wants_response(headers, status), headers)

    def on_reset(self, reason: int, started: bool) -> int:
        """The decision about an attempt that was reset before its response; `started`: some of it was on the wire."""
        return self._decide(self._wants_reset(reason, started), None)

    def on_hedge(self) -> int:
        """The decision about an attempt that goes on beyond its per-try timeout: another is made, whatever the
        conditions, as long as there are tries left."""
        return self._decide(self.bits != 0, None)

    def would_retry(self, headers: HeaderMap, status: int) -> bool:
        """Whether a response is one that conditions ask to try again."""
        return self._wants_response(headers, status)

    def on_retry_started(self) -> None:
        """The back-off is over; the attempt is under way."""
        stats = self.cluster.stats
        stats.upstream_rq_retry += 1
        if self._rate_limited:
            stats.upstream_rq_retry_backoff_ratelimited += 1
        else:
            stats.upstream_rq_retry_backoff_exponential += 1
        if self.counts is not None:
            self.counts.on_retry()

    def on_done(self, success: bool) -> None:
        """No attempt follows any more."""
        if self._holds_retry:
            self._holds_retry = False
            self.cluster.breakers(self.priority).retries.release()

    def _wants_response(self, headers: HeaderMap, status: int) -> bool:
        bits = self.bits
        if headers.known & h.ENVOY and headers.get(b"x-envoy-ratelimited") is not None:
            return bool(bits & on.RETRY_ENVOY_RATE_LIMITED)
        if bits & on.RETRY_5XX and 500 <= status <= 599:
            return True
        if bits & on.RETRY_GATEWAY_ERROR and 502 <= status <= 504:
            return True
        if bits & on.RETRY_4XX and status == 409:
            return True
        if bits & on.RETRY_STATUS_CODES and status in self.codes:
            return True
        if bits & _GRPC_BITS and bits & _GRPC_STATUSES.get(grpc.grpc_status(headers), 0):
            return True
        return bool(bits & on.RETRY_HEADERS) and self._has_retriable_header(headers)

    def _has_retriable_header(self, headers: HeaderMap) -> bool:
        policy = self.policy
        if policy is not None and policy.retriable_response_headers(headers):
            return True
        return any(headers.get(name) is not None for name in self.header_names)

    def _wants_reset(self, reason: int, started: bool) -> bool:
        if reason == RESET_OVERFLOW:
            return False
        bits = self.bits
        if bits & (on.RETRY_RESET | on.RETRY_5XX | on.RETRY_GATEWAY_ERROR):
            return True
        if bits & on.RETRY_RESET_BEFORE_REQUEST and not started:
            return True
        if bits & on.RETRY_REFUSED_STREAM and reason == RESET_REMOTE_REFUSED:
            return True
        return bool(bits & on.RETRY_CONNECT_FAILURE) and reason in _CONNECT_FAILURES

    def _decide(self, wanted: bool, headers: HeaderMap | None) -> int:
        stats, counts = self.cluster.stats, self.counts
        if self._holds_retry and not wanted:
            stats.upstream_rq_retry_success += 1
            if counts is not None:
                counts.on_retry_success()
        self.on_done(False)
        if not wanted:
            return NO
        if self.remaining == 0:
            stats.upstream_rq_retry_limit_exceeded += 1
            if counts is not None:
                counts.on_retry_limit_exceeded()
            return RETRY_LIMIT
        self.remaining -= 1
        if not self.cluster.breakers(self.priority).retries.try_acquire():
            stats.upstream_rq_retry_overflow += 1
            if counts is not None:
                counts.on_retry_overflow()
            return NO_OVERFLOW
        self._holds_retry = True
        self.backoff_ms = self._backoff(headers)
        return RETRY

    def _backoff(self, headers: HeaderMap | None) -> float:
        """Fully jittered exponential back-off, or what a rate-limited upstream asked for."""
        policy = self.policy
        self._rate_limited = False
        if policy is not None and headers is not None:
            asked = _rate_limited_ms(policy, headers)
            if asked > 0.0:
                self._rate_limited = True
                return asked + self.stream.manager.random() % max(1, int(asked / 2))
        limit = min(self._base_ms * (2.0**self._retried), self._max_ms)
        self._retried += 1
        return float(self.stream.manager.random() % max(1, int(limit)))
