"""Whether a client is who its node says: a SPIFFE identity in its certificate binds namespace and service account."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from meshproxy.pilot.snapshot import Proxy

# `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`, as Istio's certificates have it.
_SPIFFE: Final = re.compile(r"spiffe://[^/]+/ns/([^/]+)/sa/([^/]+)")

# The URIs in a client's certificate; None where it came without TLS, by a Unix socket.
Names = tuple[str, ...] | None


def identified(proxy_of: Callable[[Any], Proxy], *, required: bool = False) -> Callable[[Any, Names], Proxy]:
    """An `Identify`: the proxy of a node, with what its certificate proves. It raises ValueError where they differ, and
    with `required` where a certificate proves nothing."""

    def identify(node: Any, names: Names) -> Proxy:
        return proved(proxy_of(node), names, required=required)

    return identify


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
