"""The transport sockets that a cluster can have, and which of them a connection gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

from envoy.config.core.v3.proxy_protocol_pb2 import ProxyProtocolConfig, ProxyProtocolPassThroughTLVs
from envoy.extensions.transport_sockets.proxy_protocol.v3.upstream_proxy_protocol_pb2 import (
    ProxyProtocolUpstreamTransport,
)
from envoy.extensions.transport_sockets.raw_buffer.v3.raw_buffer_pb2 import RawBuffer
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import UpstreamTlsContext
from google.protobuf import json_format

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child, item
from meshproxy.config.registry import Registry
from meshproxy.config.tls_context import build_upstream_tls
from meshproxy.net.address import Address
from meshproxy.net.proxy_protocol import ProxyHeader
from meshproxy.net.transport_socket import TransportSocket, TransportSocketFactory
from meshproxy.observe.stats import StatsScope
from meshproxy.upstream.build_tlvs import build_tlvs
from meshproxy.upstream.demand import ConnectionDemand
from meshproxy.upstream.host import Host
from meshproxy.upstream.proxy_protocol import ProxyProtocolFactory, ProxyProtocolSocket

_NOBODY: Final = ProxyHeader(Address("", 0, "@"), Address("", 0, "@"), [])  # whom a connection of our own stands for
_NAMESPACE: Final = "envoy.transport_socket_match"
_RAW_BUFFER: Final = "envoy.transport_sockets.raw_buffer"

# (message, path, context, `cluster.<name>.`) -> the factory, None for plain bytes or after errors
TransportSocketBuilder = Callable[[Any, str, BuildContext, str], TransportSocketFactory | None]
UPSTREAM_TRANSPORT_SOCKETS: Final[Registry[TransportSocketBuilder]] = Registry("upstream transport socket")


class TransportMatchStats(StatsScope):
    """Envoy's `cluster.<name>.<match>.total_match_count`."""

    COUNTERS: ClassVar[tuple[str, ...]] = ("total_match_count",)

    def __init__(self) -> None:
        super().__init__()
        self.total_match_count: int = 0


class TransportMatch:
    """One of `transport_socket_matches`: hosts whose metadata has these labels get this transport socket."""

    def __init__(
        self, labels: dict[str, Any], factory: TransportSocketFactory | None, stats: TransportMatchStats
    ) -> None:
        self.labels = labels
        self.factory = factory
        self.stats = stats

    def fits(self, metadata: dict[str, Any] | None) -> bool:
        """Whether an endpoint, or a locality, with this metadata has the labels."""
        own: dict[str, Any] | None = None if metadata is None else metadata.get(_NAMESPACE)
        if own is None:
            return not self.labels
        return all(name in own and own[name] == value for name, value in self.labels.items())


class TransportSockets:
    """Those of a cluster: `default`, and what hosts get that match. A factory that is None makes plain bytes."""

    def __init__(self) -> None:
        self.default: TransportSocketFactory | None = None
        self.matches: list[TransportMatch] = []
        self.default_stats: TransportMatchStats | None = None  # counted where there is something to choose from

    def match(self, endpoint: dict[str, Any] | None, locality: dict[str, Any] | None) -> int:
        """Which of `matches` a host with this metadata of its own, and of its locality, gets; -1: the default.

        Its own goes before its locality's, whatever the order of the matches.
        """
        for metadata in (endpoint, locality):
            for index, match in enumerate(self.matches):
                if match.fits(metadata):
                    return self._count(index)
        return self._count(-1)

    def _count(self, index: int) -> int:
        stats = self.default_stats if index < 0 else self.matches[index].stats
        if stats is not None:
            stats.total_match_count += 1
        return index

    def of(self, host: Host) -> TransportSocketFactory | None:
        """The factory for connections to this host."""
        index = host.transport_match
        return self.default if index < 0 else self.matches[index].factory

    def new(
        self, host: Host, demand: ConnectionDemand | None, protocols: tuple[str, ...] = ()
    ) -> TransportSocket | None:
        """For one connection that speaks one of `protocols` (ALPN; none: whatever it likes); None for plain bytes."""
        factory = self.of(host)
        return None if factory is None else _new(factory, host, demand, protocols)

    def secure(self, host: Host) -> bool:
        """Whether connections to this host are encrypted."""
        return _innermost(self.of(host)) is not None

    @property
    def agree_on_protocols(self) -> bool:
        """Whether the peer can choose, on every connection, what is spoken (ALPN)."""
        factories = [self.default, *(match.factory for match in self.matches)]
        return all(_innermost(factory) is not None for factory in factories)

    @property
    def all(self) -> list[TransportSocketFactory]:
        """Every factory, also those that stand behind a PROXY protocol header."""
        found: list[TransportSocketFactory] = []
        for factory in (self.default, *(match.factory for match in self.matches)):
            inner = factory
            while inner is not None:
                found.append(inner)
                inner = inner.inner if isinstance(inner, ProxyProtocolFactory) else None
        return found


