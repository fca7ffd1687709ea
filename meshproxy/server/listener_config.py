"""From a Listener message to what a worker accepts connections with."""

from __future__ import annotations

from typing import Any, Final

from envoy.config.listener.v3.listener_components_pb2 import ListenerFilter
from envoy.extensions.filters.listener.original_dst.v3.original_dst_pb2 import OriginalDst

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child, item
from meshproxy.config.values import milliseconds_or, socket_options
from meshproxy.filters.listener_filter import ConfiguredListenerFilter, build_listener_filters
from meshproxy.http.build import build_access_logs
from meshproxy.http.network_filter import (
    NETWORK_FILTERS,
    BuiltNetworkFilter,
    ConnectionFilter,
    ConnectionGate,
    NetworkFilter,
)
from meshproxy.net.address import Address, is_ip
from meshproxy.net.connect import SocketOption
from meshproxy.net.transport_socket import TransportSocketFactory
from meshproxy.observe.access_log import AccessLog
from meshproxy.server.filter_chain_match import FilterChainMatcher, build_filter_chain_matcher
from meshproxy.server.transport import DOWNSTREAM_TRANSPORT_SOCKETS

_DEFAULT_BUFFER_LIMIT: Final = 1024 * 1024
_SWAPPABLE_FILTER: Final = "meshproxy.filters.network.python.v1.Python"
_OUTBOUND: Final = 2  # core.v3.TrafficDirection


class FilterChainConfig:
    """One filter chain: what speaks on its connections, behind its gates, its transport socket (None is plain) and
    its filters."""

    def __init__(self, name: str, terminal: NetworkFilter, fingerprint: bytes) -> None:
        self.name = name
        self.terminal = terminal
        self.fingerprint = fingerprint
        self.gates: tuple[ConnectionGate, ...] = ()
        self.filters: tuple[ConnectionFilter, ...] = ()
        self.transport: TransportSocketFactory | None = None
        self.handshake_timeout_ms: float = 0.0  # 0.0: no limit


class ListenerConfig:
    """A listener, built. `sockets` names what must be rebound when it changes."""

    def __init__(self, name: str, addresses: tuple[Address, ...], context: BuildContext) -> None:
        self.name = name
        self.addresses = addresses
        self.context = context
        self.stat_prefix: str = ""
        self.chains: list[FilterChainConfig] = []
        self.default_chain: FilterChainConfig | None = None
        self.buffer_limit_bytes: int = _DEFAULT_BUFFER_LIMIT
        self.direction: int = 0
        self.socket = SocketConfig()
        self.ignore_global_limit: bool = False
        self.access_logs: list[AccessLog] = []  # of connections
        self.listener_filters: list[ConfiguredListenerFilter] = []
        self.listener_filters_timeout_ms: float = 15_000.0  # 0.0: no limit
        self.continues_on_timeout: bool = False
        self.hands_off: bool = False  # use_original_dst
        self.matcher: FilterChainMatcher | None = None

    def matches_everything(self) -> bool:
        """Whether every connection gets the only chain there is."""
        return not self.chains or (self.matcher is not None and self.matcher.matches_everything)

    def all_chains(self) -> list[FilterChainConfig]:
        return self.chains if self.default_chain is None else [*self.chains, self.default_chain]


class SocketConfig:
    """What a listening socket is made with."""

    def __init__(self) -> None:
        self.reuse_port: bool = True
        self.options: tuple[SocketOption, ...] = ()
        self.mode: int = 0
        self.ipv4_compat: bool = False
        self.backlog: int = 4096
        self.binds: bool = True


def listener_addresses(message: Any) -> tuple[Address, ...]:
    """The addresses that a Listener binds, its own first."""
    return (to_address(message.address), *(to_address(extra.address) for extra in message.additional_addresses))


def listener_name(message: Any) -> str:
    """Its name; a Listener without one is called by its address."""
    return message.name or to_address(message.address).text


def to_address(message: Any) -> Address:
    """A core.v3.Address that `validate` accepted."""
    if message.WhichOneof("address") == "pipe":
        return Address("", 0, message.pipe.path)
    socket_address = message.socket_address
    return Address(socket_address.address, socket_address.port_value)


def socket_config(message: Any) -> SocketConfig:
    """Socket settings of a Listener message."""
    config = SocketConfig()
    address = message.address
    pipe = address.WhichOneof("address") == "pipe"
    config.reuse_port = not pipe and (message.enable_reuse_port.value or not message.HasField("enable_reuse_port"))
    config.mode = address.pipe.mode if pipe else 0
    config.ipv4_compat = address.socket_address.ipv4_compat
    config.options = socket_options(message)
    config.binds = message.bind_to_port.value or not message.HasField("bind_to_port")
    config.backlog = message.tcp_backlog_size.value if message.HasField("tcp_backlog_size") else 4096
    return config


