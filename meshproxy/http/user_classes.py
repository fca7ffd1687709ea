"""The contracts of classes in Python files that are no HTTP filters (docs/writing-filters.md).

As `user_filter.py`, and for its reason, never compiled. Listener filters have theirs beside the built-in ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from meshproxy.http.filter import CONTINUE, DataResult, Result

if TYPE_CHECKING:
    from meshproxy.http.filter_context import FilterContext
    from meshproxy.http.filtered_connection import DownstreamConnection
    from meshproxy.http.python_balancer import LbRequest
    from meshproxy.observe.stream_info import StreamInfo
    from meshproxy.upstream.host import Host


class UserClass:
    """What all kinds have: `config` is what the configuration says, as the dataclass that annotates it in your class;
    `context` is shared by all instances, and outlives them."""

    config: Any
    context: FilterContext

    @classmethod
    def on_start(cls, context: FilterContext) -> None:
        """The class takes effect in this worker: the place to set `context.state`, and to spawn tasks."""

    @classmethod
    def on_stop(cls, context: FilterContext) -> None:
        """It has ended: it was replaced or removed, and its last connection is done."""


class NetworkFilter(UserClass):
    """Sees the bytes of a connection, between TLS and what speaks on it (HTTP, tcp_proxy). Each connection has an
    instance of its own. Override the hooks that you need; the others are not called."""

    def on_connected(self, connection: DownstreamConnection) -> Result:
        """Bytes can go both ways; the TLS handshake is done. STOP, or a coroutine, holds both directions."""
        return CONTINUE

    def on_data(self, connection: DownstreamConnection, data: bytes, end: bool) -> DataResult:
        """From the downstream; bytes that it returns replace the data. `end`: that was all; `data` is empty then."""
        return CONTINUE

    def on_write(self, connection: DownstreamConnection, data: bytes, end: bool) -> DataResult:
        """To the downstream, as `on_data`."""
        return CONTINUE

    def on_close(self, connection: DownstreamConnection) -> None:
        """The end of the connection, however it came: exactly once."""


class LoadBalancer(UserClass):
    """Chooses hosts for the requests of a cluster. One instance per cluster."""

    def on_hosts(self, hosts: list[Host]) -> None:
        """The hosts that may be used now, of all priorities; again whenever they change, or their health does."""

    def choose(self, request: LbRequest) -> Host | None:
        """The host that takes the request, one of `request.hosts` as a rule; None refuses it (503, UH)."""
        raise NotImplementedError


class AccessLogger(UserClass):
    """Is told of streams and connections that have ended. One instance per configuration."""

    measures: ClassVar[bool] = False  # it reads `info.wire`: bytes on the wire are counted only then

    def on_log(self, info: StreamInfo) -> None:
        """A stream has ended, or what else `info.log_type` says, and the entry's `filter` lets it pass."""
