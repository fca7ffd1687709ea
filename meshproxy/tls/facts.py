"""What is known of an established session, for access logs, matchers and x-forwarded-client-cert.

All of it is read when somebody asks: a connection whose log does not ask for the peer's subject never parses it.
"""

from __future__ import annotations

import _ssl
import ssl
from collections.abc import Callable
from typing import Any, Final

from meshproxy.tls import openssl
from meshproxy.tls.x509 import DNS, EMAIL, IP_ADDRESS, OTHER_NAME, URI, Certificate, DerError, url_encoded_pem

_TIME_FORMAT: Final = "%Y-%m-%dT%H:%M:%S.000Z"


class TlsFacts:
    """One session's. Lists are empty and texts are empty where there is nothing."""

    __slots__ = ("_der", "_inner", "_peer", "_ssl", "_verifies", "checks_times", "local_certificate")

    def __init__(
        self,
        ssl_object: ssl.SSLObject,
        local_certificate: Certificate | None,
        verifies: bool,
        checks_times: bool = False,
    ) -> None:
        self._ssl = ssl_object
        self._inner: Any = ssl_object._sslobj  # type: ignore[attr-defined]  # what it wraps: a frame less for a question
        self._verifies = verifies
        self._der: bytes | None = None
        self._peer: Certificate | None = None
        self.local_certificate = local_certificate
        self.checks_times = checks_times  # the peer's certificate was valid at the time, and had to be

    # -- the session

    @property
    def version(self) -> str:
        """`TLSv1.3` …"""
        return self._inner.version() or ""

    @property
    def cipher(self) -> str:
        """The suite's name in OpenSSL, `ECDHE-ECDSA-AES128-GCM-SHA256`."""
        cipher = self._inner.cipher()
        return "" if cipher is None else cipher[0]

    @property
    def group(self) -> str:
        """The group of the key exchange, `X25519`."""
        return openssl.negotiated_group(self._ssl) if openssl.AVAILABLE else ""

    @property
    def peer_signature_algorithm(self) -> str:
        """What the peer signed the handshake with, `ecdsa_secp256r1_sha256`."""
        return openssl.peer_signature_algorithm(self._ssl) if openssl.AVAILABLE else ""

    @property
    def server_name(self) -> str:
        """What the client asked for (SNI)."""
        return openssl.requested_server_name(self._ssl) if openssl.AVAILABLE else self._ssl.server_hostname or ""

    @property
    def session_id(self) -> str:
        """In hexadecimal."""
        return openssl.session_id(self._ssl).hex() if openssl.AVAILABLE else ""

    @property
    def resumed(self) -> bool:
        return bool(self._inner.session_reused)

    @property
    def application_protocol(self) -> str:
        """What ALPN agreed on; empty for nothing."""
        return self._ssl.selected_alpn_protocol() or ""

    # -- the peer

    @property
    def peer_der(self) -> bytes:
        """The peer's certificate; empty where it presented none."""
        if self._der is None:
            self._der = self._inner.getpeercert(True) or b""
        return self._der

    @property
    def peer(self) -> Certificate | None:
        """The peer's certificate; None where it presented none, or one that cannot be read."""
        if self._peer is None and self.peer_der:
            try:
                self._peer = Certificate(self.peer_der)
            except DerError:
                return None
        return self._peer

    @property
    def peer_certificate_presented(self) -> bool:
        return bool(self.peer_der)

    @property
    def peer_certificate_validated(self) -> bool:
        """Whether the peer's certificate passed a validation that could have failed."""
        if not self._verifies or not self.peer_der:
            return False
        return not openssl.AVAILABLE or openssl.verify_result(self._ssl) == openssl.X509_V_OK

    def peer_chain(self) -> list[bytes]:
        """The certificates that the peer sent, its own first, in DER."""
        if not self.peer_der:
            return []
        sent: list[Any] = self._ssl._sslobj.get_unverified_chain() or []  # type: ignore[attr-defined]
        chain = [each.public_bytes(_ssl.ENCODING_DER) for each in sent]
        return chain if chain[:1] == [self.peer_der] else [self.peer_der, *chain]

    def url_encoded_peer_certificate(self) -> str:
        """`Cert` of x-forwarded-client-cert."""
        return url_encoded_pem(self.peer_der) if self.peer_der else ""

    def url_encoded_peer_chain(self) -> str:
        """`Chain` of x-forwarded-client-cert."""
        return "".join(url_encoded_pem(der) for der in self.peer_chain())

    def peer_names(self, kind: int) -> list[str]:
        """The subject alternative names of one kind (x509.URI, x509.DNS …)."""
        return _names(self.peer, kind)

    def local_names(self, kind: int) -> list[str]:
        """The same of our own certificate."""
        return _names(self.local_certificate, kind)

    def operator(self, name: str) -> str | None:
        """The value of `%DOWNSTREAM_<name>%` and `%UPSTREAM_<name>%`; None for nothing."""
        try:
            return _OPERATORS[name](self) or None
        except DerError:
            return None


