"""Raw connections to hosts: one for each downstream connection that is passed on as it is. Nothing is reused.

Limits and stats are those of Envoy's TCP connection pool: while it connects it is a pending request, afterwards an
active one, which max_requests does not limit. Who opens one has asked whether max_connections lets him.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import mypyc_attr

from meshproxy.errors import RESET_OVERFLOW
from meshproxy.net.connect import ConnectAttempt, ConnectHandler
from meshproxy.net.connection import Connection
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.connection_counts import ConnectionCounts
from meshproxy.upstream.demand import ConnectionDemand
from meshproxy.upstream.host import Host
from meshproxy.upstream.open_connection import open_connection
from meshproxy.upstream.outlier import LOCAL_ORIGIN_CONNECT_FAILED, LOCAL_ORIGIN_CONNECT_SUCCESS

_NEW: Final = 0
_CONNECTING: Final = 1
_OPEN: Final = 2
_CLOSED: Final = 3


@mypyc_attr(allow_interpreted_subclasses=True)
class TcpUpstreamCallbacks:
    """Who passes a connection on."""

    def on_upstream_connected(self) -> None:
        raise NotImplementedError

    def on_upstream_failed(self, reason: int, details: str) -> None:
        """There is no connection: RESET_OVERFLOW, RESET_CONNECT_FAILURE or RESET_CONNECT_TIMEOUT."""
        raise NotImplementedError

    def on_upstream_data(self, data: bytes) -> None:
        raise NotImplementedError

    def on_upstream_eof(self) -> None:
        """The upstream sends no more; it may still read."""
        raise NotImplementedError

    def on_upstream_closed(self, error: str) -> None:
        """It is gone, and we did not close it."""
        raise NotImplementedError

    def on_upstream_above_watermark(self) -> None:
        raise NotImplementedError

    def on_upstream_below_watermark(self) -> None:
        raise NotImplementedError


class TcpUpstream(ConnectHandler):
    """One raw connection to one host."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        cluster: Cluster,
        host: Host,
        callbacks: TcpUpstreamCallbacks,
        demand: ConnectionDemand | None = None,
        priority: int = 0,
    ) -> None:
        self.cluster = cluster
        self.host = host
        self.connection: Connection | None = None
        self._dispatcher = dispatcher
        self._callbacks = callbacks
        self._demand = demand
        self._breakers = cluster.breakers(priority)
        self._state: int = _NEW
        self._counts: ConnectionCounts | None = None
        self._attempt: ConnectAttempt | None = None
        self._out: list[bytes] = []

    def open(self) -> None:
        """The callbacks hear what becomes of it, in this call only when a limit forbids it."""
        cluster, host, breakers = self.cluster, self.host, self._breakers
        stats = cluster.stats
        if not breakers.pending.try_acquire():
            stats.upstream_rq_pending_overflow += 1
            self._callbacks.on_upstream_failed(RESET_OVERFLOW, "")
            return
        breakers.connections.acquire()
        stats.upstream_rq_pending_total += 1
        stats.upstream_rq_pending_active += 1
        host.stats.rq_pending_active += 1
        self._counts = ConnectionCounts(host, stats)
        self._state = _CONNECTING
        self._attempt = open_connection(self._dispatcher, cluster.config, host, self, self._demand)

    # -- from the socket

    def on_connected(self, connection: Connection) -> None:
        self._attempt = None
        self._end_pending()
        host, stats, breakers = self.host, self.cluster.stats, self._breakers
        counts = self._counts
        assert counts is not None
        counts.connected()
        breakers.requests.acquire()
        self._state = _OPEN
        self.connection = connection
        host.stats.rq_total += 1
        host.stats.rq_active += 1
        stats.upstream_rq_total += 1
        stats.upstream_rq_active += 1
        if host.outlier.split:
            host.outlier.put_local_origin(LOCAL_ORIGIN_CONNECT_SUCCESS)
        self._callbacks.on_upstream_connected()

    def on_another_attempt(self) -> None:
        if self._counts is not None:
            self._counts.another_attempt()

    def on_connect_failure(self, reason: int, details: str) -> None:
        self._attempt = None
        self._state = _CLOSED
        self._end_pending()
        counts = self._counts
        assert counts is not None
        counts.connect_failed(reason)
        self._breakers.connections.release()
        stats = self.cluster.stats
        stats.upstream_rq_pending_failure_eject += 1
        self.host.outlier.put_local_origin(LOCAL_ORIGIN_CONNECT_FAILED)
        self._callbacks.on_upstream_failed(reason, details)

    def on_data(self, data: bytes) -> None:
        self.cluster.stats.upstream_cx_rx_bytes_total += len(data)
        self._callbacks.on_upstream_data(data)

    def on_eof(self) -> None:
        self._callbacks.on_upstream_eof()

    def on_close(self, error: str) -> None:
        if self._state != _OPEN:
            return
        self._end(False)
        self._callbacks.on_upstream_closed(error)

    def data_to_send(self) -> list[bytes]:
        out, self._out = self._out, []
        size = 0
        for piece in out:
            size += len(piece)
        self.cluster.stats.upstream_cx_tx_bytes_total += size
        return out

    def on_above_write_watermark(self) -> None:
        self.cluster.stats.upstream_flow_control_backed_up_total += 1
        self._callbacks.on_upstream_above_watermark()

    def on_below_write_watermark(self) -> None:
        self.cluster.stats.upstream_flow_control_drained_total += 1
        self._callbacks.on_upstream_below_watermark()

    # -- from the one who passes a connection on

    def send(self, data: bytes) -> None:
        connection = self.connection
        if connection is not None:
            self._out.append(data)
            connection.send_pending()

    def end_output(self) -> None:
        if self.connection is not None:
            self.connection.end_output()

    def read_disable(self, disable: bool) -> None:
        stats = self.cluster.stats
        if disable:
            stats.upstream_flow_control_paused_reading_total += 1
        else:
            stats.upstream_flow_control_resumed_reading_total += 1
        if self.connection is not None:
            self.connection.read_disable(disable)

    def close(self, local: bool = True) -> None:
        """Close after what is pending is sent; give up a connection that is not open yet. No more callbacks.

        `local`: it counts as closed by us.
        """
        if self._state == _CONNECTING:
            self._state = _CLOSED
            self._end_pending()
            self.cluster.stats.upstream_rq_cancelled += 1
            self._destroy(True, False)
            attempt, self._attempt = self._attempt, None
            if attempt is not None:
                attempt.cancel()
        elif self._state == _OPEN:
            connection = self.connection
            self._end(local)
            if connection is not None:
                connection.close()

    def reset(self) -> None:
        """As `close`, at once, and with a TCP reset."""
        connection = self.connection
        self.close()
        if connection is not None:
            connection.reset()

    # -- the end

    def _end(self, local: bool) -> None:
        self._state = _CLOSED
        self._breakers.requests.release()
        self.host.stats.rq_active -= 1
        self.cluster.stats.upstream_rq_active -= 1
        self._destroy(local, True)

    def _destroy(self, local: bool, with_stream: bool) -> None:
        counts = self._counts
        assert counts is not None
        counts.destroyed(local, with_stream)
        self._breakers.connections.release()

    def _end_pending(self) -> None:
        self._breakers.pending.release()
        self.cluster.stats.upstream_rq_pending_active -= 1
        self.host.stats.rq_pending_active -= 1
