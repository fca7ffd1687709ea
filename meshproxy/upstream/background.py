"""Work in steps beside the traffic: one step a turn of the loop."""

from __future__ import annotations

from collections.abc import Iterator

from meshproxy.net.dispatcher import Dispatcher


class Background:
    """One piece of work at a time, whose steps take about a millisecond each."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._steps: Iterator[None] | None = None

    def start(self, steps: Iterator[None]) -> None:
        """Begin with the next turn; nothing else may be under way."""
        assert self._steps is None
        self._steps = steps
        self._dispatcher.post(self._step)

    def stop(self) -> None:
        """Leave what is under way as it is."""
        self._steps = None

    def _step(self) -> None:
        steps = self._steps
        if steps is None:
            return
        try:
            next(steps)
        except StopIteration:
            self._steps = None
        else:
            self._dispatcher.post(self._step)
