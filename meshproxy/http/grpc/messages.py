"""Messages in the bodies of gRPC: each has a prefix of five bytes, its flags and its length (PROTOCOL-HTTP2)."""

from __future__ import annotations

from typing import Final

from meshproxy.errors import MeshProxyError

PREFIX_BYTES: Final = 5
COMPRESSED: Final = 1  # flag: the message is in the coding that `grpc-encoding` names
TRAILERS: Final = 0x80  # flag, in gRPC-Web only: no message, but the trailers

LONGEST: Final = 0xFFFF_FFFF  # bytes: what a prefix can say


class MessageTooLongError(MeshProxyError):
    """The prefix of a message announces more bytes than the reader takes."""

    def __init__(self, length: int, limit_bytes: int) -> None:
        super().__init__(f"a gRPC message of {length} bytes is beyond the limit of {limit_bytes}")
        self.length = length
        self.limit_bytes = limit_bytes


def prefix(length: int, flags: int = 0) -> bytes:
    """What stands before a message of that length."""
    return bytes((flags,)) + length.to_bytes(4, "big")


def frame(message: bytes, flags: int = 0) -> bytes:
    """A message with its prefix."""
    return prefix(len(message), flags) + message


class MessageReader:
    """Cuts a body that comes in any pieces into its messages."""

    def __init__(self, limit_bytes: int = LONGEST) -> None:
        """A message may have up to `limit_bytes`; no more than that and a prefix is ever kept."""
        self.limit_bytes = limit_bytes
        # Of a prefix, or of a message with its prefix, that has not come whole: in one piece, since it may come in as
        # many as it has bytes.
        self._kept = bytearray()
        self._size: int = 0
        self._needed: int = PREFIX_BYTES  # bytes of `_kept` with which reading goes on

    @property
    def partial(self) -> bool:
        """Whether some of a message has come, and not all: where the body ends now, it was cut short."""
        return self._size > 0

    @property
    def kept_bytes(self) -> int:
        """How much there is of a message that has not come whole."""
        return self._size

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """What the body goes on with: (flags, message) of those that are whole now.

        Raises MessageTooLongError at a prefix that announces more than the limit, before anything of that message is
        kept; messages before it in `data` are lost with it, and the reader is of no more use.
        """
        if self._size:
            self._kept += data
            self._size += len(data)
            if self._size < self._needed:
                return []
            data = bytes(self._kept)
            self._kept = bytearray()
            self._size = 0
        messages: list[tuple[int, bytes]] = []
        at = 0
        left = len(data)
        while left >= PREFIX_BYTES:
            length = int.from_bytes(data[at + 1 : at + PREFIX_BYTES], "big")
            if length > self.limit_bytes:
                raise MessageTooLongError(length, self.limit_bytes)
            whole = PREFIX_BYTES + length
            if left < whole:
                self._keep(data[at:], whole)
                return messages
            messages.append((data[at], data[at + PREFIX_BYTES : at + whole]))
            at += whole
            left -= whole
        if left:
            self._keep(data[at:], PREFIX_BYTES)
        return messages

    def _keep(self, rest: bytes, needed: int) -> None:
        self._kept = bytearray(rest)
        self._size = len(rest)
        self._needed = needed


class MessageScanner:
    """Finds where the messages of a body begin and end, and keeps none of it."""

    def __init__(self) -> None:
        self.count: int = 0  # messages; as in Envoy one counts from its first byte on
        self._prefix: bytes = b""  # what there is of one that has not come whole
        self._left: int = 0  # bytes of the message that are still to come

    def feed(self, data: bytes) -> list[int]:
        """What the body goes on with: the places in `data` right behind messages that end there."""
        ends: list[int] = []
        size = len(data)
        at = 0
        while at < size:
            if self._left:
                passed = min(self._left, size - at)
                self._left -= passed
                at += passed
            else:
                if not self._prefix:
                    self.count += 1
                missing = PREFIX_BYTES - len(self._prefix)
                self._prefix += data[at : at + missing]
                if len(self._prefix) < PREFIX_BYTES:
                    break
                at += missing
                self._left = int.from_bytes(self._prefix[1:], "big")
                self._prefix = b""
            if self._left == 0:
                ends.append(at)
        return ends
