"""Keys, requests for certificates, and what an authority answers. Keys live in memory, and in no text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from meshproxy.errors import MeshProxyError
from meshproxy.pilot.authority.certificates import UNUSABLE, is_issued_by, public_der_of
from meshproxy.pilot.authority.keys import SigningKey, key_pem, make_key, public_der

_KINDS: Final = {"ecdsa-p256": "P-256", "rsa-2048": "RSA-2048"}
_MAX_ROOTS: Final = 1000
_CRL_END: Final = b"-----END X509 CRL-----"


class MaterialError(MeshProxyError):
    """What an authority, or a file, has is of no use."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate with its intermediates, and its key. `not_after` is Unix time."""

    chain: bytes  # PEM, the leaf first
    key: bytes = field(repr=False)  # PEM (PKCS#8)
    not_after: float = 0.0


def new_key(kind: str) -> SigningKey:
    """`ecdsa-p256` or `rsa-2048`."""
    return make_key(_KINDS[kind])


def certificate_request(key: SigningKey, uri: str) -> bytes:
    """A CSR (PEM) that names the identity as the certificate will: in a URI, and with no subject."""
    name = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(name, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def read_answer(answer: Sequence[str], key: SigningKey, uri: str, now: float) -> tuple[KeyPair, bytes]:
    """What an authority gives for a request with that key: the pair, and its last element, which are the roots (PEM;
    none where it has but one). Raises MaterialError for a certificate that is not for us, or not for now."""
    if not answer:
        raise MaterialError("the authority's answer is empty")
    last = answer[-1] if len(answer) > 1 else ""
    chain = "".join(_with_newline(text) for text in (answer[:-1] if last else answer)).encode()
    leaf = certificates(chain)[0]
    if public_der_of(leaf) != public_der(key):
        raise MaterialError("the authority's certificate is for another key")
    if uri not in _uris(leaf):
        raise MaterialError(f"the authority's certificate is not for {uri}")
    not_after = leaf.not_valid_after_utc.timestamp()
    if not_after <= now:
        raise MaterialError("the authority's certificate has expired")
    return KeyPair(chain, key_pem(key), not_after), merged(last.encode())


def certificates(pem: bytes) -> list[x509.Certificate]:
    """At least one. Raises MaterialError."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except UNUSABLE as error:
        raise MaterialError(f"no certificate in PEM: {error}") from None


def revocation_lists(pem: bytes) -> list[x509.CertificateRevocationList]:
    """Those that stand one after the other in a file. Raises MaterialError."""
    try:
        return [x509.load_pem_x509_crl(part + _CRL_END) for part in pem.split(_CRL_END)[:-1]]
    except UNUSABLE as error:
        raise MaterialError(f"no list of revoked certificates in PEM: {error}") from None


def stands(pair: KeyPair, roots: bytes, crl: bytes) -> bool:
    """Whether who trusts these roots, and takes that list (PEM; empty for none), takes our certificate."""
    chain = certificates(pair.chain)
    leaf = chain[0]
    for each in revocation_lists(crl):
        if each.issuer == leaf.issuer and each.get_revoked_certificate_by_serial_number(leaf.serial_number):
            return False
    return any(is_issued_by(chain[-1], root) for root in certificates(roots))


def merged(*pems: bytes) -> bytes:
    """All certificates of several files, each once, in their order. Raises MaterialError."""
    found: dict[bytes, None] = {}
    for pem in pems:
        if pem.strip():
            found.update(dict.fromkeys(each.public_bytes(serialization.Encoding.PEM) for each in certificates(pem)))
    if len(found) > _MAX_ROOTS:
        raise MaterialError(f"more than {_MAX_ROOTS} roots")
    return b"".join(found)


def _with_newline(pem: str) -> str:
    return pem if pem.endswith("\n") else pem + "\n"


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, *UNUSABLE):
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)
