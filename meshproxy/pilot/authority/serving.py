"""What ports show, and whom they ask for: certificates of the authority, for the pilot's own ports.

Every handshake gets what is true at that moment: the certificate is renewed at two thirds of its life, and the roots
that clients are verified with are those of the bundle.
"""

from __future__ import annotations

import logging
from typing import Any, Final, Protocol

from meshproxy.config.tls_factory import TlsSocketFactory
from meshproxy.errors import ConfigError
from meshproxy.pilot.authority.contract import Authority, Caller, Refused, TrustBundle
from meshproxy.pilot.authority.proof import OnUnproved
from meshproxy.pilot.authority.renewed import RenewedCertificate
from meshproxy.pilot.files import Followed, read_file
from meshproxy.tls.context import TlsContext
from meshproxy.tls.engine import TlsEvents
from meshproxy.tls.facts import TlsFacts
from meshproxy.tls.material import TlsConfigError
from meshproxy.tls.options import CertificateOptions, TlsOptions, ValidationOptions
from meshproxy.tls.spiffe import Identity
from meshproxy.tls.verify import VERIFY_ERROR

_log: Final = logging.getLogger("meshproxy.pilot")
Pair = tuple[bytes, bytes]  # chain and key, PEM


class Pairs(Protocol):
    """Where a server's certificate comes from."""

    def pair(self) -> Pair:
        """The same object as long as it is the same. Raises ConfigError."""


class FilePair:
    """PEM files, read again when they change. Raises ConfigError at first."""

    def __init__(self, certificate: str, key: str) -> None:
        self._files = Followed((certificate, key), lambda: (read_file(certificate), read_file(key)))

    def pair(self) -> Pair:
        return self._files.get()


class OwnPair:
    """The pilot's own certificate, of its own authority: with the names by which clients know it."""

    def __init__(self, authority: Authority, identity: Identity, names: tuple[str, ...]) -> None:
        caller = Caller(identity, "pilot", "self")
        self._certificate = RenewedCertificate(authority, caller, self._renewed, dns_names=names)
        self._pair: Pair = (b"", b"")

    async def start(self) -> None:
        """Raises ConfigError."""
        try:
            await self._certificate.start()
        except Refused as refused:
            raise ConfigError("--tls-from-authority", refused.reason) from None
        self._renewed()

    def pair(self) -> Pair:
        return self._pair

    def close(self) -> None:
        self._certificate.close()

    def _renewed(self) -> None:
        issued = self._certificate.current
        assert issued is not None
        self._pair = issued.chain, issued.key


class MeshTlsEvents(TlsEvents):
    """Counts. Who shows a certificate that is none here never becomes a call: `on_unproved` is told."""

    def __init__(self, on_unproved: OnUnproved) -> None:
        super().__init__()
        self.handshakes = 0
        self.failures = 0  # of any kind
        self._on_unproved = on_unproved

    def on_handshake(self, facts: TlsFacts) -> None:
        self.handshakes += 1

    def on_failure(self, failure: int) -> None:
        self.failures += 1
        if failure == VERIFY_ERROR:
            self._on_unproved("TLS: a certificate that is not of the mesh, has ended, or is revoked", "certificate", "")


class MeshTls:
    """TLS for `RpcServer`: clients may show a certificate of the mesh. One that is no good, or was revoked, gets no
    connection; without one, a caller has to prove by something else who it is."""

    def __init__(self, authority: Authority, pairs: Pairs, on_unproved: OnUnproved) -> None:
        self.events = MeshTlsEvents(on_unproved)
        self._authority = authority
        self._pairs = pairs
        self._made_of: tuple[Pair, TrustBundle] | None = None
        self._factory: TlsSocketFactory | None = None

    def __call__(self) -> TlsSocketFactory | None:
        """For the next connection; None where there is nothing to serve it with."""
        try:
            return self.current()
        except (ConfigError, TlsConfigError) as error:
            _log.warning("no TLS: %s", error)
            return self._factory

    def current(self) -> TlsSocketFactory:
        """Raises ConfigError or TlsConfigError."""
        made_of = self._pairs.pair(), self._authority.bundle()
        before = self._made_of
        if self._factory is None or before is None or made_of[0] is not before[0] or made_of[1] is not before[1]:
            self._factory = TlsSocketFactory(TlsContext(_options(*made_of)), self.events)
            self._made_of = made_of
        return self._factory


def _options(pair: Pair, bundle: TrustBundle) -> TlsOptions:
    """Sessions are not resumed: what a certificate proves is looked at each time."""
    validation = ValidationOptions(
        field="clients", trusted_ca=bundle.roots, source="the bundle", crl=bundle.crl, only_leaf_crl=bool(bundle.crl)
    )
    return TlsOptions(
        is_server=True,
        application_protocols=("h2",),
        certificates=(CertificateOptions(field="server", chain=pair[0], key=pair[1]),),
        validation=validation,
        tickets=False,
        session_cache=False,
    )


class MeshCredentials:
    """TLS for grpcio's ports: every client has to show a certificate of the mesh."""

    def __init__(self, authority: Authority, pairs: Pairs) -> None:
        self._authority = authority
        self._pairs = pairs
        self._made_of: tuple[Pair, bytes] | None = None

    def credentials(self) -> Any:
        """grpcio's."""
        import grpc

        return grpc.dynamic_ssl_server_credentials(self.fetch(), self.fetch, True)

    def fetch(self) -> Any:
        """What is true now, where it is something else than before; None where it is not."""
        import grpc

        made_of = self._pairs.pair(), self._authority.bundle().roots
        if self._made_of is not None and made_of[0] is self._made_of[0] and made_of[1] == self._made_of[1]:
            return None
        self._made_of = made_of
        (chain, key), roots = made_of
        return grpc.ssl_server_certificate_configuration([(key, chain)], roots)
