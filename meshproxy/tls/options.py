"""What a TLS context is made of: frozen, free of protobuf, every byte of it loaded."""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from meshproxy.tls.verify import SanMatcher

if TYPE_CHECKING:
    from meshproxy.tls.material import LoadedAuthorities, LoadedCertificate

DEFAULT_CIPHERS: Final = (
    "[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]",
    "[ECDHE-RSA-AES128-GCM-SHA256|ECDHE-RSA-CHACHA20-POLY1305]",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
)
DEFAULT_CURVES: Final = ("X25519", "P-256")
DEFAULT_SESSION_TIMEOUT_S: Final = 7200


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateOptions:
    """One `TlsCertificate`. `field` is its path below the context; `source` is what /certs calls it."""

    field: str
    chain: bytes
    key: bytes
    password: bytes | None = None
    ocsp_staple: bytes = b""
    source: str = "<inline>"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustBundle:
    """Whom the members of a SPIFFE trust domain are verified against: PEM, with revocation lists where there are any.
    `field` is its path below the context."""

    field: str
    domain: str
    trusted_ca: bytes
    source: str = "<inline>"


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationOptions:
    """A `CertificateValidationContext`; `field` is its path below the context. `digest` is of all that it demands.
    Where there are `trust_bundles`, these count and `trusted_ca` does not, as in Envoy."""

    field: str
    digest: bytes = b""
    authorities: LoadedAuthorities | None = None  # those of `trusted_ca` and `crl`, where they are loaded already
    trusted_ca: bytes = b""
    source: str = "<inline>"
    system_roots: bool = False
    trust_bundles: tuple[TrustBundle, ...] = ()
    crl: bytes = b""
    only_leaf_crl: bool = False
    san_matchers: tuple[SanMatcher, ...] = ()
    hashes: frozenset[bytes] = frozenset()
    public_key_hashes: frozenset[bytes] = frozenset()
    ignore_times: bool = False
    accept_untrusted: bool = False
    max_verify_depth: int | None = None

    @property
    def has_authorities(self) -> bool:
        """Whether somebody is trusted, so that names in certificates mean anything."""
        return bool(self.trusted_ca) or self.system_roots or bool(self.trust_bundles)

    def merged_into(self, default: ValidationOptions) -> ValidationOptions:
        """As protobuf merges this into `default` (CombinedCertificateValidationContext): lists are joined, and what is
        set here goes before what is set there."""
        authorities = default if not self.trusted_ca else self
        revocations = default if not self.crl else self
        bundles = self.trust_bundles or default.trust_bundles
        roots = self.system_roots or default.system_roots
        owner = default if bundles and not self.trust_bundles else self
        is_owners = (revocations.crl, bundles) == (owner.crl, owner.trust_bundles)
        if not bundles:
            is_owners = is_owners and (authorities.trusted_ca, roots) == (owner.trusted_ca, owner.system_roots)
        return replace(
            self,
            digest=hashlib.sha256(default.digest + self.digest).digest(),
            authorities=owner.authorities if is_owners else None,
            trusted_ca=authorities.trusted_ca,
            source=authorities.source,
            system_roots=roots,
            trust_bundles=bundles,
            crl=revocations.crl,
            only_leaf_crl=self.only_leaf_crl or default.only_leaf_crl,
            san_matchers=default.san_matchers + self.san_matchers,
            hashes=default.hashes | self.hashes,
            public_key_hashes=default.public_key_hashes | self.public_key_hashes,
            ignore_times=self.ignore_times or default.ignore_times,
            accept_untrusted=self.accept_untrusted or default.accept_untrusted,
            max_verify_depth=default.max_verify_depth if self.max_verify_depth is None else self.max_verify_depth,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsOptions:
    """A `DownstreamTlsContext` (`is_server`) or an `UpstreamTlsContext`."""

    is_server: bool
    min_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    max_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    ciphers: tuple[str, ...] = DEFAULT_CIPHERS
    curves: tuple[str, ...] = DEFAULT_CURVES
    signature_algorithms: tuple[str, ...] = ()
    application_protocols: tuple[str, ...] = ()
    certificates: tuple[CertificateOptions | LoadedCertificate, ...] = ()
    validation: ValidationOptions | None = None
    keylog_path: str = ""

    # of a server
    require_client_certificate: bool = False
    full_scan_on_sni_mismatch: bool = False
    prefer_client_ciphers: bool = False
    ticket_keys: tuple[bytes, ...] = ()
    ticket_seed: bytes = b""  # without `ticket_keys`: contexts with the same one resume each other's sessions
    tickets: bool = True
    session_cache: bool = True
    session_timeout_s: int = DEFAULT_SESSION_TIMEOUT_S
    session_id_context: bytes = b""  # tells apart where sessions may be resumed; at most 32 bytes

    # of a client
    server_name: str = ""
    auto_host_sni: bool = False  # the name of the upstream host, which comes with each connection
    expects_server_name: bool = False  # auto_sni_san_validation
    allow_renegotiation: bool = False
    max_sessions: int = 1
