"""A gRPC client on one of our clusters, as Envoy's `envoy_grpc`: TLS, balancing, limits and stats are the cluster's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshproxy.clock import monotonic
from meshproxy.codec import grpc
from meshproxy.codec.headers import HeaderMap
from meshproxy.config.context import Services
from meshproxy.http.grpc.client import RpcCall, RpcClient, RpcError, RpcResponse, RpcStatus, UnaryDone
from meshproxy.http.grpc.metadata import Metadata, wire_metadata
from meshproxy.http.grpc.service import GrpcServiceConfig
from meshproxy.net.dispatcher import new_future
from meshproxy.net.interfaces import local_address
from meshproxy.net.timers import CallTimer
from meshproxy.observe.stream_info import StreamInfo
from meshproxy.route.retry_policy import RETRY_REFUSED_STREAM, RetryPolicy
from meshproxy.rpc.call import ClusterCall
from meshproxy.rpc.retries import NEVER, UnaryRetries
from meshproxy.rpc.stream import GrpcStream, StreamEvents


class ClusterClient(RpcClient):
    """Makes calls through the cluster that its configuration names, whichever that is by then."""

    def __init__(self, services: Services, config: GrpcServiceConfig) -> None:
        self._services = services
        self._config = config
        self._open: dict[GrpcStream, None] = {}
        self._closed: bool = False
        self._local_address = local_address().encode()

    def call(
        self, path: bytes, *, timeout_ms: float = 0.0, metadata: Metadata = (), info: StreamInfo | None = None
    ) -> RpcCall:
        timeout_ms = timeout_ms or self._config.timeout_ms
        call = ClusterCall()
        call.begin(self.open_stream(call.inbox), self._head(path, timeout_ms, metadata, info), timeout_ms)
        return call

    def start_unary(
        self,
        path: bytes,
        message: bytes,
        on_done: UnaryDone,
        *,
        timeout_ms: float = 0.0,
        metadata: Metadata = (),
        info: StreamInfo | None = None,
    ) -> Callable[[], None]:
        timeout_ms = timeout_ms or self._config.timeout_ms
        head = self._head(path, timeout_ms, metadata, info)
        call = UnaryCall(self, self._config.retry, head, message, on_done)
        call.start(timeout_ms)
        return call.cancel

    async def unary(
        self,
        path: bytes,
        message: bytes,
        *,
        timeout_ms: float = 0.0,
        metadata: Metadata = (),
        info: StreamInfo | None = None,
    ) -> RpcResponse:
        waiter = _Waiter()
        cancel = self.start_unary(path, message, waiter.on_done, timeout_ms=timeout_ms, metadata=metadata, info=info)
        try:
            outcome = await waiter.future
        finally:
            cancel()
        if isinstance(outcome, RpcError):
            raise RpcError(outcome.status)  # another one: `outcome` lives in the frame that its traceback would hold
        assert isinstance(outcome, RpcResponse)
        return outcome

    def close(self) -> None:
        self._closed = True
        for stream in list(self._open):
            stream.abort(grpc.CANCELLED, "the client is closed")

    def open_stream(self, events: StreamEvents) -> GrpcStream:
        """A stream that is not begun yet."""
        services, config = self._services, self._config
        cluster = None if self._closed else services.clusters.get(config.cluster)
        return GrpcStream(services.dispatcher.timers, cluster, config.limit_bytes, events, self._open)

    def arm(self, callback: Callable[[], None], delay_ms: float) -> CallTimer:
        """Call back after a while."""
        timer = CallTimer(callback)
        self._services.dispatcher.timers.arm(timer, delay_ms)
        return timer

    def _head(self, path: bytes, timeout_ms: float, metadata: Metadata, info: StreamInfo | None) -> HeaderMap:
        config = self._config
        head = HeaderMap([(b":method", b"POST"), (b":path", path)])
        head.add(b":authority", config.authority or config.cluster.encode())
        head.add(b":scheme", b"http")  # the host that is chosen decides
        head.add(b"te", b"trailers")
        head.add(b"content-type", b"application/grpc")
        if timeout_ms > 0.0:
            head.add(b"grpc-timeout", grpc.encode_timeout(max(1, int(timeout_ms))))
        head.extend(wire_metadata(config.initial_metadata(info)))
        own = wire_metadata(metadata)
        for name, _ in own:
            head.remove(name)
        head.extend(own)
        if config.envoy_headers:
            head.set(b"x-envoy-internal", b"true")
            head.set(b"x-forwarded-for", self._local_address)
        return head


class UnaryCall(StreamEvents):
    """One message for one, without a task; made again as the policy says, and once more in any case when the server has
    refused to look at it."""

    def __init__(
        self, client: ClusterClient, policy: RetryPolicy | None, head: HeaderMap, message: bytes, on_done: UnaryDone
    ) -> None:
        self._client = client
        self._retries = None if policy is None else UnaryRetries(policy)
        self._head = head
        self._message = message
        self._on_done: UnaryDone | None = on_done  # None: it is over
        self._stream: GrpcStream | None = None
        self._timer: CallTimer | None = None  # until the next attempt
        self._delay_ms: float = NEVER  # how long that is, where there will be one
        self._deadline_s: float = 0.0  # 0: none
        self._was_refused: bool = False
        self._headers: HeaderMap | None = None
        self._answers: list[bytes] = []

    def start(self, timeout_ms: float) -> None:
        if timeout_ms > 0.0:
            self._deadline_s = monotonic() + timeout_ms / 1000.0
        self._attempt()

    def cancel(self) -> None:
        """Nobody waits any more: `on_done` is not called."""
        stream, self._on_done = self._stream, None
        self._forget()
        if stream is not None:
            stream.cancel()

    def _attempt(self) -> None:
        left_ms = max((self._deadline_s - monotonic()) * 1000.0, 1.0) if self._deadline_s else 0.0
        self._headers = None
        stream = self._stream = self._client.open_stream(self)
        stream.send(self._message, True)
        stream.start(self._head.copy(), left_ms)

    def on_retry(self) -> None:
        """The back-off is over."""
        self._timer = None
        if self._on_done is not None:
            self._attempt()

    def on_initial_metadata(self, headers: HeaderMap) -> None:
        self._headers = headers

    def on_message(self, message: bytes) -> None:
        if self._answers and self._stream is not None:
            self._stream.abort(grpc.INTERNAL, "the answer has several messages")
        else:
            self._answers.append(message)

    def wants_retry(self, conditions: int) -> bool:
        self._delay_ms = self._decide(conditions)
        if self._deadline_s and monotonic() + self._delay_ms / 1000.0 >= self._deadline_s:
            self._delay_ms = NEVER
        return self._delay_ms != NEVER

    def _decide(self, conditions: int) -> float:
        if conditions & RETRY_REFUSED_STREAM and not self._was_refused:
            self._was_refused = True
            return 0.0
        stream = self._stream
        if self._retries is None or stream is None:
            return NEVER
        return self._retries.delay_ms(conditions, stream.cluster)

    def on_close(self, status: RpcStatus) -> None:
        delay_ms, self._delay_ms = self._delay_ms, NEVER
        if delay_ms != NEVER:
            self._timer = self._client.arm(self.on_retry, delay_ms)
            return
        on_done, self._on_done = self._on_done, None
        self._forget()
        if on_done is not None:
            on_done(self._outcome(status))

    def _outcome(self, status: RpcStatus) -> RpcResponse | RpcError:
        if status.code != grpc.OK:
            return RpcError(status)
        if not self._answers:
            return RpcError(RpcStatus(grpc.INTERNAL, "the answer has no message", status.trailers))
        return RpcResponse(self._answers[0], self._headers or HeaderMap(), status.trailers)

    def _forget(self) -> None:
        """Nothing follows."""
        timer, self._timer, self._stream = self._timer, None, None
        if timer is not None:
            timer.disarm()
        if self._retries is not None:
            self._retries.release()


class _Waiter:
    """A task's, for what comes of its call."""

    def __init__(self) -> None:
        self.future: Any = new_future()

    def on_done(self, outcome: RpcResponse | RpcError) -> None:
        if not self.future.done():
            self.future.set_result(outcome)
