"""The body of a request that waits for its connection."""

from __future__ import annotations


class WaitingBody:
    """Its pieces so far. `full`: they are more than the limit, so that its source is to pause until they are sent."""

    def __init__(self) -> None:
        self.full: bool = False
        self._pieces: list[bytes] = []
        self._bytes: int = 0

    def add(self, data: bytes, limit_bytes: int) -> bool:
        """True when this made it full; a limit of 0 is none."""
        self._pieces.append(data)
        self._bytes += len(data)
        if self.full or not limit_bytes or self._bytes <= limit_bytes:
            return False
        self.full = True
        return True

    def take(self) -> bytes:
        """All of it, in one piece."""
        return b"".join(self._pieces)
