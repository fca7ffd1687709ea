"""An authority, calls and tokens for tests of who may ask it."""

from __future__ import annotations

import base64
import datetime as dt
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from meshproxy.pilot.authority.contract import Caller, Issued, Refused, TrustBundle
from meshproxy.rpc.server.call import Peer
from tests.tls import certificates

TRUST_DOMAIN = "mesh.test"
ISSUER = "https://issuer.test"
AUDIENCE = "meshproxy-ca"


class FakeAuthority:
    """Issues without asking. `calls` are those it was asked by, with the lifetime; `refusal` is what it says instead of
    issuing."""

    def __init__(self, root: certificates.Issued | None = None, lifetime_s: float = 3600.0) -> None:
        self.root = root or certificates.issue("root", ca=True)
        self.trust_domain = TRUST_DOMAIN
        self.calls: list[tuple[Caller, float, bytes]] = []
        self.refusal: Refused | None = None
        self.lifetime_s = lifetime_s
        self.revoked_serials: frozenset[int] = frozenset()
        self.barred: set[str] = set()
        self.dropped: set[str] = set()  # names of issuers that are trusted no longer
        self._bundle = TrustBundle(self.root.pem, b"")
        self._watchers: list[Callable[[], None]] = []

    async def sign(self, csr: bytes, caller: Caller, lifetime_s: float) -> Issued:
        self._note(caller, lifetime_s, csr)
        key = x509.load_pem_x509_csr(csr).public_key()
        return self._sign(key, caller, lifetime_s, ())

    async def issue(self, caller: Caller, lifetime_s: float, dns_names: tuple[str, ...] = ()) -> Issued:
        self._note(caller, lifetime_s, b"")
        key = ec.generate_private_key(ec.SECP256R1())
        issued = self._sign(key.public_key(), caller, lifetime_s, dns_names)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return replace(issued, key=pem)

    def bundle(self) -> TrustBundle:
        return self._bundle

    def watch(self, on_change: Callable[[], None]) -> Callable[[], None]:
        self._watchers.append(on_change)
        return lambda: self._watchers.remove(on_change)

    def stands(self, issued: Issued) -> bool:
        return issued.serial not in self.revoked_serials

    def is_barred(self, identity_uri: str) -> bool:
        return identity_uri in self.barred

    def issuer_of(self, certificate: x509.Certificate) -> str:
        name = certificate.issuer.rfc4514_string()
        return name if self.trusts(name) else ""

    def trusts(self, issuer: str) -> bool:
        return issuer not in self.dropped

    @property
    def watched(self) -> int:
        return len(self._watchers)

    def set_bundle(self, bundle: TrustBundle) -> None:
        self._bundle = bundle
        for watcher in list(self._watchers):
            watcher()

    def _note(self, caller: Caller, lifetime_s: float, csr: bytes) -> None:
        self.calls.append((caller, lifetime_s, csr))
        if self.refusal is not None:
            raise self.refusal

    def _sign(self, key: Any, caller: Caller, lifetime_s: float, dns_names: tuple[str, ...]) -> Issued:
        now = time.time()
        end = now + (lifetime_s or self.lifetime_s)
        names = [*certificates.uri(caller.identity.uri), *certificates.dns(*dns_names)]
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.root.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(dt.datetime.fromtimestamp(now - 60, dt.UTC))
            .not_valid_after(dt.datetime.fromtimestamp(end, dt.UTC))
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .sign(self.root.key, hashes.SHA256())
        )
        return Issued(made.public_bytes(serialization.Encoding.PEM), made.serial_number, now, end)


class FakeCall:
    """A call as a server hands it over. `messages` come, `sent` went."""

    def __init__(self, peer: Peer, *messages: bytes, metadata: Mapping[str, Sequence[str]] | None = None) -> None:
        self.peer = peer
        self.metadata: Mapping[str, Sequence[str]] = metadata or {}
        self.sent: list[bytes] = []
        self._messages = list(messages)

    async def receive(self) -> bytes | None:
        return self._messages.pop(0) if self._messages else None

    async def send(self, message: bytes) -> None:
        self.sent.append(message)


class Signer:
    """Whoever signs tokens: an RSA or an EC key under a name."""

    def __init__(self, key_id: str = "one", algorithm: str = "ES256", key: Any = None) -> None:
        self.key_id = key_id
        self.algorithm = algorithm
        self.key = key if key is not None else _key(algorithm)

    @property
    def jwk(self) -> dict[str, Any]:
        kind = "RSA" if isinstance(self.key, rsa.RSAPrivateKey) else "EC"
        made = jwt.get_algorithm_by_name("RS256" if kind == "RSA" else "ES256")
        return {**made.to_jwk(self.key.public_key(), as_dict=True), "kid": self.key_id, "use": "sig"}

    def token(self, *, headers: Mapping[str, Any] | None = None, without: str = "", **claims: Any) -> str:
        """Of the service account shop/web, for five minutes."""
        now = int(time.time())
        said = {
            "iss": ISSUER,
            "aud": [AUDIENCE],
            "sub": "system:serviceaccount:shop:web",
            "iat": now,
            "exp": now + 300,
            "jti": str(uuid.uuid4()),  # no two are the same
            **claims,
        }
        said.pop(without, None)
        headers = {"kid": self.key_id, **(headers or {})}
        return jwt.api_jws.encode(json.dumps(said).encode(), self.key, self.algorithm, headers=headers)


def _key(algorithm: str) -> Any:
    if algorithm.startswith("ES"):
        return ec.generate_private_key(ec.SECP384R1() if algorithm == "ES384" else ec.SECP256R1())
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def jwks(*signers: Signer) -> bytes:
    """A key set."""
    return json.dumps({"keys": [signer.jwk for signer in signers]}).encode()


def unsigned(header: Mapping[str, Any], claims: Mapping[str, Any], signature: bytes = b"") -> str:
    """A token by hand."""
    parts = (json.dumps(header).encode(), json.dumps(claims).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def bearer(token: str) -> dict[str, list[str]]:
    """Metadata."""
    return {"authorization": [f"Bearer {token}"]}
