"""`envoy.filters.http.fault`: delays requests, aborts them, and slows responses down, to try what users would then see.

All three may be set by configuration, or left to `x-envoy-fault-…` headers; a share of the requests gets them, which
runtime keys override: the one of the downstream cluster (`fault.http.<cluster>.…`) for a request that names its cluster
in x-envoy-downstream-service-cluster, else the general one.
"""

from __future__ import annotations

from typing import Any, Final

from envoy.extensions.filters.http.fault.v3.fault_pb2 import HTTPFault

from meshproxy.clock import monotonic
from meshproxy.codec import headers as h
from meshproxy.codec.headers import HeaderMap
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child
from meshproxy.config.runtime import Fraction, Runtime, RuntimeInt
from meshproxy.config.values import milliseconds
from meshproxy.http.filter import (
    CONTINUE,
    STOP,
    DataResult,
    HttpFilter,
    HttpFilterType,
    Result,
    register_http_filter,
)
from meshproxy.http.stream import Stream
from meshproxy.net.timers import Timer
from meshproxy.observe import response_flags as flags
from meshproxy.observe.stats import StatsScope
from meshproxy.route.header_matcher import HeaderMatcher, build_header_matchers, matches_all
from meshproxy.route.route import Route

_UNLIMITED: Final = 1 << 62
_NO_GRPC_STATUS: Final = -1
_CLUSTER: Final = b"x-envoy-downstream-service-cluster"
_NODE: Final = b"x-envoy-downstream-service-node"
# Stats by downstream cluster take their names from a header: no more than so many, since they are never forgotten.
_MOST_CLUSTER_STATS: Final = 2_000


class FaultStats(StatsScope):
    """Under `http.<stat_prefix>.fault.`; `dynamic` holds `<downstream cluster>.aborts_injected` and the like."""

    COUNTERS = ("aborts_injected", "delays_injected", "faults_overflow", "response_rl_injected")
    GAUGES = ("active_faults",)
    SET_WITH = ("aborts_injected", "delays_injected", "faults_overflow", "response_rl_injected")

    def __init__(self) -> None:
        super().__init__()
        self.aborts_injected: int = 0
        self.delays_injected: int = 0
        self.faults_overflow: int = 0
        self.response_rl_injected: int = 0
        self.active_faults: int = 0


class Share:
    """How many requests get a fault: a percentage, which the header `percentage_header` (if any) may lower."""

    def __init__(self, runtime: Runtime, key: str, suffix: str, percentage: Any, percentage_header: bytes) -> None:
        self._runtime = runtime
        self._suffix = suffix
        self._header = percentage_header
        self._fraction: Fraction = runtime.fraction(percentage)
        self._runtime_fraction = runtime.share(key, self._fraction.numerator, self._fraction.denominator)
        self._key = key

    def takes(self, stream: Stream, headers: HeaderMap, cluster: str) -> bool:
        """Whether this request is one of them."""
        random = stream.manager.random()
        asked = _number(headers.get(self._header)) if self._header else -1
        if asked < 0 and not cluster:
            return self._runtime_fraction.sample(random)
        fraction = self._fraction
        numerator = fraction.numerator if asked < 0 else min(asked, fraction.numerator)
        key = f"fault.http.{cluster}.{self._suffix}" if cluster else self._key
        return self._runtime.feature_enabled(key, numerator, random, fraction.denominator)


class Value:
    """A number by configuration or by a header, -1 for none; where there is one, runtime keys may override it."""

    def __init__(self, runtime: Runtime, key: str, suffix: str, fixed: int, header: bytes) -> None:
        self._runtime = runtime
        self._key = key
        self._suffix = suffix
        self._fixed = fixed
        self._header = header
        self._runtime_fixed: RuntimeInt = runtime.integer(key, fixed)

    def of(self, headers: HeaderMap, cluster: str, lowest: int, limit: int) -> int:
        """The number for this request; one in a header counts if it lies in [lowest, limit)."""
        value = self._fixed
        if self._header:
            value = _number(headers.get(self._header))
            if not lowest <= value < limit:
                return -1
        elif value < 0:
            return -1
        elif not cluster:
            return self._runtime_fixed.value
        value = self._runtime.get_int(self._key, value)
        if cluster:
            value = self._runtime.get_int(f"fault.http.{cluster}.{self._suffix}", value)
        return value


