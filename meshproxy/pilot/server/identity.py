"""Whether a client is who its node says: a SPIFFE identity in its certificate binds namespace and service account."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from meshproxy.pilot.snapshot import Proxy

# `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`, as Istio's certificates have it.
_SPIFFE: Final = re.compile(r"spiffe://[^/]+/ns/([^/]+)/sa/([^/]+)")


def identified(proxy_of: Callable[[Any], Proxy]) -> Callable[[Any, tuple[str, ...]], Proxy]:
    """An `Identify`: the proxy of a node, with what its certificate proves. It raises ValueError where they differ."""

    def identify(node: Any, names: tuple[str, ...]) -> Proxy:
        return proved(proxy_of(node), names)

    return identify


def proved(proxy: Proxy, names: tuple[str, ...]) -> Proxy:
    """The proxy with the service account of one of its certificate's names. Raises ValueError when none allows it."""
    identities = [found.groups() for found in map(_SPIFFE.fullmatch, names) if found is not None]
    if not identities:
        return proxy
    for namespace, account in identities:
        if namespace == proxy.namespace and proxy.service_account in ("", account):
            return replace(proxy, service_account=account)
    shown = ", ".join(f"{namespace}/{account}" for namespace, account in identities)
    raise ValueError(f"{proxy.id} says it is {proxy.namespace}/{proxy.service_account}; its certificate says {shown}")
