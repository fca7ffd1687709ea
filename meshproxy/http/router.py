"""The router: the end of every filter chain. It picks cluster and host, makes attempts, and brings the answer back.

One per stream. What a response's head means, it decides in `on_upstream_headers`; what follows an attempt that failed,
`failed_attempt.py` decides. Envoy's router documentation is the source of the rules and of the words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshproxy.clock import monotonic
from meshproxy.codec import headers as h
from meshproxy.codec.grpc import is_grpc
from meshproxy.codec.headers import HeaderMap, status_code
from meshproxy.config.runtime import Fraction
from meshproxy.http import hedging
from meshproxy.http.direct_answer import answer_directly
from meshproxy.http.grpc.call import GrpcCall
from meshproxy.http.host_choice import choose_host
from meshproxy.http.internal_redirect import becomes_get, redirect_request
from meshproxy.http.replay_body import ReplayBody, keep_for_replay
from meshproxy.http.request_counts import RequestCounts, is_canary, request_counts
from meshproxy.http.response_timer import ResponseTimer, arm_response_timer, leave_response_timer
from meshproxy.http.retry import NO, NO_OVERFLOW, RETRY, RETRY_LIMIT, RetryState, retry_state_for
from meshproxy.http.router_headers import complete_response_headers, mark_retry, reply_headers, tell_timeouts
from meshproxy.http.shadow import Shadow, start_shadows
from meshproxy.http.tcp_tunnel import proxy_preface
from meshproxy.http.timeouts import RequestTimeouts, request_timeouts
from meshproxy.http.upgrade import establishes_tunnel
from meshproxy.http.upstream_request import UpstreamRequest
from meshproxy.net.timers import CallTimer
from meshproxy.observe import response_flags as flags
from meshproxy.route.internal_redirect import InternalRedirectPolicy
from meshproxy.route.mirror import MirrorPolicy
from meshproxy.route.route import ROUTE_CLUSTER, Route
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.demand import ConnectionDemand, offering
from meshproxy.upstream.host import Host
from meshproxy.upstream.pool import ConnectionPool

if TYPE_CHECKING:
    from meshproxy.http.stream import Stream

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
        self.quiet: bool = False  # as `Cluster.on_response_headers`
        self.request_end: bool = False
        self.response_started: bool = False
        self.done: bool = False
        self.body: ReplayBody | None = None  # None: there is none yet, or it is lost
        self.body_lost: bool = False  # so that no attempt can begin anew
        self._trailers: HeaderMap | None = None
        self._timeout: ResponseTimer | None = None
        self.backoff: CallTimer | None = None  # armed while another attempt waits for its time
        self.reconnected: bool = False  # an attempt was made anew, since its connection was stale
        self.had_interim: bool = False  # response of the upstream, which decides: no attempt follows
        self.try_timed_out: bool = False  # the last try had its time, and no answer
        self._canary: bool = False  # the response counts as one of a canary
        self._read_disabled: int = 0
        self.set_cookies: list[bytes] | None = None  # that hash policies made up
        self.demand: ConnectionDemand | None = None  # None: any connection to the host does
        self.hedged: list[UpstreamRequest] | None = None  # attempts that go on beside `upstream`
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
            self.reply(404, b"", "route_not_found", flags.NO_ROUTE_FOUND)
            return
        if route.kind != ROUTE_CLUSTER:
            self.done = True
            stats.rq_direct_response += 1
            answer_directly(stream, route, headers)
            return
        cluster = stream.cluster
        if cluster is None:
            stats.no_cluster += 1
            self.reply(route.cluster_not_found_status, b"", "cluster_not_found", flags.NO_CLUSTER_FOUND)
            return
        self.cluster = cluster
        self._send_to(cluster, route, headers, end)

    def _send_to(self, cluster: Cluster, route: Route, headers: HeaderMap, end: bool) -> None:
        """Settle what the request, its route and its cluster ask for, then make the first attempt."""
        stream = self.stream
        if headers.known & h.GRPC and is_grpc(headers):
            self.call = GrpcCall()
            self.quiet = self.config.suppress_grpc_codes
        info = stream.info
        if info.upstream is not None:
            info.upstream.attempts = 1
        alternative: bytes | None = None
        if headers.known & h.ENVOY:
            alternative = headers.get(_ALT_STAT_NAME)
            if alternative is not None:
                headers.remove(_ALT_STAT_NAME)
        timeouts = self.timeouts = request_timeouts(self.config, route, cluster, headers)
        tell_timeouts(headers, timeouts, self.config.suppress_envoy_headers)
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
        if stream.offered is not None:
            self.demand = stream.offered if self.demand is None else offering(stream.offered, self.demand)
        mirrors = route.mirrors if cluster.config.mirrors is None else cluster.config.mirrors
        if mirrors is None:
            self.start_attempt()
        else:
            self._start_mirrored(mirrors, headers.copy(), end)

    def _start_mirrored(self, mirrors: list[MirrorPolicy], headers: HeaderMap, end: bool) -> None:
        """A request that no host takes is not mirrored, nor is a CONNECT."""
        self.start_attempt()
        if not self.done and headers.get(b":method") != b"CONNECT":
            self._shadows = start_shadows(mirrors, self.stream, headers, end, self.timeouts.response_ms)

    def on_request_data(self, data: bytes, end: bool) -> None:
        self.request_end = end
        upstream = self.upstream
        if self.done:
            return
        keep_for_replay(self, data)
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

    def lose_body(self) -> None:
        """The body is not kept any more: no attempt that comes could send it."""
        self.body_lost = True
        self.body = None

    # -- attempts

    def start_attempt(self) -> None:
        route, cluster = self.route, self.cluster
        assert route is not None
        assert cluster is not None
        stream = self.stream
        self.attempts += 1
        info = stream.info.upstream
        assert info is not None
        info.attempts = self.attempts
        host = choose_host(self, cluster, route)
        if host is None:
            cluster.stats.upstream_cx_none_healthy += 1
            self.charge(cluster, 503, None)
            self.reply(503, b"no healthy upstream", "no_healthy_upstream", flags.NO_HEALTHY_UPSTREAM)
            return
        pool: ConnectionPool | None = None
        if self.demand is not None:
            pool = host.keyed_pool(cluster, route.priority, self.demand)
            if pool is None:
                self.charge(cluster, 503, None)
                self.reply(503, b"no healthy upstream", "no_healthy_upstream", flags.NO_HEALTHY_UPSTREAM)
                return
        if self.retry is not None:
            self.retry.on_host_attempted(host)
        headers = self.headers
        if self.config.match_upstream_scheme:
            headers.set(b":scheme", b"https" if cluster.config.transports.secure(host) else b"http")
        if self.attempts > 1:
            mark_retry(self, route, headers)
        if route.auto_host_rewrite and host.hostname:
            route.set_upstream_host(headers, host.hostname.encode(), not self.config.suppress_envoy_headers)
        upstream = UpstreamRequest(self, cluster, host, route.priority)
        upstream.pool = pool
        self.upstream = upstream
        if stream.trace is not None and stream.trace.spawns:
            upstream.span = stream.trace.start_attempt(headers, self.attempts)
        body = self.body
        end_now = self.request_end and body is None and self._trailers is None
        for _ in range(self._read_disabled):
            upstream.read_disable(True)
        connect = None if route.upgrades is None else route.upgrades.connects(headers.get(b":method"))
        if connect is None:
            upstream.start(headers, end_now, self.timeouts)
        else:
            upstream.start_tunnel(headers, proxy_preface(connect.proxy_protocol, stream.info), self.timeouts)
        if not self._is_current(upstream):
            return  # it failed at once
        if body is not None:
            upstream.send_data(body.whole(), self.request_end and self._trailers is None)
        if self._trailers is not None:
            upstream.send_trailers(self._trailers)
        if self.request_end or stream.tunnel:
            self._on_request_complete()

    def _is_current(self, upstream: UpstreamRequest) -> bool:
        return self.upstream is upstream

    def _on_request_complete(self) -> None:
        """The overall timeout counts from the end of the request, over all attempts."""
        if self._timeout is None and self.timeouts.response_ms > 0.0 and not self.done:
            self._timeout = arm_response_timer(self, self.timeouts.response_ms)
        if self.timeouts.per_try_ms > 0.0 and self.upstream is not None:
            self.upstream.arm_per_try(self.timeouts.per_try_ms)

    def measure(self) -> None:
        """For a record of a stream that goes on: have the attempts tell what they had on the wire so far."""
        if self.upstream is not None:
            self.upstream.measure()
        for hedged in self.hedged or ():
            hedged.measure()

    # -- what an attempt reports

    def on_upstream_informational(self, upstream: UpstreamRequest, headers: HeaderMap) -> None:
        """Interim responses go down only where the configuration says so; but after one no other attempt follows, and
        the timeout of this one is void (Envoy's rules)."""
        cluster = self.cluster
        status = status_code(headers)
        if cluster is None or status not in _INTERIM:
            return
        self.charge(cluster, status, upstream.host)
        self.had_interim = True
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
                self.try_timed_out = False
                cluster.count_retried_response(status, host, self.quiet)
                self._discard(upstream, end)
                self.retry_later(self.retry.backoff_ms)
                return
        redirects = route.internal_redirect
        if redirects is not None and status in redirects.statuses and self._redirect(redirects, upstream, headers, end):
            return
        if decision != NO and hedging.others_may_answer(self, upstream):
            self._discard(upstream, end)
            return
        self._begin_response(cluster, route, upstream, headers, end)

    def _begin_response(
        self, cluster: Cluster, route: Route, upstream: UpstreamRequest, headers: HeaderMap, end: bool
    ) -> None:
        """This answer goes downstream."""
        stream, host, status = self.stream, upstream.host, upstream.status
        self.response_started = True
        self.body = None
        upstream.on_final()
        if self.hedged is not None:
            hedging.choose(self, upstream)
        canary = self._canary = host.canary or is_canary(headers)
        if self.counts is None:
            cluster.on_response_headers(status, host, stream.info.internal, canary, self.call is not None, self.quiet)
        else:
            internal, undecided = stream.info.internal, self.call is not None
            self.counts.on_response_headers(status, host, internal, canary, undecided, self.quiet)
        if self.call is not None and status < 500:
            self.call.begin(host, headers, end)
        info = stream.info
        info.response_headers = headers
        info.response_code = status
        info.response_code_details = "via_upstream"
        complete_response_headers(self, route, headers)
        if end:
            self._on_response_complete(upstream)
        stream.send_response_headers(headers, end, status)

    def _may_answer_tunnel(self, upstream: UpstreamRequest, headers: HeaderMap) -> bool:
        """An open tunnel has no timeout; what is neither an error nor an agreement to speak WebSocket is no answer."""
        stream, status = self.stream, upstream.status
        if establishes_tunnel(stream.tunnel, status):
            self.disarm()
            return True
        if stream.tunnel != b"websocket" or status >= 400:
            return True
        hedging.remove(self, upstream)
        upstream.abort()
        self.end_attempts()
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
        if not self.shall_retry(decision) and decision == RETRY:
            return NO
        return decision

    def _discard(self, upstream: UpstreamRequest, end: bool) -> None:
        """The response is not the one that goes downstream."""
        upstream.host.stats.rq_error += 1
        hedging.remove(self, upstream)
        upstream.abandon(end)

    def _redirect(
        self, policy: InternalRedirectPolicy, upstream: UpstreamRequest, headers: HeaderMap, end: bool
    ) -> bool:
        """Follow the upstream's redirect; False when it goes downstream. Only a whole request can be sent again."""
        route, cluster, stream = self.route, self.cluster, self.stream
        assert route is not None
        assert cluster is not None
        if not self.request_end or self.body_lost or not redirect_request(stream, route, policy, headers):
            cluster.stats.upstream_internal_redirect_failed_total += 1
            return False
        cluster.stats.upstream_internal_redirect_succeeded_total += 1
        body = b"" if becomes_get(upstream.status, self.headers) or self.body is None else self.body.whole()
        hedging.remove(self, upstream)
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
        self.end_attempts()
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

    # -- another attempt

    def shall_retry(self, decision: int) -> bool:
        """Whether the retry policy's decision can be carried out; where a limit forbids it, the response's flag says
        so."""
        if decision == RETRY:
            return not self.body_lost
        if decision == NO_OVERFLOW:
            self.stream.info.response_flags |= flags.UPSTREAM_OVERFLOW
        elif decision == RETRY_LIMIT:
            self.stream.info.response_flags |= flags.UPSTREAM_RETRY_LIMIT_EXCEEDED
        return False

    def retry_later(self, backoff_ms: float) -> None:
        """Another attempt, after a pause."""
        self.backoff = CallTimer(self.on_backoff)
        self.stream.manager.timers.arm(self.backoff, backoff_ms)

    def on_backoff(self) -> None:
        self.backoff = None
        if self.done:
            return
        if self.retry is not None:
            self.retry.on_retry_started()
        self.start_attempt()

    # -- the end

    def charge(self, cluster: Cluster, status: int, host: Host | None) -> None:
        """A status that the proxy answers for the upstream counts as one of the cluster's, unless one came before."""
        if self.had_interim and status >= 200:
            return
        if self.counts is None:
            cluster.count_local_response(status, host, self.stream.info.internal, self.quiet)
        else:
            self.counts.count_local_response(status, host, self.stream.info.internal, self.quiet)

    def reply(self, status: int, body: bytes, details: str, flag: int) -> None:
        """The router's own answer, in place of the upstream's."""
        self.end_attempts()
        if self.retry is not None:
            self.retry.on_done(False)
        extra = None if self.route is None else reply_headers(self, self.route, flag)
        self.stream.send_local_reply(status, body, details, flag, extra)

    def _reply_dropped(self, cluster: Cluster, share: Fraction) -> None:
        """The cluster's `drop_overloads` say that it shall not have this request."""
        info = self.stream.info.upstream
        if info is not None:
            info.attempts = 0
        cluster.dropped += 1
        cluster.dropped_by_policy += 1
        self.charge(cluster, 503, None)
        if share.numerator < share.denominator:
            self.reply(503, b"drop overload", "drop_overload", flags.DROP_OVERLOAD)
        else:
            self.reply(
                503, b"unconditional drop overload", "unconditional_drop_overload", flags.UNCONDITIONAL_DROP_OVERLOAD
            )

    def read_disable(self, disable: bool) -> None:
        """Backpressure: the downstream cannot take more (or can again)."""
        self._read_disabled += 1 if disable else -1
        if self.upstream is not None:
            self.upstream.read_disable(disable)
        if self.hedged is not None:
            for attempt in self.hedged:
                attempt.read_disable(disable)

    def cancel(self) -> None:
        """The stream is answered otherwise, or gone: the upstream attempt is reset at once."""
        if self.done and self.upstream is None and self.hedged is None:
            return
        self.end_attempts()
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.cancel()
        if self.hedged is not None:
            hedging.abort_all(self)
        if self.retry is not None:
            self.retry.on_done(False)

    def on_stream_done(self) -> None:
        self.cancel()
        if self._shadows is not None:
            for shadow in self._shadows:
                shadow.cancel()

    def end_attempts(self) -> None:
        """No other begins, and no timeout is waited for."""
        self.done = True
        self.disarm()

    def disarm(self) -> None:
        timer = self._timeout
        if timer is not None:
            self._timeout = None
            leave_response_timer(self, timer)
        if self.backoff is not None:
            self.backoff.disarm()
            self.backoff = None


_NO_TIMEOUTS: Final = RequestTimeouts(0.0, 0.0, 0.0, 0.0, False, False)
