"""What the configuration decides about a connection manager: frozen, shared by all its connections."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any, Final

from meshproxy.codec.headers import HeaderMap
from meshproxy.codec.http1.settings import Http1Settings
from meshproxy.codec.http2.settings import Http2Settings
from meshproxy.codec.http2.stats import Http2Stats
from meshproxy.config.http2_options import KeepaliveSettings
from meshproxy.config.runtime import RuntimeBool, RuntimeInt
from meshproxy.http.access_log import AccessLog
from meshproxy.http.chain import FilterChain
from meshproxy.http.client_cert import ClientCertForwarding
from meshproxy.http.http2_limits import ResetLimits
from meshproxy.http.local_reply_config import LocalReplyConfig
from meshproxy.http.stats import ConnectionManagerStats, ResponseStats
from meshproxy.http.tracing.tracing import Tracing
from meshproxy.http.upgrade import Upgrade
from meshproxy.net.address import Address
from meshproxy.observe.http2_stats import Http2Scope
from meshproxy.observe.stats import StatsRegistry
from meshproxy.route.table import RouteTable

# HttpConnectionManager.ServerHeaderTransformation
OVERWRITE: Final = 0
APPEND_IF_ABSENT: Final = 1
PASS_THROUGH: Final = 2

# HttpConnectionManager.CodecType
AUTO: Final = 0
HTTP1: Final = 1
HTTP2: Final = 2

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class InternalAddresses:
    """Which downstream addresses are internal (`internal_address_config`)."""

    def __init__(self, unix_sockets: bool, networks: tuple[Network, ...]) -> None:
        self.unix_sockets = unix_sockets
        self._networks = networks
        self._known: dict[str, bool] = {}

    def contains(self, address: Address) -> bool:
        if address.path:
            return self.unix_sockets
        if not self._networks:
            return False
        known = self._known.get(address.ip)
        if known is None:
            ip = ipaddress.ip_address(address.ip)
            known = any(ip in network for network in self._networks)
            if len(self._known) > 10_000:
                self._known.clear()
            self._known[address.ip] = known
        return known


class RoutesRef:
    """The one place where a connection manager finds its routes: RDS and reloads swap `table`.

    `virtual_hosts` is a `vhds.VirtualHostDiscovery` where hosts that nobody has asked for yet may exist.
    """

    def __init__(self, table: RouteTable | None) -> None:
        self.table = table
        self.virtual_hosts: Any = None

    def request_virtual_host(self, headers: HeaderMap, callback: Callable[[bool], None]) -> bool:
        """Ask the control plane for the virtual host of a request that has none. False when there is nobody to ask, or
        too much is asked for already; else `callback` is told later, and only once, whether the routes know it now."""
        table = self.table
        if self.virtual_hosts is None or table is None or table.find_host(headers) is not None:
            return False
        host = headers.get(table.host_header)
        return host is not None and bool(self.virtual_hosts.request(host, callback))


class Http2StatsRef:
    """The stats of all downstream HTTP/2 connections, which exist from the first such connection on (as in Envoy)."""

    def __init__(self, registry: StatsRegistry) -> None:
        self._registry = registry
        self._scope: Http2Scope | None = None

    def counts(self) -> Http2Stats:
        """They are the process's, and stay."""
        if self._scope is None:
            self._scope = self._registry.acquire("http2.", Http2Scope)
        return self._scope.counts


class ConnectionManagerConfig:
    """Times are in ms; 0 turns a timeout off."""

    def __init__(
        self, stats: ConnectionManagerStats, chain: FilterChain, routes: RoutesRef, codec: Http1Settings
    ) -> None:
        self.stats = stats
        self.chain = chain
        self.extensions: tuple[Any, ...] = ()  # `extension_discovery.ExtensionDiscovery`s, which swap filters of chains
        self.routes = routes
        self.codec = codec
        self.codec_type: int = AUTO
        self.http2 = Http2Settings()
        self.http2_stats = Http2StatsRef(StatsRegistry())
        self.http2_keepalive: KeepaliveSettings | None = None
        self.reset_limits = ResetLimits(RuntimeInt("", 500), RuntimeInt("", 1))
        self.stat_prefix: str = ""
        self.listener_stats = ResponseStats()  # `listener.<address>.http.<stat prefix>.`
        self.access_logs: tuple[AccessLog, ...] = ()
        self.access_log_on_new_request: bool = False
        self.access_log_on_tunnel: bool = False
        self.access_log_interval_ms: float = 0.0  # between the records of a stream that goes on; 0: there are none
        self.local_replies: LocalReplyConfig | None = None
        self.upgrades: dict[bytes, Upgrade] = {}  # by protocol, in lower case
        self.measures: bool = False  # a log tells of bytes on the wire
        self.tracing: Tracing | None = None
        # identity and trust
        self.server_field: Any = (b"server", b"envoy")
        self.server_header_transformation: int = OVERWRITE
        self.use_remote_address: bool = False
        self.xff_num_trusted_hops: int = 0
        self.skip_xff_append: bool = False
        self.append_x_forwarded_port: bool = False
        self.client_cert: ClientCertForwarding | None = None  # None: SANITIZE
        self.via: bytes = b""
        self.internal_addresses = InternalAddresses(False, ())
        self.local_address: bytes = b"127.0.0.1"  # this node's, which stands for a loopback peer in x-forwarded-for
        self.user_agent: bytes = b""  # add_user_agent: the service cluster's name
        self.service_node: bytes = b""  # with it: this node's id
        self.scheme_to_overwrite: bytes = b""
        self.match_upstream_scheme: bool = False
        # request ids
        self.generate_request_id: bool = True
        self.preserve_external_request_id: bool = False
        self.packs_trace_reason: bool = True  # the 15th digit of an x-request-id tells why the request is traced
        self.always_set_request_id_in_response: bool = False
        # the path and the host
        self.normalize_path: bool = False
        self.merge_slashes: bool = False
        self.escaped_slashes_action: int = 1
        self.strip_matching_host_port: bool = False
        self.strip_any_host_port: bool = False
        self.strip_trailing_host_dot: bool = False
        self.touches_path: bool = False
        self.touches_host: bool = False
        # limits
        self.idle_timeout_ms: float = 3_600_000.0
        self.max_connection_duration_ms: float = 0.0
        self.max_requests_per_connection: int = 0
        self.stream_idle_timeout_ms: float = 300_000.0
        self.stream_flush_timeout_ms: float = -1.0  # of HTTP/2; below 0: as the idle timeout
        self.max_stream_duration_ms: float = 0.0
        self.request_timeout_ms: float = 0.0
        self.request_headers_timeout_ms: float = 0.0
        self.drain_timeout_ms: float = 5_000.0
        self.safe_max_connection_duration: bool = False  # an idle connection waits for its last answer however long
        self.delayed_close_timeout_ms: float = 1_000.0
        self.proxy_100_continue: bool = False
        self.headers_with_underscores_action: int = 0  # 0 allow, 1 reject the request, 2 drop the header
        # the router filter's own options
        self.suppress_envoy_headers: bool = False
        self.respect_expected_rq_timeout: bool = False
        self.dynamic_stats: bool = True
        self.suppress_grpc_codes: bool = False
        self.upstream_log: tuple[AccessLog, ...] = ()
        # ours: an idempotent request goes once more when the peer had closed the idle connection it was sent on
        self.retry_stale_connections: RuntimeBool | None = None
