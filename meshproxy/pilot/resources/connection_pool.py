"""Connections to a cluster's hosts, and when one of them is given up: a traffic policy's `connectionPool`,
`outlierDetection` and `retryBudget`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from envoy.config.cluster.v3.circuit_breaker_pb2 import CircuitBreakers
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.protocol_pb2 import Http1ProtocolOptions, Http2ProtocolOptions
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions
from google.protobuf.wrappers_pb2 import UInt32Value

from meshproxy.pilot.resources.messages import duration, duration_of, pack, uint32

if TYPE_CHECKING:
    from meshproxy.pilot.documents.destination_rule import (
        HttpSettings,
        OutlierDetection,
        RetryBudget,
        TcpSettings,
        TrafficPolicy,
    )

HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

_CONNECT_TIMEOUT_MS: Final = 10_000
_UNLIMITED: Final = 4_294_967_295
# What a host gets when its cluster speaks HTTP/2: as many streams as a peer takes.
HTTP1: Final = "http1"
HTTP2: Final = "http2"
DOWNSTREAM: Final = "downstream"


def set_connection_pool(cluster: Cluster, policy: TrafficPolicy, protocol: str) -> None:
    """Limits, times and the version of HTTP (`HTTP1`, `HTTP2`, `DOWNSTREAM`: the version that the request came with, or
    `""`: not HTTP)."""
    pool = policy.connection_pool
    tcp = pool.tcp if pool is not None else None
    http = pool.http if pool is not None else None
    _set_limits(cluster, tcp, http, policy.retry_budget)
    _set_tcp(cluster, tcp)
    if protocol:
        _set_http(cluster, tcp, http, protocol)


def _set_limits(
    cluster: Cluster, tcp: TcpSettings | None, http: HttpSettings | None, budget: RetryBudget | None
) -> None:
    limits = CircuitBreakers.Thresholds(track_remaining=True)
    limits.max_connections.value = (tcp.max_connections if tcp is not None else None) or _UNLIMITED
    limits.max_pending_requests.value = (http.http1_max_pending_requests if http is not None else None) or _UNLIMITED
    limits.max_requests.value = (http.http2_max_requests if http is not None else None) or _UNLIMITED
    if budget is None:
        limits.max_retries.value = (http.max_retries if http is not None else None) or _UNLIMITED
    else:
        limits.retry_budget.budget_percent.value = 20.0 if budget.percent is None else budget.percent
        limits.retry_budget.min_retry_concurrency.value = budget.min_retry_concurrency or 3
    cluster.circuit_breakers.thresholds.append(limits)


def _set_tcp(cluster: Cluster, tcp: TcpSettings | None) -> None:
    timeout = tcp.connect_timeout if tcp is not None else None
    cluster.connect_timeout.CopyFrom(duration(_CONNECT_TIMEOUT_MS) if timeout is None else duration_of(timeout))
    keepalive = tcp.tcp_keepalive if tcp is not None else None
    if keepalive is None:
        return
    message = cluster.upstream_connection_options.tcp_keepalive
    message.SetInParent()
    if keepalive.probes:
        message.keepalive_probes.CopyFrom(uint32(keepalive.probes))
    if keepalive.time is not None:
        message.keepalive_time.CopyFrom(uint32(int(keepalive.time.total_seconds())))
    if keepalive.interval is not None:
        message.keepalive_interval.CopyFrom(uint32(int(keepalive.interval.total_seconds())))


def _set_http(cluster: Cluster, tcp: TcpSettings | None, http: HttpSettings | None, protocol: str) -> None:
    options = HttpProtocolOptions()
    common = options.common_http_protocol_options
    if http is not None:
        if http.idle_timeout is not None:
            common.idle_timeout.CopyFrom(duration_of(http.idle_timeout))
        if http.max_requests_per_connection:
            common.max_requests_per_connection.CopyFrom(uint32(http.max_requests_per_connection))
    if tcp is not None and tcp.max_connection_duration is not None:
        common.max_connection_duration.CopyFrom(duration_of(tcp.max_connection_duration))
    http2 = Http2ProtocolOptions()
    if http is not None and http.max_concurrent_streams:
        http2.max_concurrent_streams.CopyFrom(uint32(http.max_concurrent_streams))
    version = _version_of(http, protocol)
    if version == DOWNSTREAM:
        options.use_downstream_protocol_config.http_protocol_options.SetInParent()
        options.use_downstream_protocol_config.http2_protocol_options.CopyFrom(http2)
    elif version == HTTP2:
        options.explicit_http_config.http2_protocol_options.CopyFrom(http2)
    else:
        options.explicit_http_config.http_protocol_options.CopyFrom(Http1ProtocolOptions())
    cluster.typed_extension_protocol_options[HTTP_OPTIONS].CopyFrom(pack(options))


def version_of(policy: TrafficPolicy, protocol: str) -> str:
    """The version of HTTP that a cluster will speak, for `protocol` as in `set_connection_pool`."""
    pool = policy.connection_pool
    return _version_of(pool.http if pool is not None else None, protocol) if protocol else ""


def _version_of(http: HttpSettings | None, protocol: str) -> str:
    """`useClientProtocol` wins over `h2UpgradePolicy`, and that over the port's own."""
    if http is not None and http.use_client_protocol:
        return DOWNSTREAM
    if http is not None and http.h2_upgrade_policy == "UPGRADE" and protocol == HTTP1:
        return HTTP2
    return protocol


def set_outlier_detection(cluster: Cluster, rule: OutlierDetection | None) -> None:
    """Hosts that fail are left out for a while. Envoy's own statistics of success rates stay off, as in Istio."""
    if rule is None:
        return
    detection = cluster.outlier_detection
    detection.enforcing_success_rate.value = 0
    if rule.consecutive5xx_errors is not None:
        _enforce(detection.consecutive_5xx, detection.enforcing_consecutive_5xx, rule.consecutive5xx_errors)
    if rule.consecutive_gateway_errors is not None:
        _enforce(
            detection.consecutive_gateway_failure,
            detection.enforcing_consecutive_gateway_failure,
            rule.consecutive_gateway_errors,
        )
    if rule.split_external_local_origin_errors:
        detection.split_external_local_origin_errors = True
        if rule.consecutive_local_origin_failures is not None:
            _enforce(
                detection.consecutive_local_origin_failure,
                detection.enforcing_consecutive_local_origin_failure,
                rule.consecutive_local_origin_failures,
            )
    if rule.interval is not None:
        detection.interval.CopyFrom(duration_of(rule.interval))
    if rule.base_ejection_time is not None:
        detection.base_ejection_time.CopyFrom(duration_of(rule.base_ejection_time))
    if rule.max_ejection_percent:
        detection.max_ejection_percent.CopyFrom(uint32(rule.max_ejection_percent))
    cluster.common_lb_config.healthy_panic_threshold.value = rule.min_health_percent or 0


def _enforce(threshold: UInt32Value, share: UInt32Value, count: int) -> None:
    """0 switches a detector off, which in Envoy's API is its share."""
    if count:
        threshold.value = count
    share.value = 100 if count else 0
