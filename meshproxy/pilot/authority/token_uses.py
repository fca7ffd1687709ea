"""Where each token is shown: from any other place it proves nothing, since there it was stolen.

An agent shows its token again and again from one address, and the next agent has a token of its own. What is remembered
is a hash, until the token ends: of what is signed, since a signature can be written in several ways. Of more tokens
than anybody has, the first ones are forgotten. Each pilot remembers for itself.
"""

from __future__ import annotations

import hashlib
from typing import Final

_MOST: Final = 100_000


class TokenUses:
    """Of tokens that were verified: nobody fills it without."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._places: dict[bytes, tuple[str, float]] = {}  # and when the token ends, Unix time

    def is_at_home(self, token: str, address: str, ends: float, now: float) -> bool:
        """Whether the token was never shown from another place than that of `address`, a peer's."""
        place = _place(address)
        key = hashlib.sha256(token.rpartition(".")[0].encode()).digest()
        known = self._places.get(key)
        if known is not None:
            return known[0] == place
        if len(self._places) >= self._most:
            self._forget(now)
        self._places[key] = (place, ends)
        return True

    def _forget(self, now: float) -> None:
        """Those that have ended; where there are none, the oldest tenth."""
        kept = {key: use for key, use in self._places.items() if use[1] > now}
        if len(kept) == len(self._places):
            kept = dict(list(kept.items())[self._most // 10 + 1 :])
        self._places = kept


def _place(address: str) -> str:
    """The host of `10.0.0.1:4711`; all of a node's Unix sockets are one place."""
    return "unix" if address.startswith("unix:") else address.rpartition(":")[0]
