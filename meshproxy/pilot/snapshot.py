"""What a proxy is to be told: named resources of every type, the same object for all proxies of one scope.

A snapshot never changes; the next one shares with it the resources that stay. So whoever serves it compares versions,
never contents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource. `data` is the serialised message (not the Any around it); `version` a hash of it."""

    name: str
    version: str
    data: bytes

    @classmethod
    def of(cls, name: str, message: Any) -> Self:
        """From a message of the API."""
        data = bytes(message.SerializeToString(deterministic=True))
        return cls(name, hashlib.blake2b(data, digest_size=8).hexdigest(), data)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that the proxies of one scope may ask for: by type URL, then by name.

    A type's dict is the same object in the next snapshot where nothing of that type changed.
    """

    types: Mapping[str, Mapping[str, Resource]] = field(default_factory=dict)

    def of_type(self, type_url: str) -> Mapping[str, Resource]:
        """The resources of a type; empty where there are none."""
        return self.types.get(type_url, {})


@dataclass(frozen=True, slots=True)
class Proxy:
    """Who asks: what its node says of it (see `pilot/proxy.py`), and who it has proved to be."""

    id: str
    namespace: str = "default"
    service_account: str = ""
    labels: tuple[tuple[str, str], ...] = ()  # sorted
    ips: tuple[str, ...] = ()
    mode: str = "sidecar"  # sidecar: intercepted; explicit: listeners on loopback ports; grpc: a client of gRPC's own
    cluster: str = ""  # node.cluster
    region: str = ""
    zone: str = ""
    sub_zone: str = ""
    domain: str = "cluster.local"
    metadata: tuple[tuple[str, str], ...] = ()  # other facts of its node that resources depend on; sorted