class Delay:
    def __init__(self, share: Share, duration_ms: Value) -> None:
        self.share = share
        self.duration_ms = duration_ms


class Abort:
    def __init__(self, share: Share, http_status: Value, grpc_status: Value) -> None:
        self.share = share
        self.http_status = http_status
        self.grpc_status = grpc_status


class RateLimit:
    """`fixed_kbps` is 0 where the header says how many KiB a second."""

    def __init__(self, share: Share, fixed_kbps: int) -> None:
        self.share = share
        self.fixed_kbps = fixed_kbps

    def kbps(self, headers: HeaderMap) -> int:
        return self.fixed_kbps or _number(headers.get(b"x-envoy-fault-throughput-response"))


class FaultSettings:
    """An HTTPFault, of the filter or of a route."""

    def __init__(self) -> None:
        self.delay: Delay | None = None
        self.abort: Abort | None = None
        self.rate_limit: RateLimit | None = None
        self.upstream_cluster: str = ""
        self.headers: list[HeaderMatcher] = []
        self.downstream_nodes: frozenset[bytes] = frozenset()
        self.max_active: RuntimeInt = RuntimeInt("", _UNLIMITED)
        self.cluster_stats: bool = True
        self.only_by_headers: bool = True  # without an x-envoy-fault-… header nothing happens

    def concerns(self, route: Route | None, headers: HeaderMap) -> bool:
        """Whether the request is of the kind that gets faults at all."""
        if self.only_by_headers and not headers.known & h.FAULT:
            return False
        if self.upstream_cluster and (route is None or route.resolve_cluster(headers) != self.upstream_cluster):
            return False
        if self.downstream_nodes and headers.get(_NODE) not in self.downstream_nodes:
            return False
        return matches_all(self.headers, headers)


class InjectedFault(Timer):
    """What the filter does to one stream; as a timer it ends the delay."""

    def __init__(self, fault_filter: FaultFilter, stream: Stream, settings: FaultSettings, cluster: str) -> None:
        super().__init__()
        self.stream = stream
        self.settings = settings
        self.cluster = cluster
        self.active: bool = False  # counted as one
        self.limiter: ResponseLimiter | None = None
        self._filter = fault_filter

    def on_timer(self) -> None:
        self._filter.on_delay_over(self)


