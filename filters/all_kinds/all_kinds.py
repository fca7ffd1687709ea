"""One class of each kind, which together keep the tenants of a service apart."""

import ipaddress
import json
import zlib
from dataclasses import dataclass, field

from meshproxy import (
    CLOSE,
    CONTINUE,
    STOP,
    AcceptedSocket,
    AccessLogger,
    CallError,
    DownstreamConnection,
    FilterContext,
    HeaderMap,
    Host,
    HttpFilter,
    LbRequest,
    ListenerFilter,
    LoadBalancer,
    NetworkFilter,
    Result,
    Stream,
    StreamInfo,
)

NAMESPACE = "tenants"


@dataclass(frozen=True)
class Networks:
    blocked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for network in self.blocked:
            ipaddress.ip_network(network)


class Blocklist(ListenerFilter):
    """Closes connections from some networks, before anything else is done for them."""

    config: Networks

    @classmethod
    def on_start(cls, context: FilterContext) -> None:
        context.state = [ipaddress.ip_network(network) for network in context.config.blocked]

    def on_accept(self, accepted: AcceptedSocket) -> int:
        address = ipaddress.ip_address(accepted.remote.ip)
        return CLOSE if any(address in network for network in self.context.state) else CONTINUE


@dataclass(frozen=True)
class Quota:
    bytes: int = 1 << 30


class ByteQuota(NetworkFilter):
    """Ends connections that send too much."""

    config: Quota

    def __init__(self) -> None:
        self.left = self.config.bytes

    def on_data(self, connection: DownstreamConnection, data: bytes, end: bool) -> Result:
        self.left -= len(data)
        if self.left < 0:
            self.context.count("over_quota")
            connection.close()
            return STOP
        return CONTINUE


class Tenant(HttpFilter):
    """Says whose request it is, for the balancer and the log."""

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        tenant = (headers.get(b"x-tenant") or b"nobody").decode("latin-1")
        stream.metadata(NAMESPACE)["tenant"] = tenant
        return CONTINUE


class Home(LoadBalancer):
    """A tenant has a home; when that has twice as much to do as the idlest host, it is sent there."""

    def choose(self, request: LbRequest) -> Host | None:
        hosts = [host for host in request.hosts if host not in request.avoid] or request.hosts
        idlest = min(hosts, key=lambda host: host.stats.rq_active)
        metadata = None if request.info is None else request.info.dynamic_metadata
        if not metadata or NAMESPACE not in metadata:
            return idlest
        home = hosts[zlib.crc32(metadata[NAMESPACE]["tenant"].encode()) % len(hosts)]
        return home if home.stats.rq_active <= 2 * idlest.stats.rq_active + 1 else idlest


@dataclass(frozen=True)
class Ship:
    cluster: str
    every_ms: float = 1000.0
    most: int = 10_000  # records that wait


class Shipper(AccessLogger):
    """Sends what happened to a service, many records at a time."""

    config: Ship

    @classmethod
    def on_start(cls, context: FilterContext) -> None:
        context.state = []
        context.call_later(context.config.every_ms, lambda: cls._tick(context))

    @classmethod
    def _tick(cls, context: FilterContext) -> None:
        context.call_later(context.config.every_ms, lambda: cls._tick(context))
        if context.state:
            records, context.state = context.state, []
            context.spawn(cls._send(context, records))

    @classmethod
    async def _send(cls, context: FilterContext, records: list[dict[str, object]]) -> None:
        body = "".join(json.dumps(record) + "\n" for record in records).encode()
        try:
            await context.call(context.config.cluster, method=b"POST", path=b"/records", body=body)
        except CallError:
            context.count("lost", len(records))

    def on_log(self, info: StreamInfo) -> None:
        if len(self.context.state) >= self.config.most:
            self.context.count("lost")
            return
        tenant = (info.dynamic_metadata or {}).get(NAMESPACE, {}).get("tenant", "")
        duration_ms = int((info.end - info.start) * 1000)
        host = info.upstream.host if info.upstream is not None else None
        self.context.state.append({
            "tenant": tenant,
            "status": info.response_code,
            "duration_ms": duration_ms,
            "host": None if host is None else host.text,
        })  # fmt: skip
