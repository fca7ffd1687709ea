"""`envoy.filters.http.local_ratelimit`: answers 429 to the requests for which a token bucket has no token left.

A request takes a token of the filter's (or its route's) bucket, and of those buckets whose descriptor is one that
rate limits make of the request: rate limits of the filter itself, else of the route and its virtual host. Buckets hold
for all workers together. A bucket whose descriptor leaves a value open stands for one bucket for each value.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

from envoy.extensions.common.ratelimit.v3.ratelimit_pb2 import IGNORE, INCLUDE
from envoy.extensions.filters.http.local_ratelimit.v3.local_rate_limit_pb2 import LocalRateLimit

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child, item
from meshproxy.config.runtime import Fraction
from meshproxy.config.token_buckets import BucketLease, TokenBuckets
from meshproxy.config.values import bool_or, int_or, milliseconds
from meshproxy.http.filter import CONTINUE, STOP, HttpFilter, HttpFilterType, Result, register_http_filter
from meshproxy.http.stream import Stream
from meshproxy.net.token_bucket import TokenBucket
from meshproxy.observe import response_flags as flags
from meshproxy.observe.stats import StatsScope
from meshproxy.route.header_ops import HeaderOperations, build_header_operation, build_header_operations
from meshproxy.route.rate_limit import Descriptor, Entries, RateLimit, build_filter_rate_limits
from meshproxy.route.route import ROUTE_CLUSTER, Route

_DETAILS: Final = "local_rate_limited"
_RESOURCE_EXHAUSTED: Final = 8  # gRPC status
_NO_GRPC_STATUS: Final = -1
_LEAST_FILL_MS: Final = 50
_MOST_DYNAMIC: Final = 20


class LocalRateLimitStats(StatsScope):
    """Under `<stat_prefix>.http_local_rate_limit.`."""

    COUNTERS = ("enabled", "enforced", "ok", "rate_limited")

    def __init__(self) -> None:
        super().__init__()
        self.enabled: int = 0
        self.enforced: int = 0
        self.ok: int = 0
        self.rate_limited: int = 0


class BucketSettings:
    """A TokenBucket message; `name` tells its bucket from all others. `rate` is in tokens a second."""

    def __init__(self, name: str, max_tokens: int, rate: float) -> None:
        self.name = name
        self.max_tokens = max_tokens
        self.rate = rate

    def lease(self, buckets: TokenBuckets, value: str = "") -> BucketLease:
        return buckets.lease(self.name + value, self.max_tokens, self.rate)


class Wildcard:
    """A descriptor of which some values are open (empty): one bucket for each request's values, the newest ones."""

    def __init__(self, entries: Entries, settings: BucketSettings, buckets: TokenBuckets, most: int) -> None:
        self._length = len(entries)
        self._fixed = [(index, part) for index, part in enumerate(entries) if part or index % 2 == 0]
        self._settings = settings
        self._buckets = buckets
        self._most = most
        self._held: OrderedDict[Entries, BucketLease] = OrderedDict()

    def matches(self, entries: Entries) -> bool:
        return len(entries) == self._length and all(entries[index] == part for index, part in self._fixed)

    def bucket(self, entries: Entries) -> TokenBucket:
        held = self._held
        lease = held.get(entries)
        if lease is None:
            lease = held[entries] = self._settings.lease(self._buckets, repr(entries))
            if len(held) > self._most:
                held.popitem(last=False)
        else:
            held.move_to_end(entries)
        bucket: TokenBucket = lease.bucket
        return bucket


class LimiterSettings:
    """What buckets there are. `default` None: requests of no descriptor are not limited."""

    def __init__(self) -> None:
        self.default: BucketSettings | None = None
        self.descriptors: list[tuple[Entries, BucketSettings]] = []
        self.most_dynamic: int = _MOST_DYNAMIC
        self.always_default: bool = True


class Limiter:
    """The buckets, full at first."""

    def __init__(self, settings: LimiterSettings, buckets: TokenBuckets) -> None:
        self.default: TokenBucket | None = None
        self._always_default = settings.always_default
        self._leases: list[BucketLease] = []
        self._exact: dict[Entries, TokenBucket] = {}
        self._wildcards: list[Wildcard] = []
        if settings.default is not None:
            self.default = self._hold(settings.default.lease(buckets))
        for entries, bucket in settings.descriptors:
            if b"" in entries[1::2]:
                self._wildcards.append(Wildcard(entries, bucket, buckets, settings.most_dynamic))
            else:
                self._exact[entries] = self._hold(bucket.lease(buckets))

    def _hold(self, lease: BucketLease) -> TokenBucket:
        self._leases.append(lease)
        bucket: TokenBucket = lease.bucket
        return bucket

    def take(self, descriptors: list[Descriptor]) -> tuple[bool, TokenBucket | None]:
        """Whether the request may pass, and the bucket to tell of: the one that stopped it, else that of the descriptor
        which is filled slowest, else the default one."""
        told: TokenBucket | None = None
        if descriptors:
            for hits, bucket in self._matched(descriptors):
                if hits == 0 or not bucket.take(hits):  # so it is in Envoy: what counts for nothing is stopped
                    return False, bucket
                if told is None:
                    told = bucket
        default = self.default
        if default is not None and (told is None or self._always_default):
            if not default.take(1):
                return False, default
            if told is None:
                told = default
        return True, told

    def _matched(self, descriptors: list[Descriptor]) -> list[tuple[int, TokenBucket]]:
        matched: list[tuple[int, TokenBucket]] = []
        for descriptor in descriptors:
            bucket = self._exact.get(descriptor.entries) or self._dynamic(descriptor.entries)
            if bucket is not None:
                matched.append((descriptor.hits, bucket))
        if len(matched) > 1:
            matched.sort(key=_rate)
        return matched

    def _dynamic(self, entries: Entries) -> TokenBucket | None:
        for wildcard in self._wildcards:
            if wildcard.matches(entries):
                return wildcard.bucket(entries)
        return None


