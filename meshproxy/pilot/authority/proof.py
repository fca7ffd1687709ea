"""Who calls: what a call proves of the workload behind it.

In this order: a bearer token, a certificate of the mesh (for renewal), the user of the process at the other end of a
Unix socket. What is shown and is no good counts against the caller, whatever else it has; a token and a certificate
must agree. Nothing is believed that came in the clear.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from meshproxy.codec import grpc as codes
from meshproxy.pilot.authority.contract import Caller
from meshproxy.pilot.authority.token_uses import TokenUses
from meshproxy.pilot.authority.tokens import TokenVerifier
from meshproxy.pilot.authority.uids import UidTable
from meshproxy.pilot.authority.unproved import Unproved
from meshproxy.rpc.server.call import Peer, RpcFailure, ServerCall
from meshproxy.tls.spiffe import Identity, parse_identity

if TYPE_CHECKING:
    from cryptography import x509

_NOBODY: Final = "no valid proof of identity"
_NOT_NOW: Final = "identities cannot be verified now"


# Told of everybody who proves nothing: the reason, what was tried ("jwt", "certificate", "uid" or ""), and from where.
OnUnproved = Callable[[str, str, str], None]


@dataclass(frozen=True, slots=True)
class Proved:
    """Who calls, and until when the proof holds (Unix time). `serial` is that of the certificate, where it was one, and
    `issuer` the name of who has signed it."""

    caller: Caller
    ends: float = math.inf
    serial: int = 0
    issuer: str = ""


class Exclusions(Protocol):
    """Whom an operator has shut out, and whose certificates count."""

    @property
    def revoked_serials(self) -> frozenset[int]:
        """Of certificates of the mesh."""

    def is_barred(self, identity_uri: str) -> bool:
        """Whether this identity gets nothing, whatever it proves."""

    def issuer_of(self, certificate: x509.Certificate) -> str:
        """The name of the issuer of ours that has signed this, and is trusted now; "" for none."""

    def trusts(self, issuer: str) -> bool:
        """Whether the issuer of this name still is."""


class Prover:
    """`trust_domains`: the mesh's own one first, then its aliases, whose certificates count like its own. Without
    `uses` a token proves the same from everywhere."""

    def __init__(
        self,
        trust_domains: tuple[str, ...],
        exclusions: Exclusions,
        on_unproved: OnUnproved,
        tokens: TokenVerifier | None = None,
        uids: UidTable | None = None,
        clock: Callable[[], float] = time.time,
        *,
        uses: TokenUses | None = None,
    ) -> None:
        self._uses = uses
        self._trust_domains = trust_domains
        self._exclusions = exclusions
        self._on_unproved = on_unproved
        self._tokens = tokens
        self._uids = uids
        self._clock = clock

    async def prove(self, call: ServerCall) -> Proved:
        """Who calls. Raises RpcFailure, UNAUTHENTICATED, that tells nobody why."""
        peer = call.peer
        try:
            proved = await self._prove(call, peer)
            if self._exclusions.is_barred(proved.caller.identity.uri):
                raise Unproved("the identity is shut out")
        except Unproved as error:
            self._on_unproved(error.reason, _kind_of(call), peer.address)
            if error.is_ours:
                raise RpcFailure(codes.UNAVAILABLE, _NOT_NOW) from None
            raise RpcFailure(codes.UNAUTHENTICATED, _NOBODY) from None
        return proved

    def holds(self, proved: Proved) -> bool:
        """Whether it would still be proved, by what has become known since."""
        shut_out = self._exclusions
        return (
            self._clock() < proved.ends
            and proved.serial not in shut_out.revoked_serials
            and (not proved.issuer or shut_out.trusts(proved.issuer))
            and not shut_out.is_barred(proved.caller.identity.uri)
        )

    async def _prove(self, call: ServerCall, peer: Peer) -> Proved:
        if not peer.is_encrypted and not peer.address.startswith("unix:"):
            raise Unproved("in the clear, over a network")
        shown = self._by_certificate(peer) if peer.certificate else None
        token = _bearer_token(call)
        if token is not None:
            return await self._by_token(token, shown, peer)
        if shown is not None:
            return shown
        if peer.credentials is not None and self._uids is not None:
            found = self._uids.identity(peer.credentials.uid)
            if found is None:
                raise Unproved(f"uid {peer.credentials.uid} is not in the table")
            return Proved(Caller(found, "uid", f"{peer.address} pid {peer.credentials.pid} uid {peer.credentials.uid}"))
        raise Unproved("no proof")

    async def _by_token(self, token: str, shown: Proved | None, peer: Peer) -> Proved:
        if self._tokens is None:
            raise Unproved("a token, and no key set to verify it with")
        found = await self._tokens.verify(token)
        if shown is not None and shown.caller.identity != found.identity:
            raise Unproved("a token and a certificate of different workloads")
        uses = self._uses
        if uses is not None and not uses.is_at_home(token, peer.address, found.expires_at, self._clock()):
            raise Unproved("a token that was first shown from another address")
        return Proved(Caller(found.identity, "jwt", peer.address), found.expires_at)

    def _by_certificate(self, peer: Peer) -> Proved:
        """The server has verified whom it is of, when the connection began, and by whom it likes: it may have ended
        since, and so may who signed it."""
        from cryptography import x509

        try:
            certificate = x509.load_der_x509_certificate(peer.certificate)
        except ValueError:
            raise Unproved("malformed certificate") from None
        ends = certificate.not_valid_after_utc.timestamp()
        if not certificate.not_valid_before_utc.timestamp() <= self._clock() < ends:
            raise Unproved("the certificate has expired, or is not valid yet")
        if certificate.serial_number in self._exclusions.revoked_serials:
            raise Unproved("the certificate is revoked")
        issuer = self._exclusions.issuer_of(certificate)
        if not issuer:
            raise Unproved("the certificate is of no issuer that is trusted now")
        identity = parse_identity(peer.uris[0]) if len(peer.uris) == 1 else None
        if identity is None:
            raise Unproved("the certificate is of no workload")
        if identity.trust_domain not in self._trust_domains:
            raise Unproved("the certificate is of another trust domain")
        ours = Identity(self._trust_domains[0], identity.namespace, identity.service_account)
        return Proved(Caller(ours, "certificate", peer.address), ends, certificate.serial_number, issuer)


def _bearer_token(call: ServerCall) -> str | None:
    """RFC 6750 section 2.1; None where the caller has no `authorization`."""
    values = call.metadata.get("authorization", ())
    if not values:
        return None
    scheme, _, token = values[0].partition(" ")
    if len(values) != 1 or scheme.lower() != "bearer" or not token:
        raise Unproved("the authorization is no bearer token")
    return token


def _kind_of(call: ServerCall) -> str:
    if "authorization" in call.metadata:
        return "jwt"
    if call.peer.certificate:
        return "certificate"
    return "uid" if call.peer.credentials is not None else ""
