"""What certificates of a mesh say: X.509 SVIDs (SPIFFE X509-SVID) for workloads, and those of the authority itself."""

from __future__ import annotations

import ipaddress
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshproxy.net.address import is_ip
from meshproxy.pilot.authority.keys import SigningKey, hash_for, why_not
from meshproxy.pilot.authority.settings import AuthorityError

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

MAX_CSR_BYTES: Final = 16 * 1024
_MAX_CHAIN: Final = 8
_SKEW_SHARE: Final = 10  # of the lifetime, at most, a certificate is back-dated
_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_PEM: Final = b"-----BEGIN"
# What `cryptography` raises for certificates and requests that it cannot use.
UNUSABLE: Final = (ValueError, TypeError, x509.InvalidVersion, x509.DuplicateExtension, UnsupportedAlgorithm)


class BadRequestError(Exception):
    """A CSR that gets no certificate, whoever asks. `foreign`: since it names somebody else."""

    def __init__(self, reason: str, *, foreign: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.foreign = foreign


@dataclass(frozen=True, slots=True)
class Validity:
    """Unix times, whole seconds, both inclusive (RFC 5280 section 4.1.2.5)."""

    not_before: int
    not_after: int


@dataclass(frozen=True, slots=True)
class Signer:
    """Who signs: its certificate and key. `chain` is what is sent along with a leaf (PEM), without the root."""

    certificate: x509.Certificate
    key: SigningKey
    chain: bytes

    @property
    def ends(self) -> float:
        return self.certificate.not_valid_after_utc.timestamp()


def leaf_validity(now: float, lifetime_s: float, skew_s: float, issuer_ends: float) -> Validity:
    """From a little before now, for clocks that lag, but by no more than a tenth of the lifetime, so that who renews
    at two thirds of it does not begin at once; until the lifetime is over, or the issuer's."""
    begin = math.floor(now - min(skew_s, lifetime_s / _SKEW_SHARE))
    return Validity(begin, math.floor(min(now + lifetime_s, issuer_ends)))


# -- what is asked for


def read_csr(data: bytes, identity_uri: str) -> PublicKey:
    """The key of a certificate signing request (PEM or DER) of the workload `identity_uri`. Raises BadRequestError
    where it is malformed, its key weak or not the signer's, or where it names anybody else."""
    if len(data) > MAX_CSR_BYTES:
        raise BadRequestError(f"a CSR has {MAX_CSR_BYTES} bytes at most")
    try:
        csr = x509.load_pem_x509_csr(data) if _PEM in data[:64] else x509.load_der_x509_csr(data)
        key = csr.public_key()
        names = _names(csr)
    except UNUSABLE:
        raise BadRequestError("malformed CSR") from None
    reason = why_not(key)
    if reason:
        raise BadRequestError(reason)
    if not _is_signed(csr):
        raise BadRequestError("the CSR is not signed by its own key with SHA-256, SHA-384 or SHA-512")
    if any(name != identity_uri for name in names):
        raise BadRequestError("the CSR names another identity", foreign=True)
    assert isinstance(key, PublicKey)
    return key


def _names(csr: x509.CertificateSigningRequest) -> list[str]:
    """All subject alternative names; what is no URI is none that a workload has."""
    try:
        found = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [name.value if isinstance(name, x509.UniformResourceIdentifier) else "" for name in found]


def _is_signed(csr: x509.CertificateSigningRequest) -> bool:
    try:
        return isinstance(csr.signature_hash_algorithm, _HASHES) and csr.is_signature_valid
    except UNUSABLE:
        return False


# -- what is made


def make_leaf(
    signer: Signer, key: PublicKey, names: Sequence[str], validity: Validity, serial: int
) -> x509.Certificate:
    """An SVID: one URI, critical since the subject is empty (RFC 5280 section 4.2.1.6). `names` are that, and the hosts
    and IP addresses of a server, which workloads have none of."""
    builder = _builder(x509.Name([]), key, signer.certificate.subject, validity, serial)
    uri, *hosts = names
    subject = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri), *map(_host_name, hosts)])
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(subject, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(authority_key_identifier(signer.certificate), critical=False)
        .sign(signer.key, hash_for(signer.key))
    )


def make_root(key: SigningKey, trust_domain: str, validity: Validity) -> x509.Certificate:
    """Signed by itself. It signs workloads only, no other authorities."""
    public = key.public_key()
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    subject = _authority_name(trust_domain, identifier)
    builder = _builder(subject, public, subject, validity, new_serial())
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_ca=True), critical=True)
        .add_extension(_trust_domain_name(trust_domain), critical=False)
        .add_extension(identifier, critical=False)
        .sign(key, hash_for(key))
    )


