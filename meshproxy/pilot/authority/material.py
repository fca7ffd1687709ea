"""What a state means in use: keys decrypted, certificates parsed, the bundle put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509

from meshproxy.pilot.authority.certificates import (
    Signer,
    is_issued_by,
    is_self_signed,
    make_crl,
    public_der_of,
    read_certificates,
    to_pem,
)
from meshproxy.pilot.authority.keys import Seal, public_der
from meshproxy.pilot.authority.settings import AuthorityError
from meshproxy.pilot.authority.state import PREPARED, Issuer, State

_RENEW_SHARE: Final = 0.5  # of a CRL's lifetime: then there is a new one
_SKEW_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Crl:
    """Of all issuers that are trusted, since who checks wants one of each. `renew_at` is long before it ends."""

    pem: bytes
    number: int
    issuers: tuple[str, ...]
    renew_at: float


@dataclass(frozen=True, slots=True)
class Material:
    """A state, and all of its issuers that are trusted, ready for use."""

    state: State
    signers: dict[str, Signer]  # by the issuer's name
    roots: bytes  # PEM, of the trusted
    root_ends: float
    revoked: frozenset[int]

    def knows_issuer_of(self, chain: bytes) -> bool:
        """Of the first certificate of a chain (PEM); issuers have different names, each."""
        issuer = read_certificates(chain, "a certificate of ours")[0].issuer
        return any(signer.certificate.subject == issuer for signer in self.signers.values())

    def issuer_of(self, certificate: x509.Certificate) -> str:
        """The name of the one that has signed it; "" for none."""
        found = (name for name, signer in self.signers.items() if is_issued_by(certificate, signer.certificate))
        return next(found, "")

    @property
    def signing(self) -> tuple[str, Signer] | None:
        issuer = self.state.signing
        return None if issuer is None else (issuer.name, self.signers[issuer.name])


def make_material(state: State, seal: Seal, where: str, known: Material | None = None) -> Material:
    """Raises AuthorityError, which names the store and the issuer. `known` is what was made before."""
    signers: dict[str, Signer] = {}
    roots: list[x509.Certificate] = []
    for issuer in state.trusted:
        chain = read_certificates(issuer.chain, f"{where}: {issuer.name}")
        old = None if known is None else known.signers.get(issuer.name)
        is_same = old is not None and old.certificate == chain[0]
        signers[issuer.name] = old if is_same and old is not None else make_signer(issuer, seal, where)
        if chain[-1] not in roots:
            roots.append(chain[-1])
    ends = min((each.not_valid_after_utc.timestamp() for each in roots), default=0.0)
    revoked = frozenset(each.serial for each in state.revoked)
    return Material(state, signers, to_pem(roots), ends, revoked)


def make_signer(issuer: Issuer, seal: Seal, where: str) -> Signer:
    """Raises AuthorityError where certificate and key do not belong together."""
    if issuer.phase == PREPARED or not issuer.chain:
        raise AuthorityError(f"{where}: {issuer.name}: its certificate was never imported")
    key = seal.unlock(issuer.key)
    chain = read_certificates(issuer.chain, f"{where}: {issuer.name}")
    if public_der(key) != public_der_of(chain[0]):
        raise AuthorityError(f"{where}: {issuer.name}: its certificate is of another key")
    sent = [each for each in chain if not is_self_signed(each)]
    return Signer(chain[0], key, to_pem(sent))


def make_crls(material: Material, now: float, lifetime_s: float) -> Crl:
    """Nothing was ever revoked: no CRL, since those who have one must have it renewed for ever."""
    state = material.state
    names = tuple(each.name for each in state.trusted)
    if state.crl_number == 0:
        return Crl(b"", 0, names, float("inf"))
    begins = now - min(_SKEW_S, lifetime_s * _RENEW_SHARE)
    # Numbers grow (RFC 5280 section 5.2.3): with every change, and between changes with the time.
    number = (state.crl_number << 40) | int(now)
    parts = [
        make_crl(material.signers[name], _revoked_by(state, name), number, begins, now + lifetime_s) for name in names
    ]
    return Crl(b"".join(parts), state.crl_number, names, now + lifetime_s * _RENEW_SHARE)


def _revoked_by(state: State, issuer: str) -> Sequence[tuple[int, float]]:
    return [(each.serial, each.at) for each in state.revoked if each.issuer == issuer]
