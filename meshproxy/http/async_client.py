"""The proxy's own requests: through one of its clusters, without a downstream.

Filters, exporters and checks ask by these; a call is one request of its cluster like any other, and counts there as an
internal one (as Envoy's async client).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from meshproxy.clock import monotonic
from meshproxy.codec.headers import CONTENT_LENGTH, Field, HeaderMap, status_code
from meshproxy.codec.stream import StreamEncoder
from meshproxy.errors import (
    RESET_CONNECT_FAILURE,
    RESET_CONNECT_TIMEOUT,
    RESET_LOCAL,
    RESET_LOCAL_CONNECT_FAILURE,
    RESET_OVERFLOW,
    RESET_PROTOCOL_ERROR,
    MeshProxyError,
)
from meshproxy.http.local_reply import reset_details
from meshproxy.http.request_counts import is_canary
from meshproxy.http.retry import IDEMPOTENT
from meshproxy.net.dispatcher import new_future
from meshproxy.net.timers import CallTimer, TimerWheel
from meshproxy.route.route import PRIORITY_DEFAULT
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.config import HTTP2
from meshproxy.upstream.connection import UpstreamConnection
from meshproxy.upstream.host import Host
from meshproxy.upstream.manager import ClusterManager
from meshproxy.upstream.outlier import LOCAL_ORIGIN_CONNECT_FAILED
from meshproxy.upstream.pool import ConnectionPool, PendingStream, PooledStream

_HTTP: Final[Any] = (b":scheme", b"http")
_WORDS: Final = {
    RESET_OVERFLOW: "overflow",
    RESET_CONNECT_FAILURE: "connect_failure",
    RESET_CONNECT_TIMEOUT: "connect_timeout",
    RESET_LOCAL_CONNECT_FAILURE: "connect_failure",
    RESET_PROTOCOL_ERROR: "protocol_error",
}


class HttpResponse:
    """A whole response. `headers` begin with `:status`; `trailers` is None where there were none."""

    def __init__(self, status: int, headers: HeaderMap, body: bytes, trailers: HeaderMap | None) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.trailers = trailers


class CallError(MeshProxyError):
    """There is no response.

    `reason` is one of no_cluster, no_host, overflow, connect_failure, connect_timeout, timeout, reset, protocol_error,
    too_large; `details` says more, in Envoy's words where it has some.
    """

    def __init__(self, reason: str, details: str) -> None:
        super().__init__(f"{reason}: {details}" if details else reason)
        self.reason = reason
        self.details = details


CallDone = Callable[["HttpResponse | CallError"], object]


class HttpCall(PooledStream):
    """One request, all of it here, and its response, of which all is kept up to a limit.

    As elsewhere (RFC 9110 section 9.2.2), an idempotent one goes once more when the peer closed a reused connection
    before it saw the request.
    """

    def __init__(
        self,
        timers: TimerWheel,
        cluster: Cluster | None,
        headers: HeaderMap,
        body: bytes,
        limit_bytes: int,
        on_done: CallDone,
    ) -> None:
        self._timers = timers
        self._cluster = cluster
        self._host: Host | None = None
        self._request = headers
        self._body = body
        self._limit_bytes = limit_bytes
        self._on_done: CallDone | None = on_done  # None: done
        self._connection: UpstreamConnection | None = None
        self._encoder: StreamEncoder | None = None
        self._pending: PendingStream | None = None
        self._timer: CallTimer | None = None
        self._began_s: float = 0.0
        self._reconnected: bool = False
        self._canary: bool = False
        self._status: int = 0  # of the response, once its head is there
        self._headers: HeaderMap | None = None
        self._pieces: list[bytes] = []
        self._bytes: int = 0

    @property
    def done(self) -> bool:
        """Whether `on_done` was called, or never will be."""
        return self._on_done is None

    def start(self, timeout_ms: float) -> None:
        """Begin. 0 is no timeout."""
        self._began_s = monotonic()
        if timeout_ms > 0.0:
            self._timer = CallTimer(self.on_timeout)
            self._timers.arm(self._timer, timeout_ms)
        self._attempt()

    def cancel(self) -> None:
        """Nobody waits any more: what is under way is reset, and `on_done` is not called."""
        self._forget()

    def _attempt(self) -> None:
        cluster = self._cluster
        if cluster is None:
            self._fail("no_cluster", "cluster_not_found")
            return
        host = self._host = cluster.choose_for_own(self._request)
        if host is None:
            cluster.stats.upstream_cx_none_healthy += 1
            cluster.count_local_response(503, None, True)
            self._fail("no_host", "no_healthy_upstream")
            return
        self._request.set(b":scheme", b"https" if cluster.config.transports.secure(host) else b"http")
        pool = self._pool(cluster, host)
        if pool is None:
            cluster.count_local_response(503, None, True)
            self._fail("overflow", "")
            return
        pending = pool.new_stream(self)
        if not self.done and self._encoder is None:
            self._pending = pending

    def _pool(self, cluster: Cluster, host: Host) -> ConnectionPool | None:
        """None where the host has too many."""
        if not cluster.keys_pools:
            return host.pool(cluster, PRIORITY_DEFAULT)
        return host.keyed_pool(cluster, PRIORITY_DEFAULT, cluster.config.demands.of_own_request(self._request))

    # -- from the pool

    def on_pool_failure(self, reason: int, details: str, host: Host) -> None:
        self.on_reset(reason, details)

    def on_pool_ready(self, encoder: StreamEncoder, connection: UpstreamConnection, host: Host) -> None:
        self._pending = None
        self._encoder = encoder
        self._connection = connection
        body = self._body
        encoder.send_headers(self._request.copy(), not body)
        if body:
            encoder.send_data(body, True)

    # -- the response

    def on_headers(self, headers: HeaderMap, end: bool) -> None:
        cluster, host = self._cluster, self._host
        if self.done or cluster is None or host is None:
            return
        status = self._status = status_code(headers)
        self._headers = headers
        host.outlier.put_response(status)
        self._canary = host.canary or is_canary(headers)
        cluster.on_response_headers(status, host, True, self._canary)
        if end:
            self._complete(None)

    def on_data(self, data: bytes, end: bool) -> None:
        if self.done:
            return
        self._bytes += len(data)
        if self._bytes > self._limit_bytes:
            self._fail("too_large", f"the response's body has more than {self._limit_bytes} bytes")
            return
        self._pieces.append(data)
        if end:
            self._complete(None)

    def on_trailers(self, trailers: HeaderMap) -> None:
        self._complete(trailers)

    def _complete(self, trailers: HeaderMap | None) -> None:
        cluster, headers, on_done = self._cluster, self._headers, self._on_done
        if on_done is None or cluster is None or headers is None:
            return
        cluster.on_response_complete(int((monotonic() - self._began_s) * 1000.0), True, self._canary)
        response = HttpResponse(self._status, headers, b"".join(self._pieces), trailers)
        self._encoder = None  # it has ended by itself
        self._forget()
        on_done(response)

    # -- failures

    def on_reset(self, reason: int, details: str) -> None:
        cluster, host, connection = self._cluster, self._host, self._connection
        if self.done or cluster is None or host is None:
            return
        self._encoder = self._pending = self._connection = None
        if reason != RESET_OVERFLOW:
            host.outlier.put_local_origin(LOCAL_ORIGIN_CONNECT_FAILED)
        basic = "upstream_reset_before_response_started"
        if self._status:
            basic = "upstream_reset_after_response_started"
        elif connection is not None and connection.lost_unseen(reason) and self._may_reconnect(connection):
            self._reconnected = True
            cluster.stats.count("upstream_rq_stale_connection_retry")
            self._attempt()
            return
        else:
            status = 502 if reason == RESET_PROTOCOL_ERROR else 503
            cluster.count_local_response(status, None if reason == RESET_OVERFLOW else host, True)
        self._fail(_WORDS.get(reason, "reset"), reset_details(basic, reason, details))

    def _may_reconnect(self, connection: UpstreamConnection) -> bool:
        """As the router's rule."""
        if self._reconnected:
            return False
        return connection.protocol == HTTP2 or self._request.get(b":method") in IDEMPOTENT

    def on_timeout(self) -> None:
        cluster, host = self._cluster, self._host
        if self.done or cluster is None or host is None:
            return
        cluster.stats.upstream_rq_timeout += 1
        host.stats.rq_timeout += 1
        if not self._status:
            host.outlier.put_timeout()
            cluster.count_local_response(504, host, True)
        self._fail("timeout", "response_timeout")

    def _fail(self, reason: str, details: str) -> None:
        on_done = self._on_done
        self._forget()
        if on_done is not None:
            on_done(CallError(reason, details))

    def _forget(self) -> None:
        """End what is under way, and the cycles with it."""
        encoder, pending, timer = self._encoder, self._pending, self._timer
        self._on_done = self._encoder = self._pending = self._timer = self._connection = None
        self._pieces = []
        if timer is not None:
            timer.disarm()
        if encoder is not None:
            encoder.reset(RESET_LOCAL)
        elif pending is not None:
            pending.cancel()


