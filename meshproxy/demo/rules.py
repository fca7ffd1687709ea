"""The documents that are shown: examples/mesh, rendered with free ports and other weights; and a sidecar's bootstrap.

In documents only numbers are replaced, in the text, so that comments stay and the rendered file reads like the example.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Final

import yaml

SERVICES: Final = "services.yaml"
CANARY: Final = "canary.yaml"
SECURITY: Final = "security.yaml"
NAMESPACE: Final = "demo"
USERS: Final = "users"  # service accounts
SHOP: Final = "shop"
SERVICE_PORT: Final = 80

_PORT: Final = re.compile(r"(ports: \{http: )(\d+)")
_WEIGHT: Final = re.compile(r"(subset: (v1|v2)\}\n +weight: )\d+")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the example has an instance: on an address of its own, at the port of its sidecar."""

    name: str
    address: str
    port: int

    @property
    def version(self) -> str:
        return self.name.partition("-")[0]


PLACES: Final = (
    Place("v1-a", "127.0.0.11", 8111),
    Place("v1-b", "127.0.0.12", 8112),
    Place("v2-a", "127.0.0.21", 8121),
    Place("v2-b", "127.0.0.22", 8122),
)


class ExampleError(Exception):
    """The documents are not ones that the demonstration can show."""


def read_services() -> str:
    """The text of examples/mesh/services.yaml."""
    return _packaged(SERVICES)


def read_security() -> str:
    """The text of examples/mesh/security.yaml."""
    return _packaged(SECURITY)


def read_canary(path: str) -> str:
    """The text of the file at `path`, or of examples/mesh/canary.yaml for "". Raises ExampleError when it cannot be
    read."""
    try:
        return Path(path).read_text(encoding="utf-8") if path else _packaged(CANARY)
    except (OSError, UnicodeDecodeError) as error:
        raise ExampleError(f"cannot read the rules: {error}") from error


def _packaged(name: str) -> str:
    return resources.files("meshproxy.demo").joinpath(name).read_text(encoding="utf-8")


def with_ports(text: str, ports: Mapping[int, int]) -> str:
    """`text` with each port of an instance replaced. Raises ExampleError when it does not hold exactly those ports."""
    found = sorted(int(match[2]) for match in _PORT.finditer(text))
    if found != sorted(ports):
        raise ExampleError(f"the demonstration needs the ports {sorted(ports)} once each, the file has {found}")
    return _PORT.sub(lambda match: f"{match[1]}{ports[int(match[2])]}", text)


def with_canary_share(text: str, percent: int) -> str:
    """`text` with `percent` of the iOS users on v2. Raises ExampleError when it has not one weight for each version."""
    weights = {"v1": 100 - percent, "v2": percent}
    changed, count = _WEIGHT.subn(lambda match: f"{match[1]}{weights[match[2]]}", text)
    if count != len(weights):
        raise ExampleError("the demonstration needs one `subset: v1}` with a `weight: N` below it, and one of v2")
    return changed


@dataclass(frozen=True, slots=True)
class Sidecar:
    """One that is to run. `applications` are the ports of its application on 127.0.0.1, by the ports at which the mesh
    finds it; `pilot` and `agent` are the Unix sockets of who tells it the rules, and its certificates."""

    name: str
    address: str
    account: str
    labels: Mapping[str, str]
    pilot: str
    agent: str
    applications: Mapping[int, int] = field(default_factory=dict)


def bootstrap(sidecar: Sidecar) -> str:
    """Its configuration, on free ports."""
    config = yaml.safe_load(_packaged("sidecar.yaml"))
    node = config["node"]
    node["id"] = f"sidecar~{sidecar.address}~{sidecar.name}.{NAMESPACE}~{NAMESPACE}.svc.cluster.local"
    node["cluster"] = sidecar.name
    node["metadata"] |= {
        "SERVICE_ACCOUNT": sidecar.account,
        "LABELS": dict(sidecar.labels),
        "meshproxy.io/ports": {str(SERVICE_PORT): 0},
        "meshproxy.io/applications": {str(at): f"127.0.0.1:{port}" for at, port in sidecar.applications.items()},
    }
    config["admin"]["address"]["socket_address"]["port_value"] = 0
    sockets = {"pilot": sidecar.pilot, "agent": sidecar.agent}
    for cluster in config["static_resources"]["clusters"]:
        endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
        endpoint["address"]["pipe"]["path"] = sockets[cluster["name"]]
    return yaml.safe_dump(config, sort_keys=False)
