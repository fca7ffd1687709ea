"""Whether a client is who its node says: a SPIFFE identity in its certificate binds namespace and service account."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshproxy.pilot.server.stream_secrets import OpenSecrets
from meshproxy.pilot.snapshot import Proxy
from meshproxy.rpc.server.call import ServerCall
from meshproxy.rpc.server.google import GoogleServerCall

if TYPE_CHECKING:
    from meshproxy.pilot.authority.proof import Prover
    from meshproxy.pilot.authority.sds import AuthoritySecrets

# `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`, as Istio's certificates have it.
_SPIFFE: Final = re.compile(r"spiffe://[^/]+/ns/([^/]+)/sa/([^/]+)")

# The URIs that a client has proved to be its own; None where it came without TLS, by a Unix socket.
Names = tuple[str, ...] | None


class Shown(NamedTuple):
    """What a client has proved. `holds` says whether it still would; `open_secrets` opens what it may have of secrets,
    where it may have any."""

    names: Names
    holds: Callable[[], bool] = lambda: True
    open_secrets: OpenSecrets | None = None


Proof = Callable[[Any], Awaitable[Shown]]  # of a call's context


def identified(proxy_of: Callable[[Any], Proxy], *, required: bool = False) -> Callable[[Any, Names], Proxy]:
    """An `Identify`: the proxy of a node, with what its certificate proves. It raises ValueError where they differ, and
    with `required` where a certificate proves nothing."""

    def identify(node: Any, names: Names) -> Proxy:
        return proved(proxy_of(node), names, required=required)

    return identify


async def proof_by_certificate(context: Any) -> Shown:
    """The names in the certificate that the client has shown to grpcio. None without TLS."""
    peer = GoogleServerCall(context).peer
    return Shown(peer.uris if peer.is_encrypted else None)


def proof_of_workload(prover: Prover, source: AuthoritySecrets, *, any_certificate: bool = False) -> Proof:
    """With an authority: by a token, a certificate of the mesh, or a user of this machine. Raises RpcFailure for a bad
    proof, and on TLS for none; with `any_certificate` one without a SPIFFE identity leaves the node its word. Who
    shows nothing in the clear, or on a Unix socket whose other end grpcio does not tell, is taken at its word, too."""

    async def prove(context: Any) -> Shown:
        call: ServerCall = getattr(context, "call", None) or GoogleServerCall(context)
        peer = call.peer
        if "authorization" not in call.metadata:
            if not peer.is_encrypted and peer.credentials is None:
                return Shown(None)
            if any_certificate and peer.certificate and not any(uri.startswith("spiffe:") for uri in peer.uris):
                return Shown(peer.uris)
        proved = await prover.prove(call)
        return Shown((proved.caller.identity.uri,), lambda: prover.holds(proved), lambda: source.secrets_of(proved))

    return prove


def proved(proxy: Proxy, names: Names, *, required: bool = False) -> Proxy:
    """The proxy with the service account of one of its certificate's names. Raises ValueError when none allows it. A
    certificate without a SPIFFE identity leaves the node its word, unless an identity is `required`."""
    identities = [found.groups() for found in map(_SPIFFE.fullmatch, names or ()) if found is not None]
    if not identities:
        if required and names is not None:
            raise ValueError("the certificate has no SPIFFE identity (spiffe://<domain>/ns/<namespace>/sa/<account>)")
        return proxy
    for namespace, account in identities:
        if namespace == proxy.namespace and proxy.service_account in ("", account):
            return replace(proxy, service_account=account)
    shown = ", ".join(f"{namespace}/{account}" for namespace, account in identities)
    raise ValueError(f"{proxy.id} says it is {proxy.namespace}/{proxy.service_account}; its certificate says {shown}")
