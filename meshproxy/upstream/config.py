"""What configuration decides about a cluster: read only, one object per version of the cluster."""

from __future__ import annotations

from typing import Any, Final

from meshproxy.codec.http1.settings import Http1Settings
from meshproxy.codec.http2.settings import Http2Settings
from meshproxy.config.config_source import ConfigSource
from meshproxy.config.context import BuildContext
from meshproxy.config.http2_options import KeepaliveSettings
from meshproxy.config.runtime import Fraction, RuntimeDouble, RuntimeInt
from meshproxy.config.subscription import InitTarget
from meshproxy.net.address import Address
from meshproxy.net.connect import SocketOption
from meshproxy.net.happy_eyeballs import FamilyOrder
from meshproxy.net.resolver import ResolverSettings
from meshproxy.route.hash_policy import HashPolicy
from meshproxy.route.mirror import MirrorPolicy
from meshproxy.route.retry_policy import RetryPolicy
from meshproxy.upstream.demand import DemandRules
from meshproxy.upstream.host import NO_LOCALITY, Locality
from meshproxy.upstream.load_balancer import BalancerExtension
from meshproxy.upstream.outlier import OutlierConfig
from meshproxy.upstream.resource_limit import Thresholds
from meshproxy.upstream.source_address import SourceAddresses
from meshproxy.upstream.stats import ClusterStats, DiscoveredStats
from meshproxy.upstream.transport import TransportSockets

# What connections speak.
AUTO: Final = 0  # what TLS agrees on (ALPN)
HTTP1: Final = 11
HTTP2: Final = 20

# Where the hosts come from (Cluster.DiscoveryType).
STATIC: Final = 0
STRICT_DNS: Final = 1
LOGICAL_DNS: Final = 2
EDS: Final = 3
ORIGINAL_DST: Final = 4

# How a host is picked.
ROUND_ROBIN: Final = 0
LEAST_REQUEST: Final = 1
RANDOM: Final = 2
RING_HASH: Final = 3
MAGLEV: Final = 4
CLUSTER_PROVIDED: Final = 5  # by the cluster itself: ORIGINAL_DST
PICK_FIRST: Final = 6

# What happens to a request that no subset matches: of a cluster, or of one selector (where UNDEFINED is the cluster's).
NO_FALLBACK: Final = 0
ANY_ENDPOINT: Final = 1
DEFAULT_SUBSET: Final = 2
KEYS_SUBSET: Final = 3  # look again, with fewer keys
UNDEFINED_FALLBACK: Final = -1

HOUR_MS: Final = 3_600_000.0


class EndpointConfig:
    """One endpoint of a load assignment: `address`, or a `name` to resolve and the port in `address`.

    `more` are further addresses of the same host; `key` tells hosts apart.
    """

    def __init__(self, address: Address, dns_name: str, hostname: str) -> None:
        self.address = address
        self.dns_name = dns_name  # "": the address is one already
        self.hostname = hostname
        self.more: list[Address] = []
        self.key: str = address.text
        self.weight: int = 1
        self.priority: int = 0
        self.locality: Locality = NO_LOCALITY
        self.health_flags: int = 0
        self.canary: bool = False
        self.metadata: dict[str, Any] | None = None
        self.locality_metadata: dict[str, Any] | None = None

    def set_more(self, more: list[Address]) -> None:
        self.more = more
        self.key = " ".join([address.text for address in (self.address, *more)])

    def at(self, address: Address, hostname: str) -> EndpointConfig:
        """The same with an address that its name has."""
        built = EndpointConfig(address, "", hostname)
        built.weight = self.weight
        built.priority = self.priority
        built.locality = self.locality
        built.health_flags = self.health_flags
        built.canary = self.canary
        built.metadata = self.metadata
        built.locality_metadata = self.locality_metadata
        return built


