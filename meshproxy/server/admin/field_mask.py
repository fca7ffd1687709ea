"""Field masks as `/config_dump` applies them."""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from meshproxy.config.messages import find_message, type_name

_ANY: Final = "google.protobuf.Any"


def is_valid(paths: list[str], descriptor: Any) -> bool:
    """Whether every path leads to a field: through messages only, a repeated field at its end at most."""
    return bool(FieldMask(paths=paths).IsValidForDescriptor(descriptor)) and all(paths)


def trim(paths: list[str], message: Message) -> Message:
    """A copy with only what the (valid) paths name."""
    kept = type(message)()
    FieldMask(paths=paths).MergeMessage(message, kept)
    return kept


def trim_field(paths: list[str], name: str, message: Message) -> Message | None:
    """What the (valid) paths of a message keep of its field `name`, whose value is `message`; None for nothing."""
    if name in paths:
        return message
    within = [path.removeprefix(f"{name}.") for path in paths if path.startswith(f"{name}.")]
    kept = trim(within, message)
    return kept if kept.ListFields() else None


def trim_resource(paths: list[str], message: Any) -> Message | None:
    """A copy of an element of a config dump with only these paths. They go into its `Any`, where they must name fields
    of the message within. None when a path names nothing."""
    inner: dict[str, list[str]] = {}
    outer: list[str] = []
    for path in paths:
        name, _, rest = path.partition(".")
        field = message.DESCRIPTOR.fields_by_name.get(name)
        is_any = field is not None and field.message_type is not None and field.message_type.full_name == _ANY
        if is_any and not field.is_repeated:
            inner.setdefault(name, []).append(rest)
            outer.append(name)
        else:
            outer.append(path)
    if not is_valid(outer, message.DESCRIPTOR):
        return None
    kept: Any = trim(outer, message)
    for name, rests in inner.items():
        if kept.HasField(name) and not _trim_any(rests, getattr(kept, name)):
            return None
    return kept  # type: ignore[no-any-return]


def _trim_any(paths: list[str], packed: Any) -> bool:
    kind = find_message(type_name(packed.type_url))
    if kind is None or not is_valid(paths, kind.DESCRIPTOR):
        return False
    message = kind()
    message.ParseFromString(packed.value)
    packed.value = trim(paths, message).SerializeToString(deterministic=True)
    return True
