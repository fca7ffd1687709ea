"""Which streams are traced, and what the upstream is told of it: all that a request pays for, before there is a span.

The rules are those of Envoy's connection manager and its OpenTelemetry tracer: the number in x-request-id decides, so
that all proxies on the way trace the same requests, and the decision is packed into the id for them to see. A request
that brings a trace of its own is traced where both its sender and these rules want it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from meshproxy.codec import headers as h
from meshproxy.codec.headers import HeaderMap
from meshproxy.http.tracing.exporter import SpanExporter
from meshproxy.http.tracing.propagation import (
    IDS,
    NO_CONTEXT,
    RemoteContext,
    read_context,
    traceparent,
    write_b3,
)
from meshproxy.http.tracing.span import StreamTrace
from meshproxy.observe.stats import StatsScope
from meshproxy.observe.stream_info import TRACE_CLIENT, TRACE_FORCED, TRACE_NONE, TRACE_SAMPLED, StreamInfo
from meshproxy.route.route import Route
from meshproxy.route.tracing import RouteTracing, Sampling

if TYPE_CHECKING:
    from meshproxy.http.stream import Stream

# The 15th character of a UUID, its version, tells why the request is traced.
_UUID_BYTES: Final = 36
_REASON_AT: Final = 14
_REASONS: Final = {0x39: TRACE_SAMPLED, 0x61: TRACE_FORCED, 0x62: TRACE_CLIENT}  # 9, a, b
_CODES: Final = {TRACE_NONE: b"4", TRACE_SAMPLED: b"9", TRACE_FORCED: b"a", TRACE_CLIENT: b"b"}

_ZERO: Final = 0x30
_NINE: Final = 0x39
_LOWER_A: Final = 0x61
_LOWER_F: Final = 0x66


class TracingStats(StatsScope):
    """`http.<stat_prefix>.tracing.`: decisions, by their reason."""

    COUNTERS: ClassVar[tuple[str, ...]] = (
        "random_sampling",
        "service_forced",
        "client_enabled",
        "not_traceable",
        "health_check",
    )

    def __init__(self) -> None:
        super().__init__()
        self.random_sampling: int = 0
        self.service_forced: int = 0
        self.client_enabled: int = 0
        self.not_traceable: int = 0
        self.health_check: int = 0  # none: what is one is known only after the decision (as in Envoy)

    def charge(self, reason: int) -> None:
        if reason == TRACE_NONE:
            self.not_traceable += 1
        elif reason == TRACE_SAMPLED:
            self.random_sampling += 1
        elif reason == TRACE_FORCED:
            self.service_forced += 1
        else:
            self.client_enabled += 1


class Tracing:
    """`tracing` of a connection manager."""

    def __init__(self, defaults: RouteTracing, stats: TracingStats, exporter: SpanExporter | None) -> None:
        self.defaults = defaults
        self.stats = stats
        self.exporter = exporter  # None: there is no provider, so decisions are all there is
        self.sampling: Sampling = defaults.sampling
        self.egress: bool = False  # the listener's traffic direction is outbound
        self.by_request_id: bool = True  # use_request_id_for_trace_sampling
        self.packs_reason: bool = True  # pack_trace_reason
        self.always_on: bool = False  # the sampler: what our rules want is traced, whatever the sender says
        self.spawns_attempts: bool = False  # spawn_upstream_span
        self.verbose: bool = False
        self.max_path_bytes: int = 256
        self.node: bytes = b""
        self.zone: bytes = b""

    def begin(self, stream: Stream, headers: HeaderMap, route: Route | None) -> None:
        """Decide, and tell the upstream by the request's headers. Only a stream that is traced, or has a decorator,
        gets an object for it."""
        info = stream.info
        reason = info.trace_reason = self._decide(stream, headers, route)
        self.stats.charge(reason)
        sampled = reason != TRACE_NONE
        if headers.known & h.TRACE or self.exporter is None:
            self._begin_within(stream, headers, route, sampled)
            return
        parent = IDS.new()
        if sampled:
            parent = parent[:-1] + b"1"
        info.traceparent = parent
        headers.append((b"traceparent", parent), h.TRACE)
        if sampled or headers.known & h.ENVOY_TRACE or (route is not None and route.decorator is not None):
            self._make(stream, headers, route, NO_CONTEXT, sampled)

    def _begin_within(self, stream: Stream, headers: HeaderMap, route: Route | None, wanted: bool) -> None:
        """As `begin`, where the request brings something that concerns traces, or there is no provider."""
        remote = None if self.exporter is None else read_context(headers)
        sampled = False
        if remote is not None:
            sampled = wanted and (remote.sampled or self.always_on)
            self._pass_on(stream, headers, remote, sampled)
        if sampled or headers.known & h.ENVOY_TRACE or (route is not None and route.decorator is not None):
            self._make(stream, headers, route, remote or NO_CONTEXT, sampled)

    def _pass_on(self, stream: Stream, headers: HeaderMap, remote: RemoteContext, sampled: bool) -> None:
        own = IDS.new()
        trace_id, span_id = remote.trace_id or own[3:35], own[36:52]
        parent = stream.info.traceparent = traceparent(trace_id, span_id, sampled)
        headers.set(b"traceparent", parent)
        if remote.state:
            headers.set(b"tracestate", remote.state)
        elif remote is NO_CONTEXT:
            headers.remove(b"tracestate")  # it belongs to a traceparent
        if remote.b3:
            write_b3(headers, remote.b3, trace_id, span_id, remote.span_id, sampled)

    def _make(
        self, stream: Stream, headers: HeaderMap, route: Route | None, remote: RemoteContext, sampled: bool
    ) -> None:
        own = stream.info.traceparent
        trace = StreamTrace(self, own[3:35], own[36:52], remote, sampled)
        if route is not None:
            trace.route = route.tracing
        if self._uses_decorators(route):
            trace.decorate(headers, route)
        if sampled or trace.decorates:
            stream.trace = trace

    def _uses_decorators(self, route: Route | None) -> bool:
        """Where a name is configured for the spans, nobody else's counts."""
        if self.defaults.operation is not None:
            return False
        return route is None or route.tracing is None or route.tracing.operation is None

    def _decide(self, stream: Stream, headers: HeaderMap, route: Route | None) -> int:
        """Why the stream is traced; TRACE_NONE: it is not."""
        if not self.by_request_id:
            return TRACE_SAMPLED
        info = stream.info
        number = leading_number(info.request_id)
        if number < 0:
            return TRACE_NONE
        number %= 10_000
        sampling = self.sampling
        if route is not None and route.tracing is not None:
            sampling = route.tracing.sampling
        before = packed_reason(info.request_id)
        reason = before
        if before == TRACE_NONE:
            reason = _draw(sampling, stream, headers, number)
            if reason == TRACE_NONE:
                return TRACE_NONE
        if not sampling.overall.sample(number):
            reason = TRACE_NONE
        if reason != before and self.packs_reason:
            pack_reason(headers, info, reason)
        return reason

    def on_response_headers(self, stream: Stream, headers: HeaderMap) -> None:
        """The names of operations that proxies tell one another."""
        if self.egress and headers.known & h.ENVOY_TRACE and self._uses_decorators(stream.route):
            operation = headers.get(b"x-envoy-decorator-operation")
            if operation is not None:
                headers.remove(b"x-envoy-decorator-operation")
                if operation and stream.trace is not None:
                    stream.trace.name = operation
        elif stream.trace is not None and stream.trace.decorated:
            headers.set(b"x-envoy-decorator-operation", stream.trace.decorated)


