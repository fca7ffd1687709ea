"""What `FilterTest` is for HTTP filters, for the other kinds of classes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from meshproxy.observe.stream_info import StreamInfo
from meshproxy.server.listener import ActiveListener
from meshproxy.testing.filter_test import FilterTest, cluster_of, listener_of, static_resources
from meshproxy.testing.memory import MemoryLoop, connect_pair
from meshproxy.testing.peers import Peer, Upstream

_TIMEOUT_S: Final = 30.0
_TCP_PROXY: Final = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"


class _ConnectionTest(FilterTest):
    """Connections of bytes, through tcp_proxy: `connect` is their client, `accept` where they lead to."""

    _stats_prefix: ClassVar[str] = "listener.127.0.0.1_8080.python.{name}."

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._accepted: asyncio.Queue[Peer] = asyncio.Queue()

    def connect(self) -> Peer:
        """A new connection to the proxy."""
        assert self._worker is not None
        peer = Peer()
        connect_pair(asyncio.get_running_loop(), peer, self._worker.listeners["main"].new_connection(), 8080)
        return peer

    async def accept(self) -> Peer:
        """The next connection that the proxy makes to the upstream."""
        async with asyncio.timeout(_TIMEOUT_S):
            return await self._accepted.get()

    @property
    def info(self) -> StreamInfo | None:
        """What access logs know of the connection that ended last."""
        return self._log.last

    def _listen(self, loop: MemoryLoop) -> None:
        super()._listen(loop)
        self._ports["upstream"] = loop.listen(self._new_peer)

    def _new_peer(self) -> Peer:
        peer = Peer()
        self._accepted.put_nowait(peer)
        return peer

    def _bootstrap(self, ports: dict[str, int]) -> dict[str, Any]:
        proxy = {"@type": _TCP_PROXY, "stat_prefix": "test", "cluster": "upstream"}
        listener = self._listener({"name": "tcp", "typed_config": proxy})
        return static_resources(listener, [cluster_of(name, [port]) for name, port in ports.items()])

    def _listener(self, terminal: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError


class NetworkFilterTest(_ConnectionTest):
    """Runs a network filter: `client = t.connect()`, `server = await t.accept()`, and bytes between them."""

    _place: ClassVar[str] = "filters[0].typed_config."

    def _listener(self, terminal: dict[str, Any]) -> dict[str, Any]:
        return listener_of({"name": self._name, "typed_config": self._python("filters.network")}, terminal)


class ListenerFilterTest(_ConnectionTest):
    """Runs a listener filter, as `NetworkFilterTest` does."""

    _place: ClassVar[str] = "listener_filters[0].typed_config."

    def _listener(self, terminal: dict[str, Any]) -> dict[str, Any]:
        entry = {"name": self._name, "typed_config": self._python("filters.listener")}
        return {**listener_of(terminal), "listener_filters": [entry]}


class LoadBalancerTest(FilterTest):
    """Runs a load balancer for a cluster of so many `hosts`, whose upstreams are `t.hosts`; it is asked by
    `t.request`."""

    _stats_prefix: ClassVar[str] = "cluster.upstream.python."
    _place: ClassVar[str] = "typed_extension_config.typed_config."

    def __init__(
        self,
        kind: type[Any] | str | Path,
        config: Mapping[str, Any] | None = None,
        *,
        class_name: str = "",
        hosts: int = 3,
        cluster_fields: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(kind, config, class_name=class_name)
        self.hosts = [Upstream() for _ in range(hosts)]
        self._cluster_fields = cluster_fields or {}

    def _listen(self, loop: MemoryLoop) -> None:
        for index, upstream in enumerate(self.hosts):
            self._ports[f"host {index}"] = loop.listen(upstream.new_connection)

    def _bootstrap(self, ports: dict[str, int]) -> dict[str, Any]:
        cluster = {**cluster_of("upstream", list(ports.values())), **self._cluster_fields}
        extension = {"name": self._name, "typed_config": self._python("load_balancing_policies")}
        cluster["load_balancing_policy"] = {"policies": [{"typed_extension_config": extension}]}
        return static_resources(listener_of({"name": "http", "typed_config": self._manager([])}), [cluster])


class AccessLoggerTest(FilterTest):
    """Runs an access logger for what `t.request` asks; `log_filter` is the entry's `filter`."""

    _stats_prefix: ClassVar[str] = "access_log.python.{name}."
    _place: ClassVar[str] = "access_log[0].typed_config."

    def __init__(
        self,
        kind: type[Any] | str | Path,
        config: Mapping[str, Any] | None = None,
        *,
        class_name: str = "",
        log_filter: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(kind, config, class_name=class_name)
        self._filter = log_filter

    def _record(self, listener: ActiveListener) -> None:
        terminal: Any = listener.current_chains[0].config.terminal
        others = [log for log in terminal.config.access_logs if log is not self._log]
        terminal.config.access_logs = (*others, self._log)

    def _bootstrap(self, ports: dict[str, int]) -> dict[str, Any]:
        entry: dict[str, Any] = {"name": self._name, "typed_config": self._python("access_loggers")}
        if self._filter is not None:
            entry["filter"] = dict(self._filter)
        manager = {**self._manager([]), "access_log": [entry]}
        clusters = [cluster_of(name, [port]) for name, port in ports.items()]
        return static_resources(listener_of({"name": "http", "typed_config": manager}), clusters)
