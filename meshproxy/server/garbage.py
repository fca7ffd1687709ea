"""Keeping the garbage collector away from configurations.

A full collection walks over every object there is: 200 ms with 10,000 endpoints, while requests wait. What a
configuration is made of lives until the next one comes, so it is taken out of the collector's sight; most of what is
replaced goes by its reference counts. What does not is collected when the process has become twice as large.
"""

from __future__ import annotations

import gc


class Garbage:
    """The collector around a change of the configuration.

    It pauses while that is built, since it would look at all the new objects again and again, and settles when it is in
    force.
    """

    def __init__(self) -> None:
        self._resident: int = 0  # pages in memory after the last full collection

    def pause(self) -> None:
        gc.disable()

    def resume(self) -> None:
        gc.enable()

    def settle(self) -> None:
        """What is there now is out of sight from here on."""
        resident = _resident_pages()
        if resident > 2 * self._resident > 0:
            gc.unfreeze()
            gc.collect()
            self._resident = 0
        gc.freeze()
        self._resident = self._resident or resident


def _resident_pages() -> int:
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1])


GARBAGE = Garbage()
