"""The network filter that passes connections on as they are: `envoy.filters.network.tcp_proxy`.

A connection is joined to one connection upstream; what one side sends goes to the other, and so does the end of what
it sends (half close). The rules, stats and flags are those of Envoy's filter, but for one: while the upstream connects,
the downstream is read up to its buffer limit, so that one that leaves meanwhile is noticed.
"""

from __future__ import annotations

import random
from typing import Any, ClassVar, Final

from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy

from meshproxy.clock import monotonic
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child, item
from meshproxy.config.values import int_or, milliseconds_or
from meshproxy.errors import RESET_CONNECT_TIMEOUT, RESET_OVERFLOW
from meshproxy.http.build import build_access_logs
from meshproxy.http.network_filter import (
    NETWORK_FILTERS,
    ActiveConnection,
    ConnectionOwner,
    NetworkFilter,
    RawConnection,
)
from meshproxy.net.connection import Connection
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.net.proxy_protocol import ProxyHeader, Tlv
from meshproxy.net.timers import CallTimer
from meshproxy.observe import response_flags as flags
from meshproxy.observe.access_log import AccessLog
from meshproxy.observe.stats import StatsScope
from meshproxy.observe.stream_info import ConnectionInfo, StreamInfo, UpstreamInfo
from meshproxy.observe.wire import WireBytes
from meshproxy.route.hash_policy import NO_HASH, source_ip_hash
from meshproxy.route.metadata_criteria import MetadataCriteria, build_criteria
from meshproxy.route.weighted import weighted_index
from meshproxy.upstream.build_tlvs import build_tlvs
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.host import LbContext
from meshproxy.upstream.http_tunnel import HttpTunnel, TunnelingConfig, build_tunneling
from meshproxy.upstream.manager import FOUND, MISSING, ClusterManager, ClusterRequest
from meshproxy.upstream.on_demand import OnDemandConfig, build_on_demand
from meshproxy.upstream.tcp import TcpUpstream, TcpUpstreamCallbacks

_HOUR_MS: Final = 3_600_000.0
_ON_DEMAND_MS: Final = 60_000

CONNECTING: Final = 0
OPEN: Final = 1
DONE: Final = 2


class TcpProxyStats(StatsScope):
    """Under `tcp.<stat_prefix>.`."""

    COUNTERS: ClassVar[tuple[str, ...]] = (
        "downstream_cx_total",
        "downstream_cx_no_route",
        "downstream_cx_tx_bytes_total",
        "downstream_cx_rx_bytes_total",
        "downstream_flow_control_paused_reading_total",
        "downstream_flow_control_resumed_reading_total",
        "idle_timeout",
        "max_downstream_connection_duration",
    )
    SET_WITH: ClassVar[tuple[str, ...]] = ("downstream_cx_total",)

    def __init__(self) -> None:
        super().__init__()
        self.downstream_cx_total: int = 0
        self.downstream_cx_no_route: int = 0
        self.downstream_cx_tx_bytes_total: int = 0
        self.downstream_cx_rx_bytes_total: int = 0
        self.downstream_flow_control_paused_reading_total: int = 0
        self.downstream_flow_control_resumed_reading_total: int = 0
        self.idle_timeout: int = 0
        self.max_downstream_connection_duration: int = 0


class OnDemandStats(StatsScope):
    """Under `tcp.<stat_prefix>.`, where clusters are discovered on demand."""

    COUNTERS: ClassVar[tuple[str, ...]] = (
        "on_demand_cluster_attempt",
        "on_demand_cluster_missing",
        "on_demand_cluster_success",
        "on_demand_cluster_timeout",
    )

    def __init__(self) -> None:
        super().__init__()
        self.on_demand_cluster_attempt: int = 0
        self.on_demand_cluster_missing: int = 0
        self.on_demand_cluster_success: int = 0
        self.on_demand_cluster_timeout: int = 0

    def count_end(self, status: int) -> None:
        """What a request for a cluster was told."""
        if status == FOUND:
            self.on_demand_cluster_success += 1
        elif status == MISSING:
            self.on_demand_cluster_missing += 1
        else:
            self.on_demand_cluster_timeout += 1


