"""The resources of Istio's shapes, from their files."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

import meshproxy.filters.builtin  # noqa: F401  the filters' messages
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.json_message import MessageParser
from meshproxy.config.loader import load_value
from meshproxy.config.messages import find_message, type_name

DIRECTORY = Path(__file__).parent / "resources"


@functools.cache
def _resources(path: Path) -> tuple[AnyMessage, ...]:
    errors, found = ConfigErrors(), []
    for index, value in enumerate(load_value(path.read_bytes(), errors)):
        message = AnyMessage()
        MessageParser(errors).fill(message, value, f"{path.name}[{index}]")
        found.append(message)
    assert not errors, str(errors)
    return tuple(found)


def resources(proxy: str, kind: str) -> dict[str, Any]:
    """Those of `client` or `server`, in one of its files, by their names."""
    found: dict[str, Any] = {}
    for packed in _resources(DIRECTORY / proxy / f"{kind}.yaml"):
        message = unpacked(packed)
        found[getattr(message, "name", "") or message.cluster_name] = message
    return found


def without_istio(message: Any) -> Any:
    """A listener or a cluster as Envoy can have it that knows nothing of Istio's filters."""
    made = type(message)()
    made.CopyFrom(message)
    if hasattr(made, "filters"):
        del made.filters[:]
        return made
    for chain in (*made.filter_chains, made.default_filter_chain):
        _drop_istio(chain.filters)
        for entry in chain.filters:
            manager = unpacked(entry.typed_config)
            if hasattr(manager, "http_filters"):
                _drop_istio(manager.http_filters)
                entry.typed_config.Pack(manager)
    if not message.HasField("default_filter_chain"):
        made.ClearField("default_filter_chain")
    return made


def _drop_istio(filters: Any) -> None:
    kept = [entry for entry in filters if not entry.name.startswith("istio.")]
    del filters[:]
    filters.extend(kept)


def unpacked(packed: AnyMessage) -> Any:
    """The message that an Any holds."""
    made = find_message(type_name(packed.type_url))
    assert made is not None
    message: Message = made.FromString(packed.value)
    return message
