"""What a control plane's response is to the proxy: new resources, names that are gone, and what was refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from meshproxy.config.subscription import (
    CLUSTER_TYPE,
    ENDPOINT_TYPE,
    EXTENSION_TYPE,
    LISTENER_TYPE,
    ROUTE_TYPE,
    RUNTIME_TYPE,
    SECRET_TYPE,
    VIRTUAL_HOST_TYPE,
)

# All there is: it is asked for by an empty list of names, or by this one.
WILDCARD: Final = "*"

# In which order types are asked for, and given back from a cache: whoever is named comes before who names it (as
# Envoy's clusters, endpoints, listeners, routes).
TYPE_ORDER: Final = (
    RUNTIME_TYPE,
    CLUSTER_TYPE,
    ENDPOINT_TYPE,
    LISTENER_TYPE,
    ROUTE_TYPE,
    VIRTUAL_HOST_TYPE,
    SECRET_TYPE,
    EXTENSION_TYPE,
)
# Types of which a state-of-the-world response has all there is: who is absent from it is gone.
WHOLE_TYPES: Final = frozenset({LISTENER_TYPE, CLUSTER_TYPE})

# The field that has a resource's name, where it is not `name`.
_NAME_FIELDS: Final = {ENDPOINT_TYPE: "cluster_name"}


@dataclass(slots=True)
class ResourceUpdate:
    """A resource as it came. `data` is the serialised `message`: the resource itself, without its wrapping."""

    name: str
    version: str  # its own in delta, the response's in state of the world
    data: bytes
    message: Any
    aliases: tuple[str, ...] = ()
    ttl_ms: int = 0  # 0: it lasts


@dataclass(frozen=True, slots=True)
class Rejection:
    """A resource that is not taken. `name` may be its place in the response, where it has no name."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class ResourceSink:
    """Whom the client tells what control planes say; the source is the key of its ConfigSource."""

    async def apply(
        self,
        source: bytes,
        type_url: str,
        updates: list[ResourceUpdate],
        removed: list[str],
        version: str,
        rejections: Sequence[Rejection] = (),
    ) -> list[Rejection]:
        """Take new resources and let go those that are gone; the ones that are returned were not taken, and the reasons
        go to the control plane. Another call for the type comes when this one is done; other types do not wait.

        `rejections` are what the client has refused by itself of the same response: what nobody could read, or tell
        whose it is. The control plane hears of them anyway.
        """
        raise NotImplementedError

    def on_failure(self, source: bytes, type_url: str, reason: str) -> None:
        """The source cannot be reached, or has gone: whoever asked it for resources of the type waits on."""
        raise NotImplementedError

    def on_attempt(self, source: bytes, type_url: str) -> None:
        """The source is asked (again, or for more), or answered."""
        raise NotImplementedError


def name_of(type_url: str, message: Any) -> str:
    """The name that a resource has in itself."""
    return str(getattr(message, _NAME_FIELDS.get(type_url, "name")))


def type_rank(type_url: str) -> int:
    """The place of a type in `TYPE_ORDER`; unknown ones come last."""
    return TYPE_ORDER.index(type_url) if type_url in TYPE_ORDER else len(TYPE_ORDER)