def start_call(
    clusters: ClusterManager,
    timers: TimerWheel,
    cluster: str,
    headers: HeaderMap,
    body: bytes,
    timeout_ms: float,
    limit_bytes: int,
    on_done: CallDone,
) -> HttpCall:
    """Send a request through `cluster`; `on_done` is told once, with the response or why there is none.

    That may be before this returns. `headers`, which the call owns from here on, have `:method`, `:path` and
    `:authority`; a Content-Length is added for `body`. `timeout_ms` bounds the whole call (0: nothing does),
    `limit_bytes` the response's body.
    """
    if body and not (headers.known & CONTENT_LENGTH and b"content-length" in headers):
        headers.add(b"content-length", b"%d" % len(body))
    if headers.get(b":scheme") is None:
        headers.fields.insert(0, _HTTP)  # an attempt sets it to what it is: before any other field
    call = HttpCall(timers, clusters.get(cluster), headers, body, limit_bytes, on_done)
    call.start(timeout_ms)
    return call


class HttpClient:
    """Sends requests through the clusters of the process, for tasks: `await client("users", path=b"/ann")`."""

    def __init__(self, clusters: ClusterManager, timers: TimerWheel) -> None:
        self._clusters = clusters
        self._timers = timers

    async def __call__(
        self,
        cluster: str,
        *,
        method: bytes = b"GET",
        path: bytes = b"/",
        authority: bytes = b"",
        headers: Iterable[Field] = (),
        body: bytes = b"",
        timeout_ms: float = 5000.0,
        limit_bytes: int = 1 << 20,
    ) -> HttpResponse:
        """As `start_call`. An `authority` of b"" is the cluster's name.

        Raises CallError. Where the task is cancelled, so is the call.
        """
        head = HeaderMap([(b":method", method), (b":path", path), (b":authority", authority or cluster.encode())])
        head.extend(headers)
        waiter = _Waiter()
        under_way = start_call(
            self._clusters, self._timers, cluster, head, body, timeout_ms, limit_bytes, waiter.on_done
        )
        try:
            outcome = await waiter.future
        finally:
            under_way.cancel()
        if isinstance(outcome, CallError):
            raise outcome
        assert isinstance(outcome, HttpResponse)
        return outcome


class _Waiter:
    """A task's, for what comes of its call."""

    def __init__(self) -> None:
        self.future: Any = new_future()

    def on_done(self, outcome: HttpResponse | CallError) -> None:
        if not self.future.done():
            self.future.set_result(outcome)
