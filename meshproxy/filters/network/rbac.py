"""`envoy.filters.network.rbac`: ends connections that its rules do not allow, when their first bytes come.

In a connection the filter is a `TransportSocket`, behind TLS, so that rules know the peer's certificate. Nothing that
the downstream sends gets past it before the rules have allowed it; what the other side says first does, as in Envoy.
"""

from __future__ import annotations

from typing import Any, Final

from envoy.extensions.filters.network.rbac.v3.rbac_pb2 import RBAC

from meshproxy.clock import monotonic
from meshproxy.codec.headers import HeaderMap
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child
from meshproxy.config.values import milliseconds_or
from meshproxy.http.network_filter import NETWORK_FILTERS, ConnectionFilter
from meshproxy.net.connection import CLOSED, Connection
from meshproxy.net.timers import CallTimer
from meshproxy.net.transport_socket import TransportSocket
from meshproxy.observe.stream_info import ConnectionInfo, StreamInfo, shared_metadata
from meshproxy.rbac.access import Access
from meshproxy.rbac.build import build_engine, rbac_scope
from meshproxy.rbac.engine import (
    NO_HINT,
    EnforcedStats,
    Engine,
    ResultKeys,
    ShadowStats,
    Verdict,
    tell_loggers,
)

_NAMESPACE: Final = "envoy.filters.network.rbac"


class NetworkRules(ConnectionFilter):
    """A configured filter. `continuous`: all that comes is asked about, not only what comes first."""

    def __init__(self, enforced_stats: EnforcedStats, shadow_stats: ShadowStats, shadow_keys: ResultKeys) -> None:
        self.enforced: Engine | None = None
        self.shadow: Engine | None = None
        self.continuous: bool = False
        self.delay_deny_ms: int = 0
        self._enforced_stats = enforced_stats
        self._shadow_stats = shadow_stats
        self._shadow_keys = shadow_keys

    def new(self, connection: Connection, info: ConnectionInfo, inner: TransportSocket | None) -> TransportSocket:
        return GuardedConnection(self, connection, info, inner)

    def decide(self, info: ConnectionInfo) -> Verdict | None:
        """What the enforced rules say of a connection, which is counted and told; None where there are none."""
        access = access_of(info)
        if self.shadow is not None:
            self._tell_shadow(self.shadow.evaluate(access), info)
        if self.enforced is None:
            return None
        verdict = self.enforced.evaluate(access)
        self._enforced_stats.tell(verdict)
        if not verdict.allowed:
            info.termination_details = verdict.details()
        if verdict.log_hint != NO_HINT:
            tell_loggers(shared_metadata(info), verdict)
        return verdict

    def _tell_shadow(self, verdict: Verdict, info: ConnectionInfo) -> None:
        self._shadow_stats.tell(verdict)
        self._shadow_keys.write(shared_metadata(info).setdefault(_NAMESPACE, {}), verdict)


def access_of(info: ConnectionInfo) -> Access:
    """A connection as rules see it."""
    stream = StreamInfo(info, monotonic())
    stream.dynamic_metadata, stream.filter_state = info.dynamic_metadata, info.filter_state
    return Access(HeaderMap(), stream)


class GuardedConnection(TransportSocket):
    """The filter's place in one connection, behind `inner` where there is TLS or another filter before it."""

    def __init__(
        self, rules: NetworkRules, connection: Connection, info: ConnectionInfo, inner: TransportSocket | None
    ) -> None:
        super().__init__()
        self.buffers = True
        self.costly_handshake = inner is not None and inner.costly_handshake
        self._rules = rules
        self._connection: Connection | None = connection
        self._info = info
        self._inner = inner
        self._eof: bool = False  # of the socket
        self._asked: bool = False
        self._denied: bool = False
        self._timer: CallTimer | None = None  # until a denied connection is closed
        self._out: list[bytes] = []  # on its way to the socket, where there is no `inner`

    def start(self) -> None:
        if self._inner is not None:
            self._inner.start()
        self._follow()

    def receive(self, data: bytes) -> list[bytes]:
        inner = self._inner
        pieces: list[bytes] = []
        ends = self._eof
        if inner is None:
            if data:
                pieces.append(data)
        else:
            if data or inner.buffers:
                pieces = inner.receive(data)
            ends = inner.at_end or (self._eof and not inner.buffers)
        self._follow()
        if self._denied or not self.established:
            return []
        # An end is asked about like data: who never says a word is not to hear what the other side says after it.
        asks = bool(pieces) and self._rules.continuous if self._asked else bool(pieces) or ends
        if asks and not self._ask():
            return []
        self.at_end = ends
        return pieces

    def receive_eof(self) -> None:
        self._eof = True
        if self._inner is not None:
            self._inner.receive_eof()

    def send(self, data: bytes) -> None:
        if self._denied:
            return
        if self._inner is None:
            self._out.append(data)
        else:
            self._inner.send(data)

    def shut(self) -> None:
        if self._inner is not None:
            self._inner.shut()

    def take_output(self) -> bytes:
        if self._connection is None or self._connection.state == CLOSED:
            return b""
        if self._inner is not None:
            return self._inner.take_output()
        out, self._out = self._out, []
        return b"".join(out)

    def holds_output(self) -> bool:
        return self._inner is not None and self._inner.holds_output()

    def on_close(self) -> None:
        if self._inner is not None:
            self._inner.on_close()
        self._connection = None  # no cycle is left
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.disarm()

    def _follow(self) -> None:
        """What the inner one has become, this one is."""
        inner = self._inner
        if inner is None:
            self.established = True
            return
        self.failure = inner.failure
        self.facts = inner.facts
        self.established = inner.established

    def _ask(self) -> bool:
        """Whether what came may pass; if not, the connection ends."""
        self._asked = True
        verdict = self._rules.decide(self._info)
        if verdict is None or verdict.allowed:
            return True
        self._denied = True
        connection = self._connection
        if connection is None:
            return False
        delay_ms = self._rules.delay_deny_ms
        if delay_ms > 0:
            connection.read_disable(True)
            self._timer = CallTimer(connection.close)
            connection.dispatcher.timers.arm(self._timer, float(delay_ms))
        else:
            connection.close()
        return False


def build_rbac(message: Any, path: str, context: BuildContext) -> ConnectionFilter:
    prefix = f"{message.stat_prefix.removesuffix('.')}."
    shadow_prefix = message.shadow_rules_stat_prefix
    rules = NetworkRules(
        context.scope(rbac_scope(prefix, ""), EnforcedStats),
        context.scope(rbac_scope(prefix, shadow_prefix), ShadowStats),
        ResultKeys(f"{shadow_prefix}shadow_"),
    )
    rules.enforced = build_engine(message, "rules", path, context, http=False)
    rules.shadow = build_engine(message, "shadow_rules", path, context, http=False)
    rules.continuous = message.enforcement_type == message.CONTINUOUS
    rules.delay_deny_ms = milliseconds_or(message, "delay_deny", 0)
    if rules.delay_deny_ms < 0:
        context.errors.add(child(path, "delay_deny"), "must not be negative")
    return rules


NETWORK_FILTERS.register(RBAC, build_rbac)
