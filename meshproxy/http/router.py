"""The router: the end of every filter chain. It picks cluster and host, makes attempts, and brings the answer back.

One per stream. What it decides about an attempt that failed, it decides in `_on_attempt_failed`; what a response's head
means, in `on_upstream_headers`. Envoy's router documentation is the source of the rules and of the words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshproxy.clock import monotonic
from meshproxy.codec import headers as h
from meshproxy.codec.headers import HeaderMap, status_code
from meshproxy.errors import RESET_LOCAL, RESET_OVERFLOW
from meshproxy.http.local_reply import is_grpc, reset_details, reset_flag, upstream_reset_reply
from meshproxy.http.request_counts import RequestCounts, request_counts
from meshproxy.http.retry import NO_OVERFLOW, RETRY, RETRY_LIMIT, RetryState, retry_state_for
from meshproxy.http.timeouts import RequestTimeouts, request_timeouts
from meshproxy.http.upstream_request import UpstreamRequest
from meshproxy.net.timers import CallTimer, Timer
from meshproxy.observe import response_flags as flags
from meshproxy.route.hash_policy import NO_HASH
from meshproxy.route.route import ROUTE_CLUSTER, ROUTE_REDIRECT, Route
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.host import Host, LbContext
from meshproxy.upstream.outlier import LOCAL_ORIGIN_CONNECT_FAILED

if TYPE_CHECKING:
    from meshproxy.http.stream import Stream

_IDEMPOTENT: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))  # RFC 9110 section 9.2.2


_INTERIM: Final = frozenset((100, 102, 103, 104))

_ALT_STAT_NAME: Final = b"x-envoy-upstream-alt-stat-name"


class Router:
    """Sends one stream's request upstream, again where the policy says so, and its response back."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.config = stream.config
        self.route: Route | None = None
        self.cluster: Cluster | None = None
        self.headers: HeaderMap = stream.request_headers
        self.upstream: UpstreamRequest | None = None
        self.timeouts: RequestTimeouts = _NO_TIMEOUTS
        self.retry: RetryState | None = None
        self.counts: RequestCounts | None = None  # None: only the cluster counts this request
        self.attempts: int = 0
        self.request_end: bool = False
        self.response_started: bool = False
        self.done: bool = False
        self._body: list[bytes] = []  # kept for a replay
        self._body_bytes: int = 0
        self._body_kept: bool = True  # all of the request so far is in `_body`
        self._trailers: HeaderMap | None = None
        self._timeout: _ResponseTimeout | None = None
        self._backoff: CallTimer | None = None
        self._reconnected: bool = False
        self._had_interim: bool = False  # response of the upstream, which decides: no attempt follows
        self._try_timed_out: bool = False
        self._read_disabled: int = 0
        self._set_cookies: list[bytes] | None = None  # that hash policies made up

    # -- the request

    def on_request_headers(self, route: Route | None, headers: HeaderMap, end: bool) -> None:
        stats = self.config.stats
        stats.rq_total += 1
        self.route = route
        self.request_end = end
        stream = self.stream
        if route is None:
            stats.no_route += 1
            self._reply(404, b"", "route_not_found", flags.NO_ROUTE_FOUND)
            return
        if route.kind != ROUTE_CLUSTER:
            self._answer_directly(route, headers)
            return
        cluster = stream.cluster
        if cluster is None:
            stats.no_cluster += 1
            self._reply(route.cluster_not_found_status, b"", "cluster_not_found", flags.NO_CLUSTER_FOUND)
            return
        self.cluster = cluster
        info = stream.info
        if info.upstream is not None:
            info.upstream.attempts = 1
        alternative: bytes | None = None
        if headers.known & h.ENVOY:
            alternative = headers.get(_ALT_STAT_NAME)
            if alternative is not None:
                headers.remove(_ALT_STAT_NAME)
        timeouts = self.timeouts = request_timeouts(self.config, route, cluster, headers)
        if timeouts.expected_ms and not self.config.suppress_envoy_headers:
            headers.set(b"x-envoy-expected-rq-timeout-ms", b"%d" % timeouts.expected_ms)
        if route.has_stats or alternative is not None or not self.config.dynamic_stats:
            self.counts = request_counts(route, cluster, self.config.dynamic_stats, headers, info, alternative)
        if headers.known & h.ENVOY_RETRY or route.retry is not None:
            self.retry = retry_state_for(route, cluster, headers, stream)
            if self.retry is not None:
                self.retry.counts = self.counts
        if route.virtual_host.include_request_attempt_count:
            headers.set(b"x-envoy-attempt-count", b"1")
        if route.has_request_mutations:
            route.finalize_request(headers, info, not self.config.suppress_envoy_headers)
        if self.config.match_upstream_scheme:
            headers.set(b":scheme", b"http" if cluster.config.transport is None else b"https")
        self._start_attempt()

    def on_request_data(self, data: bytes, end: bool) -> None:
        self.request_end = end
        upstream = self.upstream
        if self.done:
            return
        if self._keeps_body():
            self._keep(data)
        elif self._body_kept and upstream is None:
            self._keep(data)  # an attempt is about to start: nothing is lost
        else:
            self._body_kept = False
        if upstream is not None:
            upstream.send_data(data, end)
        if end:
            self._on_request_complete()

    def on_request_trailers(self, trailers: HeaderMap) -> None:
        if self.done:
            return
        self.request_end = True
        self._trailers = trailers
        if self.upstream is not None:
            self.upstream.send_trailers(trailers)
        self._on_request_complete()

    def _answer_directly(self, route: Route, headers: HeaderMap) -> None:
        """A redirect or a direct response."""
        stats = self.config.stats
        stream = self.stream
        self.done = True
        if route.kind == ROUTE_REDIRECT:
            stats.rq_direct_response += 1
            status, location = route.redirect(headers, stream.info)
            action = route.redirect_action
            if action is not None and action.path_rewrite is not None:  # as Envoy: header operations and logs see it
                headers.set(b":path", action.path_rewrite.rewrite(headers.get(b":path") or b"", stream.info))
            extra = HeaderMap([(b"location", location)])
            self._add_route_headers(route, extra)
            stream.send_local_reply(status, b"", "direct_response", 0, extra)
        else:
            stats.rq_direct_response += 1
            extra = HeaderMap()
            target = route.direct_location(headers, stream.info)
            if target is not None:
                extra.add(b"location", target)
            self._add_route_headers(route, extra)
            status, body = route.direct_response(stream.info)
            stream.send_local_reply(status, body, "direct_response", 0, extra, content_type=route.direct_content_type)

    def _add_cookies(self, headers: HeaderMap) -> None:
        for cookie in self._set_cookies or ():
            headers.add(b"set-cookie", cookie)

    def _add_route_headers(self, route: Route, headers: HeaderMap) -> None:
        if route.has_response_mutations:
            route.finalize_response(headers, self.stream.info)

    # -- the body that a replay needs

    def _keeps_body(self) -> bool:
        return self._body_kept and not self.response_started and (self.retry is not None or self._may_reconnect())

    def _may_reconnect(self) -> bool:
        upstream = self.upstream
        return upstream is not None and upstream.reused and self.headers.get(b":method") in _IDEMPOTENT

    def _keep(self, data: bytes) -> None:
        route = self.route
        limit = self.stream.manager.buffer_limit_bytes
        if route is not None and route.request_body_buffer_limit is not None:
            limit = route.request_body_buffer_limit
        self._body_bytes += len(data)
        if limit and self._body_bytes > limit:
            self._body_kept = False
            self._body = []
            if self.retry is not None and self.cluster is not None:
                self.cluster.stats.retry_or_shadow_abandoned += 1
                self.retry.give_up()
            return
        self._body.append(data)

    # -- attempts

    def _start_attempt(self) -> None:
        route, cluster = self.route, self.cluster
        assert route is not None
        assert cluster is not None
        stream = self.stream
        self.attempts += 1
        info = stream.info.upstream
        assert info is not None
        info.attempts = self.attempts
        context = self._lb_context()
        host = self._choose_by_hash(cluster, route, context) if cluster.hashes else cluster.choose_host(context)
        if host is None:
            cluster.stats.upstream_cx_none_healthy += 1
            self._charge(cluster, 503, None)
            self._reply(503, b"no healthy upstream", "no_healthy_upstream", flags.NO_HEALTHY_UPSTREAM)
            return
        if self.retry is not None:
            self.retry.on_host_attempted(host)
        headers = self.headers
        if self.attempts > 1 and route.virtual_host.include_request_attempt_count:
            headers.set(b"x-envoy-attempt-count", b"%d" % self.attempts)
        if self.attempts > 1 and route.virtual_host.include_is_timeout_retry_header:
            headers.set(b"x-envoy-is-timeout-retry", b"true" if self._try_timed_out else b"false")
        if route.auto_host_rewrite and host.hostname:
            route.set_upstream_host(headers, host.hostname.encode(), not self.config.suppress_envoy_headers)
        upstream = UpstreamRequest(self, cluster, host, route.priority)
        self.upstream = upstream
        replay = self._body_kept and bool(self._body)
        end_now = self.request_end and not self._body and self._trailers is None
        for _ in range(self._read_disabled):
            upstream.read_disable(True)
        upstream.start(headers, end_now, self.timeouts)
        if self.upstream is not upstream:
            return  # it failed at once
        if replay:
            last = self.request_end and self._trailers is None
            body = b"".join(self._body)
            upstream.send_data(body, last)
        if self._trailers is not None:
            upstream.send_trailers(self._trailers)
        if self.request_end:
            self._on_request_complete()

    def _lb_context(self) -> LbContext | None:
        """Only another attempt avoids hosts."""
        return None if self.retry is None or self.attempts == 1 else self.retry.lb_context

    def _choose_by_hash(self, cluster: Cluster, route: Route, context: LbContext | None) -> Host | None:
        policy = cluster.config.lb.hash_policy or route.hash_policy
        if policy is None:
            return cluster.choose_by_hash(context, NO_HASH)
        if self._set_cookies is None:
            self._set_cookies = []
        return cluster.choose_by_hash(context, policy.hash(self.headers, self.stream.info, self._set_cookies))

    def _on_request_complete(self) -> None:
        """The overall timeout counts from the end of the request, over all attempts."""
        if self._timeout is None and self.timeouts.response_ms > 0.0 and not self.done:
            self._timeout = _ResponseTimeout(self)
            self.stream.manager.timers.arm(self._timeout, self.timeouts.response_ms)

    # -- what an attempt reports

    def on_upstream_informational(self, upstream: UpstreamRequest, headers: HeaderMap) -> None:
        """Interim responses go down only where the configuration says so; but after one no other attempt follows, and
        the timeout of this one is void (Envoy's rules)."""
        cluster = self.cluster
        status = status_code(headers)
        if cluster is None or status not in _INTERIM:
            return
        self._charge(cluster, status, upstream.host)
        self._had_interim = True
        if self.retry is not None:
            self.retry.give_up()
        upstream.on_final()
        if self.config.proxy_100_continue:
            self.stream.send_informational(headers)

    def on_upstream_headers(self, upstream: UpstreamRequest, headers: HeaderMap, end: bool) -> None:
        """The head of an answer: the final one, or a reason for another attempt."""
        route, cluster = self.route, self.cluster
        assert route is not None
        assert cluster is not None
        stream = self.stream
        status = upstream.status
        host = upstream.host
        host.outlier.put_response(status)
        if self.retry is not None:
            if self._shall_retry(self.retry.on_response(headers, status)):
                host.stats.rq_error += 1
                cluster.count_retried_response(status, host)
                upstream.abandon(end)
                self._retry_later(self.retry.backoff_ms)
                return
        self.response_started = True
        self._body = []
        upstream.on_final()
        if self.counts is None:
            cluster.on_response_headers(status, host, stream.info.internal)
        else:
            self.counts.on_response_headers(status, host, stream.info.internal)
        info = stream.info
        info.response_headers = headers
        info.response_code = status
        info.response_code_details = "via_upstream"
        if not self.config.suppress_envoy_headers and info.request_end > 0.0:
            service_time = b"%d" % int((monotonic() - info.request_end) * 1000.0)
            if headers.known & h.ENVOY:
                headers.set(b"x-envoy-upstream-service-time", service_time)
            else:
                headers.fields.append((b"x-envoy-upstream-service-time", service_time))
                headers.known |= h.ENVOY
        if route.virtual_host.include_attempt_count_in_response:
            headers.set(b"x-envoy-attempt-count", b"%d" % self.attempts)
        if self._set_cookies is not None:
            self._add_cookies(headers)
        if route.has_response_mutations:
            route.finalize_response(headers, info)
        if end:
            self._on_response_complete(upstream)
        stream.send_response_headers(headers, end)

    def on_upstream_data(self, upstream: UpstreamRequest, data: bytes, end: bool) -> None:
        if end:
            self._on_response_complete(upstream)
        self.stream.send_response_data(data, end)

    def on_upstream_trailers(self, upstream: UpstreamRequest, trailers: HeaderMap) -> None:
        self._on_response_complete(upstream)
        self.stream.send_response_trailers(trailers)

    def _on_response_complete(self, upstream: UpstreamRequest) -> None:
        """The answer is whole. An upstream that answered before it had the whole request is given up (Envoy does the
        same)."""
        self.done = True
        self._disarm()
        cluster = self.cluster
        assert cluster is not None
        info = self.stream.info
        began = info.request_end or info.start
        duration_ms = int((monotonic() - began) * 1000.0)
        if self.counts is None:
            cluster.on_response_complete(upstream.host, duration_ms, info.internal)
        else:
            self.counts.on_response_complete(upstream.host, duration_ms, info.internal)
        if self.retry is not None:
            self.retry.on_done(self.response_started)
        self.upstream = None
        upstream.finish(self.request_end)

    def on_upstream_reset(self, upstream: UpstreamRequest, reason: int, transport_failure: str) -> None:
        """An attempt failed: before, or amid, its response."""
        cluster = self.cluster
        assert cluster is not None
        stream = self.stream
        self.upstream = None
        self._try_timed_out = False
        info = stream.info
        if info.upstream is not None and transport_failure:
            info.upstream.transport_failure_reason = transport_failure
        if reason != RESET_OVERFLOW:
            upstream.host.outlier.put_local_origin(LOCAL_ORIGIN_CONNECT_FAILED)
        if self.response_started:
            self.done = True
            self._disarm()
            if is_grpc(stream.request_headers):  # Envoy's rule: only there the response's head is no success yet
                self.config.stats.rq_reset_after_downstream_response_started += 1
            info.response_flags |= reset_flag(reason)
            details = reset_details("upstream_reset_after_response_started", reason, transport_failure)
            stream.reset(details)
            return
        if upstream.stale and self._can_reconnect():
            self._reconnected = True
            cluster.stats.count("upstream_rq_stale_connection_retry")
            self._start_attempt()
            return
        if self._retries_reset(reason, upstream.started):
            return
        reply = upstream_reset_reply(reason, transport_failure, self.attempts > 1)
        details = reply.details
        if self._had_interim:
            details = reset_details("upstream_reset_after_response_started", reason, transport_failure)
        self._charge(cluster, reply.status, upstream.host if reason != RESET_OVERFLOW else None)
        self._reply(reply.status, reply.body, details, reply.response_flags)

    def on_per_try_timeout(self, upstream: UpstreamRequest, idle: bool) -> None:
        cluster = self.cluster
        assert cluster is not None
        stats = cluster.stats
        if idle:
            stats.upstream_rq_per_try_idle_timeout += 1
        else:
            stats.upstream_rq_per_try_timeout += 1
        upstream.host.stats.rq_timeout += 1
        upstream.host.outlier.put_timeout()
        self.upstream = None
        self._try_timed_out = True
        upstream.abort()
        info = self.stream.info
        if self.response_started:
            info.response_flags |= flags.UPSTREAM_REQUEST_TIMEOUT
            self.done = True
            self._disarm()
            self.stream.reset("upstream_per_try_idle_timeout" if idle else "upstream_per_try_timeout")
            return
        if self._retries_reset(RESET_LOCAL, True):
            return
        details = "upstream_per_try_idle_timeout" if idle else "upstream_per_try_timeout"
        self._reply_timeout(cluster, upstream.host, details)

    def on_max_duration(self, upstream: UpstreamRequest) -> None:
        """An attempt lived as long as its cluster, or x-envoy-upstream-stream-duration-ms, lets it."""
        cluster = self.cluster
        assert cluster is not None
        cluster.stats.upstream_rq_max_duration_reached += 1
        self.upstream = None
        upstream.abort()
        self.stream.info.response_flags |= flags.UPSTREAM_MAX_STREAM_DURATION_REACHED
        if self.response_started:
            self.done = True
            self._disarm()
            self.stream.reset("upstream_max_stream_duration_reached")
            return
        if self._retries_reset(RESET_LOCAL, True):
            return
        self._charge(cluster, 408, upstream.host)
        self._reply(408, b"upstream max stream duration reached", "upstream_max_stream_duration_reached", 0)

    def on_response_timeout(self) -> None:
        """The overall timeout of the route."""
        cluster = self.cluster
        assert cluster is not None
        upstream, self.upstream = self.upstream, None
        cluster.stats.upstream_rq_timeout += 1
        if self.counts is not None:
            self.counts.on_timeout()
        host: Host | None = None
        if upstream is not None:
            host = upstream.host
            host.stats.rq_timeout += 1
            if not upstream.headers_received:
                host.outlier.put_timeout()
            upstream.abort()
        if self.response_started:
            self.done = True
            self._disarm()
            self.stream.info.response_flags |= flags.UPSTREAM_REQUEST_TIMEOUT
            self.stream.reset("response_timeout")
            return
        self._reply_timeout(cluster, host, "response_timeout")

    def _reply_timeout(self, cluster: Cluster, host: Host | None, details: str) -> None:
        status = 204 if self.timeouts.alternative_response else 504
        self._charge(cluster, status, host)
        body = b"" if status == 204 else b"upstream request timeout"
        self._reply(status, body, details, flags.UPSTREAM_REQUEST_TIMEOUT)

    # -- another attempt

    def _shall_retry(self, decision: int) -> bool:
        """Whether the retry policy's decision can be carried out; where a limit forbids it, the response's flag says
        so."""
        if decision == RETRY:
            return self._body_kept
        if decision == NO_OVERFLOW:
            self.stream.info.response_flags |= flags.UPSTREAM_OVERFLOW
        elif decision == RETRY_LIMIT:
            self.stream.info.response_flags |= flags.UPSTREAM_RETRY_LIMIT_EXCEEDED
        return False

    def _retries_reset(self, reason: int, started: bool) -> bool:
        """Whether another attempt follows one that was reset (or timed out) before its response."""
        retry = self.retry
        if retry is None or not self._shall_retry(retry.on_reset(reason, started)):
            return False
        self._retry_later(retry.backoff_ms)
        return True

    def _can_reconnect(self) -> bool:
        """A reused connection that the peer closed before any byte of its response: an idempotent request goes once
        more
        (RFC 9110 section 9.2.2), since the peer closed while idle and never saw it."""
        switch = self.config.retry_stale_connections
        return (
            (switch is None or switch.value)
            and not self._reconnected
            and self._body_kept
            and self.headers.get(b":method") in _IDEMPOTENT
        )

    def _retry_later(self, backoff_ms: float) -> None:
        self.upstream = None
        self._backoff = CallTimer(self.on_backoff)
        self.stream.manager.timers.arm(self._backoff, backoff_ms)

    def on_backoff(self) -> None:
        self._backoff = None
        if self.done:
            return
        retry = self.retry
        if retry is not None:
            retry.on_retry_started()
        self._start_attempt()

    # -- the end

    def _charge(self, cluster: Cluster, status: int, host: Host | None) -> None:
        """A status that the proxy answers for the upstream counts as one of the cluster's, unless one came before."""
        if self._had_interim and status >= 200:
            return
        if self.counts is None:
            cluster.count_local_response(status, host, self.stream.info.internal)
        else:
            self.counts.count_local_response(status, host, self.stream.info.internal)

    def _reply(self, status: int, body: bytes, details: str, flag: int) -> None:
        self.done = True
        self._disarm()
        if self.retry is not None:
            self.retry.on_done(False)
        extra: HeaderMap | None = None
        route = self.route
        if route is not None:
            extra = HeaderMap()
            if flag == flags.UPSTREAM_OVERFLOW and not self.config.suppress_envoy_headers:
                extra.add(b"x-envoy-overloaded", b"true")
            if self.attempts and route.virtual_host.include_attempt_count_in_response:
                extra.add(b"x-envoy-attempt-count", b"%d" % self.attempts)
            self._add_route_headers(route, extra)
        self.stream.send_local_reply(status, body, details, flag, extra)

    def read_disable(self, disable: bool) -> None:
        """Backpressure: the downstream cannot take more (or can again)."""
        self._read_disabled += 1 if disable else -1
        if self.upstream is not None:
            self.upstream.read_disable(disable)

    def cancel(self) -> None:
        """The stream is answered otherwise, or gone: the upstream attempt is reset at once."""
        if self.done and self.upstream is None:
            return
        self.done = True
        self._disarm()
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.cancel()
        if self.retry is not None:
            self.retry.on_done(False)

    def on_stream_done(self) -> None:
        self.cancel()

    def _disarm(self) -> None:
        if self._timeout is not None:
            self._timeout.disarm()
            self._timeout = None  # it knows us: a cycle would keep the stream until the collector comes
        if self._backoff is not None:
            self._backoff.disarm()
            self._backoff = None


_NO_TIMEOUTS: Final = RequestTimeouts(0.0, 0.0, 0.0, 0.0, 0, False)


class _ResponseTimeout(Timer):
    def __init__(self, router: Router) -> None:
        super().__init__()
        self._router = router

    def on_timer(self) -> None:
        self._router.on_response_timeout()
