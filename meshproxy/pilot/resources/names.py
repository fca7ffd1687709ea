"""Names of clusters, and the host names by which a service is called: as Istio has them, since people read them in
statistics and logs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

BLACK_HOLE: Final = "BlackHoleCluster"
PASSTHROUGH: Final = "PassthroughCluster"
INBOUND_PASSTHROUGH: Final = "InboundPassthroughCluster"

VIRTUAL_OUTBOUND: Final = "virtualOutbound"
VIRTUAL_INBOUND: Final = "virtualInbound"

ALLOW_ANY: Final = "allow_any"
BLOCK_ALL: Final = "block_all"


def outbound_cluster(hostname: str, port: int, subset: str = "") -> str:
    """`outbound|9080|v1|reviews.default.svc.cluster.local`."""
    return f"outbound|{port}|{subset}|{hostname}"


def outbound_sni(hostname: str, port: int, subset: str = "") -> str:
    """The same as a server name: `outbound_.9080_.v1_.reviews.default.svc.cluster.local`."""
    return f"outbound_.{port}_.{subset}_.{hostname}"


def inbound_cluster(port: int) -> str:
    """`inbound|9080||`: the application's own port."""
    return f"inbound|{port}||"


def domains_of(hostname: str, addresses: Iterable[str], namespace: str, domain: str) -> list[str]:
    """The domains of a service's virtual host, as a proxy in `namespace` sees it: its full name, the short forms that
    DNS would complete there, and its virtual addresses.

    Ports do not stand in them: the route configurations say `ignore_port_in_host_matching`.
    """
    names = [hostname, *short_forms(hostname, namespace, domain)]
    return names + [bracketed(address) for address in addresses if "/" not in address]


def short_forms(hostname: str, namespace: str, domain: str) -> list[str]:
    """`reviews`, `reviews.default`, `reviews.default.svc` of a service of the cluster; the first only in its namespace.
    Other host names have none."""
    stem = hostname.removesuffix("." + domain)
    parts = stem.split(".")
    if stem == hostname or len(parts) != 3 or parts[2] != "svc" or parts[0] == "*":
        return []
    name, own_namespace, _ = parts
    forms = [f"{name}.{own_namespace}", f"{name}.{own_namespace}.svc"]
    return [name, *forms] if own_namespace == namespace else forms


def bracketed(address: str) -> str:
    """An address as it stands in a Host header: IPv6 has brackets."""
    return f"[{address}]" if is_ipv6(address) else address


def is_ipv6(address: str) -> bool:
    return ":" in address
