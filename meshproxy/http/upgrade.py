"""Requests for another protocol on their connection: who allows them, and through which filters they go.

A request with the method CONNECT counts as an upgrade to the protocol "connect" (Envoy's rule).
"""

from __future__ import annotations

from typing import Final

from meshproxy.codec.headers import HeaderMap
from meshproxy.http.chain import FilterChain
from meshproxy.route.route import Route
from meshproxy.route.upgrade import CONNECT

_UNNAMED: Final = b"\0"  # the protocol of an empty Upgrade, which nobody can allow


class Upgrade:
    """`HttpConnectionManager.upgrade_configs`: whether one protocol is allowed, and its filters; None: the usual."""

    def __init__(self, allowed: bool, chain: FilterChain | None) -> None:
        self.allowed = allowed
        self.chain = chain


def tunnel_protocol(headers: HeaderMap) -> bytes:
    """What the request wants its connection for, in lower case; b"" when it is an ordinary one."""
    if headers.get(b":method") == b"CONNECT":
        return CONNECT
    upgrade = headers.joined(b"upgrade")
    return b"" if upgrade is None else upgrade.lower() or _UNNAMED


def tunnel_chain(
    protocol: bytes, upgrades: dict[bytes, Upgrade], usual: FilterChain, route: Route | None
) -> FilterChain | None:
    """The filters of a request for `protocol`; None when nobody allows it. The route's word counts more."""
    upgrade = upgrades.get(protocol)
    allowed = upgrade is not None and upgrade.allowed
    if route is not None and route.upgrades is not None:
        allowed = route.upgrades.allowed.get(protocol, allowed)
    if not allowed:
        return None
    return usual if upgrade is None or upgrade.chain is None else upgrade.chain


def establishes_tunnel(protocol: bytes, status: int) -> bool:
    """Whether this response opens the tunnel that the request asked for (RFC 9110 sections 7.8 and 9.3.6)."""
    return status == 101 or (protocol == CONNECT and 200 <= status < 300)
