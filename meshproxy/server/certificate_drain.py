"""Connections do not outlive their certificates: an extension of ours, which a bootstrap asks for.

As in Envoy, who is let in stays in. With `meshproxy.bootstrap.certificate_drain.v1.CertificateDrain` all connections
are looked at now and then, bit by bit, and those are drained whose peer would not be let in any more: its certificate
has expired, or is revoked by a list that is in force. So are those that were made with a certificate of ours that has
expired meanwhile, where there is another one to go on with.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Final

from meshproxy.api.certificate_drain_pb2 import CertificateDrain as Settings
from meshproxy.clock import monotonic
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.typed_struct import unpack_any
from meshproxy.config.values import milliseconds_or
from meshproxy.net.slices import in_slices
from meshproxy.net.timers import CallTimer
from meshproxy.observe.stats import StatsScope
from meshproxy.tls.facts import TlsFacts
from meshproxy.tls.validity import is_expired
from meshproxy.tls.x509 import DerError, revoked_in
from meshproxy.upstream.connection import BUSY, READY

if TYPE_CHECKING:
    from meshproxy.http.network_filter import ActiveConnection
    from meshproxy.server.worker import Worker

_log: Final = logging.getLogger("meshproxy.main")

_INTERVAL_MS: Final = 10_000
_LEAST_INTERVAL_MS: Final = 100
_GRACE_MS: Final = 30_000
_STRIDE: Final = 16  # connections in a step
_ENTRIES: Final = 256  # of a list, in a step

OWN_EXPIRED: Final = "own_expired"
PEER_EXPIRED: Final = "peer_expired"
PEER_REVOKED: Final = "peer_revoked"


class CertificateDrainStats(StatsScope):
    """Under `certificate_drain.`: connections that were drained, by the side and the reason."""

    COUNTERS: ClassVar[tuple[str, ...]] = tuple(
        f"{side}_cx_{reason}"
        for side in ("downstream", "upstream")
        for reason in (OWN_EXPIRED, PEER_EXPIRED, PEER_REVOKED)
    )

    def __init__(self) -> None:
        super().__init__()
        self.downstream_cx_own_expired: int = 0
        self.downstream_cx_peer_expired: int = 0
        self.downstream_cx_peer_revoked: int = 0
        self.upstream_cx_own_expired: int = 0
        self.upstream_cx_peer_expired: int = 0
        self.upstream_cx_peer_revoked: int = 0


def certificate_drain_settings(bootstrap: Any) -> Any | None:
    """The extension's message, where a bootstrap has it."""
    for extension in bootstrap.bootstrap_extensions:
        message = unpack_any(extension.typed_config, "bootstrap_extensions", ConfigErrors())
        if isinstance(message, Settings):
            return message
    return None


