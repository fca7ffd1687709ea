"""SPIFFE identities (https://github.com/spiffe/spiffe, SPIFFE-ID.md) in the form that a mesh gives its workloads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._-]{1,253}")
_WORKLOAD: Final = re.compile(r"spiffe://([^/]*)/ns/([^/]*)/sa/([^/]*)")
_SPIFFE: Final = re.compile(r"spiffe://([^/]*)(/.*)?")
_MAX_BYTES: Final = 2048  # SPIFFE-ID section 2.3


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """A workload: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`."""

    trust_domain: str
    namespace: str
    service_account: str

    @property
    def uri(self) -> str:
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    @property
    def is_valid(self) -> bool:
        """Whether its parts may stand in a URI: nothing in them is a path, empty, or escaped."""
        return is_trust_domain(self.trust_domain) and all(
            _SEGMENT.fullmatch(part) and part not in (".", "..") for part in (self.namespace, self.service_account)
        )


def parse_identity(uri: str) -> Identity | None:
    """The workload that a URI names; None where it is no identity of this form."""
    found = _WORKLOAD.fullmatch(uri) if len(uri) <= _MAX_BYTES else None
    if found is None:
        return None
    identity = Identity(*found.groups())
    return identity if identity.is_valid else None


def trust_domain_of(uri: str) -> str:
    """Of any SPIFFE ID; "" where the URI is none (SPIFFE-ID section 2.1)."""
    found = _SPIFFE.fullmatch(uri) if len(uri) <= _MAX_BYTES else None
    domain = found.group(1) if found is not None else ""
    return domain if is_trust_domain(domain) else ""


def is_trust_domain(name: str) -> bool:
    """Whether it may be the name of one."""
    return _TRUST_DOMAIN.fullmatch(name) is not None