def make_authority_csr(key: SigningKey, trust_domain: str) -> bytes:
    """What an outside authority is to sign, for an intermediate of ours. PEM."""
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_authority_name(trust_domain, identifier))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_ca=True), critical=True)
        .add_extension(_trust_domain_name(trust_domain), critical=False)
        .sign(key, hash_for(key))
    )
    return csr.public_bytes(serialization.Encoding.PEM)


def make_crl(signer: Signer, revoked: Sequence[tuple[int, float]], number: int, begins: float, ends: float) -> bytes:
    """PEM. `revoked` are serials and when they were; `begins` and `ends` thisUpdate and nextUpdate."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(signer.certificate.subject)
        .last_update(_time(begins))
        .next_update(_time(ends))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(authority_key_identifier(signer.certificate), critical=False)
    )
    for serial, at in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(_time(at)).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(signer.key, hash_for(signer.key)).public_bytes(serialization.Encoding.PEM)


def name_of(key: SigningKey) -> str:
    """What an operator calls an issuer by: the beginning of its key's identifier."""
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest[:8].hex()


def new_serial() -> int:
    """128 bits of chance: as many as fit the 20 octets of RFC 5280 section 4.1.2.2 with room to spare."""
    return secrets.randbits(128) or 1


def authority_key_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """By the issuer's own key identifier, which an outside authority may have chosen as it likes."""
    try:
        own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        key = issuer.public_key()
        assert isinstance(key, PublicKey)
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _builder(
    subject: x509.Name, key: PublicKey, issuer: x509.Name, validity: Validity, serial: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(_time(validity.not_before))
        .not_valid_after(_time(validity.not_after))
    )


def _host_name(text: str) -> x509.GeneralName:
    if is_ip(text):
        return x509.IPAddress(ipaddress.ip_address(text))
    try:
        return x509.DNSName(text)
    except ValueError:
        raise BadRequestError("a host name is ASCII") from None


def _authority_name(trust_domain: str, identifier: x509.SubjectKeyIdentifier) -> x509.Name:
    """Another one for each key: who verifies looks issuers, and their CRLs, up by name."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain[:64]),
            x509.NameAttribute(NameOID.COMMON_NAME, f"mesh authority {identifier.digest[:8].hex()}"),
        ]
    )


def _trust_domain_name(trust_domain: str) -> x509.SubjectAlternativeName:
    """A signing certificate may bear the SPIFFE ID of its trust domain, without a path (X509-SVID section 3.2)."""
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")])


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _time(unix_s: float) -> datetime:
    return datetime.fromtimestamp(math.floor(unix_s), UTC)


# -- certificates of others


def read_certificates(pem: bytes, where: str) -> list[x509.Certificate]:
    """At least one. Raises AuthorityError."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except UNUSABLE:
        raise AuthorityError(f"{where}: holds no certificates in PEM") from None


def to_pem(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


def public_der_of(certificate: x509.Certificate) -> bytes:
    """As keys.public_der."""
    return certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def is_self_signed(certificate: x509.Certificate) -> bool:
    return is_issued_by(certificate, certificate)


def check_chain(chain: Sequence[x509.Certificate], now: float) -> None:
    """That the first is an authority's, and each is issued by the next, up to a root. Raises AuthorityError."""
    if not 2 <= len(chain) <= _MAX_CHAIN:
        raise AuthorityError(f"a chain has 2 to {_MAX_CHAIN} certificates: the signed one, and on up to the root")
    for index, each in enumerate(chain):
        issuer = chain[min(index + 1, len(chain) - 1)]
        name = each.subject.rfc4514_string()
        if not _is_authority(each, below=index):
            raise AuthorityError(f"{name}: may not sign certificates, or not with so many authorities below it")
        if index == 0 and not _may_sign(each)[1]:
            raise AuthorityError(f"{name}: may not sign CRLs, so nothing could be revoked")
        if not each.not_valid_before_utc.timestamp() <= now <= each.not_valid_after_utc.timestamp():
            raise AuthorityError(f"{name}: is not valid now")
        if not is_issued_by(each, issuer):
            raise AuthorityError(f"{name}: is not issued by {issuer.subject.rfc4514_string()}, which stands after it")


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """By its name and its signature; nothing else of the issuer is looked at."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (*UNUSABLE, InvalidSignature):
        return False
    return True


def _is_authority(certificate: x509.Certificate, below: int) -> bool:
    """`below`: how many authorities stand between it and leaves."""
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, *UNUSABLE):
        return False
    depth = constraints.path_length
    return constraints.ca and _may_sign(certificate)[0] and (depth is None or depth >= below)


def _may_sign(certificate: x509.Certificate) -> tuple[bool, bool]:
    """Certificates, and CRLs. Without the extension a key may do everything (RFC 5280 section 4.2.1.3)."""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return True, True
    except UNUSABLE:
        return False, False
    return usage.key_cert_sign, usage.crl_sign