class DnsConfig:
    """How the names of a cluster are resolved, and by whom. `family` is a Cluster.DnsLookupFamily."""

    def __init__(self) -> None:
        self.family: int = 0
        self.refresh_ms: float = 5000.0
        self.jitter_ms: float = 0.0
        self.failure_base_ms: float = 0.0  # 0.0: as after a success
        self.failure_max_ms: float = 0.0
        self.respect_ttl: bool = False
        self.wait_for_warm: bool = True  # no traffic before the first answer
        self.resolver = ResolverSettings()


class EdsConfig:
    """Which load assignment a cluster has, and where it is asked for."""

    def __init__(self, source: ConfigSource, service_name: str) -> None:
        self.source = source
        self.service_name = service_name


class SlowStartConfig:
    """How the weight of a new host grows (API: SlowStartConfig)."""

    def __init__(self, window_ms: float, aggression: RuntimeDouble, min_weight: float) -> None:
        self.window_ms = window_ms
        self.aggression = aggression
        self.min_weight = min_weight  # the least share of its weight

    def factor(self, age_ms: float) -> float:
        """The share of its weight that a host has after so long."""
        if age_ms >= self.window_ms:
            return 1.0
        aggression = self.aggression.value
        share = max(1.0, age_ms) / self.window_ms
        if aggression > 0.0 and aggression != 1.0:
            share = share ** (1.0 / aggression)
        return max(share, self.min_weight)


class SubsetSelector:
    """Names of metadata fields: the hosts that have all of them form a subset for each combination of values."""

    def __init__(self, keys: frozenset[str], fallback: int, fallback_keys: frozenset[str], single_host: bool) -> None:
        self.keys = keys
        self.names: tuple[str, ...] = tuple(sorted(keys))
        self.fallback = fallback
        self.fallback_keys = fallback_keys  # of KEYS_SUBSET
        self.single_host = single_host  # only the first host of a subset is used


class SubsetConfig:
    """The division of a cluster into subsets (API: LbSubsetConfig). Selectors with many keys stand first."""

    def __init__(self, selectors: list[SubsetSelector], fallback: int, default_subset: dict[str, Any]) -> None:
        self.selectors = selectors
        self.fallback = fallback
        self.default_subset = default_subset  # metadata of its hosts
        self.fallback_list: bool = False  # a field `fallback_list` of the criteria names others to try in turn
        self.locality_weight_aware: bool = False
        self.scale_locality_weight: bool = False
        self.panic_mode_any: bool = False
        self.list_as_any: bool = False
        self.allow_redundant_keys: bool = False


class LbConfig:
    """The load balancer of a cluster."""

    def __init__(self, panic_threshold: RuntimeInt) -> None:
        self.policy: int = ROUND_ROBIN
        self.extension: BalancerExtension | None = None  # stands for `policy`, which it falls back to
        self.choice_count: int = 2
        self.full_scan: bool = False
        self.active_request_bias: RuntimeDouble = RuntimeDouble("", 1.0)
        self.minimum_ring_size: int = 1024
        self.maximum_ring_size: int = 8 * 1024 * 1024
        self.murmur: bool = False  # the ring's hashes are MurmurHash2, not xxHash
        self.table_size: int = 65537  # of MAGLEV; a prime
        self.use_hostname_for_hashing: bool = False
        self.hash_policy: HashPolicy | None = None  # takes the place of the routes'
        self.hash_balance_factor: int = 0  # percent of the average load that a host may have; 0: no bound
        self.shuffle: bool = False  # of PICK_FIRST: it begins anywhere
        self.slow_start: SlowStartConfig | None = None
        self.locality_weighted: bool = False
        self.subsets: SubsetConfig | None = None
        self.panic_threshold = panic_threshold  # percent
        self.fail_traffic_on_panic: bool = False
        self.overprovisioning_factor: int = 140  # percent
        self.weighted_priority_health: bool = False  # a priority's health goes by its hosts' weights
        self.close_connections_on_host_set_change: bool = False

    @property
    def hashes(self) -> bool:
        """Hosts are picked by a hash of the request."""
        return self.policy in (RING_HASH, MAGLEV)

    @property
    def takes_hash(self) -> bool:
        """Whoever chooses a host wants to know the hash, if there is one."""
        return self.hashes or self.extension is not None

    @property
    def needs_context(self) -> bool:
        """The choice depends on facts of the request: its headers, metadata, or connection."""
        return self.policy == CLUSTER_PROVIDED or self.subsets is not None or self.extension is not None