class TcpProxyConfig:
    """What configuration decides. Times are in ms; 0 is none."""

    def __init__(self, stats: TcpProxyStats) -> None:
        self.stats = stats
        self.clusters: list[str] = []
        self.criteria: list[MetadataCriteria | None] = []  # `metadata_match` of each
        self.weights: list[int] = []  # of the clusters, and their sum
        self.total_weight: int = 0
        self.max_connect_attempts: int = 1
        self.hashes_source_ip: bool = False
        self.idle_timeout_ms: float = _HOUR_MS
        self.max_duration_ms: float = 0.0
        self.jitter_percent: float = 0.0
        self.access_logs: tuple[AccessLog, ...] = ()
        self.log_on_connected: bool = False
        self.log_interval_ms: float = 0.0
        self.tunneling: TunnelingConfig | None = None  # through an HTTP proxy
        self.tlvs: list[Tlv] = []  # proxy_protocol_tlvs
        self.on_demand: OnDemandConfig | None = None
        self.on_demand_stats: OnDemandStats | None = None  # where there is one
        self.measures: bool = False  # an access log tells of bytes on the wire

    def pick_cluster(self) -> int:
        """The index of the cluster of one connection."""
        return weighted_index(self.weights, self.total_weight, random.getrandbits(64))


class TcpProxyFilter(NetworkFilter):
    """Makes a `ProxiedConnection` of every connection."""

    def __init__(self, config: TcpProxyConfig, fingerprint: bytes) -> None:
        self.config = config
        self.fingerprint = fingerprint

    def accept(
        self,
        dispatcher: Dispatcher,
        clusters: ClusterManager,
        owner: ConnectionOwner,
        connection: Connection,
        info: ConnectionInfo,
    ) -> ActiveConnection:
        proxied = ProxiedConnection(self.config, dispatcher, clusters, owner, connection, info)
        connection.set_handler(proxied)
        proxied.start()
        return proxied

    def adopt(self, newer: NetworkFilter) -> None:
        """Nothing of it changes under open connections, but that a logger in Python may be a newer one."""
        assert isinstance(newer, TcpProxyFilter)
        self.config.access_logs = newer.config.access_logs


