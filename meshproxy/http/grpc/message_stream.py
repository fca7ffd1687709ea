"""The messages of one direction of a call, for filters (docs/writing-filters.md)."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any, Final

from google.protobuf.message import DecodeError, Message

from meshproxy.codec.headers import HeaderMap
from meshproxy.errors import MeshProxyError
from meshproxy.http.grpc.messages import COMPRESSED, MessageReader, MessageTooLongError, frame

_LIMIT_BYTES: Final = 4 * 1024 * 1024  # what gRPC's own libraries take
# What zlib calls the formats of `grpc-encoding`.
_WINDOW_BITS: Final = {b"gzip": 31, b"deflate": 15}


class GrpcMessageError(MeshProxyError):
    """A message that is not what its headers, or its type, say."""


class GrpcMessages:
    """Made in a headers hook, of its headers, and used in the data hook: `read` what came, `write` what is to go on.

    Messages are bytes, or of the protobuf class `kind`. One that is compressed (gzip, deflate) comes uncompressed, and
    goes on so. The headers lose their content-length.
    """

    def __init__(self, headers: HeaderMap, kind: type[Message] | None = None, limit_bytes: int = _LIMIT_BYTES) -> None:
        """A message may have up to `limit_bytes`; no more than that waits for the rest of one."""
        self._kind: Any = kind
        self._reader = MessageReader(limit_bytes)
        self._encoding: bytes = headers.get(b"grpc-encoding") or b"identity"
        headers.remove(b"content-length")

    def read(self, data: bytes) -> list[Any]:
        """The messages that are whole with this piece of the body.

        Raises MessageTooLongError, and GrpcMessageError for one that cannot be read.
        """
        messages: list[Any] = []
        for flags, message in self._reader.feed(data):
            plain = self._decompress(message) if flags & COMPRESSED else message
            messages.append(plain if self._kind is None else self._parse(plain))
        return messages

    def write(self, messages: Iterable[Any]) -> bytes:
        """The body that these messages are."""
        return b"".join([frame(_to_bytes(message)) for message in messages])

    @property
    def partial(self) -> bool:
        """Whether some of a message has come, and not all: where the body ends now, it was cut short."""
        return self._reader.partial

    def _parse(self, message: bytes) -> Any:
        try:
            return self._kind.FromString(message)
        except DecodeError as error:
            raise GrpcMessageError(f"no {self._kind.DESCRIPTOR.full_name}: {error}") from error

    def _decompress(self, message: bytes) -> bytes:
        window_bits = _WINDOW_BITS.get(self._encoding)
        if window_bits is None:
            raise GrpcMessageError(f"a message is compressed as {self._encoding.decode('latin-1')}")
        decoder = zlib.decompressobj(window_bits)
        limit_bytes = self._reader.limit_bytes
        try:
            plain = decoder.decompress(message, limit_bytes + 1)
        except zlib.error as error:
            raise GrpcMessageError(f"a message is not what it is compressed as: {error}") from error
        if len(plain) > limit_bytes:
            raise MessageTooLongError(len(plain), limit_bytes)
        if not decoder.eof:
            raise GrpcMessageError("a compressed message is cut short")
        return plain


def _to_bytes(message: Any) -> bytes:
    return message if isinstance(message, bytes) else bytes(message.SerializeToString())
