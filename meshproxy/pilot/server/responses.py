"""The bytes of responses. What all clients share is made once; the nonce, which is each stream's own, is put behind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryResponse, DiscoveryResponse

from meshproxy.pilot.snapshot import Resource

_NOT_FOUND: Final = 5  # google.rpc.Code
_NONCE_TAG: Final = b"\x2a"  # field 5, with a length, in both messages; the order of fields is free


def state_of_the_world(
    type_url: str, version: str, resources: Iterable[Resource], missing: Iterable[str], identifier: str
) -> bytes:
    """A DiscoveryResponse without its nonce. `missing`: names that there are no resources of."""
    response = DiscoveryResponse(version_info=version, type_url=type_url)
    response.control_plane.identifier = identifier
    for resource in resources:
        response.resources.add(type_url=type_url, value=resource.data)
    for name in missing:
        error = response.resource_errors.add()
        error.resource_name.name = name
        error.error_detail.code, error.error_detail.message = _NOT_FOUND, "there is no such resource"
    return bytes(response.SerializeToString())


def delta(type_url: str, version: str, resources: Iterable[Resource], removed: Iterable[str], identifier: str) -> bytes:
    """A DeltaDiscoveryResponse without its nonce."""
    response = DeltaDiscoveryResponse(system_version_info=version, type_url=type_url)
    response.control_plane.identifier = identifier
    for resource in resources:
        entry = response.resources.add(name=resource.name, version=resource.version)
        entry.resource.type_url = type_url
        entry.resource.value = resource.data
    response.removed_resources.extend(removed)
    return bytes(response.SerializeToString())


@dataclass(frozen=True, slots=True)
class Response:
    """One that is to leave. Its bytes are put together when they do: until then it costs no memory of its own."""

    type_url: str
    body: bytes
    nonce: str  # at most 127 ASCII characters

    def __bytes__(self) -> bytes:
        return self.body + _NONCE_TAG + bytes((len(self.nonce),)) + self.nonce.encode("ascii")