class ProxiedConnection(RawConnection):
    """One downstream connection, and the upstream one that it is joined to."""

    def __init__(
        self,
        config: TcpProxyConfig,
        dispatcher: Dispatcher,
        clusters: ClusterManager,
        owner: ConnectionOwner,
        connection: Connection,
        info: ConnectionInfo,
    ) -> None:
        super().__init__(owner, connection)
        self.config = config
        self.dispatcher = dispatcher
        self.clusters = clusters
        self.info = StreamInfo(info, monotonic())
        self.info.protocol = 0
        self.state: int = CONNECTING
        self._upstream: TcpUpstream | HttpTunnel | None = None
        self._tunnels: list[HttpTunnel] = []  # of all attempts
        self._cluster: Cluster | None = None
        self._cluster_name: str = ""
        self._request: ClusterRequest | None = None  # while the cluster is asked for
        self._criteria: MetadataCriteria | None = None
        self._attempts: int = 0
        self._trying: bool = False
        self._early: list[bytes] = []  # what came before the upstream was connected
        self._early_bytes: int = 0
        self._upstream_sent_bytes: int = 0
        self._reading_paused: bool = False
        self._downstream_ended: bool = False
        self._upstream_ended: bool = False
        self._last_active: float = self.info.start
        self._idle_timer: CallTimer | None = None
        self._duration_timer: CallTimer | None = None
        self._log_timer: CallTimer | None = None

    def start(self) -> None:
        config = self.config
        config.stats.downstream_cx_total += 1
        connection = self.info.connection
        if config.tlvs and connection.proxy_header is None:  # the TLVs of a proxy in front go before ours
            connection.proxy_header = ProxyHeader(connection.remote, connection.local, config.tlvs)
        timers = self.dispatcher.timers
        if config.idle_timeout_ms > 0.0:
            self._idle_timer = CallTimer(self.on_idle_timer)
            timers.arm(self._idle_timer, config.idle_timeout_ms)
        if config.max_duration_ms > 0.0:
            self._duration_timer = CallTimer(self.on_max_duration)
            timers.arm(
                self._duration_timer, config.max_duration_ms * (1.0 + random.random() * config.jitter_percent / 100.0)
            )
        if config.log_interval_ms > 0.0:
            self._log_timer = CallTimer(self.on_log_timer)
            timers.arm(self._log_timer, config.log_interval_ms)
        self._connect()

    # -- the upstream

    def _connect(self) -> None:
        index = self.config.pick_cluster()
        self._criteria = self.config.criteria[index]
        self._cluster_name = self.config.clusters[index]
        cluster = self.clusters.get(self._cluster_name)
        if cluster is None and self._ask_for_cluster():
            return
        self._connect_to(cluster)

    def _ask_for_cluster(self) -> bool:
        """Whether it is worth while to wait for it."""
        config, stats = self.config.on_demand, self.config.on_demand_stats
        if config is None or stats is None:
            return False
        stats.on_demand_cluster_attempt += 1
        self._request = self.clusters.request_cluster(self._cluster_name, config, self.on_cluster)
        return self._request is not None

    def on_cluster(self, status: int) -> None:
        """It was asked for."""
        self._request = None
        stats = self.config.on_demand_stats
        assert stats is not None
        stats.count_end(status)
        self._connect_to(self.clusters.get(self._cluster_name))

    def _connect_to(self, cluster: Cluster | None) -> None:
        info = self.info
        self._cluster = cluster
        if cluster is None:
            self.config.stats.downstream_cx_no_route += 1
            self._give_up(flags.NO_CLUSTER_FOUND)
            return
        upstream_info = info.upstream = UpstreamInfo()
        upstream_info.cluster = cluster.info
        self._try_hosts(cluster)

    def _try_hosts(self, cluster: Cluster) -> None:
        """Until an attempt is under way. One that a limit forbids fails at once, inside of `_attempt`."""
        self._trying = True
        while self.state == CONNECTING and self._upstream is None:
            self._attempt(cluster)
        self._trying = False

    def _attempt(self, cluster: Cluster) -> None:
        if not cluster.breakers(0).connections.can_acquire():
            cluster.stats.upstream_cx_overflow += 1
            self._give_up(flags.UPSTREAM_OVERFLOW)
            return
        self._attempts += 1
        context = self._lb_context() if cluster.needs_context else None
        if cluster.hashes:
            key = source_ip_hash(self.info) if self.config.hashes_source_ip else NO_HASH
            host = cluster.choose_by_hash(context, key)
        else:
            host = cluster.choose_host(context)
        if host is None:
            cluster.stats.upstream_cx_none_healthy += 1
            self._give_up(flags.NO_HEALTHY_UPSTREAM)
            return
        upstream_info = self.info.upstream
        assert upstream_info is not None
        upstream_info.attempts = self._attempts
        tunneling = self.config.tunneling
        if tunneling is not None:
            tunnel = HttpTunnel(tunneling, cluster, host, self.info, _UpstreamEvents(self))
            self._upstream = tunnel
            self._tunnels.append(tunnel)
        else:
            demand = cluster.config.demands.of_connection(self.info.connection) if cluster.keys_pools else None
            self._upstream = TcpUpstream(self.dispatcher, cluster, host, _UpstreamEvents(self), demand)
        self._upstream.open()

    def _lb_context(self) -> LbContext:
        context = LbContext()
        context.criteria = self._criteria
        context.info = self.info
        return context

    def on_upstream_connected(self) -> None:
        upstream, config = self._upstream, self.config
        assert upstream is not None
        assert upstream.connection is not None
        self.state = OPEN
        self._touch()
        upstream_info = self.info.upstream
        if upstream_info is not None:
            upstream_info.host = upstream.host.address
            upstream_info.host_name = upstream.host.hostname
            upstream_info.local = upstream.connection.local
            upstream_info.remote = upstream.connection.remote
            upstream_info.connection_id = upstream.connection.id
            upstream_info.pool_ready = monotonic()
        if config.log_on_connected:
            self._log("TcpUpstreamConnected")
        early, self._early = self._early, []
        for data in early:
            self._send_upstream(upstream, data)
        if self._reading_paused:
            self._pause_reading(False)
        if self._downstream_ended:
            upstream.end_output()

    def on_upstream_failed(self, reason: int, details: str) -> None:
        cluster, upstream, upstream_info = self._cluster, self._upstream, self.info.upstream
        assert cluster is not None
        self._upstream = None
        if reason != RESET_OVERFLOW:
            self.info.response_flags |= flags.UPSTREAM_CONNECTION_FAILURE
            if upstream is not None and upstream_info is not None:
                upstream_info.host = upstream.host.address
                upstream_info.host_name = upstream.host.hostname
                if reason != RESET_CONNECT_TIMEOUT:
                    upstream_info.transport_failure_reason = details
        if self._attempts < self.config.max_connect_attempts:
            if not self._trying:
                self._try_hosts(cluster)
            return
        cluster.stats.upstream_cx_connect_attempts_exceeded += 1
        self._give_up(flags.UPSTREAM_RETRY_LIMIT_EXCEEDED)

    def _give_up(self, new_flags: int) -> None:
        self.info.response_flags |= new_flags
        self._finish()
        self.connection.close()

    def on_upstream_data(self, data: bytes) -> None:
        info = self.info
        info.bytes_sent += len(data)
        self._touch()
        self.config.stats.downstream_cx_tx_bytes_total += len(data)
        self.send(data)

    def on_upstream_eof(self) -> None:
        self._upstream_ended = True
        if self._downstream_ended:
            self._end(local=False)
        else:
            self.connection.end_output()

    def on_upstream_closed(self, error: str) -> None:
        if self.state == DONE:
            return
        self._upstream = None
        if error:
            self.info.response_flags |= flags.UPSTREAM_REMOTE_RESET
        self._finish()
        if error:
            self.connection.reset()
        else:
            self.connection.close()

    def on_upstream_above_watermark(self) -> None:
        self._pause_reading(True)

    def on_upstream_below_watermark(self) -> None:
        self._pause_reading(False)

    # -- the downstream

    def on_data(self, data: bytes) -> None:
        info = self.info
        info.bytes_received += len(data)
        self._touch()
        self.config.stats.downstream_cx_rx_bytes_total += len(data)
        upstream = self._upstream
        if self.state == OPEN and upstream is not None:
            self._send_upstream(upstream, data)
        elif self.state == CONNECTING:
            self._keep(data)

    def _send_upstream(self, upstream: TcpUpstream | HttpTunnel, data: bytes) -> None:
        self._upstream_sent_bytes += len(data)
        upstream.send(data)

    def _keep(self, data: bytes) -> None:
        self._early.append(data)
        self._early_bytes += len(data)
        if self._early_bytes > self.connection.buffer_limit_bytes and not self._reading_paused:
            self._pause_reading(True)

    def on_eof(self) -> None:
        self._downstream_ended = True
        if self._upstream_ended:
            self._end()
        elif self.state == OPEN and self._upstream is not None:
            self._upstream.end_output()

    def on_close(self, error: str) -> None:
        upstream, self._upstream = self._upstream, None
        self._finish()
        if upstream is not None:
            if error:
                upstream.reset()
            else:
                upstream.close()
        super().on_close(error)

    def on_above_write_watermark(self) -> None:
        if self._upstream is not None:
            self._upstream.read_disable(True)

    def on_below_write_watermark(self) -> None:
        if self._upstream is not None:
            self._upstream.read_disable(False)

    def _pause_reading(self, pause: bool) -> None:
        stats = self.config.stats
        self._reading_paused = pause
        if pause:
            stats.downstream_flow_control_paused_reading_total += 1
        else:
            stats.downstream_flow_control_resumed_reading_total += 1
        self.connection.read_disable(pause)

    # -- timeouts

    def _touch(self) -> None:
        self._last_active = monotonic()

    def on_idle_timer(self) -> None:
        timer = self._idle_timer
        limit_ms = self.config.idle_timeout_ms
        left_ms = limit_ms - (monotonic() - self._last_active) * 1000.0
        if timer is not None and left_ms > 0.0:
            self.dispatcher.timers.arm(timer, left_ms)
            return
        self.config.stats.idle_timeout += 1
        self._end()

    def on_max_duration(self) -> None:
        self.config.stats.max_downstream_connection_duration += 1
        self.info.response_flags |= flags.DURATION_TIMEOUT
        self._end()

    def on_log_timer(self) -> None:
        timer = self._log_timer
        self._log("TcpPeriodic")
        if timer is not None:
            self.dispatcher.timers.arm(timer, self.config.log_interval_ms)

    # -- the end

    def _end(self, local: bool = True) -> None:
        """Both sides are closed when what is pending has been sent. `local`: the upstream was not the last to end."""
        upstream, self._upstream = self._upstream, None
        self._finish()
        if upstream is not None:
            upstream.close(local)
        self.connection.close()

    def _finish(self) -> None:
        """Exactly once."""
        if self.state == DONE:
            return
        self.state = DONE
        if self._request is not None:
            self._request.cancel()
        self._early = []
        for timer in (self._idle_timer, self._duration_timer, self._log_timer):
            if timer is not None:
                timer.disarm()
        self._idle_timer = self._duration_timer = self._log_timer = None  # they know us: no cycle is left
        self.info.end = monotonic()
        self._log("TcpConnectionEnd")

    def _log(self, kind: str) -> None:
        info = self.info
        info.log_type = kind
        connection = info.connection  # of which this is the record
        info.dynamic_metadata, info.filter_state = connection.dynamic_metadata, connection.filter_state
        info.connection_termination_details = connection.termination_details
        if self.config.measures:
            self._measure(info)
        for access_log in self.config.access_logs:
            access_log.log(info)

    def _measure(self, info: StreamInfo) -> None:
        """On the wire is what was passed on: nothing frames it, but for tunnels."""
        wire = info.wire = WireBytes()
        wire.received, wire.sent = info.bytes_received, info.bytes_sent
        if info.upstream is not None:
            wire = info.upstream.wire = WireBytes()
            if self.config.tunneling is None:
                wire.received, wire.sent = info.bytes_sent, self._upstream_sent_bytes
            for tunnel in self._tunnels:
                wire.add(tunnel.wire_bytes(), WireBytes())

    # -- from the listener

    def abort(self) -> None:
        upstream, self._upstream = self._upstream, None
        self._finish()
        if upstream is not None:
            upstream.reset()
        super().abort()


