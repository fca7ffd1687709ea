"""What a request is routed to: a Route, fully resolved when the configuration arrives; a match makes nothing new."""

from __future__ import annotations

from typing import Final

from meshproxy.codec.headers import HeaderMap
from meshproxy.observe.formatter import Formatter, JsonFormatter
from meshproxy.observe.stream_info import Metadata, RouteInfo, StreamInfo
from meshproxy.route.grpc_limit import GrpcLimit
from meshproxy.route.hash_policy import HashPolicy
from meshproxy.route.header_matcher import HeaderMatcher, matches_all
from meshproxy.route.header_ops import HeaderOperations
from meshproxy.route.internal_redirect import InternalRedirectPolicy
from meshproxy.route.metadata_criteria import MetadataCriteria
from meshproxy.route.mirror import MirrorPolicy
from meshproxy.route.rate_limit import RateLimit
from meshproxy.route.redirect import Redirect, tls_location
from meshproxy.route.retry_policy import RetryPolicy
from meshproxy.route.rewrite import HostRewrite, PathRewrite, set_authority
from meshproxy.route.stats import RequestStats
from meshproxy.route.tracing import Decorator, RouteTracing
from meshproxy.route.upgrade import RouteUpgrades

# What a route does (Route.kind).
ROUTE_CLUSTER: Final = 0
ROUTE_REDIRECT: Final = 1
ROUTE_DIRECT_RESPONSE: Final = 2

# core.v3.RoutingPriority: which of a cluster's circuit breaker thresholds count.
PRIORITY_DEFAULT: Final = 0
PRIORITY_HIGH: Final = 1

# VirtualHost.TlsRequirementType
TLS_NONE: Final = 0
TLS_EXTERNAL_ONLY: Final = 1
TLS_ALL: Final = 2

DEFAULT_TIMEOUT_MS: Final = 15_000


class FilterSwitch:
    """The value of `filter_configs` for a FilterConfig that carries no configuration of its own."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


DISABLED: Final = FilterSwitch("DISABLED")  # `disabled: true`: the filter is not run
ENABLED: Final = FilterSwitch("ENABLED")  # an empty `config`: a filter that is disabled in the chain is run


class VirtualCluster:
    """A name for statistics, given to the requests that its conditions hold for; "" for those of no other one."""

    def __init__(self, name: str, headers: list[HeaderMatcher], stats: RequestStats) -> None:
        self.name = name
        self.headers = headers
        self.stats = stats


class VirtualHost:
    """What the routes of one virtual host have in common."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.require_tls: int = TLS_NONE
        self.virtual_clusters: list[VirtualCluster] = []  # the last holds for every request; or there is none
        self.include_request_attempt_count: bool = False  # x-envoy-attempt-count upstream
        self.include_attempt_count_in_response: bool = False
        self.include_is_timeout_retry_header: bool = False  # x-envoy-is-timeout-retry
        self.rate_limits: list[RateLimit] | None = None
        self.metadata: Metadata = {}

    def virtual_cluster(self, headers: HeaderMap) -> VirtualCluster | None:
        """The first virtual cluster that holds; None when there are none."""
        for cluster in self.virtual_clusters:
            if matches_all(cluster.headers, headers):
                return cluster
        return None


