"""The authority within a pilot: who may ask it, what it serves, and on which ports of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import CollectorRegistry

from meshproxy.errors import ConfigError
from meshproxy.net.address import Address
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.pilot.authority.ca import CertificateAuthority
from meshproxy.pilot.authority.jwks import FetchedKeys, open_keys
from meshproxy.pilot.authority.proof import Prover
from meshproxy.pilot.authority.sds import AuthoritySecrets
from meshproxy.pilot.authority.services import CertificateService
from meshproxy.pilot.authority.serving import FilePair, MeshCredentials, MeshTls, OwnPair, Pairs
from meshproxy.pilot.authority.token_uses import TokenUses
from meshproxy.pilot.authority.tokens import TokenVerifier
from meshproxy.pilot.authority.uids import UidTable
from meshproxy.pilot.authority.unproved_log import UnprovedLog
from meshproxy.pilot.server.authority_metrics import AuthorityCollector
from meshproxy.pilot.server.server import MAX_REQUEST_BYTES
from meshproxy.pilot.server.tls import TlsFiles
from meshproxy.rpc.server.call import Handlers
from meshproxy.rpc.server.core import ServerLimits
from meshproxy.rpc.server.server import RpcServer
from meshproxy.tls.material import TlsConfigError
from meshproxy.tls.spiffe import Identity
from meshproxy.xds.secret_server import SecretStats, secret_handlers

OpenAuthority = Callable[[CollectorRegistry], Awaitable[CertificateAuthority | None]]

_log: Final = logging.getLogger("meshproxy.pilot")
_ACCOUNT: Final = "meshproxy-pilot"  # the pilot's own, in the root namespace
_SOCKET_MODE: Final = 0o666  # who is at the other end is known, and has to be in the table
_LIMITS: Final = ServerLimits(max_connections=10_000, max_message_bytes=MAX_REQUEST_BYTES)


@dataclass(frozen=True, slots=True)
class ProofSettings:
    """Who may prove what, and where. `names` are those of the pilot's own certificate, where it has one of the
    authority."""

    jwks: str = ""  # a file, or an https URL
    jwks_ca: str = ""
    jwks_token: str = ""  # the file of the token that the URL's server asks for
    issuer: str = ""
    audiences: tuple[str, ...] = ()
    tokens_anywhere: bool = False  # from whatever address
    uid_table: str = ""
    aliases: tuple[str, ...] = ()
    listen: tuple[Address, ...] = ()
    sockets: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


class AuthorityServer:
    """`open` it, add its `handlers` to other ports, `listen`, and `close` it."""

    def __init__(self, authority: CertificateAuthority, settings: ProofSettings, root_namespace: str) -> None:
        """Raises ConfigError when a file is not as it must be."""
        self.authority = authority
        self.addresses: list[str] = []
        self._settings = settings
        trust_domain = authority.trust_domain
        domains = tuple(dict.fromkeys((trust_domain, *settings.aliases)))
        self._keys = open_keys(settings.jwks, settings.jwks_ca, settings.jwks_token) if settings.jwks else None
        tokens = None
        if self._keys is not None:
            tokens = TokenVerifier(self._keys, settings.issuer, settings.audiences, trust_domain)
        uids = UidTable(settings.uid_table, trust_domain) if settings.uid_table else None
        self._unproved = UnprovedLog(authority.audit, authority.metrics)
        uses = None if settings.tokens_anywhere else TokenUses()
        self.prover = Prover(domains, authority, self._unproved, tokens, uids, uses=uses)
        self.secrets = AuthoritySecrets(authority, self.prover, domains)
        self._stats = SecretStats()
        self._collector = AuthorityCollector(self._stats)
        authority.metrics.registry.register(self._collector)
        self._own = OwnPair(authority, Identity(trust_domain, root_namespace, _ACCOUNT), settings.names)
        self._dispatcher: Dispatcher | None = None
        self._server: RpcServer | None = None

    @property
    def handlers(self) -> Handlers:
        """IstioCertificateService and SDS."""
        certificates = CertificateService(self.authority, self.prover).handlers()
        return {**certificates, **secret_handlers(self.secrets, delta=True, stats=self._stats)}

    async def start(self) -> None:
        """Follow the store, and get the pilot's own certificate. Raises ConfigError."""
        self.authority.start()
        if isinstance(self._keys, FetchedKeys):
            self._keys.begin()
        if self._keys is None and not self._settings.uid_table:
            _log.warning("nobody can prove who it is, but for renewal: --jwks or --uid-table says how")
        if self._settings.names:
            await self._own.start()

    def mesh_credentials(self) -> MeshCredentials | None:
        """For grpcio's ports; None where the pilot has no certificate of the authority."""
        return MeshCredentials(self.authority, self._own) if self._settings.names else None

    async def listen(self, others: Handlers, files: TlsFiles | None) -> None:
        """Serve `others`, and its handlers, on the authority's own ports. Raises ConfigError."""
        settings = self._settings
        if not settings.listen and not settings.sockets:
            return
        self._dispatcher = Dispatcher(asyncio.get_running_loop())
        self._server = RpcServer(self._dispatcher, {**others, **self.handlers}, _LIMITS)
        self._collector.server = self._server.stats
        tls = MeshTls(self.authority, self._pairs(files), self._unproved) if settings.listen else None
        self._collector.tls = None if tls is None else tls.events
        try:
            for address in settings.listen:
                assert tls is not None
                tls.current()
                self.addresses.append(str(await self._server.listen_tcp(address, tls)))
            for path in settings.sockets:
                self.addresses.append(f"unix:{await self._server.listen_unix(path, mode=_SOCKET_MODE)}")
        except OSError as error:
            raise ConfigError("--authority-listen, --authority-socket", error.strerror or str(error)) from None
        except TlsConfigError as error:
            raise ConfigError("--tls-cert, --tls-key", str(error)) from None

    def _pairs(self, files: TlsFiles | None) -> Pairs:
        if self._settings.names:
            return self._own
        if files is None:
            raise ConfigError("--authority-listen", "needs --tls-from-authority, or --tls-cert and --tls-key")
        return FilePair(files.certificate, files.key)

    async def close(self, grace_s: float) -> None:
        if self._server is not None:
            await self._server.close(grace_s)
        if self._dispatcher is not None:
            await self._dispatcher.close()
        self._own.close()
        if isinstance(self._keys, FetchedKeys):
            await self._keys.close()
        await self.authority.close()

    def view(self) -> dict[str, Any]:
        """For a page: no keys."""
        return {
            **self.authority.view(),
            "addresses": self.addresses,
            "secrets": {
                "streams": self._stats.streams,
                "pushes": self._stats.pushes,
                "refused_by_clients": self._stats.refusals,
            },
            "refused_proofs": list(self._unproved.latest),
        }
