"""What routes make of the time that a `grpc-timeout` asks for. All times in ms; 0 is without end."""

from __future__ import annotations

from typing import Any

from meshproxy.config.values import milliseconds


class GrpcLimit:
    """The most that is granted, and what the proxy keeps of it for the answer's way back."""

    def __init__(self, max_ms: float, offset_ms: float) -> None:
        self.max_ms = max_ms
        self.offset_ms = offset_ms

    def request_ms(self, asked_ms: float) -> float:
        """By `max_grpc_timeout` and `grpc_timeout_offset`: the timeout of the request. An offset that leaves nothing
        does not apply."""
        if self.offset_ms < asked_ms:
            asked_ms -= self.offset_ms
        return self.max_ms if self.max_ms > 0.0 and not 0.0 < asked_ms <= self.max_ms else asked_ms

    def stream_ms(self, asked_ms: float) -> float:
        """By `max_stream_duration`: how long the stream may live; here 0 is not at all."""
        if 0.0 < self.max_ms < asked_ms:
            asked_ms = self.max_ms
        return max(asked_ms - self.offset_ms, 0.0)


def build_request_limit(action: Any) -> GrpcLimit | None:
    """Of a RouteAction; None where it leaves `grpc-timeout` alone."""
    if not action.HasField("max_grpc_timeout"):
        return None
    return GrpcLimit(float(milliseconds(action.max_grpc_timeout)), float(milliseconds(action.grpc_timeout_offset)))


def build_stream_limit(duration: Any) -> GrpcLimit | None:
    """Of a MaxStreamDuration; None where it leaves `grpc-timeout` alone."""
    if not duration.HasField("grpc_timeout_header_max"):
        return None
    offset_ms = milliseconds(duration.grpc_timeout_header_offset)
    return GrpcLimit(float(milliseconds(duration.grpc_timeout_header_max)), float(offset_ms))
