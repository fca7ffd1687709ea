"""What configuration decides about a cluster: read only, one object per version of the cluster."""

from __future__ import annotations

from typing import Any, Final

from meshproxy.codec.http1.settings import Http1Settings
from meshproxy.config.runtime import RuntimeInt
from meshproxy.net.address import Address
from meshproxy.net.connect import SocketOption
from meshproxy.net.transport_socket import TransportSocketFactory
from meshproxy.route.hash_policy import HashPolicy
from meshproxy.upstream.host import NO_LOCALITY, Locality
from meshproxy.upstream.outlier import OutlierConfig
from meshproxy.upstream.resource_limit import Thresholds

# Where the hosts come from (Cluster.DiscoveryType).
STATIC: Final = 0
STRICT_DNS: Final = 1

# How a host is picked.
ROUND_ROBIN: Final = 0
LEAST_REQUEST: Final = 1
RANDOM: Final = 2
RING_HASH: Final = 3
MAGLEV: Final = 4

HOUR_MS: Final = 3_600_000.0


class EndpointConfig:
    """One endpoint of a load assignment: `address`, or a `name` to resolve and the port in `address`."""

    def __init__(self, address: Address, dns_name: str, hostname: str) -> None:
        self.address = address
        self.dns_name = dns_name  # "": the address is one already
        self.hostname = hostname
        self.weight: int = 1
        self.priority: int = 0
        self.locality: Locality = NO_LOCALITY
        self.health_flags: int = 0
        self.canary: bool = False
        self.metadata: dict[str, Any] | None = None


class DnsConfig:
    """How the names of a STRICT_DNS cluster are resolved. `family` is a Cluster.DnsLookupFamily."""

    def __init__(self) -> None:
        self.family: int = 0
        self.refresh_ms: float = 5000.0
        self.jitter_ms: float = 0.0
        self.failure_base_ms: float = 0.0  # 0.0: as after a success
        self.failure_max_ms: float = 0.0


class LbConfig:
    """The load balancer of a cluster."""

    def __init__(self, panic_threshold: RuntimeInt) -> None:
        self.policy: int = ROUND_ROBIN
        self.choice_count: int = 2
        self.full_scan: bool = False
        self.active_request_bias: float = 1.0
        self.minimum_ring_size: int = 1024
        self.maximum_ring_size: int = 8 * 1024 * 1024
        self.murmur: bool = False  # the ring's hashes are MurmurHash2, not xxHash
        self.table_size: int = 65537  # of MAGLEV; a prime
        self.use_hostname_for_hashing: bool = False
        self.hash_policy: HashPolicy | None = None  # takes the place of the routes'
        self.panic_threshold = panic_threshold  # percent
        self.fail_traffic_on_panic: bool = False
        self.overprovisioning_factor: int = 140  # percent
        self.close_connections_on_host_set_change: bool = False

    @property
    def hashes(self) -> bool:
        """Hosts are picked by a hash of the request."""
        return self.policy in (RING_HASH, MAGLEV)


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
        self.http1 = Http1Settings(max_headers_bytes=80 * 1024)
        self.socket_options: tuple[SocketOption, ...] = ()
        self.transport: TransportSocketFactory | None = None  # None: plain bytes
        self.lb: LbConfig = LbConfig(RuntimeInt("", 50))
        self.dns: DnsConfig = DnsConfig()
        self.outlier: OutlierConfig | None = None
        self.thresholds: list[Thresholds] = [Thresholds(), Thresholds()]
        self.endpoints: list[EndpointConfig] = []
        self.metadata: dict[str, Any] | None = None

    @property
    def observability_name(self) -> str:
        return self.alt_stat_name or self.name
