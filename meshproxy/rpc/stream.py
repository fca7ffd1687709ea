"""One gRPC call on one of our clusters, by callbacks: messages out, messages in, and how it ended.

The rules are those of gRPC over HTTP/2 (its PROTOCOL-HTTP2 document); the statuses that stand for failures are Envoy's.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import mypyc_attr

from meshproxy.clock import monotonic
from meshproxy.codec import grpc
from meshproxy.codec.headers import HeaderMap, status_code
from meshproxy.codec.stream import StreamEncoder
from meshproxy.errors import RESET_LOCAL, RESET_OVERFLOW, RESET_PROTOCOL_ERROR
from meshproxy.http.grpc.client import RpcStatus
from meshproxy.http.grpc.messages import COMPRESSED, LONGEST, MessageReader, MessageTooLongError, frame
from meshproxy.http.local_reply import reset_words, upstream_reset_reply
from meshproxy.http.request_counts import is_canary
from meshproxy.net.timers import CallTimer, TimerWheel
from meshproxy.route.route import PRIORITY_DEFAULT
from meshproxy.rpc.retries import conditions_of_head, conditions_of_reset
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.connection import UpstreamConnection
from meshproxy.upstream.host import Host
from meshproxy.upstream.outlier import LOCAL_ORIGIN_CONNECT_FAILED
from meshproxy.upstream.pool import ConnectionPool, PendingStream, PooledStream

_SHOWN: Final = 200  # characters of what a server says in place of gRPC


@mypyc_attr(allow_interpreted_subclasses=True)
class StreamEvents:
    """Who makes a call. After `on_close` nothing more is told."""

    def on_initial_metadata(self, headers: HeaderMap) -> None:
        """The server's first metadata; not told where it has sent trailers alone."""

    def on_message(self, message: bytes) -> None:
        raise NotImplementedError

    def on_writable(self) -> None:
        """There is room again for messages."""

    def wants_retry(self, conditions: int) -> bool:
        """Asked when an answer begins, or will not: whether the call is made again, on another stream, now that it has
        met these conditions of `retry_on` (0: it goes well). Then `on_close` follows."""
        return False

    def on_close(self, status: RpcStatus) -> None:
        """The call is over, however it ended."""
        raise NotImplementedError


