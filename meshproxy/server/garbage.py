"""Keeping the garbage collector away from large configurations.

A full collection walks over every object there is: 200 ms with 10,000 endpoints, while requests wait. What a
configuration is made of lives until the next one comes, so a large one is taken out of the collector's sight. What else
there is at this moment goes along, open connections for example: reference counts free them, but for the cycles among
them. Those are collected when the process has become half as large again.
"""

from __future__ import annotations

import gc
from typing import Final

# Serialised; below that a collection of what was built takes a few milliseconds at most.
_LARGE_BYTES: Final = 64 * 1024


class Garbage:
    """The collector around a change of the configuration.

    It pauses while that is built, since it would look at all the new objects again and again, and settles when it is in
    force.
    """

    def __init__(self) -> None:
        self._paused: int = 0  # by so many
        self._resident: int = 0  # pages in memory after the last full collection

    def pause(self) -> None:
        """What is young garbage now does not stay."""
        self._paused += 1
        gc.collect(1)
        gc.disable()

    def resume(self) -> None:
        """One who has paused it is done."""
        self._paused = max(self._paused - 1, 0)
        if not self._paused:
            gc.enable()

    def rebase(self) -> None:
        """All that is there at the start is there: growth counts from here."""
        self._resident = _resident_pages()

    def settle(self, built_bytes: int) -> None:
        """So much was built, and is in force. Reference counts free most of what that replaces."""
        if built_bytes >= _LARGE_BYTES:
            self._put_away()
        self.resume()

    def _put_away(self) -> None:
        """While it is off: at its first look, it would walk over all that was made since it paused."""
        resident = _resident_pages()
        if resident > 1.5 * self._resident > 0:
            gc.unfreeze()
            gc.collect()
            self._resident = 0
        gc.freeze()
        self._resident = self._resident or resident


def _resident_pages() -> int:
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1])


GARBAGE = Garbage()
