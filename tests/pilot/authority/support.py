"""Authorities on stores of their own, callers, and openssl as the judge."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import NameOID

from meshproxy.pilot.authority.audit import Audit
from meshproxy.pilot.authority.ca import CertificateAuthority
from meshproxy.pilot.authority.contract import Caller
from meshproxy.pilot.authority.directory_store import DirectoryStore
from meshproxy.pilot.authority.metrics import AuthorityMetrics
from meshproxy.pilot.authority.settings import AuthoritySettings
from meshproxy.pilot.authority.store import Store
from meshproxy.tls.spiffe import Identity

PASSPHRASE: Final = b"correct horse battery staple"
CART: Final = Identity("cluster.local", "shop", "cart")
CALLER: Final = Caller(CART, "jwt", "10.0.0.7:4711")
START: Final = 1_800_000_000.0
DEADLINE_S: Final = 30.0


class Clock:
    """Wall time that goes on when told."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@dataclass
class Running:
    """An authority, what it writes down, and its files."""

    authority: CertificateAuthority
    folder: Path
    clock: Clock

    def audit(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "audit.log").read_text().splitlines()]

    def counted(self, name: str, **labels: str) -> float:
        return self.authority.metrics.registry.get_sample_value(f"meshproxy_authority_{name}", labels) or 0.0


@asynccontextmanager
async def opened(
    folder: Path, settings: AuthoritySettings | None = None, clock: Clock | None = None, store: Store | None = None
) -> AsyncIterator[Running]:
    """Not started: time passes when a test says so."""
    clock = clock or Clock()
    authority = await CertificateAuthority.open(
        store or DirectoryStore(str(folder / "ca")),
        PASSPHRASE,
        settings or AuthoritySettings(),
        Audit(str(folder / "audit.log")),
        AuthorityMetrics(),
        clock,
    )
    try:
        yield Running(authority, folder, clock)
    finally:
        await authority.close()


def csr(
    key: CertificateIssuerPrivateKeyTypes | None = None,
    *names: x509.GeneralName,
    algorithm: hashes.SHA256 | hashes.SHA384 | None = hashes.SHA256(),  # noqa: B008 - stateless
) -> bytes:
    """PEM."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    made = builder.sign(key or ec.generate_private_key(ec.SECP256R1()), algorithm)
    return made.public_bytes(serialization.Encoding.PEM)


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


def common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def openssl(*arguments: str, data: bytes = b"") -> tuple[int, str]:
    """Exit code, and all that it said."""
    done = subprocess.run(["openssl", *arguments], input=data, capture_output=True, check=False, timeout=DEADLINE_S)
    return done.returncode, (done.stdout + done.stderr).decode()


def verify(folder: Path, chain: bytes, roots: bytes, *flags: str, crl: bytes = b"", at: float = START) -> str:
    """ "OK", or openssl's reason against the first certificate of `chain`."""
    parts = split(chain)
    (folder / "leaf.pem").write_bytes(parts[0])
    (folder / "roots.pem").write_bytes(roots)
    arguments = ["-x509_strict", "-CAfile", str(folder / "roots.pem"), "-attime", str(int(at)), *flags]
    if parts[1:]:
        (folder / "chain.pem").write_bytes(b"".join(parts[1:]))
        arguments += ["-untrusted", str(folder / "chain.pem")]
    if crl:
        (folder / "crl.pem").write_bytes(crl)
        arguments += ["-crl_check", "-CRLfile", str(folder / "crl.pem")]
    code, said = openssl("verify", *arguments, str(folder / "leaf.pem"))
    return "OK" if code == 0 else said


def split(pem: bytes) -> list[bytes]:
    """Each certificate of a chain."""
    end = b"-----END CERTIFICATE-----\n"
    return [part + end for part in pem.split(end) if part.strip()]


def seconds(**changes: Any) -> AuthoritySettings:
    """Settings of a fast mesh."""
    base = AuthoritySettings(
        lifetime_s=10.0, longest_lifetime_s=20.0, skew_s=1.0, root_lifetime_s=600.0, overlap_s=30.0, crl_lifetime_s=60.0
    )
    return replace(base, **changes)