def _draw(sampling: Sampling, stream: Stream, headers: HeaderMap, number: int) -> int:
    """Why a request is traced that nobody decided about before; `number` is that of its id, below 10,000."""
    known = headers.known
    if known & h.TRACE and headers.get(b"x-client-trace-id") is not None and sampling.client.sample(stream.random):
        return TRACE_CLIENT
    if known & h.ENVOY_TRACE and headers.get(b"x-envoy-force-trace") is not None:
        return TRACE_FORCED
    share = sampling.random  # `sample`, without a call: this is every request's
    return TRACE_SAMPLED if number % share.denominator < share.numerator else TRACE_NONE


def leading_number(request_id: bytes) -> int:
    """The number that the first eight characters are in hexadecimal; -1 when they are none."""
    if len(request_id) < 8:
        return -1
    number = 0
    for i in range(8):
        digit = request_id[i]
        if _ZERO <= digit <= _NINE:
            number = number * 16 + digit - _ZERO
            continue
        digit |= 0x20
        if not _LOWER_A <= digit <= _LOWER_F:
            return -1
        number = number * 16 + digit - _LOWER_A + 10
    return number


def packed_reason(request_id: bytes) -> int:
    """What a proxy before us decided."""
    if len(request_id) != _UUID_BYTES:
        return TRACE_NONE
    code = request_id[_REASON_AT]
    if code == 0x34:
        return TRACE_NONE
    return _REASONS.get(code, TRACE_NONE)


def pack_reason(headers: HeaderMap, info: StreamInfo, reason: int) -> None:
    """Write the decision into x-request-id, where that is a UUID."""
    request_id = info.request_id
    if len(request_id) == _UUID_BYTES:
        packed = b"".join((request_id[:_REASON_AT], _CODES[reason], request_id[_REASON_AT + 1 :]))
        headers.set(b"x-request-id", packed)
        info.request_id = packed