def _names(certificate: Certificate | None, kind: int) -> list[str]:
    return [] if certificate is None else certificate.alt_names_of(kind)


def _of_peer(read: Callable[[Certificate], str]) -> Callable[[TlsFacts], str]:
    return lambda facts: read(facts.peer) if facts.peer is not None else ""


def _of_chain(read: Callable[[Certificate], str]) -> Callable[[TlsFacts], str]:
    return lambda facts: ",".join(read(Certificate(der)) for der in facts.peer_chain())


def _of_names(kind: int) -> tuple[Callable[[TlsFacts], str], Callable[[TlsFacts], str]]:
    return (lambda facts: ",".join(facts.peer_names(kind))), (lambda facts: ",".join(facts.local_names(kind)))


_OPERATORS: Final[dict[str, Callable[[TlsFacts], str]]] = {
    "TLS_VERSION": lambda facts: facts.version,
    "TLS_CIPHER": lambda facts: facts.cipher,
    "TLS_GROUP": lambda facts: facts.group,
    "TLS_SESSION_ID": lambda facts: facts.session_id,
    "SERVER_NAME": lambda facts: facts.server_name,
    "PEER_SUBJECT": _of_peer(lambda peer: peer.subject),
    "PEER_ISSUER": _of_peer(lambda peer: peer.issuer),
    "PEER_SERIAL": _of_peer(lambda peer: peer.serial),
    "PEER_FINGERPRINT_256": _of_peer(lambda peer: peer.fingerprint_sha256()),
    "PEER_FINGERPRINT_1": _of_peer(lambda peer: peer.fingerprint_sha1()),
    "PEER_CERT": lambda facts: facts.url_encoded_peer_certificate(),
    "PEER_CERT_V_START": _of_peer(lambda peer: peer.not_before.strftime(_TIME_FORMAT)),
    "PEER_CERT_V_END": _of_peer(lambda peer: peer.not_after.strftime(_TIME_FORMAT)),
    "PEER_CHAIN_FINGERPRINTS_256": _of_chain(lambda each: each.fingerprint_sha256()),
    "PEER_CHAIN_FINGERPRINTS_1": _of_chain(lambda each: each.fingerprint_sha1()),
    "PEER_CHAIN_SERIALS": _of_chain(lambda each: each.serial),
    "LOCAL_SUBJECT": lambda facts: "" if facts.local_certificate is None else facts.local_certificate.subject,
}
for _label, _kind in (("URI", URI), ("DNS", DNS), ("IP", IP_ADDRESS), ("EMAIL", EMAIL), ("OTHERNAME", OTHER_NAME)):
    _OPERATORS[f"PEER_{_label}_SAN"], _OPERATORS[f"LOCAL_{_label}_SAN"] = _of_names(_kind)