def build_listener(message: Any, path: str, context: BuildContext) -> ListenerConfig | None:
    """All errors go to the context, with their paths; None when there were any."""
    before = len(context.errors)
    addresses = listener_addresses(message)
    listener = ListenerConfig(listener_name(message), addresses, context)
    listener.stat_prefix = f"listener.{_stat_name(message.stat_prefix or addresses[0].text)}."
    _check_address(message.address, child(path, "address"), context)
    for index, extra in enumerate(message.additional_addresses):
        _check_address(extra.address, child(item(path, "additional_addresses", index), "address"), context)
    if message.HasField("per_connection_buffer_limit_bytes"):
        listener.buffer_limit_bytes = message.per_connection_buffer_limit_bytes.value
    context.buffer_limit_bytes = listener.buffer_limit_bytes
    context.listener_stat_prefix = listener.stat_prefix
    context.outbound = message.traffic_direction == _OUTBOUND
    listener.listener_filters = build_listener_filters(_listener_filters(message), path, context)
    listener.listener_filters_timeout_ms = milliseconds_or(message, "listener_filters_timeout", 15_000)
    listener.continues_on_timeout = message.continue_on_listener_filters_timeout
    listener.hands_off = message.use_original_dst.value
    listener.matcher = build_filter_chain_matcher(message.filter_chains, path, context)
    for index, chain in enumerate(message.filter_chains):
        built = _build_chain(chain, item(path, "filter_chains", index), context)
        if built is not None:
            listener.chains.append(built)
    if message.HasField("default_filter_chain"):
        where = child(path, "default_filter_chain")
        listener.default_chain = _build_chain(message.default_filter_chain, where, context)
    if not message.filter_chains and not message.HasField("default_filter_chain"):
        context.errors.add(child(path, "filter_chains"), "at least one filter chain is required")
    listener.access_logs = build_access_logs(message.access_log, child(path, "access_log"), context)
    listener.direction = message.traffic_direction
    listener.socket = socket_config(message)
    listener.ignore_global_limit = message.ignore_global_conn_limit
    return listener if len(context.errors) == before else None


def _listener_filters(message: Any) -> list[Any]:
    """With `use_original_dst` there is an original_dst filter, also where nobody wrote it down (Envoy)."""
    filters = list(message.listener_filters)
    names = {entry.typed_config.type_url.rpartition("/")[2] for entry in filters}
    if message.use_original_dst.value and OriginalDst.DESCRIPTOR.full_name not in names:
        entry = ListenerFilter(name="envoy.filters.listener.original_dst")
        entry.typed_config.Pack(OriginalDst())
        filters.append(entry)
    return filters


def _check_address(message: Any, path: str, context: BuildContext) -> None:
    address = to_address(message)
    if not address.path and not is_ip(address.ip):
        context.errors.add(f"{path}.socket_address.address", f"malformed IP address: {address.ip!r}")


def _stat_name(text: str) -> str:
    """An address as part of a stat's name: Envoy replaces what would look like a separator."""
    return text.replace(":", "_")


def _build_chain(message: Any, path: str, context: BuildContext) -> FilterChainConfig | None:
    if not message.filters:
        context.errors.add(child(path, "filters"), "at least one network filter is required")
        return None
    before = len(context.errors)
    gates: list[ConnectionGate] = []
    filters: list[ConnectionFilter] = []
    terminal: NetworkFilter | None = None
    for index, entry in enumerate(message.filters):
        where = child(item(path, "filters", index), "typed_config")
        built = _build_filter(entry, where, context)
        last = index == len(message.filters) - 1
        if isinstance(built, NetworkFilter):
            terminal = built
            if not last:
                context.errors.add(where, "a terminal filter must stand last in its chain")
        elif built is not None and last:
            context.errors.add(where, "a chain must end with a terminal filter")
        elif isinstance(built, ConnectionGate):
            gates.append(built)
        elif built is not None:
            filters.append(built)
    transport = _build_transport(message, path, context)
    if terminal is None or len(context.errors) != before:
        return None
    chain = FilterChainConfig(message.name, terminal, _fingerprint(message, terminal))
    chain.gates = tuple(gates)
    chain.filters = tuple(filters)
    chain.transport = transport
    chain.handshake_timeout_ms = milliseconds_or(message, "transport_socket_connect_timeout", 0)
    return chain


def _build_filter(entry: Any, path: str, context: BuildContext) -> BuiltNetworkFilter | None:
    found = NETWORK_FILTERS.find(entry.typed_config, path, context)
    if found is None:
        return None
    config, builder = found
    context.filter_name = entry.name
    return builder(config, path, context)


def _build_transport(message: Any, path: str, context: BuildContext) -> TransportSocketFactory | None:
    if not message.HasField("transport_socket"):
        return None
    where = child(child(path, "transport_socket"), "typed_config")
    found = DOWNSTREAM_TRANSPORT_SOCKETS.find(message.transport_socket.typed_config, where, context)
    if found is None:
        return None
    config, builder = found
    return builder(config, where, context, tuple(message.filter_chain_match.server_names))


def _fingerprint(message: Any, terminal: NetworkFilter) -> bytes:
    """All of the chain, but for what can be swapped under open connections: by its terminal filter, and its filters in
    Python, which connections keep as they began."""
    rest = type(message)()
    rest.CopyFrom(message)
    del rest.filters[-1]
    for entry in rest.filters:
        if entry.typed_config.type_url.rpartition("/")[2] == _SWAPPABLE_FILTER:
            entry.typed_config.ClearField("value")
    return bytes(rest.SerializeToString(deterministic=True)) + b"\0" + terminal.fingerprint