class FaultFilter(HttpFilter):
    def __init__(self, settings: FaultSettings, stats: FaultStats) -> None:
        self.settings = settings
        self.stats = stats

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        settings = self.settings
        route = stream.current_route()
        if route is not None and route.filter_configs:
            override = stream.route_config(self)
            if isinstance(override, FaultSettings):
                settings = override
        if not settings.concerns(route, headers):
            return CONTINUE
        cluster = headers.get(_CLUSTER) if headers.known & h.ENVOY else None
        fault = InjectedFault(self, stream, settings, "" if cluster is None else cluster.decode("latin-1"))
        stream.state[self.slot] = fault
        self._limit_response(fault, headers)
        if self._delay(fault, headers) or self._abort(fault, headers):
            return STOP
        return CONTINUE

    def on_response_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        fault = stream.state[self.slot]
        if fault is None:
            return CONTINUE
        assert isinstance(fault, InjectedFault)
        return CONTINUE if fault.limiter is None else fault.limiter.pace(data)

    def on_stream_done(self, stream: Stream) -> None:
        fault = stream.state[self.slot]
        if fault is None:
            return
        assert isinstance(fault, InjectedFault)
        fault.disarm()
        if fault.limiter is not None:
            fault.limiter.disarm()
        if fault.active:
            fault.active = False
            self.stats.active_faults -= 1

    def on_delay_over(self, fault: InjectedFault) -> None:
        """A delayed request is aborted after all, or goes on."""
        if not self._abort(fault, fault.stream.request_headers):
            fault.stream.resume_request()

    def _delay(self, fault: InjectedFault, headers: HeaderMap) -> bool:
        delay = fault.settings.delay
        if delay is None or not delay.share.takes(fault.stream, headers, fault.cluster):
            return False
        duration_ms = delay.duration_ms.of(headers, fault.cluster, 1, _UNLIMITED)
        if duration_ms <= 0 or not self._activate(fault):
            return False
        fault.stream.info.response_flags |= flags.DELAY_INJECTED
        self.stats.delays_injected += 1
        self._count_for_cluster(fault, "delays_injected")
        fault.stream.manager.timers.arm(fault, float(duration_ms))
        return True

    def _abort(self, fault: InjectedFault, headers: HeaderMap) -> bool:
        abort = fault.settings.abort
        if abort is None or not abort.share.takes(fault.stream, headers, fault.cluster):
            return False
        grpc_status = _NO_GRPC_STATUS
        status = abort.http_status.of(headers, fault.cluster, 200, 600)
        if not 200 <= status <= 999:
            status = 200
            grpc_status = abort.grpc_status.of(headers, fault.cluster, 0, 1 << 31)
            if grpc_status < 0:
                return False
        if not self._activate(fault):
            return False
        self.stats.aborts_injected += 1
        self._count_for_cluster(fault, "aborts_injected")
        fault.stream.send_local_reply(
            status, b"fault filter abort", "fault_filter_abort", flags.FAULT_INJECTED, None, grpc_status
        )
        return True

    def _limit_response(self, fault: InjectedFault, headers: HeaderMap) -> None:
        limit = fault.settings.rate_limit
        if limit is None or not limit.share.takes(fault.stream, headers, ""):
            return
        kbps = limit.kbps(headers)
        if kbps > 0:
            self.stats.response_rl_injected += 1
            fault.limiter = ResponseLimiter(fault.stream, kbps)

    def _activate(self, fault: InjectedFault) -> bool:
        """Count the stream as one with a fault, once; False when there are too many."""
        if fault.active:
            return True
        if self.stats.active_faults >= fault.settings.max_active.value:
            self.stats.faults_overflow += 1
            return False
        fault.active = True
        self.stats.active_faults += 1
        return True

    def _count_for_cluster(self, fault: InjectedFault, what: str) -> None:
        stats = self.stats
        if fault.cluster and fault.settings.cluster_stats and len(stats.dynamic) < _MOST_CLUSTER_STATS:
            stats.count(f"{fault.cluster}.{what}")


_SLICES_PER_SECOND: Final = 20


