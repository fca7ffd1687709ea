"""What the authority does for those who ask it (`services.py`), and what `ca.py` implements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from meshproxy.tls.spiffe import Identity


@dataclass(frozen=True, slots=True)
class Caller:
    """Who has proved, and how, that it is `identity`: "jwt", "uid" or "certificate"; "pilot" is the pilot itself.
    `address` is for the audit."""

    identity: Identity
    proof: str
    address: str = ""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with its intermediates, without the root, and with its key where we made that."""

    chain: bytes  # PEM, the leaf first
    serial: int
    not_before: float  # Unix time
    not_after: float
    key: bytes = field(default=b"", repr=False)  # PEM (PKCS#8); empty where the caller keeps its own


@dataclass(frozen=True, slots=True)
class TrustBundle:
    """Whom the mesh believes now: all roots of its own domain, and of those that it is federated with."""

    roots: bytes  # PEM
    crl: bytes  # PEM; empty where nothing is revoked
    federated: tuple[tuple[str, bytes], ...] = ()  # trust domain, PEM


class Refused(Exception):
    """No certificate, and why. `status` is gRPC's: INVALID_ARGUMENT, PERMISSION_DENIED, RESOURCE_EXHAUSTED or
    UNAVAILABLE."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Authority(Protocol):
    """Every call that issues or refuses leaves a line in the audit. Signing happens in a thread: these are awaited."""

    @property
    def trust_domain(self) -> str:
        """`cluster.local` …"""

    async def sign(self, csr: bytes, caller: Caller, lifetime_s: float) -> Issued:
        """A certificate for the key of a CSR (PEM or DER). What the CSR says of names is ignored, but where it names a
        SPIFFE identity it must be the caller's. `lifetime_s` 0: the default; what is asked for is never exceeded, nor
        is the longest allowed. Raises Refused."""

    async def issue(self, caller: Caller, lifetime_s: float, dns_names: tuple[str, ...] = ()) -> Issued:
        """With a key that is made here. Only what the pilot itself serves with has `dns_names`. Raises Refused."""

    def stands(self, issued: Issued) -> bool:
        """Whether it is not revoked, and who signed it is still trusted."""

    def bundle(self) -> TrustBundle:
        """The same object as long as nothing changes."""

    def watch(self, on_change: Callable[[], None]) -> Callable[[], None]:
        """Be told, in the event loop, when the bundle is another one. Returns what ends it."""
