"""`networking.istio.io` DestinationRule: how traffic is sent to a service, after it was routed there."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, ClassVar, Literal

from meshproxy.pilot.documents.common import AGENTS_SECRETS, MatchLabels, PortSelector, check_unique
from meshproxy.pilot.documents.problems import At
from meshproxy.pilot.documents.rules import (
    Duration,
    ExportTo,
    HeaderName,
    Labels,
    Name,
    NotNegative,
    Seconds,
    UInt32,
    at_least,
    between,
    wildcard_host_or_ip,
)
from meshproxy.pilot.documents.spec import Map, Refused, spec


def prime_table_size(value: int) -> str | None:
    """Envoy's rule for MAGLEV."""
    if not 0 < value <= 5_000_011:
        return "must be between 1 and 5000011"
    if value < 2 or any(value % each == 0 for each in range(2, int(value**0.5) + 1)):
        return "must be a prime number"
    return None


@spec
class RingHash:
    minimum_ring_size: Annotated[int, between(0, 8_388_608)] = 0  # 0: 1,024


@spec
class MagLev:
    table_size: Annotated[int, prime_table_size] | None = None


@spec
class HTTPCookie:
    """With a `ttl` the proxy sets the cookie where it is missing; 0 makes it a session cookie."""

    name: str
    path: str = ""
    ttl: timedelta | None = None


@spec
class ConsistentHashLB:
    http_header_name: HeaderName | None = None
    http_cookie: HTTPCookie | None = None
    use_source_ip: bool | None = None
    http_query_parameter_name: str | None = None
    ring_hash: RingHash | None = None
    maglev: MagLev | None = None
    ONE_OF: ClassVar = (
        ("httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName"),
        ("ringHash", "maglev"),
    )
    REFUSED: ClassVar[Refused] = {"minimumRingSize": "is deprecated: write ringHash: {minimumRingSize: …}"}

    def check(self, at: At) -> None:
        named = (self.http_header_name, self.http_cookie, self.use_source_ip, self.http_query_parameter_name)
        if not any(named):
            at.error("one of httpHeaderName, httpCookie, useSourceIp, httpQueryParameterName is required")


@spec
class Distribute:
    from_: str
    to: Map[UInt32]

    def check(self, at: At) -> None:
        if sum(weight for _, weight in self.to) != 100:
            (at / "to").error("the weights must add up to 100")
        for step, localities in (("from", [self.from_]), ("to", [name for name, _ in self.to])):
            for locality in localities:
                reason = _locality_pattern(locality)
                if reason is not None:
                    (at / step).error(reason)


def _locality_pattern(value: str) -> str | None:
    """`region/zone/sub-zone`, of which the end may be `*`."""
    parts = value.split("/")
    if len(parts) > 3 or not all(parts):
        return f'"{value}" is not "region/zone/sub-zone"'
    if "*" in parts[:-1] or any("*" in part and part != "*" for part in parts):
        return f'"{value}": only the last part may be "*"'
    return None


@spec
class Failover:
    from_: str
    to: str

    def check(self, at: At) -> None:
        if self.from_ == self.to:
            at.error("a region cannot fail over to itself")
        for step, region in (("from", self.from_), ("to", self.to)):
            if not region or "/" in region or "*" in region:
                (at / step).error("must be a region")


@spec
class LocalityLbSetting:
    distribute: tuple[Distribute, ...] = ()
    failover: tuple[Failover, ...] = ()
    failover_priority: tuple[str, ...] = ()
    enabled: bool | None = None

    def check(self, at: At) -> None:
        if self.distribute and (self.failover or self.failover_priority):
            at.error("distribute excludes failover and failoverPriority")
        sources = [each.from_ for each in self.distribute]
        for index, source in enumerate(sources):
            if source in sources[:index]:
                (at / "distribute" / index / "from").error(f'"{source}" is given twice')
        for index, label in enumerate(self.failover_priority):
            if not label.partition("=")[0]:
                (at / "failoverPriority" / index).error('must be "key" or "key=value"')


@spec
class Warmup:
    duration: Duration
    minimum_percent: Annotated[float, between(0, 100)] | None = None
    aggression: Annotated[float, at_least(1)] | None = None


@spec
class LoadBalancer:
    simple: Literal["UNSPECIFIED", "LEAST_CONN", "RANDOM", "PASSTHROUGH", "ROUND_ROBIN", "LEAST_REQUEST"] | None = None
    consistent_hash: ConsistentHashLB | None = None
    locality_lb_setting: LocalityLbSetting | None = None
    warmup: Warmup | None = None
    ONE_OF: ClassVar = (("simple", "consistentHash"),)
    REFUSED: ClassVar[Refused] = {"warmupDurationSecs": "is deprecated: write warmup: {duration: …}"}

    def check(self, at: At) -> None:
        if self.warmup is not None and (self.consistent_hash is not None or self.simple in ("RANDOM", "PASSTHROUGH")):
            (at / "warmup").error("is for ROUND_ROBIN and LEAST_REQUEST only")


@spec
class TcpKeepalive:
    probes: UInt32 = 0
    time: Seconds | None = None
    interval: Seconds | None = None


