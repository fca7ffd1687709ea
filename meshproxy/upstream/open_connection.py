"""How a cluster's configuration has its connections opened, whatever they carry."""

from __future__ import annotations

from meshproxy.net.address import Address
from meshproxy.net.connect import ConnectAttempt, ConnectHandler, connect
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.net.happy_eyeballs import HappyEyeballs, Opener
from meshproxy.upstream.config import ClusterConfig
from meshproxy.upstream.demand import ConnectionDemand
from meshproxy.upstream.host import Host


def open_connection(
    dispatcher: Dispatcher,
    config: ClusterConfig,
    host: Host,
    handler: ConnectHandler,
    demand: ConnectionDemand | None,
    protocols: tuple[str, ...] = (),
) -> ConnectAttempt:
    """Begin to connect to `host`; `handler` hears what becomes of it. `protocols` are offered by TLS (ALPN)."""
    opener = _HostOpener(dispatcher, config, host, demand, protocols)
    if not host.addresses:
        return opener.open(host.address, handler)
    attempt = HappyEyeballs(dispatcher, handler, opener, host.addresses)
    attempt.begin(config.connect_timeout_ms)
    return attempt


class _HostOpener(Opener):
    """Connects to any of one host's addresses."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        config: ClusterConfig,
        host: Host,
        demand: ConnectionDemand | None,
        protocols: tuple[str, ...],
    ) -> None:
        self._dispatcher = dispatcher
        self._config = config
        self._host = host
        self._demand = demand
        self._protocols = protocols

    def open(self, address: Address, handler: ConnectHandler) -> ConnectAttempt:
        config = self._config
        bind, options = None, config.socket_options
        if config.sources is not None:
            source = config.sources.to(address)
            bind, options = source.address, options + source.options
        return connect(
            self._dispatcher,
            address,
            handler,
            config.connect_timeout_ms,
            config.per_connection_buffer_limit_bytes,
            options,
            bind,
            config.transports.new(self._host, self._demand, self._protocols),
        )