def _rate(matched: tuple[int, TokenBucket]) -> float:
    return matched[1].rate


class Settings:
    """A LocalRateLimit, of the filter or of a route. `enabled` and `enforced` None: for no request."""

    def __init__(self, stats: LocalRateLimitStats, limits: LimiterSettings, limiter: Limiter | None) -> None:
        self.stats = stats
        self.limits = limits
        self.limiter = limiter  # None: each connection has its own
        self.enabled: Fraction | None = None
        self.enforced: Fraction | None = None
        self.status: int = 429
        self.grpc_status: int = _NO_GRPC_STATUS
        self.tells: bool = False  # x-ratelimit-… in responses
        self.request_operations: HeaderOperations | None = None
        self.response_operations: HeaderOperations | None = None
        self.has_descriptors: bool = False
        self.rate_limits: list[RateLimit] = []  # of its own
        self.stage: int = 0
        self.virtual_host_limits: int = 0  # VhRateLimitsOptions

    def limiter_for(self, stream: Stream) -> Limiter:
        """The limiter of the stream. A connection keeps the first that it gets, whatever its later routes say: as in
        Envoy."""
        if self.limiter is not None:
            return self.limiter
        held = stream.info.connection.rate_limiter
        if held is not None:
            assert isinstance(held, Limiter)
            return held
        limiter = Limiter(self.limits, TokenBuckets())
        stream.info.connection.rate_limiter = limiter
        return limiter

    def describe(self, stream: Stream, headers: HeaderMap) -> list[Descriptor]:
        """What rate limits say of the request."""
        route = stream.current_route()
        if route is not None and route.kind != ROUTE_CLUSTER:
            route = None
        found: list[Descriptor] = []
        if self.rate_limits:
            _describe(self.rate_limits, 0, stream, headers, route, found)
        elif route is not None:
            own = route.rate_limits
            if own is not None:
                _describe(own, self.stage, stream, headers, route, found)
            of_host = route.virtual_host.rate_limits
            if of_host is not None and self._takes_host_limits(route):
                _describe(of_host, self.stage, stream, headers, route, found)
        return found

    def _takes_host_limits(self, route: Route) -> bool:
        option = self.virtual_host_limits
        if route.include_vh_rate_limits or option == _INCLUDE:
            return True
        return option != _IGNORE and route.rate_limits is None


_INCLUDE: Final = int(INCLUDE)
_IGNORE: Final = int(IGNORE)


def _describe(
    limits: list[RateLimit], stage: int, stream: Stream, headers: HeaderMap, route: Route | None, into: list[Descriptor]
) -> None:
    for limit in limits:
        if limit.stage == stage:
            descriptor = limit.describe(headers, stream.info, route)
            if descriptor is not None:
                into.append(descriptor)


def _takes(fraction: Fraction | None, stream: Stream) -> bool:
    if fraction is None:
        return False
    return fraction.numerator >= fraction.denominator or fraction.sample(stream.manager.random())


_NONE: Final[list[Descriptor]] = []


class LocalRateLimitFilter(HttpFilter):
    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        settings = self.settings
        route = stream.current_route()
        if route is not None and route.filter_configs:
            override = stream.route_config(self)
            if isinstance(override, Settings):
                settings = override
        if settings.enabled is None or not _takes(settings.enabled, stream):
            return CONTINUE
        stats = settings.stats
        stats.enabled += 1
        descriptors = settings.describe(stream, headers) if settings.has_descriptors else _NONE
        passes, bucket = settings.limiter_for(stream).take(descriptors)
        if settings.tells:
            stream.state[self.slot] = bucket
        if passes:
            stats.ok += 1
            return CONTINUE
        stats.rate_limited += 1
        if _takes(settings.enforced, stream):
            stats.enforced += 1
            _refuse(stream, settings)
            return STOP
        if settings.request_operations is not None:
            settings.request_operations.apply(headers, stream.info)
        return CONTINUE

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        bucket = stream.state[self.slot]
        if bucket is None:
            return CONTINUE
        assert isinstance(bucket, TokenBucket)
        headers.add(b"x-ratelimit-limit", b"%d" % bucket.max_tokens)
        headers.add(b"x-ratelimit-remaining", b"%d" % bucket.remaining())
        headers.add(b"x-ratelimit-reset", b"%d" % bucket.reset_s())
        return CONTINUE