@spec
class TcpSettings:
    max_connections: NotNegative = 0
    connect_timeout: Duration | None = None
    tcp_keepalive: TcpKeepalive | None = None
    max_connection_duration: Duration | None = None
    idle_timeout: timedelta | None = None


@spec
class HttpSettings:
    http1_max_pending_requests: NotNegative = 0
    http2_max_requests: NotNegative = 0
    max_requests_per_connection: Annotated[int, between(0, 2**29)] = 0
    max_retries: NotNegative = 0
    idle_timeout: Duration | None = None
    h2_upgrade_policy: Literal["DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"] = "DEFAULT"
    use_client_protocol: bool = False
    max_concurrent_streams: NotNegative = 0

    def check(self, at: At) -> None:
        if self.use_client_protocol and self.h2_upgrade_policy == "UPGRADE":
            (at / "h2UpgradePolicy").error("UPGRADE excludes useClientProtocol")


@spec
class ConnectionPool:
    """In TcpSettings and HttpSettings 0 stands for "not said"."""

    tcp: TcpSettings | None = None
    http: HttpSettings | None = None

    def check(self, at: At) -> None:
        if self.tcp is None and self.http is None:
            at.error("one of tcp, http is required")


@spec
class OutlierDetection:
    split_external_local_origin_errors: bool = False
    consecutive_local_origin_failures: UInt32 | None = None
    consecutive_gateway_errors: UInt32 | None = None
    consecutive5xx_errors: UInt32 | None = None
    interval: Duration | None = None
    base_ejection_time: Duration | None = None
    max_ejection_percent: Annotated[int, between(0, 100)] | None = None
    min_health_percent: Annotated[int, between(0, 100)] | None = None
    REFUSED: ClassVar[Refused] = {
        "consecutiveErrors": "is deprecated: write consecutive5xxErrors or consecutiveGatewayErrors"
    }

    def check(self, at: At) -> None:
        if self.consecutive_local_origin_failures and not self.split_external_local_origin_errors:
            (at / "consecutiveLocalOriginFailures").error("needs splitExternalLocalOriginErrors")


@spec
class ClientTLSSettings:
    mode: Literal["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"] = "DISABLE"
    client_certificate: str = ""
    private_key: str = ""
    ca_certificates: str = ""
    credential_name: str = ""
    subject_alt_names: tuple[str, ...] = ()
    sni: str = ""
    insecure_skip_verify: bool | None = None
    ca_crl: str = ""

    @property
    def needs_secrets(self) -> bool:
        return self.mode == "ISTIO_MUTUAL" or (self.mode != "DISABLE" and bool(self.credential_name))

    def check(self, at: At) -> None:
        files = {
            "clientCertificate": self.client_certificate,
            "privateKey": self.private_key,
            "caCertificates": self.ca_certificates,
            "caCrl": self.ca_crl,
        }
        if self.mode == "ISTIO_MUTUAL":
            for step, value in (*files.items(), ("credentialName", self.credential_name)):
                if value:
                    (at / step).error("must not be set with ISTIO_MUTUAL, whose certificates are the mesh's own")
        if self.mode in ("SIMPLE", "MUTUAL") and self.credential_name:
            (at / "credentialName").warn(AGENTS_SECRETS)
        if self.credential_name and any(files.values()):
            (at / "credentialName").error("excludes certificates in files")
        if self.mode == "MUTUAL" and not self.credential_name:
            for step in ("clientCertificate", "privateKey"):
                if not files[step]:
                    (at / step).error("is required with MUTUAL")
        if self.insecure_skip_verify and (self.ca_certificates or self.ca_crl or self.subject_alt_names):
            (at / "insecureSkipVerify").error("excludes caCertificates, caCrl and subjectAltNames")


@spec
class ProxyProtocol:
    version: Literal["V1", "V2"] = "V1"


@spec
class RetryBudget:
    percent: Annotated[float, between(0, 100)] | None = None
    min_retry_concurrency: UInt32 = 0


@spec
class PortTrafficPolicy:
    """Takes the place of the whole policy for one port: what it does not say is at its default there."""

    port: PortSelector
    load_balancer: LoadBalancer | None = None
    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTLSSettings | None = None


@spec
class TrafficPolicy:
    load_balancer: LoadBalancer | None = None
    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTLSSettings | None = None
    port_level_settings: tuple[PortTrafficPolicy, ...] = ()
    proxy_protocol: ProxyProtocol | None = None
    retry_budget: RetryBudget | None = None
    REFUSED: ClassVar[Refused] = {"tunnel": "tunnels through a forward proxy are not supported yet"}

    def check(self, at: At) -> None:
        ports = [each.port.number for each in self.port_level_settings]
        check_unique(at / "portLevelSettings", ports, "port", "port")


@spec
class Subset:
    name: Name
    labels: Labels = ()
    traffic_policy: TrafficPolicy | None = None


@spec
class DestinationRule:
    host: Annotated[str, wildcard_host_or_ip]
    traffic_policy: TrafficPolicy | None = None
    subsets: tuple[Subset, ...] = ()
    export_to: ExportTo = ()
    workload_selector: MatchLabels | None = None

    def check(self, at: At) -> None:
        check_unique(at / "subsets", [each.name for each in self.subsets], "name", "subset")
        if self.workload_selector is not None and not self.workload_selector.match_labels:
            (at / "workloadSelector" / "matchLabels").error("is required")
