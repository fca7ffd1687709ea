"""Who a proxy is: read from the node that every xDS request names, with the metadata of Istio's agents.

`id` is `<kind>~<ip>~<name>.<namespace>~<namespace>.svc.<domain>`, where Istio's agent wrote it; any other id is taken
as it is, and the metadata say the rest:

- `NAMESPACE`, `LABELS` (a map), `INSTANCE_IPS` (`10.0.0.1,10.0.0.2`), `SERVICE_ACCOUNT`;
- `INTERCEPTION_MODE`: `REDIRECT` or `TPROXY` (the default: everything comes through iptables), `NONE`: explicit
  listeners on loopback ports;
- `GENERATOR`: `grpc` for a client of gRPC's own, which its user agent tells as well;
- `meshproxy.io/ports`: which explicit listeners there are for outbound traffic, by `<port>` or `<host>:<port>`, each
  with its local port (0: any that is free); without it, one for each port of HTTP and TLS services;
- `meshproxy.io/applications`: with explicit listeners, where the application listens (`127.0.0.1:8080`), by the port at
  which the mesh finds it;
- `meshproxy.io/sds-cluster`: the static cluster of its bootstrap where it asks for secrets, or `ads`: the pilot's own
  stream; where it does not say, but an agent of Istio wrote the metadata (`ISTIO_VERSION` is there), `sds-grpc`, else
  none.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.json_format import MessageToDict

from meshproxy.pilot.snapshot import Proxy

SIDECAR: Final = "sidecar"
EXPLICIT: Final = "explicit"
GRPC: Final = "grpc"
GATEWAY: Final = "gateway"

# Keys of `Proxy.metadata`.
PRODUCT: Final = "product"
PORTS: Final = "meshproxy.io/ports"
APPLICATIONS: Final = "meshproxy.io/applications"
SDS: Final = "meshproxy.io/sds-cluster"

_AGENTS_SDS: Final = "sds-grpc"
_DOMAIN: Final = "cluster.local"


def proxy_of(node: Any, service_account: str = "") -> Proxy:
    """From an `envoy.config.core.v3.Node`. `service_account` is what the connection has proved; it wins over the node's
    own word. An unknown or missing part has its default; raises ValueError for ports that are none."""
    facts = MessageToDict(node.metadata)
    for key, least in ((PORTS, 0), (APPLICATIONS, 1)):
        for name, place in _mapping(facts, key):
            _check_port(name, place, least)
    kind, ip, namespace, domain = _parts_of(node.id)
    return Proxy(
        id=node.id,
        namespace=_text(facts, "NAMESPACE") or namespace or "default",
        service_account=service_account or _text(facts, "SERVICE_ACCOUNT"),
        labels=tuple(sorted(_mapping(facts, "LABELS"))),
        ips=_ips(_text(facts, "INSTANCE_IPS"), ip),
        mode=_mode(kind, facts, node.user_agent_name),
        cluster=node.cluster,
        region=node.locality.region,
        zone=node.locality.zone,
        sub_zone=node.locality.sub_zone,
        domain=domain or _DOMAIN,
        metadata=_metadata(facts, kind, node.user_agent_name),
    )


def entries(proxy: Proxy, key: str) -> dict[str, str]:
    """The map that `Proxy.metadata` has under `key.<name>`."""
    start = key + "."
    return {name.removeprefix(start): value for name, value in proxy.metadata if name.startswith(start)}


def _check_port(name: str, place: str, least: int) -> None:
    """`least` is 0 for listeners, of which only the port is said; the place of an application may have its address."""
    port = place.rpartition(":")[2] if least else place
    if not (port.isascii() and port.isdecimal()) or not least <= int(port) < 65_536:
        raise ValueError(f'the node says of "{name}": "{place}", which names no port')


def _parts_of(identity: str) -> tuple[str, str, str, str]:
    """Kind, address, namespace, domain; empty where the id has another form."""
    parts = identity.split("~")
    if len(parts) != 4:
        return "", "", "", ""
    kind, ip, _, domain = parts
    namespace, _, suffix = domain.partition(".svc.")
    return kind, ip, namespace, suffix


def _mode(kind: str, facts: Mapping[str, Any], user_agent: str) -> str:
    if _text(facts, "GENERATOR") == GRPC or user_agent.lower().startswith("grpc"):
        return GRPC
    if kind == "router":
        return GATEWAY
    return EXPLICIT if _text(facts, "INTERCEPTION_MODE").upper() == "NONE" else SIDECAR


def _metadata(facts: Mapping[str, Any], kind: str, user_agent: str) -> tuple[tuple[str, str], ...]:
    found = [(PRODUCT, user_agent)]
    sds = _text(facts, SDS) if SDS in facts else _AGENTS_SDS if kind and "ISTIO_VERSION" in facts else ""
    if sds:
        found.append((SDS, sds))
    for key in (PORTS, APPLICATIONS):
        found += [(f"{key}.{name}", value) for name, value in _mapping(facts, key)]
    return tuple(sorted(found))


def _ips(listed: str, own: str) -> tuple[str, ...]:
    """Those that are addresses, in the order that they were told."""
    candidates = (text.strip() for text in [*listed.split(","), own])
    return tuple(dict.fromkeys(text for text in candidates if _is_ip(text)))


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _mapping(facts: Mapping[str, Any], key: str) -> list[tuple[str, str]]:
    value = facts.get(key)
    if not isinstance(value, dict):
        return []
    return [(name, _scalar(item)) for name, item in value.items() if not isinstance(item, (dict, list))]


def _text(facts: Mapping[str, Any], key: str) -> str:
    value = facts.get(key, "")
    return value if isinstance(value, str) else ""


def _scalar(value: Any) -> str:
    """A number of a Struct is a double: a port is written without its fraction."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
