"""Extensions by type URL: how an `Any` in a configuration finds the code that builds it.

`config/` knows no filter; each extension registers itself (its message type and its builder) in the registry of its
category, and `server/` imports them all.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from meshproxy.config.context import BuildContext
from meshproxy.config.typed_struct import unpack_any

T = TypeVar("T")


class Registry(Generic[T]):
    """One category of extensions (HTTP filters, access loggers …): type URL → (message class, what was registered)."""

    def __init__(self, category: str) -> None:
        self.category = category
        self._by_type_url: dict[str, tuple[type[Message], T]] = {}

    def register(self, message: type[Message], extension: T) -> None:
        """Make `extension` the one for messages of this type."""
        self._by_type_url[f"type.googleapis.com/{message.DESCRIPTOR.full_name}"] = (message, extension)

    def find(self, config: Any, path: str, context: BuildContext) -> tuple[Message, T] | None:
        """The unpacked configuration and its extension; None with an error at `path` when there is none.

        A TypedStruct (udpa or xds) is resolved to the message that it names.
        """
        message = unpack_any(config, path, context.errors)
        if message is None:
            return None
        held = self._by_type_url.get(f"type.googleapis.com/{message.DESCRIPTOR.full_name}")
        if held is None:
            known = ", ".join(sorted(url.rpartition("/")[2] for url in self._by_type_url))
            context.errors.add(
                path, f"{message.DESCRIPTOR.full_name} is not supported as a {self.category} (supported: {known})"
            )
            return None
        return message, held[1]

    def type_urls(self) -> list[str]:
        return sorted(self._by_type_url)
