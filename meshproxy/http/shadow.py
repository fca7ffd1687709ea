"""A shadow: the copy of a request that mirroring sends, whose answer nobody waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshproxy.clock import monotonic
from meshproxy.codec.headers import HeaderMap, status_code
from meshproxy.codec.stream import StreamEncoder
from meshproxy.errors import RESET_LOCAL, RESET_OVERFLOW, RESET_PROTOCOL_ERROR
from meshproxy.http.request_counts import RequestCounts, is_canary
from meshproxy.http.waiting_body import WaitingBody
from meshproxy.net.timers import CallTimer, TimerWheel
from meshproxy.route.mirror import MirrorPolicy
from meshproxy.route.route import PRIORITY_DEFAULT
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.connection import UpstreamConnection
from meshproxy.upstream.host import Host
from meshproxy.upstream.outlier import LOCAL_ORIGIN_CONNECT_FAILED
from meshproxy.upstream.pool import ConnectionPool, PendingStream, PooledStream

if TYPE_CHECKING:
    from meshproxy.http.stream import Stream

_PROTOCOL: Final = 11  # where connections speak as the downstream does: what Envoy takes a shadow for


class Shadow(PooledStream):
    """One attempt at one host, never repeated, that is counted as an internal request (as Envoy does).

    Until the request is complete it follows its stream: a shadow that takes no more holds the downstream back, and one
    whose stream ends early is reset. From then on it lives by itself, for `timeout_ms` at most (0: for ever).
    """

    def __init__(self, stream: Stream, cluster: Cluster, host: Host, timeout_ms: float) -> None:
        self._stream: Stream | None = stream  # None: the request is complete
        self._timers: TimerWheel = stream.manager.timers
        self._cluster = cluster
        self._host = host
        self._timeout_ms = timeout_ms
        self._counts: RequestCounts | None = None
        if not stream.config.dynamic_stats:
            self._counts = RequestCounts(cluster, False, [], None)
        self._headers: HeaderMap | None = None
        self._end: bool = False
        self._waiting: WaitingBody | None = None
        self._trailers: HeaderMap | None = None
        self._encoder: StreamEncoder | None = None
        self._pending: PendingStream | None = None
        self._timer: CallTimer | None = None
        self._request_end_s: float = 0.0
        self._paused: int = 0  # how often it holds the downstream back
        self._canary: bool = False
        self._responding: bool = False  # the head of the final response came
        self._done: bool = False

    # -- the request

    def start(self, headers: HeaderMap, end: bool) -> None:
        self._headers = headers
        pool = self._pool(headers)
        if end:
            self._on_request_complete()
        if pool is None:
            self._finish()
            self._charge(503, None)
        else:
            self._pending = pool.new_stream(self)

    def _pool(self, headers: HeaderMap) -> ConnectionPool | None:
        """None where the host has too many."""
        cluster, host, stream = self._cluster, self._host, self._stream
        if not cluster.keys_pools or stream is None:
            return host.pool(cluster, PRIORITY_DEFAULT)
        demand = cluster.config.demands.of_request(headers, stream.info.connection, _PROTOCOL)
        return host.keyed_pool(cluster, PRIORITY_DEFAULT, demand)

    def send_data(self, data: bytes, end: bool) -> None:
        if self._done:
            return
        if end:
            self._on_request_complete()
        encoder = self._encoder
        if encoder is not None:
            encoder.send_data(data, end)
        elif data:
            if self._waiting is None:
                self._waiting = WaitingBody()
            if self._waiting.add(data, self._cluster.config.per_connection_buffer_limit_bytes):
                self.on_above_write_watermark()

    def send_trailers(self, trailers: HeaderMap) -> None:
        if self._done:
            return
        self._on_request_complete()
        if self._encoder is not None:
            self._encoder.send_trailers(trailers.copy())
        else:
            self._trailers = trailers.copy()

    def cancel(self) -> None:
        """The stream ended before its request did."""
        if self._done:
            return
        encoder, pending = self._encoder, self._pending
        self._finish()
        if encoder is not None:
            encoder.reset(RESET_LOCAL)
        elif pending is not None:
            pending.cancel()

    def _on_request_complete(self) -> None:
        self._release_downstream()
        self._stream = None
        self._end = True
        self._request_end_s = monotonic()
        if self._timeout_ms > 0.0:
            self._timer = CallTimer(self.on_timeout)
            self._timers.arm(self._timer, self._timeout_ms)

    def on_above_write_watermark(self) -> None:
        if self._stream is not None:
            self._paused += 1
            self._stream.read_disable_request(True)

    def on_below_write_watermark(self) -> None:
        if self._stream is not None and self._paused > 0:
            self._paused -= 1
            self._stream.read_disable_request(False)

    def _release_downstream(self) -> None:
        while self._stream is not None and self._paused > 0:
            self.on_below_write_watermark()

    # -- from the pool

    def on_pool_failure(self, reason: int, details: str, host: Host) -> None:
        self.on_reset(reason, details)

    def on_pool_ready(self, encoder: StreamEncoder, connection: UpstreamConnection, host: Host) -> None:
        self._pending = None
        self._encoder = encoder
        headers, waiting, trailers = self._headers, self._waiting, self._trailers
        assert headers is not None
        encoder.send_headers(headers, self._end and waiting is None and trailers is None)
        if waiting is not None:
            self._waiting = None
            encoder.send_data(waiting.take(), self._end and trailers is None)
        if trailers is not None:
            encoder.send_trailers(trailers)
        if waiting is not None and waiting.full:
            self.on_below_write_watermark()

    # -- the response, which nobody reads

    def on_headers(self, headers: HeaderMap, end: bool) -> None:
        status = status_code(headers)
        self._responding = True
        self._host.outlier.put_response(status)
        self._canary = self._host.canary or is_canary(headers)
        if self._counts is None:
            self._cluster.on_response_headers(status, self._host, True, self._canary)
        else:
            self._counts.on_response_headers(status, self._host, True, self._canary)
        if end:
            self._on_response_complete()

    def on_data(self, data: bytes, end: bool) -> None:
        if end:
            self._on_response_complete()

    def on_trailers(self, trailers: HeaderMap) -> None:
        self._on_response_complete()

    def _on_response_complete(self) -> None:
        """Without the whole request, its connection is of no more use."""
        if self._done:
            return
        duration_ms = int((monotonic() - self._request_end_s) * 1000.0) if self._end else 0
        if self._counts is None:
            self._cluster.on_response_complete(duration_ms, True, self._canary)
        encoder = self._encoder
        self._finish()
        if encoder is not None and not self._end:
            encoder.reset(RESET_LOCAL)

    def on_reset(self, reason: int, details: str) -> None:
        if self._done:
            return
        self._finish()
        if reason != RESET_OVERFLOW:
            self._host.outlier.put_local_origin(LOCAL_ORIGIN_CONNECT_FAILED)
        if not self._responding:
            status = 502 if reason == RESET_PROTOCOL_ERROR else 503
            self._charge(status, self._host if reason != RESET_OVERFLOW else None)

    def on_timeout(self) -> None:
        if self._done:
            return
        host = self._host
        self._cluster.stats.upstream_rq_timeout += 1
        host.stats.rq_timeout += 1
        responding = self._responding
        self.cancel()
        if not responding:
            host.outlier.put_timeout()
            self._charge(504, host)

    def _charge(self, status: int, host: Host | None) -> None:
        if self._counts is None:
            self._cluster.count_local_response(status, host, True)

    def _finish(self) -> None:
        self._done = True
        self._release_downstream()
        self._stream = None
        self._encoder = None
        self._pending = None
        self._waiting = None
        if self._timer is not None:
            self._timer.disarm()
            self._timer = None  # it knows us


def start_shadows(
    policies: list[MirrorPolicy], stream: Stream, headers: HeaderMap, end: bool, timeout_ms: float
) -> list[Shadow] | None:
    """Mirror a request as its policies say. What comes back are the shadows that wait for its body, if any."""
    following: list[Shadow] = []
    for policy in policies:
        if not policy.samples(stream.random):
            continue
        cluster = stream.manager.clusters.get(policy.resolve_cluster(headers))
        if cluster is None:
            continue
        copy = headers.copy()
        policy.finalize(copy, stream.info)
        _mark(stream, copy, timeout_ms)
        shadow = _start(cluster, stream, copy, end, timeout_ms)
        if shadow is not None and not end:
            following.append(shadow)
    return following or None


def _mark(stream: Stream, headers: HeaderMap, timeout_ms: float) -> None:
    """What Envoy's own requests look like: internal ones, from this node."""
    config = stream.config
    headers.set(b"x-envoy-internal", b"true")
    forwarded = headers.joined(b"x-forwarded-for")
    local = config.local_address
    headers.set(b"x-forwarded-for", forwarded + b"," + local if forwarded else local)
    if timeout_ms > 0.0 and not config.suppress_envoy_headers:
        headers.set(b"x-envoy-expected-rq-timeout-ms", b"%d" % int(timeout_ms))


def _start(cluster: Cluster, stream: Stream, headers: HeaderMap, end: bool, timeout_ms: float) -> Shadow | None:
    """None where the cluster has no host for it."""
    config = stream.config
    host = cluster.choose_for_own(None)
    if host is None:
        cluster.stats.upstream_cx_none_healthy += 1
        if config.dynamic_stats:
            cluster.count_local_response(503, None, True)
        return None
    if config.match_upstream_scheme:
        headers.set(b":scheme", b"https" if cluster.config.transports.secure(host) else b"http")
    shadow = Shadow(stream, cluster, host, timeout_ms)
    shadow.start(headers, end)
    return shadow