class ResponseLimiter(Timer):
    """Lets a response's body pass in slices of a twentieth of a second's worth; as a timer it waits for the next one.

    A token bucket that holds a second's worth, and one slice at the start.
    """

    def __init__(self, stream: Stream, kbps: int) -> None:
        super().__init__()
        self._stream = stream
        self._slice_bytes: int = kbps * 1024 // _SLICES_PER_SECOND
        self._tokens: float = 1.0
        self._filled: float = monotonic()

    def pace(self, data: bytes) -> DataResult:
        """Pass on as much as there are tokens for, and keep the rest for later."""
        now = monotonic()
        self._tokens = min(self._tokens + (now - self._filled) * _SLICES_PER_SECOND, float(_SLICES_PER_SECOND))
        self._filled = now
        size = len(data)
        slices = min(int(self._tokens), -(-size // self._slice_bytes))
        self._tokens -= slices
        allowed = slices * self._slice_bytes
        if allowed >= size:
            return CONTINUE
        self._stream.keep_response_data(data[allowed:])
        if allowed:
            return data[:allowed]
        self._stream.manager.timers.arm(self, 1000.0 / _SLICES_PER_SECOND)
        return STOP

    def on_timer(self) -> None:
        self._stream.resume_response()


def _number(value: bytes | None) -> int:
    """A non-negative decimal number, as Envoy reads one; -1 for anything else."""
    if value is None:
        return -1
    digits = value.strip().removeprefix(b"+")
    return int(digits) if digits.isdigit() and len(digits) < 19 else -1


# -- building ----------------------------------------------------------------------------------------------------------


def build_settings(message: Any, path: str, context: BuildContext) -> FaultSettings:
    """Compile an HTTPFault; errors go to the context."""
    runtime = context.runtime
    settings = FaultSettings()
    by_header = True
    if message.HasField("delay"):
        settings.delay = _build_delay(message, child(path, "delay"), context)
        by_header &= message.delay.HasField("header_delay")
    if message.HasField("abort"):
        settings.abort = _build_abort(message, child(path, "abort"), context)
        by_header &= message.abort.HasField("header_abort")
    if message.HasField("response_rate_limit"):
        settings.rate_limit = _build_rate_limit(message, child(path, "response_rate_limit"), context)
        by_header &= message.response_rate_limit.HasField("header_limit")
    settings.only_by_headers = by_header
    settings.upstream_cluster = message.upstream_cluster
    settings.headers = build_header_matchers(message.headers, path, "headers", context.errors)
    settings.downstream_nodes = frozenset(node.encode() for node in message.downstream_nodes)
    most = message.max_active_faults.value if message.HasField("max_active_faults") else _UNLIMITED
    settings.max_active = runtime.integer(message.max_active_faults_runtime or "fault.http.max_active_faults", most)
    settings.cluster_stats = not message.disable_downstream_cluster_stats
    return settings


class _RuntimeKeys:
    """Makes what runtime may change, and with `by_header` a request header x-envoy-fault-…, of one kind of fault."""

    def __init__(self, runtime: Runtime, *, by_header: bool) -> None:
        self._runtime = runtime
        self._by_header = by_header

    def share(self, key: str, suffix: str, fault: Any, header: bytes) -> Share:
        return Share(self._runtime, key or f"fault.http.{suffix}", suffix, fault.percentage, self._header(header))

    def value(self, key: str, suffix: str, default: int, header: bytes) -> Value:
        return Value(self._runtime, key or f"fault.http.{suffix}", suffix, default, self._header(header))

    def _header(self, name: bytes) -> bytes:
        return b"x-envoy-fault-" + name if self._by_header else b""


def _build_delay(message: Any, path: str, context: BuildContext) -> Delay | None:
    delay = message.delay
    kind = delay.WhichOneof("fault_delay_secifier")
    if kind is None:
        context.errors.add(path, "one of fixed_delay, header_delay is required")
        return None
    runtime = _RuntimeKeys(context.runtime, by_header=kind == "header_delay")
    fixed_ms = milliseconds(delay.fixed_delay) if kind == "fixed_delay" else -1
    return Delay(
        runtime.share(message.delay_percent_runtime, "delay.fixed_delay_percent", delay, b"delay-request-percentage"),
        runtime.value(message.delay_duration_runtime, "delay.fixed_duration_ms", fixed_ms, b"delay-request"),
    )


def _build_abort(message: Any, path: str, context: BuildContext) -> Abort | None:
    abort = message.abort
    kind = abort.WhichOneof("error_type")
    if kind is None:
        context.errors.add(path, "one of http_status, grpc_status, header_abort is required")
        return None
    runtime = _RuntimeKeys(context.runtime, by_header=kind == "header_abort")
    http_status = abort.http_status if kind == "http_status" else -1
    grpc_status = abort.grpc_status if kind == "grpc_status" else -1
    return Abort(
        runtime.share(message.abort_percent_runtime, "abort.abort_percent", abort, b"abort-request-percentage"),
        runtime.value(message.abort_http_status_runtime, "abort.http_status", http_status, b"abort-request"),
        runtime.value(message.abort_grpc_status_runtime, "abort.grpc_status", grpc_status, b"abort-grpc-request"),
    )


def _build_rate_limit(message: Any, path: str, context: BuildContext) -> RateLimit | None:
    limit = message.response_rate_limit
    kind = limit.WhichOneof("limit_type")
    if kind is None:
        context.errors.add(path, "one of fixed_limit, header_limit is required")
        return None
    runtime = _RuntimeKeys(context.runtime, by_header=kind == "header_limit")
    key = message.response_rate_limit_percent_runtime
    share = runtime.share(key, "rate_limit.response_percent", limit, b"throughput-response-percentage")
    return RateLimit(share, limit.fixed_limit.limit_kbps if kind == "fixed_limit" else 0)


def build_fault(message: Any, path: str, context: BuildContext) -> FaultFilter:
    settings = build_settings(message, path, context)
    return FaultFilter(settings, context.scope(f"{context.stat_prefix}fault.", FaultStats))


register_http_filter(HTTPFault, HttpFilterType(build_fault, HTTPFault, build_settings))
