"""The contract of a network filter that ends a filter chain: it speaks on the connections that the chain accepts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from mypy_extensions import mypyc_attr

from meshproxy.config.context import BuildContext
from meshproxy.config.registry import Registry
from meshproxy.net.connection import Connection, ConnectionHandler
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.net.transport_socket import TransportSocket
from meshproxy.observe.stream_info import ConnectionInfo
from meshproxy.upstream.manager import ClusterManager


@mypyc_attr(allow_interpreted_subclasses=True)
class ConnectionOwner:
    """The filter chain that a connection belongs to: told of the connection's end, and asked whether it drains.

    While it is `draining`, every response asks `closes_now` whether it is to be the connection's last. `failing`: an
    operator lets health checks fail (POST /healthcheck/fail).
    """

    def __init__(self) -> None:
        self.draining: bool = False
        self.failing: bool = False

    def closes_now(self) -> bool:
        return True

    def on_connection_done(self, connection: ActiveConnection) -> None:
        raise NotImplementedError


@mypyc_attr(allow_interpreted_subclasses=True)
class ActiveConnection(ConnectionHandler):
    """What speaks on a connection of a filter chain, as the listener sees it."""

    def start_drain(self, after_ms: float) -> None:
        """A drain has begun, which answers ask the owner about. A peer that can be told without one is told so long
        from now."""
        raise NotImplementedError

    def retire(self) -> None:
        """This one is to end, whatever becomes of the others: where its protocol can say so, with its next answer."""
        raise NotImplementedError

    def end_retired(self) -> None:
        """It had time for that: whoever can end without a loss does it now, and whoever nobody knows that of."""
        raise NotImplementedError

    def close_idle(self, idle_ms: float) -> None:
        """Close now if nothing has happened for so long."""
        raise NotImplementedError

    def abort(self) -> None:
        """End at once."""
        raise NotImplementedError

    def active_requests(self) -> int:
        raise NotImplementedError


@mypyc_attr(allow_interpreted_subclasses=True)
class RawConnection(ActiveConnection):
    """A connection of bytes that nobody here understands.

    Nobody knows where it could end without a loss: in a drain it goes on until its peers end it, or the drain time is
    over.
    """

    def __init__(self, owner: ConnectionOwner, connection: Connection) -> None:
        self.owner = owner
        self.connection = connection
        self._out: list[bytes] = []

    def send(self, data: bytes) -> None:
        """To the downstream, at the end of the turn."""
        self._out.append(data)
        self.connection.send_pending()

    def data_to_send(self) -> list[bytes]:
        out, self._out = self._out, []
        return out

    def on_close(self, error: str) -> None:
        self.owner.on_connection_done(self)

    def start_drain(self, after_ms: float) -> None:
        """It goes on."""

    def retire(self) -> None:
        """It goes on for a while."""

    def end_retired(self) -> None:
        self.abort()

    def close_idle(self, idle_ms: float) -> None:
        """It goes on."""

    def abort(self) -> None:
        self.connection.abort()

    def active_requests(self) -> int:
        return 1


@mypyc_attr(allow_interpreted_subclasses=True)
class NetworkFilter:
    """A built terminal filter: frozen, but for its route table.

    `fingerprint` names the configuration without what can be swapped under open connections (its routes): as long as it
    stays, connections stay.
    """

    fingerprint: bytes = b""

    def accept(
        self,
        dispatcher: Dispatcher,
        clusters: ClusterManager,
        owner: ConnectionOwner,
        connection: Connection,
        info: ConnectionInfo,
    ) -> ActiveConnection:
        """Speak on `connection` from now on."""
        raise NotImplementedError

    def adopt(self, newer: NetworkFilter) -> None:
        """Take over from `newer`, whose fingerprint is the same, what may be swapped."""
        raise NotImplementedError


@mypyc_attr(allow_interpreted_subclasses=True)
class ConnectionGate:
    """A built network filter that stands before the terminal one, and says whether a connection may come in."""

    def admit(self, connection: Connection, info: ConnectionInfo) -> bool:
        """Whether it may. One that may not is the gate's to close; one that may is followed by one `leave`."""
        raise NotImplementedError

    def leave(self) -> None:
        """A connection that was admitted has ended."""


@mypyc_attr(allow_interpreted_subclasses=True)
class ConnectionFilter:
    """A built network filter that stands before the terminal one, and sees the bytes of its connections."""

    def new(self, connection: Connection, info: ConnectionInfo, inner: TransportSocket | None) -> TransportSocket:
        """Its place in one connection: behind `inner`, which is the transport socket, or the filter before it."""
        raise NotImplementedError


BuiltNetworkFilter = NetworkFilter | ConnectionGate | ConnectionFilter
NetworkFilterBuilder = Callable[[Any, str, BuildContext], BuiltNetworkFilter | None]
NETWORK_FILTERS: Final[Registry[NetworkFilterBuilder]] = Registry("network filter")