class Route:
    """One route, or one weighted cluster of it. Attributes are read on the request path; nobody changes them.

    `cluster_name` is "" when `cluster_header` names the request header that holds it: see `resolve_cluster`.
    Timeouts are in ms: None says "not set here", 0 "no timeout".
    """

    def __init__(self, name: str, virtual_host: VirtualHost, kind: int) -> None:
        self.name = name
        self.virtual_host = virtual_host
        self.kind = kind
        self.metadata: Metadata = {}
        self.info = RouteInfo(name, None, None)
        self.stats: RequestStats | None = None  # `stat_prefix`
        self.has_stats: bool = False  # of its own, or of its virtual host's virtual clusters
        # Overrides of the filters by their names in the chain: the most specific one, and all of them, global first.
        self.filter_configs: dict[str, object] = {}
        self.all_filter_configs: dict[str, list[object]] = {}
        # The deprecated `cors` of the route, then of its virtual host, built as the cors filter's overrides.
        self.cors: list[object] = []
        self.request_body_buffer_limit: int | None = None

        # ROUTE_CLUSTER
        self.cluster_name: str = ""
        self.cluster_header: bytes = b""
        self.cluster_not_found_status: int = 503
        self.metadata_match: MetadataCriteria | None = None  # for the load balancer's subsets
        self.weight: int = 0
        self.timeout_ms: int = DEFAULT_TIMEOUT_MS
        self.idle_timeout_ms: int | None = None
        self.flush_timeout_ms: int | None = None  # of HTTP/2 downstream
        self.max_stream_duration_ms: int | None = None
        self.grpc_stream_limit: GrpcLimit | None = None  # in place of that, for requests with grpc-timeout
        self.limits_stream: bool = False  # `max_stream_duration` is there, be it empty
        self.grpc_request_limit: GrpcLimit | None = None  # in place of `timeout_ms`, for requests of gRPC
        self.retry: RetryPolicy | None = None
        self.upgrades: RouteUpgrades | None = None
        self.hedges: bool = False  # hedge_on_per_try_timeout
        self.mirrors: list[MirrorPolicy] | None = None
        self.internal_redirect: InternalRedirectPolicy | None = None
        self.rate_limits: list[RateLimit] | None = None
        self.include_vh_rate_limits: bool = False  # besides its own
        self.priority: int = PRIORITY_DEFAULT
        self.hash_policy: HashPolicy | None = None
        self.auto_host_rewrite: bool = False  # the upstream host's name, known once the host is picked
        self.append_x_forwarded_host: bool = False
        self.host_rewrite: HostRewrite | None = None
        # What a weighted cluster does to the request, always before the operations and rewrites of the other levels.
        self.weighted_operations: HeaderOperations | None = None
        self.weighted_host_rewrite: bytes = b""
        self.path_rewrite: PathRewrite | None = None

        # ROUTE_REDIRECT; None with that kind: the redirect of `require_tls`
        self.redirect_action: Redirect | None = None
        # ROUTE_DIRECT_RESPONSE
        self.direct_status: int = 0
        self.direct_body: bytes = b""
        self.direct_body_format: Formatter | None = None
        self.direct_body_json: JsonFormatter | None = None
        self.direct_content_type: bytes = b""

        self.request_operations: list[HeaderOperations] = []
        self.response_operations: list[HeaderOperations] = []
        self.has_request_mutations: bool = False
        self.has_response_mutations: bool = False
        self.toggles_filters: bool = False  # some filter is disabled, or enabled, on this route
        self.tracing: RouteTracing | None = None
        self.decorator: Decorator | None = None
        self.shared_timeouts: object | None = None  # the router's, made at the first request

    def for_weighted_cluster(self) -> Route:
        """A copy of what the route says itself, for a weighted cluster to add to: its cluster and what is merged."""
        new = Route(self.name, self.virtual_host, self.kind)
        new.metadata = self.metadata
        new.stats = self.stats
        new.cors = self.cors
        new.request_body_buffer_limit = self.request_body_buffer_limit
        new.cluster_not_found_status = self.cluster_not_found_status
        new.timeout_ms = self.timeout_ms
        new.idle_timeout_ms = self.idle_timeout_ms
        new.flush_timeout_ms = self.flush_timeout_ms
        new.max_stream_duration_ms = self.max_stream_duration_ms
        new.grpc_stream_limit = self.grpc_stream_limit
        new.limits_stream = self.limits_stream
        new.grpc_request_limit = self.grpc_request_limit
        new.retry = self.retry
        new.upgrades = self.upgrades
        new.hedges = self.hedges
        new.mirrors = self.mirrors
        new.internal_redirect = self.internal_redirect
        new.rate_limits = self.rate_limits
        new.include_vh_rate_limits = self.include_vh_rate_limits
        new.priority = self.priority
        new.hash_policy = self.hash_policy
        new.metadata_match = self.metadata_match
        new.auto_host_rewrite = self.auto_host_rewrite
        new.append_x_forwarded_host = self.append_x_forwarded_host
        new.host_rewrite = self.host_rewrite
        new.path_rewrite = self.path_rewrite
        new.tracing = self.tracing
        new.decorator = self.decorator
        return new

    def seal(self) -> None:
        """Settle what can be asked in one attribute; the last step of a build."""
        self.info = RouteInfo(self.name, self.metadata, self.virtual_host.metadata)
        self.has_stats = self.stats is not None or bool(self.virtual_host.virtual_clusters)
        self.has_response_mutations = bool(self.response_operations)
        self.toggles_filters = any(isinstance(config, FilterSwitch) for config in self.filter_configs.values())
        self.has_request_mutations = (
            bool(self.request_operations)
            or self.weighted_operations is not None
            or self.host_rewrite is not None
            or bool(self.weighted_host_rewrite)
            or self.path_rewrite is not None
        )

    def resolve_cluster(self, headers: HeaderMap) -> str:
        """The cluster's name; "" when it stands in a header that is missing."""
        if not self.cluster_header:
            return self.cluster_name
        value = headers.get(self.cluster_header)
        return "" if value is None else value.decode("latin-1")

    def finalize_request(self, headers: HeaderMap, info: StreamInfo, keep_original: bool = True) -> None:
        """Header operations, host rewrite and path rewrite, in Envoy's order.

        `keep_original` keeps the old ones in x-envoy-original-host and -path (it is false when Envoy headers are
        suppressed).
        """
        if self.weighted_operations is not None:
            self.weighted_operations.apply(headers, info)
        if self.weighted_host_rewrite:
            headers.set(b":authority", self.weighted_host_rewrite)
        for operations in self.request_operations:
            operations.apply(headers, info)
        if self.host_rewrite is not None:
            host = self.host_rewrite.host(headers, info)
            if host is not None:
                set_authority(headers, host, self.append_x_forwarded_host, keep_original)
        if self.path_rewrite is not None:
            self._rewrite_path(self.path_rewrite, headers, info, keep_original)

    def _rewrite_path(self, rewrite: PathRewrite, headers: HeaderMap, info: StreamInfo, keep_original: bool) -> None:
        path = headers.get(b":path")
        new = b"" if path is None else rewrite.rewrite(path, info)
        if path is None or not new:
            return
        if keep_original:
            headers.set(b"x-envoy-original-path", path)
        headers.set(b":path", new)

    def set_upstream_host(self, headers: HeaderMap, host: bytes, keep_original: bool = True) -> None:
        """For `auto_host_rewrite`, when the upstream host is picked: its name becomes the :authority."""
        set_authority(headers, host, self.append_x_forwarded_host, keep_original)

    def finalize_response(self, headers: HeaderMap, info: StreamInfo) -> None:
        for operations in self.response_operations:
            operations.apply(headers, info)

    def redirect(self, headers: HeaderMap, info: StreamInfo) -> tuple[int, bytes]:
        """(status, location) of a ROUTE_REDIRECT."""
        action = self.redirect_action
        if action is None:
            return 301, tls_location(headers)
        return action.status, action.location(headers, info)

    def direct_location(self, headers: HeaderMap, info: StreamInfo) -> bytes | None:
        """The Location that Envoy gives to a direct response with status 201 or 3xx: the request's own URL."""
        if self.direct_status != 201 and not 300 <= self.direct_status < 400:
            return None
        return Redirect(self.direct_status).location(headers, info)

    def direct_response(self, info: StreamInfo) -> tuple[int, bytes]:
        """(status, body) of a ROUTE_DIRECT_RESPONSE."""
        info.local_reply_body = self.direct_body
        if self.direct_body_format is not None:
            return self.direct_status, self.direct_body_format.format(info)
        if self.direct_body_json is not None:
            return self.direct_status, self.direct_body_json.format(info)
        return self.direct_status, self.direct_body
