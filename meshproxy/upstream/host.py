"""One endpoint of a cluster while it is in use: its address, its weight and health, its numbers and its pools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshproxy.codec.headers import HeaderMap
from meshproxy.net.address import Address
from meshproxy.observe.stream_info import StreamInfo
from meshproxy.route.metadata_criteria import MetadataCriteria
from meshproxy.upstream.demand import ConnectionDemand
from meshproxy.upstream.keyed_pools import KeyedPools
from meshproxy.upstream.outlier import OutlierMonitor
from meshproxy.upstream.stats import HostStats

if TYPE_CHECKING:
    from meshproxy.upstream.cluster import Cluster
    from meshproxy.upstream.pool import ConnectionPool

# Reasons against a host, as bits; 0: healthy.
FAILED_ACTIVE_HC: Final = 1 << 0
FAILED_OUTLIER_CHECK: Final = 1 << 1
FAILED_EDS_HEALTH: Final = 1 << 2
DEGRADED_ACTIVE_HC: Final = 1 << 3
DEGRADED_EDS_HEALTH: Final = 1 << 4
EDS_STATUS_DRAINING: Final = 1 << 5

UNHEALTHY: Final = FAILED_ACTIVE_HC | FAILED_OUTLIER_CHECK | FAILED_EDS_HEALTH | EDS_STATUS_DRAINING
DEGRADED: Final = DEGRADED_ACTIVE_HC | DEGRADED_EDS_HEALTH
EXCLUDED: Final = EDS_STATUS_DRAINING  # neither healthy nor counted when a cluster's health is judged

_FLAG_NAMES: Final = (
    "/failed_active_hc",
    "/failed_outlier_check",
    "/failed_eds_health",
    "/degraded_active_hc",
    "/degraded_eds_health",
    "/eds_status_draining",
)
# core.v3.HealthStatus (an endpoint's `health_status`) -> flags
EDS_HEALTH_FLAGS: Final = {
    0: 0,  # UNKNOWN counts as healthy
    1: 0,
    2: FAILED_EDS_HEALTH,
    3: EDS_STATUS_DRAINING,
    4: FAILED_EDS_HEALTH,  # TIMEOUT
    5: DEGRADED_EDS_HEALTH,
}
EDS_FLAGS: Final = FAILED_EDS_HEALTH | DEGRADED_EDS_HEALTH | EDS_STATUS_DRAINING


class Locality:
    """Where a group of hosts runs; `weight` is the group's share of the traffic, 0 where none is said."""

    def __init__(self, region: str, zone: str, sub_zone: str, weight: int = 0) -> None:
        self.region = region
        self.zone = zone
        self.sub_zone = sub_zone
        self.weight = weight

    @property
    def key(self) -> tuple[str, str, str]:
        """What is the same for groups in the same place."""
        return self.region, self.zone, self.sub_zone


NO_LOCALITY: Final = Locality("", "", "")


class Host:
    """A host of one cluster. It keeps its identity for as long as its address stays in the cluster."""

    def __init__(self, address: Address, hostname: str, priority: int, locality: Locality) -> None:
        self.address = address
        self.key: str = address.text  # tells it from others: all its addresses
        self.more: list[Address] = []  # further addresses
        self.addresses: list[Address] = []  # where there are several: all, in the order in which they are tried
        self.hostname = hostname
        self.priority = priority
        self.locality = locality
        self.weight: int = 1
        self.canary: bool = False
        self.metadata: dict[str, Any] | None = None
        self.healthy_since: float = 0.0  # slow start counts from here, where there is one: when it was healthy first
        self.health_flags: int = 0
        self.stats = HostStats()
        self.outlier = OutlierMonitor()
        self.locality_metadata: dict[str, Any] | None = None
        self.transport_match: int = -1  # which of the cluster's transport_socket_matches it has; -1: the default
        self._pools: list[ConnectionPool | None] = [None, None]
        self._keyed: KeyedPools | None = None

    @property
    def healthy(self) -> bool:
        """Neither unhealthy nor degraded."""
        return self.health_flags & (UNHEALTHY | DEGRADED) == 0

    @property
    def degraded(self) -> bool:
        return self.health_flags & UNHEALTHY == 0 and self.health_flags & DEGRADED != 0

    def pool(self, cluster: Cluster, priority: int) -> ConnectionPool:
        """The connections to this host for routes of `priority`; made when first asked for."""
        pool = self._pools[priority]
        if pool is None:
            pool = cluster.new_pool(self, priority)
            self._pools[priority] = pool
        return pool

    def keyed_pool(self, cluster: Cluster, priority: int, demand: ConnectionDemand) -> ConnectionPool | None:
        """As `pool`, where the cluster's `keys_pools` says so; None where there are too many pools."""
        if self._keyed is None:
            self._keyed = KeyedPools()
        return self._keyed.find(cluster, self, priority, demand)

    def drain_pools(self) -> list[ConnectionPool]:
        """Idle connections close now, the others after what they carry. The next request gets a new pool."""
        pools = self.pools()
        self._pools = [None, None]
        self._keyed = None
        for pool in pools:
            pool.drain()
        return pools

    def pools(self) -> list[ConnectionPool]:
        pools = [pool for pool in self._pools if pool is not None]
        return pools if self._keyed is None else pools + self._keyed.all()

    def health_flag_names(self) -> str:
        """As `/clusters` shows them: `healthy`, or `/failed_outlier_check/…`."""
        flags = self.health_flags
        return "".join(name for bit, name in enumerate(_FLAG_NAMES) if flags >> bit & 1) or "healthy"

    def carries(self, labels: dict[str, Any]) -> bool:
        """Whether its metadata `envoy.lb` has all of these; of a list in it, one element is enough."""
        own: dict[str, Any] = {} if self.metadata is None else self.metadata.get("envoy.lb", {})
        for name, value in labels.items():
            found = own.get(name)
            if found != value and not (isinstance(found, list) and value in found):
                return False
        return True

    def __repr__(self) -> str:
        return f"Host({self.address.text})"


class LbContext:
    """What one request asks of the choice of its host; made only for requests that ask for something.

    The facts of the request are there for clusters that need them (`Cluster.needs_context`).
    """

    def __init__(self) -> None:
        self.criteria: MetadataCriteria | None = None  # `metadata_match` of the route
        self.info: StreamInfo | None = None
        self.headers: HeaderMap | None = None  # of an HTTP request
        self.avoid: list[Host] = []  # hosts of earlier attempts
        self.omit_canary: bool = False
        self.omit_labels: list[dict[str, Any]] = []  # hosts that carry all labels of one of these
        self.max_attempts: int = 1  # how often another host is drawn when the one drawn is not wanted

    def rejects(self, host: Host) -> bool:
        """Whether another host should be drawn instead."""
        if self.omit_canary and host.canary:
            return True
        for labels in self.omit_labels:
            if labels and host.carries(labels):
                return True
        for other in self.avoid:  # noqa: SIM110  a generator would be a closure here
            if other is host:
                return True
        return False
