"""Envoy's response flags: what an access log's `%RESPONSE_FLAGS%` says of a stream."""

from __future__ import annotations

from typing import Final

LOCAL_HEALTHCHECK_FAILED: Final = 1 << 0
NO_HEALTHY_UPSTREAM: Final = 1 << 1
UPSTREAM_REQUEST_TIMEOUT: Final = 1 << 2
LOCAL_RESET: Final = 1 << 3
UPSTREAM_REMOTE_RESET: Final = 1 << 4
UPSTREAM_CONNECTION_FAILURE: Final = 1 << 5
UPSTREAM_CONNECTION_TERMINATION: Final = 1 << 6
UPSTREAM_OVERFLOW: Final = 1 << 7
NO_ROUTE_FOUND: Final = 1 << 8
DELAY_INJECTED: Final = 1 << 9
FAULT_INJECTED: Final = 1 << 10
RATE_LIMITED: Final = 1 << 11
UNAUTHORIZED_EXTERNAL_SERVICE: Final = 1 << 12
RATE_LIMIT_SERVICE_ERROR: Final = 1 << 13
DOWNSTREAM_CONNECTION_TERMINATION: Final = 1 << 14
UPSTREAM_RETRY_LIMIT_EXCEEDED: Final = 1 << 15
STREAM_IDLE_TIMEOUT: Final = 1 << 16
INVALID_ENVOY_REQUEST_HEADERS: Final = 1 << 17
DOWNSTREAM_PROTOCOL_ERROR: Final = 1 << 18
UPSTREAM_MAX_STREAM_DURATION_REACHED: Final = 1 << 19
RESPONSE_FROM_CACHE_FILTER: Final = 1 << 20
NO_FILTER_CONFIG_FOUND: Final = 1 << 21
DURATION_TIMEOUT: Final = 1 << 22
UPSTREAM_PROTOCOL_ERROR: Final = 1 << 23
NO_CLUSTER_FOUND: Final = 1 << 24
OVERLOAD_MANAGER: Final = 1 << 25
DNS_RESOLUTION_FAILED: Final = 1 << 26
DROP_OVERLOAD: Final = 1 << 27
DOWNSTREAM_REMOTE_RESET: Final = 1 << 28
UNCONDITIONAL_DROP_OVERLOAD: Final = 1 << 29

# bit number -> (short, long), in Envoy's order
NAMES: Final[tuple[tuple[str, str], ...]] = (
    ("LH", "FailedLocalHealthCheck"),
    ("UH", "NoHealthyUpstream"),
    ("UT", "UpstreamRequestTimeout"),
    ("LR", "LocalReset"),
    ("UR", "UpstreamRemoteReset"),
    ("UF", "UpstreamConnectionFailure"),
    ("UC", "UpstreamConnectionTermination"),
    ("UO", "UpstreamOverflow"),
    ("NR", "NoRouteFound"),
    ("DI", "DelayInjected"),
    ("FI", "FaultInjected"),
    ("RL", "RateLimited"),
    ("UAEX", "UnauthorizedExternalService"),
    ("RLSE", "RateLimitServiceError"),
    ("DC", "DownstreamConnectionTermination"),
    ("URX", "UpstreamRetryLimitExceeded"),
    ("SI", "StreamIdleTimeout"),
    ("IH", "InvalidEnvoyRequestHeaders"),
    ("DPE", "DownstreamProtocolError"),
    ("UMSDR", "UpstreamMaxStreamDurationReached"),
    ("RFCF", "ResponseFromCacheFilter"),
    ("NFCF", "NoFilterConfigFound"),
    ("DT", "DurationTimeout"),
    ("UPE", "UpstreamProtocolError"),
    ("NC", "NoClusterFound"),
    ("OM", "OverloadManagerTerminated"),
    ("DF", "DnsResolutionFailed"),
    ("DO", "DropOverload"),
    ("DR", "DownstreamRemoteReset"),
    ("UDO", "UnconditionalDropOverload"),
)


# Envoy tells flags in the order in which they were set: that no retry is left is known before what ended the last try.
_TOLD: Final = (15, *(bit for bit in range(len(NAMES)) if bit != 15))


def short_names(flags: int) -> str:
    """`UF,URX`, or `-` when there are none."""
    if flags == 0:
        return "-"
    return ",".join(NAMES[bit][0] for bit in _TOLD if flags >> bit & 1)


def long_names(flags: int) -> str:
    if flags == 0:
        return "-"
    return ",".join(NAMES[bit][1] for bit in _TOLD if flags >> bit & 1)
