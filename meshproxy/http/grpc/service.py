"""`envoy.config.core.v3.GrpcService`: which gRPC server is asked, through what, and what each call tells it."""

from __future__ import annotations

from typing import Any

from meshproxy.codec.headers import Field
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child, item
from meshproxy.config.values import int_or, milliseconds
from meshproxy.http.grpc.google_target import GoogleTarget, build_google_target
from meshproxy.http.grpc.metadata import MetadataValue, build_metadata
from meshproxy.observe.stream_info import StreamInfo
from meshproxy.route.retry_policy import RetryPolicy, build_back_off, parse_retry_grpc_on, parse_retry_on


class GrpcServiceConfig:
    """A server behind one of our clusters, or the `google` target of one that grpcio asks."""

    def __init__(self, cluster: str, google: GoogleTarget | None = None) -> None:
        self.cluster = cluster
        self.google = google
        self.authority: bytes = b""  # b"": the cluster's name
        self.timeout_ms: float = 0.0  # of a call; 0: none
        self.retry: RetryPolicy | None = None  # of unary calls
        self.limit_bytes: int = 0  # of a message that comes; 0: none
        self.envoy_headers: bool = True  # x-envoy-internal, x-forwarded-for
        self.metadata: dict[bytes, MetadataValue] = {}  # by name: the last of several counts, as in Envoy

    def initial_metadata(self, info: StreamInfo | None) -> list[Field]:
        """What each call brings, on behalf of a stream or of none."""
        return [(each.name, each.value(info)) for each in self.metadata.values()]


def build_grpc_service(message: Any, path: str, context: BuildContext, *, per_stream: bool) -> GrpcServiceConfig | None:
    """From the message at `path`; None with errors. `per_stream`: its calls are made on behalf of streams, and its
    metadata may tell of them."""
    before = len(context.errors)
    if message.HasField("google_grpc"):
        target = build_google_target(message.google_grpc, child(path, "google_grpc"), context)
        config = GrpcServiceConfig("", target)
        if message.HasField("retry_policy"):
            context.errors.add(child(path, "retry_policy"), "calls of google_grpc are not retried")
    elif message.HasField("envoy_grpc"):
        config = _on_cluster(message.envoy_grpc)
        if message.HasField("retry_policy"):
            config.retry = _build_retry(message.retry_policy, child(path, "retry_policy"), context)
    else:
        context.errors.add(path, "one of envoy_grpc, google_grpc is required")
        return None
    config.timeout_ms = float(milliseconds(message.timeout))
    for index, header in enumerate(message.initial_metadata):
        value = build_metadata(header, item(path, "initial_metadata", index), context, per_stream)
        if value is not None:
            config.metadata[value.name] = value
    return config if len(context.errors) == before else None


def _on_cluster(message: Any) -> GrpcServiceConfig:
    config = GrpcServiceConfig(message.cluster_name)
    config.authority = message.authority.encode()
    config.limit_bytes = int_or(message, "max_receive_message_length", 0)
    config.envoy_headers = not message.skip_envoy_headers
    return config


def _build_retry(message: Any, path: str, context: BuildContext) -> RetryPolicy:
    """An `envoy.config.core.v3.RetryPolicy`: conditions, and those of gRPC, in `retry_on`."""
    policy = RetryPolicy()
    policy.retry_on = parse_retry_on(message.retry_on) | parse_retry_grpc_on(message.retry_on)
    policy.num_retries = int_or(message, "num_retries", policy.num_retries)
    if message.HasField("retry_back_off"):
        build_back_off(policy, message.retry_back_off, child(path, "retry_back_off"), context.errors)
    return policy