class OriginalDstConfig:
    """How the hosts of an ORIGINAL_DST cluster are named, but for the connection's own destination."""

    def __init__(self) -> None:
        self.header_name: bytes = b""  # lower-case; b"": no header does
        self.metadata_namespace: str = ""  # "": no metadata does
        self.metadata_path: list[str] = []
        self.port_override: int = 0  # 0: the destination's own port
        self.cleanup_interval_ms: float = 5000.0
        self.most_hosts: int = 10_000  # clients can name them: memory stays bounded


class ClusterConfig:
    """One version of a cluster.

    `fingerprint` changes with everything but the endpoints: a change of these alone leaves connections as they are.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.alt_stat_name: str = ""
        self.discovery: int = STATIC
        self.fingerprint: bytes = b""
        self.connect_timeout_ms: float = 5000.0
        self.per_connection_buffer_limit_bytes: int = 1024 * 1024
        self.max_requests_per_connection: int = 0  # 0: no limit
        self.idle_timeout_ms: float = HOUR_MS  # 0.0: never
        self.max_connection_duration_ms: float = 0.0  # 0.0: no limit
        self.max_stream_duration_ms: float = 0.0
        self.protocol: int = HTTP1  # AUTO, HTTP1 or HTTP2; with `demands.by_protocol`, of the proxy's own requests
        self.http1 = Http1Settings(max_headers_bytes=80 * 1024)
        self.http2 = Http2Settings()
        self.http2_keepalive: KeepaliveSettings | None = None
        self.socket_options: tuple[SocketOption, ...] = ()
        self.sources: SourceAddresses | None = None  # None: the kernel chooses
        self.family_order = FamilyOrder()  # of the addresses of a host that has several
        self.transports = TransportSockets()
        self.demands = DemandRules()
        self.preconnect_ratio: float = 1.0  # connections for each request that is active or waits, in a pool
        self.hash_policy: HashPolicy | None = None  # of HTTP requests; in `lb` too, where it is looked at
        self.retry: RetryPolicy | None = None  # takes the place of the routes'
        self.mirrors: list[MirrorPolicy] | None = None  # … and these, of their mirroring
        self.original_dst: OriginalDstConfig | None = None
        self.lb: LbConfig = LbConfig(RuntimeInt("", 50))
        self.drop_overload: Fraction | None = None  # the share of requests that are refused,
        self.drop_category: str = ""  # and what load reports call that
        self.dns: DnsConfig = DnsConfig()
        self.eds: EdsConfig | None = None
        self.outlier: OutlierConfig | None = None
        self.thresholds: list[Thresholds] = [Thresholds(), Thresholds()]
        self.endpoints: list[EndpointConfig] = []
        self.metadata: dict[str, Any] | None = None
        self.context: BuildContext | None = None  # of its build
        self.init_targets: list[InitTarget] = []  # what it waits for before it takes traffic, besides its hosts

    @property
    def stats_kind(self) -> type[ClusterStats]:
        return ClusterStats if self.eds is None else DiscoveredStats

    def take_context(self, context: BuildContext | None) -> None:
        """That of a newer build, whose parts it has taken; what the older one acquired is given back."""
        old, self.context = self.context, context
        if old is not None:
            old.close()

    @property
    def observability_name(self) -> str:
        return self.alt_stat_name or self.name
