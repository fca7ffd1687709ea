"""The network filter that bounds how many connections come in a while: `envoy.filters.network.local_ratelimit`.

Each connection takes a token of the bucket, which holds for all workers; one that finds none is closed at once. Filters
with the same `share_key` and the same bucket share it, wherever they stand.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from envoy.extensions.filters.network.local_ratelimit.v3.local_rate_limit_pb2 import LocalRateLimit

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child
from meshproxy.config.runtime import RuntimeBool
from meshproxy.config.token_buckets import BucketLease
from meshproxy.config.values import int_or, milliseconds
from meshproxy.http.network_filter import NETWORK_FILTERS, ConnectionGate
from meshproxy.net.connection import Connection, ConnectionHandler
from meshproxy.net.token_bucket import TokenBucket
from meshproxy.observe import response_flags as flags
from meshproxy.observe.stats import StatsScope
from meshproxy.observe.stream_info import ConnectionInfo

LEAST_FILL_MS: Final = 50


class NetworkRateLimitStats(StatsScope):
    """Under `local_rate_limit.<stat_prefix>.`."""

    COUNTERS: ClassVar[tuple[str, ...]] = ("rate_limited",)

    def __init__(self) -> None:
        super().__init__()
        self.rate_limited: int = 0


class LocalRateLimitGate(ConnectionGate):
    def __init__(self, stats: NetworkRateLimitStats, lease: BucketLease, enabled: RuntimeBool) -> None:
        self._stats = stats
        self._lease = lease  # for as long as the bucket is used
        self._bucket: TokenBucket = lease.bucket
        self._enabled = enabled

    def admit(self, connection: Connection, info: ConnectionInfo) -> bool:
        if not self._enabled.value or self._bucket.take(1):
            return True
        self._stats.rate_limited += 1
        info.response_flags |= flags.UPSTREAM_RETRY_LIMIT_EXCEEDED  # so it is in Envoy
        connection.set_handler(Refused())
        connection.close()
        return False


class Refused(ConnectionHandler):
    """A connection that found no token."""

    def on_data(self, data: bytes) -> None:
        """Nobody listens."""


def build_local_ratelimit(message: Any, path: str, context: BuildContext) -> ConnectionGate | None:
    where = child(path, "token_bucket")
    bucket = message.token_bucket
    interval_ms = milliseconds(bucket.fill_interval)
    if interval_ms < LEAST_FILL_MS:
        context.errors.add(where, f"local rate limit token bucket fill timer must be >= {LEAST_FILL_MS}ms")
        return None
    name = f"share_key {message.share_key}" if message.share_key else context.name_of(where)
    rate = int_or(bucket, "tokens_per_fill", 1) * 1000.0 / interval_ms
    enabled = message.runtime_enabled
    return LocalRateLimitGate(
        context.scope(f"local_rate_limit.{message.stat_prefix}.", NetworkRateLimitStats),
        context.token_buckets.lease(name, bucket.max_tokens, rate),
        context.runtime.switch(
            enabled.runtime_key, enabled.default_value.value if message.HasField("runtime_enabled") else True
        ),
    )


NETWORK_FILTERS.register(LocalRateLimit, build_local_ratelimit)