def _refuse(stream: Stream, settings: Settings) -> None:
    extra: HeaderMap | None = None
    if settings.response_operations is not None:
        extra = HeaderMap()
        settings.response_operations.apply(extra, stream.info)
    stream.send_local_reply(
        settings.status, b"local_rate_limited", _DETAILS, flags.RATE_LIMITED, extra, settings.grpc_status
    )


# -- building ----------------------------------------------------------------------------------------------------------


def build_settings(message: Any, path: str, context: BuildContext) -> Settings:
    """Compile a LocalRateLimit; errors go to the context."""
    errors, runtime = context.errors, context.runtime
    limits = _build_limits(message, path, context)
    limiter = None if message.local_rate_limit_per_downstream_connection else Limiter(limits, context.token_buckets)
    stats = context.scope(f"{message.stat_prefix}.http_local_rate_limit.", LocalRateLimitStats)
    settings = Settings(stats, limits, limiter)
    settings.enabled = runtime.fraction(message.filter_enabled) if message.HasField("filter_enabled") else None
    settings.enforced = runtime.fraction(message.filter_enforced) if message.HasField("filter_enforced") else None
    settings.status = message.status.code if message.status.code >= 400 else 429
    settings.grpc_status = _RESOURCE_EXHAUSTED if message.rate_limited_as_resource_exhausted else _NO_GRPC_STATUS
    settings.tells = message.enable_x_ratelimit_headers != 0
    settings.response_operations = build_header_operations(
        message.response_headers_to_add, [], path, errors, prefix="response_"
    )
    settings.request_operations = _build_request_operations(message, path, context)
    settings.has_descriptors = bool(limits.descriptors)
    settings.rate_limits = build_filter_rate_limits(message.rate_limits, path, context)
    settings.stage = message.stage
    settings.virtual_host_limits = message.vh_rate_limits
    return settings


def _build_request_operations(message: Any, path: str, context: BuildContext) -> HeaderOperations | None:
    field = "request_headers_to_add_when_not_enforced"
    operations = []
    for index, each in enumerate(getattr(message, field)):
        operation = build_header_operation(each, item(path, field, index), context.errors)
        if operation is not None:
            operations.append(operation)
    return HeaderOperations(operations, []) if operations else None


def _build_limits(message: Any, path: str, context: BuildContext) -> LimiterSettings:
    limits = LimiterSettings()
    limits.always_default = bool_or(message, "always_consume_default_token_bucket", True)
    limits.most_dynamic = int_or(message, "max_dynamic_descriptors", _MOST_DYNAMIC)
    if message.HasField("token_bucket"):
        limits.default = build_bucket(message.token_bucket, child(path, "token_bucket"), "", context)
    seen: set[Entries] = set()
    for index in range(len(message.descriptors)):
        descriptor, where = message.descriptors[index], item(path, "descriptors", index)
        entries: Entries = tuple([part.encode() for entry in descriptor.entries for part in (entry.key, entry.value)])
        if entries in seen:
            said = ", ".join(f"{entry.key}={entry.value}" for entry in descriptor.entries)
            context.errors.add(where, f"duplicate descriptor in the local rate descriptor: {said}")
        seen.add(entries)
        bucket = build_bucket(descriptor.token_bucket, child(where, "token_bucket"), " descriptor", context)
        if bucket is not None:
            limits.descriptors.append((entries, bucket))
    return limits


def build_bucket(message: Any, path: str, what: str, context: BuildContext) -> BucketSettings | None:
    """Compile an `envoy.type.v3.TokenBucket`; None with an error when it is filled too often."""
    interval_ms = milliseconds(message.fill_interval)
    if interval_ms < _LEAST_FILL_MS:
        context.errors.add(path, f"local rate limit{what} token bucket fill timer must be >= {_LEAST_FILL_MS}ms")
        return None
    per_fill = int_or(message, "tokens_per_fill", 1)
    return BucketSettings(context.name_of(path), message.max_tokens, per_fill * 1000.0 / interval_ms)


def build_filter(message: Any, path: str, context: BuildContext) -> LocalRateLimitFilter:
    return LocalRateLimitFilter(build_settings(message, path, context))


def build_override(message: Any, path: str, context: BuildContext) -> Settings | None:
    if not message.HasField("token_bucket"):
        context.errors.add(path, "local rate limit token bucket must be set for per filter configs")
        return None
    return build_settings(message, path, context)


register_http_filter(LocalRateLimit, HttpFilterType(build_filter, LocalRateLimit, build_override))