def _innermost(factory: TransportSocketFactory | None) -> TransportSocketFactory | None:
    """What encrypts, behind a PROXY protocol header or not; None: nothing does."""
    while isinstance(factory, ProxyProtocolFactory):
        factory = factory.inner
    return factory


def _new(
    factory: TransportSocketFactory, host: Host, demand: ConnectionDemand | None, protocols: tuple[str, ...]
) -> TransportSocket:
    if isinstance(factory, ProxyProtocolFactory):
        header = None if demand is None else demand.header
        inner = None if factory.inner is None else _new(factory.inner, host, demand, protocols)
        return ProxyProtocolSocket(factory.header(header or _NOBODY), inner)
    server_name = host.hostname if factory.asks_for_host else ""
    if demand is None:
        return factory.new(server_name, "", protocols)
    name, offers = demand.server_name or server_name, demand.application_protocols
    return factory.new(name, demand.demanded_name, offers or protocols, bool(offers))


# -- from the configuration


def build_transport_sockets(message: Any, path: str, context: BuildContext, stat_prefix: str) -> TransportSockets:
    """Of a Cluster, whose stats stand under `stat_prefix` (`cluster.<name>.`). All errors go to the context."""
    sockets = TransportSockets()
    if message.HasField("transport_socket"):
        where = child(path, "transport_socket")
        sockets.default = build_transport_socket(message.transport_socket, where, context, stat_prefix)
    for index, entry in enumerate(message.transport_socket_matches):
        where = child(item(path, "transport_socket_matches", index), "transport_socket")
        factory: TransportSocketFactory | None = None
        if entry.HasField("transport_socket"):
            factory = build_transport_socket(entry.transport_socket, where, context, stat_prefix)
        else:
            context.errors.add(where, "is required")
        stats = context.scope(f"{stat_prefix}{entry.name}.", TransportMatchStats)
        sockets.matches.append(TransportMatch(json_format.MessageToDict(entry.match), factory, stats))
    if sockets.matches:
        sockets.default_stats = context.scope(f"{stat_prefix}default.", TransportMatchStats)
    return sockets


def build_transport_socket(
    message: Any, path: str, context: BuildContext, stat_prefix: str
) -> TransportSocketFactory | None:
    """What a core.v3.TransportSocket describes; None for plain bytes, and after errors."""
    if not message.HasField("typed_config") and message.name == _RAW_BUFFER:
        return None
    where = child(path, "typed_config")
    found = UPSTREAM_TRANSPORT_SOCKETS.find(message.typed_config, where, context)
    if found is None:
        return None
    config, builder = found
    return builder(config, where, context, stat_prefix)


def _plain(message: Any, path: str, context: BuildContext, stat_prefix: str) -> None:
    return None


def _proxy_protocol(message: Any, path: str, context: BuildContext, stat_prefix: str) -> TransportSocketFactory:
    inner: TransportSocketFactory | None = None
    if message.HasField("transport_socket"):
        where = child(path, "transport_socket")
        inner = build_transport_socket(message.transport_socket, where, context, stat_prefix)
    else:
        context.errors.add(child(path, "transport_socket"), "is required")
    config = message.config
    made = ProxyProtocolFactory(inner, 1 if config.version == ProxyProtocolConfig.V1 else 2)
    made.keyed_by_tlvs = message.tlv_as_pool_key
    if config.HasField("pass_through_tlvs"):
        passed = config.pass_through_tlvs
        made.passes_all = passed.match_type == ProxyProtocolPassThroughTLVs.INCLUDE_ALL
        made.passed = frozenset(passed.tlv_type)
    made.added = build_tlvs(config.added_tlvs, child(path, "config"), "added_tlvs", context.errors)
    return made


UPSTREAM_TRANSPORT_SOCKETS.register(RawBuffer, _plain)
UPSTREAM_TRANSPORT_SOCKETS.register(UpstreamTlsContext, build_upstream_tls)
UPSTREAM_TRANSPORT_SOCKETS.register(ProxyProtocolUpstreamTransport, _proxy_protocol)
