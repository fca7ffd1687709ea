"""What the authority counts, for Prometheus."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_PREFIX: Final = "meshproxy_authority_"
_SIGN_BUCKETS_S: Final = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


class AuthorityMetrics:
    """In a registry of its own, or beside the pilot's."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry = registry if registry is not None else CollectorRegistry()
        self.issued = Counter(_PREFIX + "issued", "Certificates issued, by proof.", ["proof"], registry=registry)
        self.refused = Counter(_PREFIX + "refused", "Certificates refused.", ["reason"], registry=registry)
        self.revoked = Gauge(_PREFIX + "revoked", "Certificates that are revoked now.", registry=registry)
        self.issuers = Gauge(_PREFIX + "issuers", "Roots or intermediates, by phase.", ["phase"], registry=registry)
        self.ends = Gauge(
            _PREFIX + "signing_expiry_seconds", "Until the certificate that signs ends.", registry=registry
        )
        self.root_ends = Gauge(_PREFIX + "root_expiry_seconds", "Until the first trusted root ends.", registry=registry)
        self.bundles = Counter(_PREFIX + "bundle_changes", "Versions of the trust bundle.", registry=registry)
        self.failures = Counter(_PREFIX + "store_failures", "The store did not do its part.", registry=registry)
        self.sign = Histogram(
            _PREFIX + "sign_seconds", "Checking and signing one.", buckets=_SIGN_BUCKETS_S, registry=registry
        )
