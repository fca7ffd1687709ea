"""The ways of a batch of spans to a collector: OTLP over HTTP, and over gRPC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.context import Services
from meshproxy.http.async_client import CallError, HttpResponse, start_call
from meshproxy.http.grpc.client import RpcClient, RpcError, RpcResponse, open_client
from meshproxy.http.grpc.service import GrpcServiceConfig

SendDone = Callable[[str], object]  # "" when it was taken, else why not

_EXPORT: Final = b"/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_LIMIT_BYTES: Final = 64 * 1024  # of a collector's answer
_GRPC_TIMEOUT_MS: Final = 10_000.0  # where none is configured: that of OTLP's exporters


class SpanSender:
    """Takes one batch at a time. `name` says where to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._on_done: SendDone | None = None

    def send(self, services: Services, request: bytes, on_done: SendDone) -> None:
        """Send a serialised ExportTraceServiceRequest."""
        raise NotImplementedError

    def release(self) -> None:
        """Give back what is kept from one batch to the next."""

    def _tell(self, failure: str) -> None:
        on_done, self._on_done = self._on_done, None
        if on_done is not None:
            on_done(failure)


class HttpSender(SpanSender):
    """Of `http_service`: a POST for each batch, with this head."""

    def __init__(self, cluster: str, head: HeaderMap, timeout_ms: float) -> None:
        super().__init__(f"cluster {cluster}")
        self._cluster = cluster
        self._head = head
        self._timeout_ms = timeout_ms

    def send(self, services: Services, request: bytes, on_done: SendDone) -> None:
        self._on_done = on_done
        timers, head = services.dispatcher.timers, self._head.copy()
        start_call(
            services.clusters, timers, self._cluster, head, request, self._timeout_ms, _LIMIT_BYTES, self.on_response
        )

    def on_response(self, outcome: HttpResponse | CallError) -> None:
        if isinstance(outcome, CallError):
            self._tell(str(outcome))
        else:
            self._tell("" if 200 <= outcome.status < 300 else f"the collector answered {outcome.status}")


class GrpcSender(SpanSender):
    """Of `grpc_service`: a unary call for each batch."""

    def __init__(self, config: GrpcServiceConfig, user_agent: bytes) -> None:
        super().__init__(config.google.uri if config.google is not None else f"cluster {config.cluster}")
        self._config = config
        self._metadata = [(b"user-agent", user_agent)]
        self._timeout_ms = config.timeout_ms or _GRPC_TIMEOUT_MS
        self._client: RpcClient | None = None

    def send(self, services: Services, request: bytes, on_done: SendDone) -> None:
        self._on_done = on_done
        if self._client is None:
            self._client = open_client(services, self._config)
        self._client.start_unary(
            _EXPORT, request, self.on_response, timeout_ms=self._timeout_ms, metadata=self._metadata
        )

    def on_response(self, outcome: RpcResponse | RpcError) -> None:
        self._tell(str(outcome) if isinstance(outcome, RpcError) else "")

    def release(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()
