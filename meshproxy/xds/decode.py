"""A response's resources, out of what they are wrapped in: one bad one is refused alone."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import Any, Final

from envoy.service.discovery.v3.discovery_pb2 import Resource
from google.protobuf.message import DecodeError

from meshproxy.config.large_message import merge_in_steps
from meshproxy.config.messages import find_message, type_name
from meshproxy.config.subscription import VIRTUAL_HOST_TYPE
from meshproxy.xds.resources import Rejection, ResourceUpdate, name_of

_WRAPPER: Final = "type.googleapis.com/envoy.service.discovery.v3.Resource"


class Heartbeat:
    """A name whose resource is as it was, for a while longer. `version` may be empty."""

    __slots__ = ("index", "name", "ttl_ms", "version")

    def __init__(self, index: int, name: str, version: str, ttl_ms: int) -> None:
        self.index = index
        self.name = name
        self.version = version
        self.ttl_ms = ttl_ms


class Decoder:
    """Reads the resources of one response: `Any`s of state of the world, or the `Resource`s of delta.

    Of several of one name the first counts, as in Envoy. A name in a wrapper that is not that of what it holds is
    refused: nobody could say who is meant. (A virtual host's wrapper has the route configuration's name before it.)
    """

    def __init__(self, type_url: str, resources: Iterable[Any], version: str) -> None:
        self.type_url = type_url
        self.version = version
        self.updates: dict[str, ResourceUpdate] = {}
        self.heartbeats: list[Heartbeat] = []
        self.rejections: list[Rejection] = []
        self.present: set[str] = set()  # the names that the response has something to say of, be it refused
        self.nameless: bool = False  # it has something of which one cannot tell whose it is
        self._resources = resources
        self._kind = find_message(type_name(type_url))

    def steps(self) -> Iterator[None]:
        """Read all, one at a step; one that is large takes several."""
        for index, resource in enumerate(self._resources):
            if isinstance(resource, Resource):
                yield from self._read_wrapped(index, resource, resource.version)
            elif resource.type_url == _WRAPPER:
                yield from self._read_wrapper(index, resource.value)
            else:
                yield from self._read(index, resource, self.version)
            yield

    def _read_wrapper(self, index: int, data: bytes) -> Iterator[None]:
        try:
            wrapped = Resource.FromString(data)
        except DecodeError:
            self._refuse_unnamed(index, "is not a Resource")
            return
        wrapped.version = ""  # the response's counts
        yield from self._read_wrapped(index, wrapped, self.version)

    def _read_wrapped(self, index: int, wrapped: Any, version: str) -> Iterator[None]:
        name = wrapped.name or wrapped.resource_name.name
        ttl_ms = wrapped.ttl.ToMilliseconds() if wrapped.HasField("ttl") else 0
        if wrapped.HasField("resource"):
            yield from self._read(index, wrapped.resource, version, name, tuple(wrapped.aliases), max(ttl_ms, 0))
        elif not name:
            self._refuse_unnamed(index, "has neither a name nor a resource")
        else:
            self.present.add(name)
            self.heartbeats.append(Heartbeat(index, name, wrapped.version, max(ttl_ms, 0)))

    def _read(
        self, index: int, held: Any, version: str, name: str = "", aliases: tuple[str, ...] = (), ttl_ms: int = 0
    ) -> Iterator[None]:
        data = held.value
        message, reason = yield from self._parse(held.type_url, data)
        inner = "" if message is None or self.type_url == VIRTUAL_HOST_TYPE else name_of(self.type_url, message)
        name = name or inner
        if not name:
            self._refuse_unnamed(index, reason or "has no name")
            return
        again = name in self.present
        self.present.add(name)
        if message is None:
            self.refuse(index, name, reason)
        elif inner and inner != name:
            self.refuse(index, name, f"the name in it is {inner!r}")
        elif again:
            self.refuse(index, name, "the name is there twice; the first counts")
        else:
            self.updates[name] = ResourceUpdate(name, version, data, message, aliases, ttl_ms)

    def _parse(self, type_url: str, data: bytes) -> Generator[None, None, tuple[Any, str]]:
        """The message, or why there is none."""
        if self._kind is None:
            return None, f"the type {self.type_url} is not known"
        if type_url != self.type_url:
            return None, f"is of type {type_url!r}, in a response of {self.type_url!r}"
        message = self._kind()
        try:
            yield from merge_in_steps(message, data)
        except DecodeError:
            return None, f"the bytes are not a {type_name(self.type_url)}"
        return message, ""

    def refuse(self, index: int, name: str, reason: str) -> None:
        self.rejections.append(Rejection(name, f"resources[{index}]: {reason}"))

    def _refuse_unnamed(self, index: int, reason: str) -> None:
        self.nameless = True
        self.rejections.append(Rejection(f"resources[{index}]", reason))