class CertificateDrain:
    """Of one worker; nothing happens before `configure` was called with settings."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._settings: Any = None
        self._stats: CertificateDrainStats | None = None
        self._timer = CallTimer(self._on_timer)
        self._retired: dict[ActiveConnection, float] = {}  # downstream, and since when
        self._lists: dict[bytes, frozenset[tuple[bytes, bytes]]] = {}  # what is revoked, by the PEM that says so

    def configure(self, settings: Any) -> None:
        """As the bootstrap in force says; None: no connection is drained."""
        if settings == self._settings:
            return
        self._settings = settings
        if settings is not None and self._stats is None:
            self._stats = self._worker.stats.acquire("certificate_drain.", CertificateDrainStats)
        self._timer.disarm()
        self._arm()

    def close(self) -> None:
        self._settings = None
        self._timer.disarm()

    def _arm(self) -> None:
        if self._settings is not None:
            interval_ms = milliseconds_or(self._settings, "interval", _INTERVAL_MS) or _INTERVAL_MS
            self._worker.dispatcher.timers.arm(self._timer, float(max(interval_ms, _LEAST_INTERVAL_MS)))

    def _on_timer(self) -> None:
        self._worker.dispatcher.spawn(self._look(), "certificates of connections")

    async def _look(self) -> None:
        try:
            await in_slices(self.look())
        finally:
            self._arm()

    def look(self) -> Iterator[None]:
        """At all connections once, in steps."""
        judgement = _Judgement(time.time())
        for context in self._worker.tls_contexts():
            judgement.own.update(info.certificate.der for info in context.certificates)
            for validation in context.validations:
                pems = [validation.crl, validation.trusted_ca, *(each.trusted_ca for each in validation.trust_bundles)]
                judgement.lists.update(pem for pem in pems if pem)
            yield
        yield from self._read_lists(judgement)
        yield from self._look_downstream(judgement)
        yield from self._look_upstream(judgement)

    def _read_lists(self, judgement: _Judgement) -> Iterator[None]:
        self._lists = {pem: found for pem, found in self._lists.items() if pem in judgement.lists}
        for pem in judgement.lists - self._lists.keys():
            found: set[tuple[bytes, bytes]] = set()
            try:
                for count, entry in enumerate(revoked_in(pem)):
                    found.add(entry)
                    if count % _ENTRIES == 0:
                        yield
            except DerError as error:  # OpenSSL has taken it
                _log.warning("a revocation list cannot be read, nobody is drained by it: %s", error)
            self._lists[pem] = frozenset(found)
        judgement.revoked = [found for found in self._lists.values() if found]

    def _look_downstream(self, judgement: _Judgement) -> Iterator[None]:
        worker, now = self._worker, monotonic()
        retired: dict[ActiveConnection, float] = {}
        grace_s = milliseconds_or(self._settings, "grace", _GRACE_MS) / 1000.0 if self._settings is not None else 0.0
        chains = [chain for each in (*worker.listeners.values(), *worker.draining_listeners) for chain in each.chains()]
        for chain in chains:
            for count, (connection, accepted) in enumerate(list(chain.connections.items())):
                since = self._retired.get(connection)
                if since is not None:
                    retired[connection] = since
                    if now - since >= grace_s:
                        connection.end_retired()
                else:
                    reason = judgement.reason(accepted.info.tls)
                    if reason:
                        retired[connection] = now
                        self._count("downstream", reason)
                        connection.retire()
                if count % _STRIDE == 0:
                    yield
        self._retired = retired

    def _look_upstream(self, judgement: _Judgement) -> Iterator[None]:
        for cluster in self._worker.clusters.clusters():
            for host in list(cluster.hosts):
                for pool in host.pools():
                    for connection in pool.connections:
                        reason = judgement.reason(connection.tls) if connection.state in (READY, BUSY) else ""
                        if reason:
                            self._count("upstream", reason)
                            connection.drain()
                    yield

    def _count(self, side: str, reason: str) -> None:
        assert self._stats is not None
        name = f"{side}_cx_{reason}"
        setattr(self._stats, name, getattr(self._stats, name) + 1)


class _Judgement:
    """What holds at one moment."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.own: set[bytes] = set()  # certificates that a new connection may be made with
        self.lists: set[bytes] = set()
        self.revoked: list[frozenset[tuple[bytes, bytes]]] = []

    def reason(self, facts: TlsFacts | None) -> str:
        """Why a connection is to end; "" if it is not."""
        if facts is None:
            return ""
        own = facts.local_certificate
        if own is not None and own.der not in self.own and is_expired(own, self.now):
            return OWN_EXPIRED
        if not facts.checks_times and not self.revoked:
            return ""
        peer = facts.peer if facts.peer_certificate_validated else None
        if peer is None:
            return ""
        if facts.checks_times and is_expired(peer, self.now):
            return PEER_EXPIRED
        entry = (peer.raw_issuer, peer.raw_serial)
        return PEER_REVOKED if any(entry in revoked for revoked in self.revoked) else ""