class _UpstreamEvents(TcpUpstreamCallbacks):
    """What the upstream connection tells (a native class has one base)."""

    def __init__(self, proxied: ProxiedConnection) -> None:
        self._proxied = proxied

    def on_upstream_connected(self) -> None:
        self._proxied.on_upstream_connected()

    def on_upstream_failed(self, reason: int, details: str) -> None:
        self._proxied.on_upstream_failed(reason, details)

    def on_upstream_data(self, data: bytes) -> None:
        self._proxied.on_upstream_data(data)

    def on_upstream_eof(self) -> None:
        self._proxied.on_upstream_eof()

    def on_upstream_closed(self, error: str) -> None:
        self._proxied.on_upstream_closed(error)

    def on_upstream_above_watermark(self) -> None:
        self._proxied.on_upstream_above_watermark()

    def on_upstream_below_watermark(self) -> None:
        self._proxied.on_upstream_below_watermark()


# -- from the configuration


def build_tcp_proxy(message: Any, path: str, context: BuildContext) -> NetworkFilter | None:
    """All errors go to the context, with their paths; None when there were any."""
    before = len(context.errors)
    config = TcpProxyConfig(context.scope(f"tcp.{message.stat_prefix}.", TcpProxyStats))
    _set_clusters(config, message, path, context)
    config.max_connect_attempts = int_or(message, "max_connect_attempts", 1)
    if message.HasField("tunneling_config"):
        config.tunneling = build_tunneling(message.tunneling_config, child(path, "tunneling_config"), context.errors)
    config.hashes_source_ip = any(policy.HasField("source_ip") for policy in message.hash_policy)
    config.tlvs = build_tlvs(message.proxy_protocol_tlvs, path, "proxy_protocol_tlvs", context.errors)
    config.idle_timeout_ms = float(milliseconds_or(message, "idle_timeout", 3_600_000))
    config.max_duration_ms = float(milliseconds_or(message, "max_downstream_connection_duration", 0))
    config.jitter_percent = message.max_downstream_connection_duration_jitter_percentage.value
    config.access_logs = tuple(build_access_logs(message.access_log, child(path, "access_log"), context))
    config.measures = any(log.measures for log in config.access_logs)
    options = message.access_log_options
    config.log_on_connected = message.flush_access_log_on_connected or options.flush_access_log_on_connected
    source = options if options.HasField("access_log_flush_interval") else message
    config.log_interval_ms = float(milliseconds_or(source, "access_log_flush_interval", 0))
    if message.HasField("on_demand"):
        where = child(path, "on_demand")
        config.on_demand = build_on_demand(message.on_demand, "odcds_config", _ON_DEMAND_MS, where, context)
        config.on_demand_stats = context.scope(f"tcp.{message.stat_prefix}.", OnDemandStats)
    if len(context.errors) != before:
        return None
    return TcpProxyFilter(config, bytes(message.SerializeToString(deterministic=True)))


def _set_clusters(config: TcpProxyConfig, message: Any, path: str, context: BuildContext) -> None:
    own = build_criteria(message.metadata_match, None)
    if message.WhichOneof("cluster_specifier") == "cluster":
        config.clusters, config.weights, config.criteria = [message.cluster], [1], [own]
        _refer(message, message.cluster, child(path, "cluster"), context)
    for index, weighted in enumerate(message.weighted_clusters.clusters):
        where = child(item(child(path, "weighted_clusters"), "clusters", index), "name")
        config.clusters.append(weighted.name)
        config.weights.append(weighted.weight)
        config.criteria.append(build_criteria(weighted.metadata_match, own))
        _refer(message, weighted.name, where, context)
    config.total_weight = sum(config.weights)
    if not config.clusters:
        context.errors.add(path, "one of cluster, weighted_clusters is required")


def _refer(message: Any, cluster: str, path: str, context: BuildContext) -> None:
    """The cluster must exist, unless it is discovered when it is needed."""
    if not message.HasField("on_demand"):
        context.references.append((cluster, path))


NETWORK_FILTERS.register(TcpProxy, build_tcp_proxy)
