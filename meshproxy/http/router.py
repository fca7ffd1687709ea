"""The router: the end of every filter chain. It picks cluster and host, makes attempts, and brings the answer back.

One per stream. What it decides about an attempt that failed, it decides in `on_upstream_reset`; what a response's head
means, in `on_upstream_headers`. Envoy's router documentation is the source of the rules and of the words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshproxy.clock import monotonic
from meshproxy.codec import headers as h
from meshproxy.codec.grpc import encode_timeout, is_grpc
from meshproxy.codec.headers import HeaderMap, status_code
from meshproxy.config.runtime import Fraction
from meshproxy.errors import RESET_LOCAL, RESET_OVERFLOW
from meshproxy.http.direct_answer import answer_directly
from meshproxy.http.grpc.call import GrpcCall
from meshproxy.http.internal_redirect import becomes_get, redirect_request
from meshproxy.http.local_reply import reset_details, reset_flag, upstream_reset_reply
from meshproxy.http.request_counts import RequestCounts, is_canary, request_counts
from meshproxy.http.retry import IDEMPOTENT, NO, NO_OVERFLOW, RETRY, RETRY_LIMIT, RetryState, retry_state_for
from meshproxy.http.shadow import Shadow, start_shadows
from meshproxy.http.tcp_tunnel import proxy_preface
from meshproxy.http.timeouts import SPARE_TIMERS, RequestTimeouts, request_timeouts
from meshproxy.http.upgrade import establishes_tunnel
from meshproxy.http.upstream_request import UpstreamRequest
from meshproxy.net.timers import CallTimer, Timer
from meshproxy.observe import response_flags as flags
from meshproxy.route.hash_policy import NO_HASH
from meshproxy.route.internal_redirect import InternalRedirectPolicy
from meshproxy.route.mirror import MirrorPolicy
from meshproxy.route.route import ROUTE_CLUSTER, Route
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.demand import ConnectionDemand
from meshproxy.upstream.host import Host, LbContext
from meshproxy.upstream.outlier import LOCAL_ORIGIN_CONNECT_FAILED
from meshproxy.upstream.pool import ConnectionPool

if TYPE_CHECKING:
    from meshproxy.http.stream import Stream

_REASON_HEADERS: Final = {
    flags.UPSTREAM_OVERFLOW: b"x-envoy-overloaded",
    flags.DROP_OVERLOAD: b"x-envoy-drop-overload",
    flags.UNCONDITIONAL_DROP_OVERLOAD: b"x-envoy-unconditional-drop-overload",
}
_UNTOUCHED_BYTES: Final = 16 * 1024  # of a body are kept for a GOAWAY that says that nobody has seen the request
_FRAMING: Final = frozenset((b"content-length", b"transfer-encoding", b"connection", b"upgrade"))
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
        self.call: GrpcCall | None = None  # where the request is one of gRPC
        self._quiet: bool = False  # as `Cluster.on_response_headers`
        self.request_end: bool = False
        self.response_started: bool = False
        self.done: bool = False
        self._body: list[bytes] = []  # kept for a replay
        self._body_bytes: int = 0
        self._body_kept: bool = True  # all of the request so far is in `_body`
        self._trailers: HeaderMap | None = None
        self._timeout: ResponseTimer | None = None
        self._backoff: CallTimer | None = None
        self._reconnected: bool = False
        self._had_interim: bool = False  # response of the upstream, which decides: no attempt follows
        self._try_timed_out: bool = False
        self._canary: bool = False  # the response counts as one of a canary
        self._read_disabled: int = 0
        self._set_cookies: list[bytes] | None = None  # that hash policies made up
        self.demand: ConnectionDemand | None = None  # None: any connection to the host does
        self._hedged: list[UpstreamRequest] | None = None  # attempts that go on beside `upstream`
        self._shadows: list[Shadow] | None = None  # that are sent the request's body

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
            self.done = True
            stats.rq_direct_response += 1
            answer_directly(stream, route, headers)
            return
        cluster = stream.cluster
        if cluster is None:
            stats.no_cluster += 1
            self._reply(route.cluster_not_found_status, b"", "cluster_not_found", flags.NO_CLUSTER_FOUND)
            return
        self.cluster = cluster
        if headers.known & h.GRPC and is_grpc(headers):
            self.call = GrpcCall()
            self._quiet = self.config.suppress_grpc_codes
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
            if headers.known & h.ENVOY:
                headers.set(b"x-envoy-expected-rq-timeout-ms", b"%d" % timeouts.expected_ms)
            else:
                headers.append(timeouts.expected_field, h.ENVOY | h.ENVOY_TIMEOUT)
        if timeouts.tells_grpc and timeouts.expected_ms:
            headers.set(b"grpc-timeout", encode_timeout(float(timeouts.expected_ms)))
        dynamic = self.config.dynamic_stats and not info.health_check
        if route.has_stats or alternative is not None or not dynamic:
            self.counts = request_counts(route, cluster, dynamic, headers, info, alternative)
        if cluster.drop_overload is not None and cluster.drops(cluster.drop_overload):
            self._reply_dropped(cluster, cluster.drop_overload)
            return
        if headers.known & h.ENVOY_RETRY or route.retry is not None or cluster.config.retry is not None:
            self.retry = retry_state_for(route, cluster, headers, stream)
            if self.retry is not None:
                self.retry.counts = self.counts
        if route.virtual_host.include_request_attempt_count:
            headers.set(b"x-envoy-attempt-count", b"1")
        if route.has_request_mutations:
            route.finalize_request(headers, info, not self.config.suppress_envoy_headers)
        if cluster.keys_pools:
            self.demand = cluster.config.demands.of_request(headers, info.connection, info.protocol)
        mirrors = route.mirrors if cluster.config.mirrors is None else cluster.config.mirrors
        if mirrors is None:
            self._start_attempt()
        else:
            self._start_mirrored(mirrors, headers.copy(), end)

    def _start_mirrored(self, mirrors: list[MirrorPolicy], headers: HeaderMap, end: bool) -> None:
        """A request that no host takes is not mirrored, nor is a CONNECT."""
        self._start_attempt()
        if not self.done and headers.get(b":method") != b"CONNECT":
            self._shadows = start_shadows(mirrors, self.stream, headers, end, self.timeouts.response_ms)

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
            self._body = []
        if self._shadows is not None:
            self._send_to_shadows(self._shadows, data, end)
        if upstream is not None:
            upstream.send_data(data, end)
        if end:
            self._on_request_complete()

    def _send_to_shadows(self, shadows: list[Shadow], data: bytes, end: bool) -> None:
        if end:
            self._shadows = None
        for shadow in shadows:
            shadow.send_data(data, end)

    def on_request_trailers(self, trailers: HeaderMap) -> None:
        if self.done:
            return
        self.request_end = True
        self._trailers = trailers
        if self._shadows is not None:
            for shadow in self._shadows:
                shadow.send_trailers(trailers)
            self._shadows = None
        if self.upstream is not None:
            self.upstream.send_trailers(trailers)
        self._on_request_complete()

    def _add_cookies(self, headers: HeaderMap) -> None:
        for cookie in self._set_cookies or ():
            headers.add(b"set-cookie", cookie)

    def _add_route_headers(self, route: Route, headers: HeaderMap) -> None:
        if route.has_response_mutations:
            route.finalize_response(headers, self.stream.info)

    # -- the body that a replay needs

    def _keeps_body(self) -> bool:
        if not self._body_kept or self.response_started:
            return False
        return self.retry is not None or self._may_redirect() or self._may_reconnect()

    def _may_redirect(self) -> bool:
        return self.route is not None and self.route.internal_redirect is not None

    def _may_reconnect(self) -> bool:
        upstream = self.upstream
        if upstream is None:
            return False
        if upstream.multiplexed:
            return self._body_bytes < _UNTOUCHED_BYTES
        return upstream.reused and self.headers.get(b":method") in IDEMPOTENT

    def _keep(self, data: bytes) -> None:
        route = self.route
        self._body_bytes += len(data)
        limit: int | None = None if route is None else route.request_body_buffer_limit
        if limit is None:  # 0: any body
            limit = max(self.stream.manager.buffer_limit_bytes, self.stream.buffer_limit_bytes) or self._body_bytes
        if self._body_bytes > limit:
            self._body_kept = False
            self._body = []
            self._give_up_replay()
            return
        self._body.append(data)

    def _give_up_replay(self) -> None:
        """The body is too large to be kept: what is on its way must do. An attempt that is yet to come cannot be."""
        if self.cluster is not None and (self.retry is not None or self._may_redirect()):
            self.cluster.stats.retry_or_shadow_abandoned += 1
        if self.retry is not None:
            self.retry.give_up()
        if self.upstream is None:
            body = b"exceeded request buffer limit while retrying upstream"
            self._reply(507, body, "request_payload_exceeded_retry_buffer_limit", 0)

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
        context = self._lb_context(cluster, route)
        host = self._choose_by_hash(cluster, route, context) if cluster.hashes else cluster.choose_host(context)
        if host is None:
            cluster.stats.upstream_cx_none_healthy += 1
            self._charge(cluster, 503, None)
            self._reply(503, b"no healthy upstream", "no_healthy_upstream", flags.NO_HEALTHY_UPSTREAM)
            return
        pool: ConnectionPool | None = None
        if self.demand is not None:
            pool = host.keyed_pool(cluster, route.priority, self.demand)
            if pool is None:
                self._charge(cluster, 503, None)
                self._reply(503, b"no healthy upstream", "no_healthy_upstream", flags.NO_HEALTHY_UPSTREAM)
                return
        if self.retry is not None:
            self.retry.on_host_attempted(host)
        headers = self.headers
        if self.config.match_upstream_scheme:
            headers.set(b":scheme", b"https" if cluster.config.transports.secure(host) else b"http")
        if self.attempts > 1:
            self._mark_retry(headers, route)
        if route.auto_host_rewrite and host.hostname:
            route.set_upstream_host(headers, host.hostname.encode(), not self.config.suppress_envoy_headers)
        upstream = UpstreamRequest(self, cluster, host, route.priority)
        upstream.pool = pool
        self.upstream = upstream
        if stream.trace is not None and stream.trace.spawns:
            upstream.span = stream.trace.start_attempt(headers, self.attempts)
        replay = self._body_kept and bool(self._body)
        end_now = self.request_end and not self._body and self._trailers is None
        for _ in range(self._read_disabled):
            upstream.read_disable(True)
        connect = None if route.upgrades is None else route.upgrades.connects(headers.get(b":method"))
        if connect is None:
            upstream.start(headers, end_now, self.timeouts)
        else:
            upstream.start_tunnel(headers, proxy_preface(connect.proxy_protocol, stream.info), self.timeouts)
        if not self._is_current(upstream):
            return  # it failed at once
        if replay:
            last = self.request_end and self._trailers is None
            body = b"".join(self._body)
            upstream.send_data(body, last)
        if self._trailers is not None:
            upstream.send_trailers(self._trailers)
        if self.request_end or stream.tunnel:
            self._on_request_complete()

    def _is_current(self, upstream: UpstreamRequest) -> bool:
        return self.upstream is upstream

    def _mark_retry(self, headers: HeaderMap, route: Route) -> None:
        """What the upstream is told of an attempt that is not the first: its number, and the time that is left."""
        timeouts = self.timeouts
        if timeouts.expected_ms and (timeouts.tells_grpc or not self.config.suppress_envoy_headers):
            expected_ms = timeouts.expected_ms
            request_end = self.stream.info.request_end
            if timeouts.response_ms > 0.0 and request_end > 0.0:
                left_ms = int(timeouts.response_ms - (monotonic() - request_end) * 1000.0)
                expected_ms = max(1, min(expected_ms, left_ms))  # 0 would be no timeout
            if not self.config.suppress_envoy_headers:
                headers.set(b"x-envoy-expected-rq-timeout-ms", b"%d" % expected_ms)
            if timeouts.tells_grpc:
                headers.set(b"grpc-timeout", encode_timeout(float(expected_ms)))
        if route.virtual_host.include_request_attempt_count:
            headers.set(b"x-envoy-attempt-count", b"%d" % self.attempts)
        if route.virtual_host.include_is_timeout_retry_header:
            headers.set(b"x-envoy-is-timeout-retry", b"true" if self._try_timed_out else b"false")

    def _lb_context(self, cluster: Cluster, route: Route) -> LbContext | None:
        """Only another attempt avoids hosts; only some clusters look at the request."""
        context = None if self.retry is None or self.attempts == 1 else self.retry.lb_context
        if not cluster.needs_context:
            return context
        if context is None:
            context = LbContext()
        context.criteria, context.info, context.headers = route.metadata_match, self.stream.info, self.headers
        return context

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
            self._arm_timeout(self.timeouts.response_ms)
        if self.timeouts.per_try_ms > 0.0 and self.upstream is not None:
            self.upstream.arm_per_try(self.timeouts.per_try_ms)

    def measure(self) -> None:
        """For a record of a stream that goes on: have the attempts tell what they had on the wire so far."""
        if self.upstream is not None:
            self.upstream.measure()
        for hedged in self._hedged or ():
            hedged.measure()

    def _arm_timeout(self, timeout_ms: float) -> None:
        manager = self.stream.manager
        spare = manager.spare_response_timers
        timer = spare.pop() if spare else ResponseTimer()
        timer.router = self
        timer.due_ms = monotonic() * 1000.0 + timeout_ms
        self._timeout = timer
        manager.timers.arm_by(timer, timeout_ms)

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
        if self.call is None:
            host.outlier.put_response(status)
        else:
            self.call.put_headers(host, headers, status)
        if stream.tunnel and not self._may_answer_tunnel(upstream, headers):
            return
        decision = NO
        if self.retry is not None:
            decision = self._decide_retry(self.retry, upstream, headers)
            if decision == RETRY:
                self._try_timed_out = False
                cluster.count_retried_response(status, host, self._quiet)
                self._discard(upstream, end)
                self._retry_later(self.retry.backoff_ms)
                return
        redirects = route.internal_redirect
        if redirects is not None and status in redirects.statuses and self._redirect(redirects, upstream, headers, end):
            return
        if decision != NO and self._others_may_answer(upstream):
            self._discard(upstream, end)
            return
        self.response_started = True
        self._body = []
        upstream.on_final()
        if self._hedged is not None:
            self._choose(upstream)
        canary = self._canary = host.canary or is_canary(headers)
        if self.counts is None:
            cluster.on_response_headers(status, host, stream.info.internal, canary, self.call is not None, self._quiet)
        else:
            internal, undecided = stream.info.internal, self.call is not None
            self.counts.on_response_headers(status, host, internal, canary, undecided, self._quiet)
        if self.call is not None and status < 500:
            self.call.begin(host, headers, end)
        info = stream.info
        info.response_headers = headers
        info.response_code = status
        info.response_code_details = "via_upstream"
        if not self.config.suppress_envoy_headers and info.request_end > 0.0:
            _set_service_time(headers, int((monotonic() - info.request_end) * 1000.0))
        if route.virtual_host.include_attempt_count_in_response:
            headers.set(b"x-envoy-attempt-count", b"%d" % self.attempts)
        if self._set_cookies is not None:
            self._add_cookies(headers)
        if route.has_response_mutations:
            route.finalize_response(headers, info)
        if end:
            self._on_response_complete(upstream)
        stream.send_response_headers(headers, end, status)

    def _may_answer_tunnel(self, upstream: UpstreamRequest, headers: HeaderMap) -> bool:
        """An open tunnel has no timeout; what is neither an error nor an agreement to speak WebSocket is no answer."""
        stream, status = self.stream, upstream.status
        if establishes_tunnel(stream.tunnel, status):
            self._disarm()
            return True
        if stream.tunnel != b"websocket" or status >= 400:
            return True
        self._remove(upstream)
        upstream.abort()
        self.done = True
        self._disarm()
        headers.remove_names(_FRAMING)
        headers.remove(b":status")
        stream.send_local_reply(status, b"", "websocket_handshake_unsuccessful", 0, headers)
        return False

    def _decide_retry(self, retry: RetryState, upstream: UpstreamRequest, headers: HeaderMap) -> int:
        """RETRY; NO: the response is as good as any; else it is one that would be tried again, if it could be."""
        status = upstream.status
        if upstream.retried:
            return RETRY_LIMIT if retry.would_retry(headers, status) else NO
        decision = retry.on_response(headers, status)
        if not self._shall_retry(decision) and decision == RETRY:
            return NO
        return decision

    def _discard(self, upstream: UpstreamRequest, end: bool) -> None:
        """The response is not the one that goes downstream."""
        upstream.host.stats.rq_error += 1
        self._remove(upstream)
        upstream.abandon(end)

    def _redirect(
        self, policy: InternalRedirectPolicy, upstream: UpstreamRequest, headers: HeaderMap, end: bool
    ) -> bool:
        """Follow the upstream's redirect; False when it goes downstream. Only a whole request can be sent again."""
        route, cluster, stream = self.route, self.cluster, self.stream
        assert route is not None
        assert cluster is not None
        if not self.request_end or not self._body_kept or not redirect_request(stream, route, policy, headers):
            cluster.stats.upstream_internal_redirect_failed_total += 1
            return False
        cluster.stats.upstream_internal_redirect_succeeded_total += 1
        body = b"" if becomes_get(upstream.status, self.headers) else b"".join(self._body)
        self._remove(upstream)
        upstream.abandon(end)
        stream.recreate(headers, body)
        return True

    def on_upstream_data(self, upstream: UpstreamRequest, data: bytes, end: bool) -> None:
        if end:
            if self.call is not None:
                self.call.fail()
            self._on_response_complete(upstream)
        self.stream.send_response_data(data, end)

    def on_upstream_trailers(self, upstream: UpstreamRequest, trailers: HeaderMap) -> None:
        if self.call is not None:
            self.call.end(trailers)
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
            cluster.on_response_complete(duration_ms, info.internal, self._canary)
        else:
            self.counts.on_response_complete(duration_ms, info.internal, self._canary)
        if self.retry is not None:
            self.retry.on_done(self.response_started)
        self.upstream = None
        upstream.finish(self.request_end)

    def on_upstream_reset(self, upstream: UpstreamRequest, reason: int, transport_failure: str) -> None:
        """An attempt failed: before, or amid, its response."""
        cluster = self.cluster
        assert cluster is not None
        stream = self.stream
        self._remove(upstream)
        self._try_timed_out = False
        info = stream.info
        if info.upstream is not None and transport_failure:
            info.upstream.transport_failure_reason = transport_failure
        if reason != RESET_OVERFLOW:
            upstream.host.outlier.put_local_origin(LOCAL_ORIGIN_CONNECT_FAILED)
        if self.response_started:
            self.done = True
            self._disarm()
            self._fail_call()
            info.response_flags |= reset_flag(reason)
            details = reset_details("upstream_reset_after_response_started", reason, transport_failure)
            if stream.response_started:
                stream.reset(details)
            else:  # a filter has kept it: there is time for a better answer
                reply = upstream_reset_reply(reason, "", False)
                stream.send_local_reply(reply.status, reply.body, details)
            return
        if upstream.stale and not upstream.retried and self._can_reconnect(upstream):
            self._reconnected = True
            cluster.stats.count("upstream_rq_stale_connection_retry")
            self._start_attempt()
            return
        if not upstream.retried and self._retries_reset(reason, upstream.started):
            return
        reply = upstream_reset_reply(reason, transport_failure, self.attempts > 1)
        details = reply.details
        if self._had_interim:
            details = reset_details("upstream_reset_after_response_started", reason, transport_failure)
        self._charge(cluster, reply.status, upstream.host if reason != RESET_OVERFLOW else None)
        if self._others_may_answer(upstream):
            return
        self._reply(reply.status, reply.body, details, reply.response_flags)

    def on_per_try_timeout(self, upstream: UpstreamRequest, idle: bool) -> None:
        cluster = self.cluster
        assert cluster is not None
        if self.timeouts.hedges:
            self._hedge(upstream)
            return
        stats = cluster.stats
        if idle:
            stats.upstream_rq_per_try_idle_timeout += 1
        else:
            stats.upstream_rq_per_try_timeout += 1
        upstream.host.stats.rq_timeout += 1
        upstream.host.outlier.put_timeout()
        self._remove(upstream)
        self._try_timed_out = True
        upstream.abort()
        info = self.stream.info
        if self.response_started:
            self._fail_call()
            info.response_flags |= flags.UPSTREAM_REQUEST_TIMEOUT
            self.done = True
            self._disarm()
            self.stream.reset("upstream_per_try_idle_timeout" if idle else "upstream_per_try_timeout")
            return
        if self._retries_reset(RESET_LOCAL, True):
            return
        details = "upstream_per_try_idle_timeout" if idle else "upstream_per_try_timeout"
        self._charge(cluster, self._timeout_status(), upstream.host)
        self._reply_timeout(details)

    def _fail_call(self) -> None:
        """The response is cut short. Only a call of gRPC counts that: others count their heads."""
        if self.call is not None and self.call.fail():
            self.config.stats.rq_reset_after_downstream_response_started += 1

    def on_max_duration(self, upstream: UpstreamRequest) -> None:
        """An attempt lived as long as its cluster, or x-envoy-upstream-stream-duration-ms, lets it."""
        cluster = self.cluster
        assert cluster is not None
        cluster.stats.upstream_rq_max_duration_reached += 1
        self._remove(upstream)
        upstream.abort()
        self.stream.info.response_flags |= flags.UPSTREAM_MAX_STREAM_DURATION_REACHED
        if self.response_started:
            self.done = True
            self._disarm()
            self.stream.reset("upstream_max_stream_duration_reached")
            return
        if not upstream.retried and self._retries_reset(RESET_LOCAL, True):
            return
        self._charge(cluster, 408, upstream.host)
        self._reply(408, b"upstream max stream duration reached", "upstream_max_stream_duration_reached", 0)

    def on_response_timeout(self) -> None:
        """The overall timeout of the route."""
        cluster = self.cluster
        assert cluster is not None
        attempts = self._hedged or []
        if self.upstream is not None:
            attempts = [self.upstream, *attempts]
        self.upstream = self._hedged = None
        for attempt in attempts:
            self._time_out(cluster, attempt)
        if self.response_started:
            self.done = True
            self._disarm()
            self.stream.info.response_flags |= flags.UPSTREAM_REQUEST_TIMEOUT
            self.stream.reset("response_timeout")
            return
        self._reply_timeout("response_timeout")

    def _time_out(self, cluster: Cluster, attempt: UpstreamRequest) -> None:
        host = attempt.host
        cluster.stats.upstream_rq_timeout += 1
        if self.counts is not None:
            self.counts.on_timeout()
        host.stats.rq_timeout += 1
        if not attempt.headers_received:
            if not attempt.timed_out:
                host.outlier.put_timeout()
            self._charge(cluster, self._timeout_status(), host)
        elif self.call is not None:
            self.call.fail()
        attempt.abort()

    def _timeout_status(self) -> int:
        return 204 if self.timeouts.alternative_response else 504

    def _reply_timeout(self, details: str) -> None:
        status = self._timeout_status()
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

    def _can_reconnect(self, upstream: UpstreamRequest) -> bool:
        """The connection is stale. A reused one that the peer closed before any byte of its response: an idempotent
        request goes once more (RFC 9110 section 9.2.2), since the peer closed while idle and never saw it. One of
        HTTP/2 whose peer says that it has not looked at the request: any goes once more (RFC 9113 section 8.7)."""
        switch = self.config.retry_stale_connections
        return (
            (switch is None or switch.value)
            and not self._reconnected
            and self._body_kept
            and (upstream.multiplexed or self.headers.get(b":method") in IDEMPOTENT)
        )

    def _retry_later(self, backoff_ms: float) -> None:
        self._backoff = CallTimer(self.on_backoff)
        self.stream.manager.timers.arm(self._backoff, backoff_ms)

    def on_backoff(self) -> None:
        self._backoff = None
        if self.done:
            return
        if self.retry is not None:
            self.retry.on_retry_started()
        self._start_attempt()

    # -- several attempts at once

    def _hedge(self, upstream: UpstreamRequest) -> None:
        """A try has had its time: it goes on, and another begins beside it if the retry policy has one left."""
        if upstream.retried:
            return
        upstream.timed_out = True
        upstream.host.outlier.put_timeout()
        retry = self.retry
        if self.response_started or retry is None or not self._shall_retry(retry.on_hedge()):
            return
        upstream.retried = True
        self._try_timed_out = True
        self.upstream = None
        if self._hedged is None:
            self._hedged = []
        self._hedged.append(upstream)
        self._retry_later(retry.backoff_ms)

    def _remove(self, upstream: UpstreamRequest) -> None:
        """The attempt is over."""
        if self.upstream is upstream:
            self.upstream = None
        elif self._hedged is not None and upstream in self._hedged:
            self._hedged.remove(upstream)

    def _others_may_answer(self, upstream: UpstreamRequest) -> bool:
        """Whether another attempt waits for its response, or is about to start: what befell this one is no answer."""
        if self._backoff is not None or (self.upstream is not None and self.upstream is not upstream):
            return True
        if self._hedged is not None:
            for attempt in self._hedged:
                if attempt is not upstream:
                    return True
        return False

    def _choose(self, upstream: UpstreamRequest) -> None:
        """This response goes downstream: the other attempts are reset, and none follows."""
        self._remove(upstream)
        self._abort_attempts()
        if self._backoff is not None:
            self._backoff.disarm()
            self._backoff = None
        self.upstream = upstream
        upstream.on_chosen()

    def _abort_attempts(self) -> None:
        attempts = self._hedged or []
        if self.upstream is not None:
            attempts = [*attempts, self.upstream]
        self.upstream = self._hedged = None
        for attempt in attempts:
            attempt.abort()

    # -- the end

    def _charge(self, cluster: Cluster, status: int, host: Host | None) -> None:
        """A status that the proxy answers for the upstream counts as one of the cluster's, unless one came before."""
        if self._had_interim and status >= 200:
            return
        if self.counts is None:
            cluster.count_local_response(status, host, self.stream.info.internal, self._quiet)
        else:
            self.counts.count_local_response(status, host, self.stream.info.internal, self._quiet)

    def _reply(self, status: int, body: bytes, details: str, flag: int) -> None:
        self.done = True
        self._disarm()
        if self.retry is not None:
            self.retry.on_done(False)
        extra: HeaderMap | None = None
        route = self.route
        if route is not None:
            extra = HeaderMap()
            if not self.config.suppress_envoy_headers:
                name = _REASON_HEADERS.get(flag)
                if name is not None:
                    extra.add(name, b"true")
            if self.attempts and route.virtual_host.include_attempt_count_in_response:
                extra.add(b"x-envoy-attempt-count", b"%d" % self.attempts)
            self._add_route_headers(route, extra)
        self.stream.send_local_reply(status, body, details, flag, extra)

    def _reply_dropped(self, cluster: Cluster, share: Fraction) -> None:
        """The cluster's `drop_overloads` say that it shall not have this request."""
        info = self.stream.info.upstream
        if info is not None:
            info.attempts = 0
        self._charge(cluster, 503, None)
        if share.numerator < share.denominator:
            self._reply(503, b"drop overload", "drop_overload", flags.DROP_OVERLOAD)
        else:
            self._reply(
                503, b"unconditional drop overload", "unconditional_drop_overload", flags.UNCONDITIONAL_DROP_OVERLOAD
            )

    def read_disable(self, disable: bool) -> None:
        """Backpressure: the downstream cannot take more (or can again)."""
        self._read_disabled += 1 if disable else -1
        if self.upstream is not None:
            self.upstream.read_disable(disable)
        if self._hedged is not None:
            for attempt in self._hedged:
                attempt.read_disable(disable)

    def cancel(self) -> None:
        """The stream is answered otherwise, or gone: the upstream attempt is reset at once."""
        if self.done and self.upstream is None and self._hedged is None:
            return
        self.done = True
        self._disarm()
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.cancel()
        if self._hedged is not None:
            self._abort_attempts()
        if self.retry is not None:
            self.retry.on_done(False)

    def on_stream_done(self) -> None:
        self.cancel()
        if self._shadows is not None:
            for shadow in self._shadows:
                shadow.cancel()

    def _disarm(self) -> None:
        timer = self._timeout
        if timer is not None:
            timer.router = self._timeout = None  # it knows us: a cycle would keep the stream until the collector comes
            spare = self.stream.manager.spare_response_timers
            if len(spare) < SPARE_TIMERS:
                spare.append(timer)
            else:
                timer.disarm()
        if self._backoff is not None:
            self._backoff.disarm()
            self._backoff = None


_SERVICE_TIME: Final = b"x-envoy-upstream-service-time"
_SERVICE_TIMES: Final[list[Any]] = [(_SERVICE_TIME, b"%d" % ms) for ms in range(256)]


def _set_service_time(headers: HeaderMap, ms: int) -> None:
    if headers.known & h.ENVOY:
        headers.set(_SERVICE_TIME, b"%d" % ms)
    else:
        headers.append(_SERVICE_TIMES[ms] if ms < 256 else (_SERVICE_TIME, b"%d" % ms), h.ENVOY)


_NO_TIMEOUTS: Final = RequestTimeouts(0.0, 0.0, 0.0, 0.0, False, False)


class ResponseTimer(Timer):
    """The overall timeout of a request; the requests of a connection hand it on, armed as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.router: Router | None = None
        self.due_ms: float = 0.0

    def on_timer(self) -> None:
        router = self.router
        if router is None:
            return
        left_ms = self.due_ms - monotonic() * 1000.0
        if left_ms > 0.0:
            router.stream.manager.timers.arm(self, left_ms)
        else:
            router.on_response_timeout()
