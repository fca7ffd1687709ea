"""Certificates for tests, made in memory."""

from __future__ import annotations

import datetime as dt
import functools
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class Issued:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: Key

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def key_pem(self) -> bytes:
        return self._key(serialization.NoEncryption())

    def encrypted_key_pem(self, password: bytes) -> bytes:
        return self._key(serialization.BestAvailableEncryption(password))

    def _key(self, encryption: serialization.KeySerializationEncryption) -> bytes:
        return self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def issue(
    name: str,
    issuer: Issued | None = None,
    *,
    ca: bool = False,
    names: Sequence[x509.GeneralName] = (),
    key: Key | None = None,
    days: tuple[float, float] = (-1, 30),
    subject: x509.Name | None = None,
    key_usage: x509.KeyUsage | None = None,
) -> Issued:
    """A certificate signed by `issuer`, or by itself; `days` is its validity from now."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    whom = subject or x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Acme, Inc"), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(whom)
        .issuer_name(issuer.certificate.subject if issuer else whom)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + dt.timedelta(days=days[0]))
        .not_valid_after(now + dt.timedelta(days=days[1], hours=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if key_usage is not None:
        builder = builder.add_extension(key_usage, critical=True)
    return Issued(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


def revocation_list(issuer: Issued, *revoked: Issued) -> bytes:
    """A CRL in PEM."""
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(now - dt.timedelta(days=1))
        .next_update(now + dt.timedelta(days=1))
    )
    for each in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(each.certificate.serial_number)
        builder = builder.add_revoked_certificate(entry.revocation_date(now - dt.timedelta(hours=1)).build())
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def key_usage(*, signs: bool) -> x509.KeyUsage:
    """Of a key that only signs, or only decrypts."""
    return x509.KeyUsage(
        digital_signature=signs, key_encipherment=not signs, content_commitment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def write_both_ends(folder: Path) -> None:
    """`ca.pem`, and for `server` (server.test) and `client` (client.test) what it has issued: `.pem` and `.key`."""
    ca = issue("ca", ca=True)
    (folder / "ca.pem").write_bytes(ca.pem)
    for side in ("server", "client"):
        issued = issue(side, ca, names=dns(f"{side}.test"))
        (folder / f"{side}.pem").write_bytes(issued.pem)
        (folder / f"{side}.key").write_bytes(issued.key_pem)


def dns(*names: str) -> list[x509.GeneralName]:
    return [x509.DNSName(name) for name in names]


def ip(*addresses: str) -> list[x509.GeneralName]:
    return [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]


def uri(name: str) -> list[x509.GeneralName]:
    return [x509.UniformResourceIdentifier(name)]


@dataclass(frozen=True)
class World:
    """What most tests need: two authorities, a server and clients."""

    ca: Issued
    other_ca: Issued
    intermediate: Issued
    server: Issued
    rsa_server: Issued
    client: Issued
    stranger: Issued
    expired: Issued
    revoked: Issued


@functools.cache
def world() -> World:
    """Made once in a process."""
    ca, other_ca = issue("ca", ca=True), issue("other ca", ca=True)
    intermediate = issue("intermediate", ca, ca=True)
    server_names = [
        *dns("a.test", "*.w.test"),
        *uri("spiffe://mesh/server"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("2001:db8::1")),
        x509.RFC822Name("ops@a.test"),
    ]
    rsa_key = rsa.generate_private_key(65537, 2048)
    return World(
        ca=ca,
        other_ca=other_ca,
        intermediate=intermediate,
        server=issue("server", ca, names=server_names),
        rsa_server=issue("rsa", ca, names=dns("a.test"), key=rsa_key),
        client=issue("client", ca, names=[*uri("spiffe://mesh/client"), *dns("client.test")]),
        stranger=issue("stranger", other_ca, names=uri("spiffe://mesh/client")),
        expired=issue("expired", ca, names=uri("spiffe://mesh/client"), days=(-10, -1)),
        revoked=issue("revoked", ca, names=uri("spiffe://mesh/client")),
    )
