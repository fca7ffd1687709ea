"""The server's side of an SDS stream, without I/O: what a client asks for, has, and is to be sent next.

One response is under way at a time: what changes meanwhile follows the client's answer. What a client has refused
(NACK) is not sent again; the next change is. A name that nobody knows has no answer until somebody does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from envoy.service.discovery.v3.discovery_pb2 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
)
from google.protobuf.message import DecodeError

from meshproxy.codec import grpc
from meshproxy.config.subscription import SECRET_TYPE
from meshproxy.rpc.server.call import RpcFailure

# What a mesh calls the secrets of its workloads, as Istio does: a certificate with its key, and whom to trust.
IDENTITY: Final = "default"
ROOTS: Final = "ROOTCA"

MAX_NAMES: Final = 100  # of one stream
MAX_NAME_LENGTH: Final = 256
_MAX_REASON: Final = 1024


@dataclass(frozen=True, slots=True)
class SecretValue:
    """A secret as it is now: a serialised `envoy…tls.v3.Secret`, and what tells it from others of its name."""

    version: str
    data: bytes = field(repr=False)


Find = Callable[[str], SecretValue | None]


class SecretStream:
    """What both variants share. `refusals` and `taken` count the client's answers."""

    def __init__(self) -> None:
        self.names: frozenset[str] = frozenset()
        self.taken = 0
        self.refusals = 0
        self.refusal = ""  # the newest reason
        self._nonce = 0
        self._in_flight = False
        self._sent: dict[str, str] = {}  # versions in the last response
        self._refused: dict[str, str] = {}  # versions in the last response, where that was refused

    def receive(self, request: bytes) -> None:
        """Take a request. Raises RpcFailure for one that ends the stream."""
        raise NotImplementedError

    def next(self, find: Find) -> bytes | None:
        """The next response; None while there is nothing to send, or nothing may be sent."""
        raise NotImplementedError

    def _answered(self, refused: bool, reason: str) -> None:
        self._in_flight = False
        if refused:
            self.refusals += 1
            self.refusal = reason[:_MAX_REASON]
            self._refused = self._sent
        else:
            self.taken += 1
            self._refused = {}

    def _begin(self, versions: dict[str, str]) -> str:
        """A response leaves: its nonce."""
        self._nonce += 1
        self._in_flight = True
        self._sent = versions
        return f"{self._nonce:x}"

    def _is_answer(self, nonce: str) -> bool:
        return self._in_flight and nonce == f"{self._nonce:x}"


class StateOfTheWorldSecrets(SecretStream):
    """`StreamSecrets`: every request has all names, every response all secrets that there are."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[str, str] = {}  # versions that the client has, or has refused
        self._asked_again = False

    def receive(self, request: bytes) -> None:
        message = DiscoveryRequest()
        try:
            message.ParseFromString(request)
        except DecodeError:
            raise RpcFailure(grpc.INVALID_ARGUMENT, "no DiscoveryRequest") from None
        _check_type(message.type_url)
        nonce = message.response_nonce
        if nonce and nonce != f"{self._nonce:x}":
            return  # of a response before the last one: the answer to the last one is still to come
        if self._is_answer(nonce):
            self._answered(message.HasField("error_detail"), message.error_detail.message)
        names = _checked(message.resource_names)
        if names - self.names:
            self._asked_again = True
        self.names = names
        self._held = {name: version for name, version in self._held.items() if name in names}

    def next(self, find: Find) -> bytes | None:
        if self._in_flight:
            return None
        found = {name: value for name in sorted(self.names) if (value := find(name)) is not None}
        versions = {name: value.version for name, value in found.items()}
        if not found or (versions == self._held and not self._asked_again):
            return None
        self._asked_again = False
        self._held = versions
        response = DiscoveryResponse(version_info=_version_of(versions), type_url=SECRET_TYPE)
        for value in found.values():
            response.resources.add(type_url=SECRET_TYPE, value=value.data)
        response.nonce = self._begin(versions)
        return bytes(response.SerializeToString())


class DeltaSecrets(SecretStream):
    """`DeltaSecrets`: requests and responses say what changes."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[str, str] = {}  # versions that the client has; "" for what it is to have anew
        self._is_first = True

    def receive(self, request: bytes) -> None:
        message = DeltaDiscoveryRequest()
        try:
            message.ParseFromString(request)
        except DecodeError:
            raise RpcFailure(grpc.INVALID_ARGUMENT, "no DeltaDiscoveryRequest") from None
        _check_type(message.type_url)
        if self._is_answer(message.response_nonce):
            self._answered(message.HasField("error_detail"), message.error_detail.message)
        gone = set(message.resource_names_unsubscribe)
        asked = set(message.resource_names_subscribe)
        self.names = _checked((self.names - gone) | asked)
        for name in gone | asked:
            self._held.pop(name, None)
        if self._is_first:
            self._is_first = False
            versions = message.initial_resource_versions
            _checked(versions)
            self._held = {name: version for name, version in versions.items() if name in self.names}

    def next(self, find: Find) -> bytes | None:
        if self._in_flight:
            return None
        response = DeltaDiscoveryResponse(type_url=SECRET_TYPE)
        versions: dict[str, str] = {}
        for name in sorted(self.names):
            value = find(name)
            if value is None:
                if self._held.pop(name, None) is not None:
                    response.removed_resources.append(name)
            elif value.version not in (self._held.get(name), self._refused.get(name)):
                versions[name] = self._held[name] = value.version
                resource = response.resources.add(name=name, version=value.version)
                resource.resource.type_url = SECRET_TYPE
                resource.resource.value = value.data
        if not versions and not response.removed_resources:
            return None
        response.system_version_info = _version_of(versions)
        response.nonce = self._begin(versions)
        return bytes(response.SerializeToString())


def _checked(names: Iterable[str]) -> frozenset[str]:
    """Raises RpcFailure where they are more, or longer, than anybody needs."""
    found = frozenset(names)
    if len(found) > MAX_NAMES or any(len(name) > MAX_NAME_LENGTH for name in found):
        raise RpcFailure(grpc.RESOURCE_EXHAUSTED, f"more than {MAX_NAMES} names, or one beyond {MAX_NAME_LENGTH} bytes")
    return found


def _check_type(type_url: str) -> None:
    if type_url not in ("", SECRET_TYPE):
        raise RpcFailure(grpc.INVALID_ARGUMENT, "only secrets are served here")


def _version_of(versions: dict[str, str]) -> str:
    """Of a response: that of its only secret, or a digest of them all."""
    if len(versions) == 1:
        return next(iter(versions.values()))
    return hashlib.sha256(repr(sorted(versions.items())).encode()).hexdigest()[:16]
