"""The messages of protos/library.proto, from the descriptor set that `protoc` made of it."""

from pathlib import Path
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

DESCRIPTOR_SET: Final = (Path(__file__).parent / "protos" / "library.pb").read_bytes()
SERVICE: Final = "test.library.Library"


def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTOR_SET).file:
        pool.Add(file)
    return pool


_POOL: Final = _pool()


def message(name: str, /, **fields: Any) -> Any:
    """A message of the library, or another by its full name, with fields as JSON has them."""
    full_name = name if "." in name else f"test.library.{name}"
    made = message_factory.GetMessageClass(_POOL.FindMessageTypeByName(full_name))()
    return json_format.ParseDict(fields, made, descriptor_pool=_POOL)


def encoded(name: str, /, **fields: Any) -> bytes:
    """Such a message as bytes."""
    return bytes(message(name, **fields).SerializeToString(deterministic=True))


def decoded(name: str, data: bytes) -> dict[str, Any]:
    """The fields of a message in bytes, as JSON has them."""
    made = message(name)
    made.ParseFromString(data)
    fields: dict[str, Any] = json_format.MessageToDict(made, preserving_proto_field_name=True, descriptor_pool=_POOL)
    return fields