class GrpcStream(PooledStream):
    """A call and its answer."""

    def __init__(
        self,
        timers: TimerWheel,
        cluster: Cluster | None,
        limit_bytes: int,
        events: StreamEvents,
        begun: dict[GrpcStream, None],
    ) -> None:
        """`cluster` None: there is none of its name. `limit_bytes` bounds each message that comes; 0: nothing does.
        `begun` is where the stream stands from its start to its end."""
        self._timers = timers
        self._begun = begun
        self.cluster = cluster
        self._events: StreamEvents | None = events  # None: the call is over
        self._reader = MessageReader(limit_bytes or LONGEST)
        self._host: Host | None = None
        self._encoder: StreamEncoder | None = None
        self._pending: PendingStream | None = None
        self._timer: CallTimer | None = None
        self._request: HeaderMap | None = None  # until it is sent
        self._waiting: list[bytes] = []  # frames that wait for a connection
        self._ended: bool = False  # no more messages of ours
        self._backed_up: bool = False
        self._disables: int = 0  # of reading, before there was anything to read
        self._answered: bool = False  # the head of the answer is there
        self._began_s: float = 0.0
        self._canary: bool = False

    @property
    def done(self) -> bool:
        return self._events is None

    @property
    def writable(self) -> bool:
        """Whether there is room for another message."""
        return not self._backed_up and (self._encoder is not None or not self._waiting)

    # -- what its owner does

    def start(self, headers: HeaderMap, timeout_ms: float) -> None:
        """Begin, with a head that is the stream's from here on. 0 is no timeout."""
        self._began_s = monotonic()
        self._begun[self] = None
        self._request = headers
        if timeout_ms > 0.0:
            self._timer = CallTimer(self.on_timeout)
            self._timers.arm(self._timer, timeout_ms)
        cluster = self.cluster
        if cluster is None:
            self.abort(grpc.UNAVAILABLE, "Cluster not available")
            return
        host = self._host = cluster.choose_for_own(headers)
        if host is None:
            cluster.stats.upstream_cx_none_healthy += 1
            cluster.count_local_response(503, None, True)
            self.abort(grpc.UNAVAILABLE, "no healthy upstream")
            return
        headers.set(b":scheme", b"https" if cluster.config.transports.secure(host) else b"http")
        pool = self._pool(cluster, host, headers)
        if pool is None:
            self.on_reset(RESET_OVERFLOW, "")
            return
        pending = pool.new_stream(self)
        if not self.done and self._encoder is None:
            self._pending = pending

    def _pool(self, cluster: Cluster, host: Host, headers: HeaderMap) -> ConnectionPool | None:
        """None where the host has too many."""
        if not cluster.keys_pools:
            return host.pool(cluster, PRIORITY_DEFAULT)
        return host.keyed_pool(cluster, PRIORITY_DEFAULT, cluster.config.demands.of_own_request(headers))

    def send(self, message: bytes, end: bool) -> None:
        """Send a message, now or as soon as there is a connection. `writable` says whether it finds room."""
        if self.done or self._ended:
            return
        self._ended = end
        if self._encoder is None:
            self._waiting.append(frame(message))
        else:
            self._encoder.send_data(frame(message), end)

    def end(self) -> None:
        """There are no more messages of ours."""
        if not self._ended:
            self._ended = True
            if self._encoder is not None:
                self._encoder.send_data(b"", True)

    def read_disable(self, disable: bool) -> None:
        """Take no more of the answer (or go on), so that the server must wait. Counted."""
        if self._encoder is not None:
            self._encoder.read_disable(disable)
        else:
            self._disables += 1 if disable else -1

    def cancel(self) -> None:
        """Give up: the server is told, and `on_close` is not called."""
        self._forget()

    def abort(self, code: int, message: str) -> None:
        """Give up: the server is told, and `on_close` is called with this status."""
        self._close(RpcStatus(code, message))

    # -- from the pool

    def on_pool_failure(self, reason: int, details: str, host: Host) -> None:
        self.on_reset(reason, details)

    def on_pool_ready(self, encoder: StreamEncoder, connection: UpstreamConnection, host: Host) -> None:
        headers, waiting = self._request, self._waiting
        if self.done or headers is None:
            encoder.reset(RESET_LOCAL)
            return
        self._pending = self._request = None
        self._waiting = []
        self._encoder = encoder
        for _ in range(self._disables):
            encoder.read_disable(True)
        encoder.send_headers(headers, False)
        if waiting or self._ended:
            encoder.send_data(b"".join(waiting), self._ended)
        if not self._ended and not self._backed_up and self._events is not None:
            self._events.on_writable()

    def on_above_write_watermark(self) -> None:
        self._backed_up = True

    def on_below_write_watermark(self) -> None:
        self._backed_up = False
        if self._events is not None:
            self._events.on_writable()

    # -- the answer

    def on_headers(self, headers: HeaderMap, end: bool) -> None:
        cluster, host, events = self.cluster, self._host, self._events
        if events is None or cluster is None or host is None:
            return
        self._answered = True
        status = status_code(headers)
        self._canary = host.canary or is_canary(headers)
        again = events.wants_retry(conditions_of_head(headers, status))
        if again:
            cluster.count_retried_response(status, host)
        else:
            cluster.on_response_headers(status, host, True, self._canary)
        if end and (status == 200 or grpc.grpc_status(headers) is not None):
            self._complete(headers)
        elif again or status != 200:
            host.outlier.put_response(status)
            self.abort(grpc.status_of_http(status), f"the server answered with HTTP status {status}")
        elif not grpc.is_grpc(headers):
            kind = (headers.get(b"content-type") or b"").decode("latin-1")
            self.abort(grpc.UNKNOWN, f"the server answered with content-type {kind[:_SHOWN]!r}")
        else:
            events.on_initial_metadata(headers)

    def on_data(self, data: bytes, end: bool) -> None:
        try:
            messages = self._reader.feed(data)
        except MessageTooLongError as error:
            self.abort(grpc.RESOURCE_EXHAUSTED, str(error))
            return
        for flags, message in messages:
            events = self._events
            if events is None:
                return
            if flags & COMPRESSED and message:
                self.abort(grpc.INTERNAL, "a message is compressed, though no coding was offered")
                return
            events.on_message(message)
        if end:
            self._finish(RpcStatus(grpc.UNKNOWN, "the answer ended without a grpc-status"))

    def on_trailers(self, trailers: HeaderMap) -> None:
        self._complete(trailers)

    def _complete(self, trailers: HeaderMap) -> None:
        """By the trailers, or by a head that is nothing else."""
        code = grpc.grpc_status(trailers)
        if code is None or code == grpc.INVALID_STATUS:
            self._finish(RpcStatus(grpc.UNKNOWN, "the answer ended without a grpc-status", trailers))
        elif code == grpc.OK and self._reader.partial:
            self._finish(RpcStatus(grpc.INTERNAL, "the answer ended within a message", trailers))
        else:
            message = grpc.decode_message(trailers.get(b"grpc-message") or b"")
            self._finish(RpcStatus(code, message.decode("utf-8", "replace"), trailers))

    def _finish(self, status: RpcStatus) -> None:
        """The server has ended its answer. Where we have more to say, it does not want to hear it."""
        cluster, host = self.cluster, self._host
        if self.done or cluster is None or host is None:
            return
        host.outlier.put_response(grpc.http_status_of(status.code))
        cluster.on_response_complete(int((monotonic() - self._began_s) * 1000.0), True, self._canary)
        if self._ended:
            self._encoder = None  # it has ended by itself
        self._close(status)

    # -- failures

    def on_reset(self, reason: int, details: str) -> None:
        cluster, host, events = self.cluster, self._host, self._events
        if events is None or cluster is None or host is None:
            return
        started = self._encoder is not None
        self._encoder = self._pending = None
        if reason != RESET_OVERFLOW:
            host.outlier.put_local_origin(LOCAL_ORIGIN_CONNECT_FAILED)
        if self._answered:
            self.abort(grpc.INTERNAL, f"the answer was cut short: {reset_words(reason)}")
            return
        if not events.wants_retry(conditions_of_reset(reason, started)):
            status = 502 if reason == RESET_PROTOCOL_ERROR else 503
            cluster.count_local_response(status, None if reason == RESET_OVERFLOW else host, True)
        self.abort(grpc.UNAVAILABLE, upstream_reset_reply(reason, details, False).body.decode())

    def on_timeout(self) -> None:
        cluster, host = self.cluster, self._host
        if self.done:
            return
        if cluster is not None and host is not None:
            cluster.stats.upstream_rq_timeout += 1
            host.stats.rq_timeout += 1
            if not self._answered:
                host.outlier.put_timeout()
                cluster.count_local_response(504, host, True)
        self.abort(grpc.DEADLINE_EXCEEDED, "upstream request timeout")

    def _close(self, status: RpcStatus) -> None:
        events = self._events
        self._forget()
        if events is not None:
            events.on_close(status)

    def _forget(self) -> None:
        """End what is under way, and the cycles with it."""
        encoder, pending, timer = self._encoder, self._pending, self._timer
        self._events = self._encoder = self._pending = self._timer = self._request = None
        self._waiting = []
        self._begun.pop(self, None)
        if timer is not None:
            timer.disarm()
        if encoder is not None:
            encoder.reset(RESET_LOCAL)
        elif pending is not None:
            pending.cancel()
